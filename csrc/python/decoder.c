/* _core.Decoder: a decoder of text over mapped weights; _core.DecoderMemory: what its cross-attention reads;
 * _core.DecoderCache: the rows that it is writing. */
#include "python/binding.h"

#include "models/decoder.h"

#include <stddef.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    qv_decoder_memory memory;
    qvpy_model *owner;
} MemoryObject;

typedef struct {
    PyObject_HEAD
    qv_decoder_cache cache;
    qvpy_model *owner;
    PyObject *memories; /* a tuple, which keeps them alive */
    bool busy;          /* a call without the GIL is working on it */
} CacheObject;

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

/* ---- memories ---- */

/* A new object of a type that has nothing to refer to yet: not for the collector. */
static PyObject *allocate(PyTypeObject *type) {
    PyObject *object = type->tp_alloc(type, 0);
    if (object != NULL) {
        PyObject_GC_UnTrack(object);
    }
    return object;
}

/* A new copy of lengths [count], none of them negative, which is how the core has them. */
static PyArrayObject *copy_lengths(PyObject *object) {
    PyArrayObject *given = qvpy_array(object, "lengths", NPY_INTP, 1), *lengths = NULL;
    lengths = given != NULL ? (PyArrayObject *)PyArray_NewCopy(given, NPY_CORDER) : NULL;
    Py_XDECREF(given);
    for (npy_intp b = 0; lengths != NULL && b < PyArray_DIM(lengths, 0); b++) {
        npy_intp length = ((npy_intp *)PyArray_DATA(lengths))[b];
        if (length < 0) {
            PyErr_Format(PyExc_ValueError, "lengths: item %zd is %zd, expected 1 or more", (Py_ssize_t)b, (Py_ssize_t)length);
            Py_CLEAR(lengths);
        }
    }
    return lengths;
}

/* lengths [count], which are all of S; None: one sequence */
static int read_lengths(PyObject *object, size_t S, PyArrayObject **array, size_t *count) {
    *array = NULL;
    *count = 1;
    if (object == Py_None) {
        return 0;
    }
    *array = copy_lengths(object);
    if (*array == NULL) {
        return -1;
    }
    const size_t *lengths = PyArray_DATA(*array);
    size_t total = 0;
    *count = (size_t)PyArray_DIM(*array, 0);
    for (size_t b = 0; b < *count && total <= S; b++) {
        total = lengths[b] <= S - total ? total + lengths[b] : S + 1;
    }
    if (total != S) {
        PyErr_Format(PyExc_ValueError, "lengths: %s %zu, the number of states", total > S ? "their sum is above" : "their sum is below", S);
        return -1;
    }
    return 0;
}

static PyObject *decoder_read(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"states", "lengths", "tokens", NULL};
    PyObject *states_object, *lengths_object = Py_None;
    Py_ssize_t tokens = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|On:read", names, &states_object, &lengths_object, &tokens)) {
        return NULL;
    }
    size_t W = ((const qv_decoder *)self->model)->kind.cross_width, count;
    MemoryObject *memory = NULL;
    qvpy_call call;
    PyArrayObject *lengths = NULL, *states = qvpy_float_array(states_object, "states", 2);
    if (states == NULL) {
        return NULL;
    }
    size_t S = (size_t)PyArray_DIM(states, 0);
    if ((size_t)PyArray_DIM(states, 1) != W || tokens < 0) {
        PyErr_Format(PyExc_ValueError, "states has shape [%zu, %zd], expected [S, %zu]; tokens is %zd, expected 0 or more", S,
                     (Py_ssize_t)PyArray_DIM(states, 1), W, tokens);
        goto done;
    }
    if (read_lengths(lengths_object, S, &lengths, &count) < 0) {
        goto done;
    }
    memory = (MemoryObject *)allocate(qvpy_state_of(Py_TYPE(self))->decoder_memory);
    if (memory == NULL) {
        goto done;
    }
    Py_INCREF(self);
    memory->owner = self;
    if (qvpy_begin(&call, self) < 0 ||
        qvpy_end(&call, qv_decoder_read(self->model, &call.core, &memory->memory, PyArray_DATA(states),
                                        lengths != NULL ? PyArray_DATA(lengths) : &S, count, (size_t)tokens, &call.err)) < 0) {
        Py_CLEAR(memory);
    } else {
        PyObject_GC_Track(memory);
    }
