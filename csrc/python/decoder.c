/* _core.Decoder: a decoder of text over mapped weights. */
#include "python/decoder.h"

#include <stddef.h>
#include <string.h>

/* ---- construction ---- */

typedef struct {
    bool is_t5;
    qv_t5_decoder_config t5;
    qv_bert_decoder_config bert;
} decoder_config;

/* Whether the head is tied, in newer files told apart from whether it is scaled; 0, or -1 with an exception. */
static int read_tied(PyObject *dict, bool *tied) {
    static const char *const keys[] = {"tie_word_embeddings", "scale_decoder_outputs"};
    int result = 0;
    *tied = true;
    for (size_t i = 0; i < 2 && result == 0; i++) {
        PyObject *value = qvpy_config_item(dict, keys[i]);
        if (value != NULL && !PyBool_Check(value)) {
            PyErr_Format(PyExc_ValueError, "config: '%s' is %R, expected true or false", keys[i], value);
            result = -1;
        } else if (value != NULL) {
            *tied = value == Py_True;
        }
        Py_XDECREF(value);
    }
    return result;
}

static int read_t5_decoder(PyObject *dict, qv_t5_decoder_config *config) {
    static const qvpy_setting layers = QVPY_SETTING("num_decoder_layers", QVPY_SIZE, qv_t5_config, num_layers);
    return read_tied(dict, &config->tied) < 0 || qvpy_read_t5(dict, &config->sizes) < 0
               ? -1
               : qvpy_read_settings(&config->sizes, dict, &layers, 1);
}

static int read_bert_decoder(PyObject *dict, qv_bert_decoder_config *config) {
    static const qvpy_setting width = QVPY_SETTING("encoder_width", QVPY_SIZE, qv_bert_decoder_config, cross_width);
    *config = (qv_bert_decoder_config){.sizes = {.activation = QV_GELU, .eps = 1e-12f}};
    return qvpy_read_text_sizes(dict, &config->sizes) < 0 ? -1 : qvpy_read_settings(config, dict, &width, 1);
}

static int read_config(PyObject *dict, void *out) {
    decoder_config *config = out;
    PyObject *type = qvpy_config_item(dict, "model_type");
    const char *text = type != NULL && PyUnicode_Check(type) ? PyUnicode_AsUTF8(type) : NULL;
    int result = -1;
    PyErr_Clear();
    config->is_t5 = text != NULL && strcmp(text, "t5") == 0;
    if (config->is_t5) {
        result = read_t5_decoder(dict, &config->t5);
    } else if (text != NULL && strcmp(text, "bert") == 0) {
        result = read_bert_decoder(dict, &config->bert);
    } else {
        PyErr_Format(PyExc_ValueError, "config: 'model_type' is %R, expected 'bert' or 't5'", type != NULL ? type : Py_None);
    }
    Py_XDECREF(type);
    return result;
}

static qv_status load(void **model, const void *given, qv_loader *loader) {
    const decoder_config *config = given;
    qv_decoder *decoder = NULL;
    qv_status status = config->is_t5 ? qv_t5_decoder_load(&decoder, &config->t5, loader)
                                     : qv_bert_decoder_load(&decoder, &config->bert, loader);
    *model = decoder;
    return status;
}

static void free_model(void *decoder) {
    qv_decoder_free(decoder);
}

/* ---- steps ---- */

/* ids [rows, n] of a step, and how many of each row count. */
typedef struct {
    PyArrayObject *ids, *lengths;
    qv_decoder_tokens tokens;
} step_tokens;