done:
    Py_XDECREF(lengths);
    Py_DECREF(states);
    return (PyObject *)memory;
}

static int memory_traverse(MemoryObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    return 0;
}

static void memory_dealloc(MemoryObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->owner != NULL) {
        qv_decoder_memory_free(&self->memory, self->owner->model);
        Py_DECREF(self->owner);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- caches ---- */

/* A new tuple of the memories that were given, one or several, all of this decoder; *count their sequences. */
static PyObject *gather_memories(qvpy_model *self, PyObject *object, size_t *count) {
    PyTypeObject *type = qvpy_state_of(Py_TYPE(self))->decoder_memory;
    PyObject *memories = Py_TYPE(object) == type ? PyTuple_Pack(1, object) : PySequence_Tuple(object);
    *count = 0;
    for (Py_ssize_t i = 0; memories != NULL && i < PyTuple_GET_SIZE(memories); i++) {
        PyObject *item = PyTuple_GET_ITEM(memories, i);
        if (Py_TYPE(item) != type) {
            PyErr_Format(PyExc_TypeError, "memory: expected a DecoderMemory or several, got %s", Py_TYPE(item)->tp_name);
            Py_CLEAR(memories);
        } else if (((MemoryObject *)item)->owner != self) {
            PyErr_SetString(PyExc_ValueError, "memory: it was read by another model");
            Py_CLEAR(memories);
        } else {
            *count += ((MemoryObject *)item)->memory.count;
        }
    }
    return memories;
}

/* Sequence `number` of all memories' together. */
static qv_decoder_source find_source(PyObject *memories, size_t number) {
    Py_ssize_t i = 0;
    const qv_decoder_memory *memory = &((MemoryObject *)PyTuple_GET_ITEM(memories, i))->memory;
    while (number >= memory->count) {
        number -= memory->count;
        memory = &((MemoryObject *)PyTuple_GET_ITEM(memories, ++i))->memory;
    }
    return (qv_decoder_source){memory, number};
}

/* source [rows] from memory_of [rows], or None: the only sequence, or one a row; 0, or -1 with an exception. */
static int choose_sources(qv_decoder_source *source, size_t rows, PyObject *memories, size_t count, PyArrayObject *memory_of) {
    const npy_int32 *chosen = memory_of != NULL ? PyArray_DATA(memory_of) : NULL;
    if (chosen == NULL && count != 1 && count != rows) {
        PyErr_Format(PyExc_ValueError, "memory: %zu sequences for %zu rows; memory_of must say which each row reads", count,
                     rows);
        return -1;
    }
    if (chosen != NULL && (size_t)PyArray_DIM(memory_of, 0) != rows) {
        PyErr_Format(PyExc_ValueError, "memory_of has %zd items, expected %zu, the rows",
                     (Py_ssize_t)PyArray_DIM(memory_of, 0), rows);
        return -1;
    }
    for (size_t r = 0; r < rows; r++) {
        if (chosen != NULL && (chosen[r] < 0 || (size_t)chosen[r] >= count)) {
            PyErr_Format(PyExc_ValueError, "memory_of: row %zu reads %d, expected 0 to %zu", r, (int)chosen[r], count - 1);
            return -1;
        }
        source[r] = find_source(memories, chosen != NULL ? (size_t)chosen[r] : count == 1 ? 0 : r);
    }
    return 0;
}

static int optional_integers(PyObject *object, const char *argument, int dims, PyArrayObject **array) {
    *array = object != Py_None ? qvpy_array(object, argument, NPY_INT32, dims) : NULL;
    return object != Py_None && *array == NULL ? -1 : 0;
}

/* A cache on memories, whose reference it takes over. */
static CacheObject *new_cache(qvpy_model *self, PyObject *memories) {
    CacheObject *cache = (CacheObject *)allocate(qvpy_state_of(Py_TYPE(self))->decoder_cache);
    if (cache == NULL) {
        Py_DECREF(memories);
        return NULL;
    }
    Py_INCREF(self);
    cache->owner = self;
    cache->memories = memories;
    return cache;
}

static PyObject *decoder_begin(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"memory", "rows", "capacity", "memory_of", "tokens", NULL};
    PyObject *memory_object, *memory_of_object = Py_None, *tokens_object = Py_None;
    Py_ssize_t rows, capacity;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "Onn|OO:begin", names, &memory_object, &rows, &capacity,
                                     &memory_of_object, &tokens_object)) {
        return NULL;
    }
    if (rows < 1 || capacity < 1) {
        return PyErr_Format(PyExc_ValueError, "%zd rows of up to %zd tokens, expected at least one of each", rows, capacity);
    }
    size_t count;
    PyArrayObject *memory_of = NULL, *tokens = NULL;
    qv_decoder_source *source = NULL;
    CacheObject *cache = NULL;
    PyObject *memories = gather_memories(self, memory_object, &count);
    if (memories == NULL || (cache = new_cache(self, memories)) == NULL) {
        return NULL;
    }
    bool done = false;
    qv_error err;
    if (optional_integers(memory_of_object, "memory_of", 1, &memory_of) < 0 ||
        optional_integers(tokens_object, "tokens", 2, &tokens) < 0) {
        goto done;
    }
    if (tokens != NULL && PyArray_DIM(tokens, 0) != rows) {
        PyErr_Format(PyExc_ValueError, "tokens has %zd rows, expected %zd", (Py_ssize_t)PyArray_DIM(tokens, 0), rows);
        goto done;
    }
    source = PyMem_Calloc((size_t)rows, sizeof *source);
    if (source == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (choose_sources(source, (size_t)rows, memories, count, memory_of) < 0) {
        goto done;
    }
    done = qv_decoder_begin(self->model, &cache->cache, (size_t)rows, (size_t)capacity, source,
                            tokens != NULL ? PyArray_DATA(tokens) : NULL,
                            tokens != NULL ? (size_t)PyArray_DIM(tokens, 1) : 0, &err) == QV_OK;
    if (!done) {
        qvpy_raise(&err);
    }
done:
    PyMem_Free(source);
    Py_XDECREF(memory_of);
    Py_XDECREF(tokens);
    if (done) {
        PyObject_GC_Track(cache);
    } else {
        Py_CLEAR(cache);
    }
    return (PyObject *)cache;
}

static int cache_traverse(CacheObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    Py_VISIT(self->memories);
    return 0;
}

static void cache_dealloc(CacheObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->owner != NULL) {
        qv_decoder_cache_free(&self->cache, self->owner->model);
        Py_DECREF(self->owner);
    }
    Py_XDECREF(self->memories);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The cache that is meant, for this thread alone until leave_cache; NULL with an exception. */
static CacheObject *enter_cache(qvpy_model *self, PyObject *object) {
    if (Py_TYPE(object) != qvpy_state_of(Py_TYPE(self))->decoder_cache) {
        PyErr_Format(PyExc_TypeError, "cache: expected a DecoderCache, got %s", Py_TYPE(object)->tp_name);
        return NULL;
    }
    CacheObject *cache = (CacheObject *)object;
    if (cache->owner != self) {
        PyErr_SetString(PyExc_ValueError, "cache: it was begun by another model");
        return NULL;
    }
    if (cache->busy) {
        PyErr_SetString(PyExc_RuntimeError, "cache: another thread is writing to it; begin one for each thread");
        return NULL;
    }
    cache->busy = true;
    Py_INCREF(cache);
    return cache;
}

static void leave_cache(CacheObject *cache) {
    if (cache != NULL) {
        cache->busy = false;
        Py_DECREF(cache);
    }
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
        step->lengths = copy_lengths(lengths);
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
    CacheObject *cache = enter_cache(self, cache_object);
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
    leave_cache(cache);
    return (PyObject *)logits;
}

static PyObject *decoder_attend(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"cache", "ids", "lengths", NULL};
    PyObject *cache_object, *ids, *lengths = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO|O:attend", names, &cache_object, &ids, &lengths)) {
        return NULL;
    }
    CacheObject *cache = enter_cache(self, cache_object);
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
    leave_cache(cache);
    return (PyObject *)weights;
}

static PyObject *decoder_reorder(qvpy_model *self, PyObject *arguments) {
    PyObject *cache_object, *parents_object, *result = NULL;
    if (!PyArg_ParseTuple(arguments, "OO:reorder", &cache_object, &parents_object)) {
        return NULL;
    }
    PyArrayObject *given = qvpy_array(parents_object, "parents", NPY_INT32, 1), *parents = NULL;
    CacheObject *cache = given != NULL ? enter_cache(self, cache_object) : NULL;
    qvpy_call call;
    if (cache == NULL || (parents = (PyArrayObject *)PyArray_NewCopy(given, NPY_CORDER)) == NULL) {
        goto done;
    }
    if (qvpy_begin(&call, self) == 0 &&
        qvpy_end(&call, qv_decoder_reorder(self->model, &call.core, &cache->cache, PyArray_DATA(parents),
                                           (size_t)PyArray_DIM(parents, 0), &call.err)) == 0) {
        result = Py_BuildValue("");
    }
done:
    Py_XDECREF(given);
    Py_XDECREF(parents);
    leave_cache(cache);
    return result;
}