static int read_tokens(PyObject *ids, PyObject *lengths, const qv_decoder_cache *cache, step_tokens *step) {
    *step = (step_tokens){.ids = NULL};
    /* Copies: the core checks the numbers and uses them later, and meanwhile another thread may write to the caller's. */
    PyArrayObject *integers = (PyArrayObject *)PyArray_FROM_OF(ids, NPY_ARRAY_ENSURECOPY);
    if (integers == NULL) {
        return -1;
    }
    if (!PyArray_ISINTEGER(integers)) {
        PyErr_Format(PyExc_TypeError, "ids: dtype %S, expected integers", (PyObject *)PyArray_DESCR(integers));
    } else {
        step->ids = qvpy_array((PyObject *)integers, "ids", NPY_INT64, 2);
    }
    Py_DECREF(integers);
    if (step->ids == NULL) {
        return -1;
    }
    if ((size_t)PyArray_DIM(step->ids, 0) != cache->rows || PyArray_DIM(step->ids, 1) == 0) {
        PyErr_Format(PyExc_ValueError, "ids has shape [%zd, %zd], expected [%zu, n], at least one for each row of the cache",
                     (Py_ssize_t)PyArray_DIM(step->ids, 0), (Py_ssize_t)PyArray_DIM(step->ids, 1), cache->rows);
        return -1;
    }
    if (lengths != Py_None) {
        step->lengths = qvpy_copy_lengths(lengths);
        if (step->lengths == NULL) {
            return -1;
        }
        if ((size_t)PyArray_DIM(step->lengths, 0) != cache->rows) {
            PyErr_Format(PyExc_ValueError, "lengths has %zd items, expected %zu, the rows of the cache",
                         (Py_ssize_t)PyArray_DIM(step->lengths, 0), cache->rows);
            return -1;
        }
    }
    step->tokens = (qv_decoder_tokens){PyArray_DATA(step->ids), step->lengths != NULL ? PyArray_DATA(step->lengths) : NULL,
                                       (size_t)PyArray_DIM(step->ids, 1)};
    return 0;
}

static void release_tokens(step_tokens *step) {
    Py_XDECREF(step->ids);
    Py_XDECREF(step->lengths);
}

static PyObject *decoder_step(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"cache", "ids", "all", "lengths", NULL};
    PyObject *cache_object, *ids, *lengths = Py_None;
    int all = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO|pO:step", names, &cache_object, &ids, &all, &lengths)) {
        return NULL;
    }
    qvpy_decoder_cache *cache = qvpy_enter_cache(self, cache_object);
    step_tokens step = {.ids = NULL};
    PyArrayObject *logits = NULL;
    qvpy_call call;
    if (cache == NULL || read_tokens(ids, lengths, &cache->cache, &step) < 0) {
        goto done;
    }
    size_t V = ((const qv_decoder *)self->model)->vocab_size, shape[3] = {cache->cache.rows, all ? step.tokens.n : V, V};
    logits = qvpy_new_floats(all ? 3 : 2, shape);
    if (logits == NULL || qvpy_begin(&call, self) < 0 ||
        qvpy_end(&call, qv_decoder_step(self->model, &call.core, PyArray_DATA(logits), &cache->cache, &step.tokens, all != 0,
                                        &call.err)) < 0) {
        Py_CLEAR(logits);
    }
done:
    release_tokens(&step);
    qvpy_leave_cache(cache);
    return (PyObject *)logits;
}

static PyObject *decoder_attend(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"cache", "ids", "lengths", NULL};
    PyObject *cache_object, *ids, *lengths = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO|O:attend", names, &cache_object, &ids, &lengths)) {
        return NULL;
    }
    qvpy_decoder_cache *cache = qvpy_enter_cache(self, cache_object);
    step_tokens step = {.ids = NULL};
    PyArrayObject *weights = NULL;
    qvpy_call call;
    if (cache == NULL || read_tokens(ids, lengths, &cache->cache, &step) < 0) {
        goto done;
    }
    size_t shape[3] = {cache->cache.rows, step.tokens.n, 0};
    for (size_t r = 0; r < shape[0]; r++) {
        size_t seen = qv_decoder_states_seen(&cache->cache, r);
        shape[2] = seen > shape[2] ? seen : shape[2];
    }
    weights = qvpy_new_floats(3, shape);
    if (weights == NULL || qvpy_begin(&call, self) < 0 ||
        qvpy_end(&call, qv_decoder_attend(self->model, &call.core, PyArray_DATA(weights), shape[2], &cache->cache,
                                          &step.tokens, &call.err)) < 0) {
        Py_CLEAR(weights);
    }
done:
    release_tokens(&step);
    qvpy_leave_cache(cache);
    return (PyObject *)weights;
}

static PyObject *decoder_reorder(qvpy_model *self, PyObject *arguments) {
    PyObject *cache_object, *parents_object, *result = NULL;
    if (!PyArg_ParseTuple(arguments, "OO:reorder", &cache_object, &parents_object)) {
        return NULL;
    }
    PyArrayObject *parents = qvpy_copy(parents_object, "parents", NPY_INT32, 1);
    qvpy_decoder_cache *cache = parents != NULL ? qvpy_enter_cache(self, cache_object) : NULL;
    qvpy_call call;
    if (cache == NULL) {
        goto done;
    }
    if (qvpy_begin(&call, self) == 0 &&
        qvpy_end(&call, qv_decoder_reorder(self->model, &call.core, &cache->cache, PyArray_DATA(parents),
                                           (size_t)PyArray_DIM(parents, 0), &call.err)) == 0) {
        result = Py_BuildValue("");
    }
done:
    Py_XDECREF(parents);
    qvpy_leave_cache(cache);
    return result;
}