/* ---- attributes and types ---- */

static PyObject *cache_lengths(CacheObject *self, void *unused) {
    (void)unused;
    const npy_intp rows = (npy_intp)self->cache.rows;
    PyArrayObject *lengths = (PyArrayObject *)PyArray_SimpleNew(1, &rows, NPY_INTP);
    for (npy_intp r = 0; lengths != NULL && r < rows; r++) {
        ((npy_intp *)PyArray_DATA(lengths))[r] = (npy_intp)self->cache.length[r];
    }
    return (PyObject *)lengths;
}

static PyObject *memory_absorbed(MemoryObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(self->memory.kv == NULL);
}

static PyGetSetDef decoder_attributes[] = {
    QVPY_SIZE_OF(qv_decoder, "vocab_size", vocab_size, "Ids are below it."),
    QVPY_SIZE_OF(qv_decoder, "width", width, "Width of a token's state."),
    QVPY_SIZE_OF(qv_decoder, "cross_width", kind.cross_width, "Width of the states that cross-attention reads."),
    QVPY_SIZE_OF(qv_decoder, "layers", L, "Number of blocks."),
    QVPY_SIZE_OF(qv_decoder, "max_tokens", max_tokens,
                 "The most tokens a row may have; 0: the architecture sets no limit."),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyGetSetDef memory_attributes[] = {
    {"absorbed", (getter)memory_absorbed, NULL, "Whether it holds the states alone, without keys and values.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyGetSetDef cache_attributes[] = {
    {"lengths", (getter)cache_lengths, NULL, "How many tokens each row holds, [rows].", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef decoder_methods[] = {
    {"read", QVPY_KEYWORDS(decoder_read),
     "read(states, lengths=None, tokens=0)\n--\n\n"
     "What cross-attention reads of states [S, cross_width], as a DecoderMemory: one sequence, or several that lie one after\n"
     "another, of lengths [B]. tokens: about how many are going to read a sequence, of all rows together (0: any number);\n"
     "where they are few, the memory holds no keys and values, which cost more than they save."},
    {"begin", QVPY_KEYWORDS(decoder_begin),
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

static PyObject *refuse_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    (void)arguments;
    (void)keywords;
    return PyErr_Format(PyExc_TypeError, "%s is made by a Decoder: read, begin", type->tp_name);
}

static PyType_Slot memory_slots[] = {
    {Py_tp_new, (void *)refuse_new},
    {Py_tp_dealloc, (void *)memory_dealloc},
    {Py_tp_traverse, (void *)memory_traverse},
    {Py_tp_getset, memory_attributes},
    {Py_tp_doc, (void *)"What a decoder's cross-attention reads; made by Decoder.read."},
    {0, NULL},
};

static PyType_Slot cache_slots[] = {
    {Py_tp_new, (void *)refuse_new},
    {Py_tp_dealloc, (void *)cache_dealloc},
    {Py_tp_traverse, (void *)cache_traverse},
    {Py_tp_getset, cache_attributes},
    {Py_tp_doc, (void *)"The rows that a decoder is writing; made by Decoder.begin. For one thread at a time."},
    {0, NULL},
};

static PyType_Spec memory_spec = {
    .name = "qavit._core.DecoderMemory",
    .basicsize = sizeof(MemoryObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = memory_slots,
};

static PyType_Spec cache_spec = {
    .name = "qavit._core.DecoderCache",
    .basicsize = sizeof(CacheObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = cache_slots,
};

int qvpy_add_decoder(PyObject *module) {
    qvpy_state *state = PyModule_GetState(module);
    state->decoder_memory = qvpy_add_type(module, &memory_spec);
    Py_XINCREF(state->decoder_memory);
    if (state->decoder_memory == NULL) {
        return -1;
    }
    state->decoder_cache = qvpy_add_type(module, &cache_spec);
    Py_XINCREF(state->decoder_cache);
    return state->decoder_cache == NULL ? -1 : qvpy_add_model(module, &kind);
}