/* ---- attributes and types ---- */

static PyGetSetDef decoder_attributes[] = {
    QVPY_SIZE_OF(qv_decoder, "vocab_size", vocab_size, "Ids are below it."),
    QVPY_SIZE_OF(qv_decoder, "width", width, "Width of a token's state."),
    QVPY_SIZE_OF(qv_decoder, "cross_width", kind.cross_width, "Width of the states that cross-attention reads."),
    QVPY_SIZE_OF(qv_decoder, "layers", L, "Number of blocks."),
    QVPY_SIZE_OF(qv_decoder, "max_tokens", max_tokens,
                 "The most tokens a row may have; 0: the architecture sets no limit."),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef decoder_methods[] = {
    {"read", QVPY_KEYWORDS(qvpy_decoder_read),
     "read(states, lengths=None, tokens=0)\n--\n\n"
     "What cross-attention reads of states [S, cross_width], as a DecoderMemory: one sequence, or several that lie one after\n"
     "another, of lengths [B]. tokens: about how many are going to read a sequence, of all rows together (0: any number);\n"
     "where they are few, the memory holds no keys and values, which cost more than they save."},
    {"begin", QVPY_KEYWORDS(qvpy_decoder_begin),
     "begin(memory, rows, capacity, memory_of=None, tokens=None)\n--\n\n"
     "Empty rows of up to `capacity` tokens each, as a DecoderCache. memory: a DecoderMemory, or several, whose sequences count\n"
     "on; memory_of int32 [rows]: which sequence a row reads (None: the only one, or each its own); tokens int32 [rows, n]:\n"
     "which states of it (None: all)."},
    {"step", QVPY_KEYWORDS(decoder_step),
     "step(cache, ids, all=False, lengths=None)\n--\n\n"
     "Logits [rows, vocab_size] behind each row's last token, once ids [rows, n] have joined the rows; [rows, n, vocab_size]\n"
     "behind all of them with all=True. lengths [rows]: how many of the n count in a row; logits behind the others are zero."},
    {"attend", QVPY_KEYWORDS(decoder_attend),
     "attend(cache, ids, lengths=None)\n--\n\n"
     "A step that gives, in place of logits, how much each token attends to each state that its row sees: float32 [rows, n, S],\n"
     "the mean over blocks and heads, each token's sum 1."},
    {"reorder", (PyCFunction)(void (*)(void))decoder_reorder, METH_VARARGS,
     "reorder(cache, parents)\n--\n\nRow r becomes what row parents[r] was; parents int32 [rows']."},
    {"gradient", (PyCFunction)(void (*)(void))qvpy_decoder_gradient, METH_VARARGS,
     "gradient(states, lengths, ids, ids_lengths)\n--\n\n"
     "Of texts, the first ids_lengths[t] of ids [T, n], start token first, each reading its own lengths[t] of states\n"
     "[S, cross_width]: the log-probabilities of all tokens behind the first, one text after another, and the gradient\n"
     "[S, cross_width] of each text's sum with respect to its states. Of a BERT decoder."},
    {NULL, NULL, 0, NULL},
};

static PyObject *create(PyTypeObject *type, PyObject *arguments, PyObject *keywords);

static const qvpy_kind kind = {
    .name = "qavit._core.Decoder",
    .doc = "Decoder(config, weights, precision='float32', prefix='', device=None)\n--\n\n"
           "A decoder of text over mapped weights; config['model_type']: 'bert' or 't5'.",
    .prefix = "",
    .config_size = sizeof(decoder_config),
    .read = read_config,
    .load = load,
    .free = free_model,
    .create = create,
    .methods = decoder_methods,
    .attributes = decoder_attributes,
};

static PyObject *create(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    return qvpy_model_new(type, arguments, keywords, &kind);
}

int qvpy_add_decoder(PyObject *module) {
    return qvpy_add_decoder_rows(module) < 0 ? -1 : qvpy_add_model(module, &kind);
}
