/* _core.T5Encoder, BertEncoder, ClipTextEncoder: one object over any qv_text_encoder; a type adds how it is loaded. */
#include "python/binding.h"

#include "models/bert.h"
#include "models/clip_text.h"
#include "models/t5.h"
#include "models/text_pooling.h"

#include <stddef.h>
#include <string.h>

/* ---- construction ---- */

/* "relu", or "gated-gelu", which has always meant the tanh form */
static int read_feed_forward(PyObject *dict, qv_t5_config *config) {
    PyObject *value = qvpy_config_item(dict, "feed_forward_proj");
    const char *text = value != NULL && PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    PyErr_Clear();
    int result = 0;
    if (text != NULL && strcmp(text, "gated-gelu") == 0) {
        config->activation = QV_GELU_TANH;
        config->gated = true;
    } else if (text != NULL && strncmp(text, "gated-", 6) == 0) {
        PyErr_Format(PyExc_ValueError, "config: 'feed_forward_proj' is %R, expected gated-gelu or relu", value);
        result = -1;
    } else if (value != NULL) {
        result = qvpy_activation(value, "config: 'feed_forward_proj'", &config->activation);
    }
    Py_XDECREF(value);
    return result;
}

int qvpy_read_t5(PyObject *dict, qv_t5_config *config) {
    static const qvpy_setting settings[] = {
        QVPY_SETTING("vocab_size", QVPY_SIZE, qv_t5_config, vocab_size),
        QVPY_SETTING("d_model", QVPY_SIZE, qv_t5_config, d_model),
        QVPY_SETTING("d_kv", QVPY_SIZE, qv_t5_config, d_kv),
        QVPY_SETTING("d_ff", QVPY_SIZE, qv_t5_config, d_ff),
        QVPY_SETTING("num_heads", QVPY_SIZE, qv_t5_config, num_heads),
        QVPY_SETTING("num_layers", QVPY_SIZE, qv_t5_config, num_layers),
        QVPY_SETTING("relative_attention_num_buckets", QVPY_SIZE, qv_t5_config, buckets),
        QVPY_SETTING("relative_attention_max_distance", QVPY_SIZE, qv_t5_config, max_distance),
        QVPY_SETTING("layer_norm_epsilon", QVPY_FLOAT, qv_t5_config, eps),
    };
    *config = (qv_t5_config){.max_distance = 128, .activation = QV_RELU, .eps = 1e-6f};
    return qvpy_read_settings(config, dict, settings, sizeof settings / sizeof settings[0]) < 0
               ? -1
               : read_feed_forward(dict, config);
}

static int read_t5(PyObject *dict, void *out) {
    return qvpy_read_t5(dict, out);
}

int qvpy_read_text_sizes(PyObject *dict, qv_text_config *config) {
    static const qvpy_setting settings[] = {
        QVPY_SETTING("vocab_size", QVPY_SIZE, qv_text_config, vocab_size),
        QVPY_SETTING("max_position_embeddings", QVPY_SIZE, qv_text_config, positions),
        QVPY_SETTING("hidden_size", QVPY_SIZE, qv_text_config, D),
        QVPY_SETTING("num_attention_heads", QVPY_SIZE, qv_text_config, H),
        QVPY_SETTING("intermediate_size", QVPY_SIZE, qv_text_config, F),
        QVPY_SETTING("num_hidden_layers", QVPY_SIZE, qv_text_config, L),
        QVPY_SETTING("hidden_act", QVPY_ACTIVATION, qv_text_config, activation),
        QVPY_SETTING("layer_norm_eps", QVPY_FLOAT, qv_text_config, eps),
    };
    return qvpy_read_settings(config, dict, settings, sizeof settings / sizeof settings[0]);
}

static bool is_one_of(PyObject *value, const char *const *texts) {
    bool found = false;
    for (; value != NULL && PyUnicode_Check(value) && !found && *texts != NULL; texts++) {
        found = PyUnicode_CompareWithASCIIString(value, *texts) == 0;
    }
    return found;
}

static int read_bert(PyObject *dict, void *out) {
    static const char *const robertas[] = {"roberta", "xlm-roberta", "camembert", NULL};
    static const char *const absolute[] = {"absolute", NULL};
    static const qvpy_setting pad = QVPY_SETTING("pad_token_id", QVPY_SIZE, qv_bert_config, pad_id);
    qv_bert_config *config = out;
    PyObject *type = qvpy_config_item(dict, "model_type"), *positions = qvpy_config_item(dict, "position_embedding_type");
    int result = -1;
    *config = (qv_bert_config){.sizes = {.activation = QV_GELU, .eps = 1e-12f}, .roberta = is_one_of(type, robertas)};
    config->pad_id = config->roberta ? 1 : 0;
    if (positions != NULL && PyUnicode_Check(positions) && !is_one_of(positions, absolute)) {
        PyErr_Format(PyExc_ValueError, "config: 'position_embedding_type' is '%U', expected absolute", positions);
    } else {
        result = qvpy_read_text_sizes(dict, &config->sizes) < 0 ? -1 : qvpy_read_settings(config, dict, &pad, 1);
    }
    Py_XDECREF(type);
    Py_XDECREF(positions);
    return result;
}

/* 'causal' and 'pooling', which Hugging Face's configurations do not have: of CLIPA and SigLIP. */
static int read_pooling(PyObject *dict, qv_clip_text_config *config) {
    static const char *const last[] = {"last", NULL}, *const end[] = {"end", NULL};
    PyObject *pooling = qvpy_config_item(dict, "pooling"), *causal = qvpy_config_item(dict, "causal");
    int result = -1;
    if (pooling != NULL && !is_one_of(pooling, last) && !is_one_of(pooling, end)) {
        PyErr_Format(PyExc_ValueError, "config: 'pooling' is %R, expected end or last", pooling);
    } else if (causal != NULL && !PyBool_Check(causal)) {
        PyErr_Format(PyExc_ValueError, "config: 'causal' is %R, expected True or False", causal);
    } else {
        config->pooling = is_one_of(pooling, last) ? QV_TEXT_POOL_LAST : QV_TEXT_POOL_END;
        config->causal = causal != Py_False;
        result = 0;
    }
    Py_XDECREF(pooling);
    Py_XDECREF(causal);
    return result;
}

static int read_clip(PyObject *dict, void *out) {
    static const qvpy_setting end = QVPY_SETTING("eos_token_id", QVPY_SIZE, qv_clip_text_config, end_id);
    qv_clip_text_config *config = out;
    /* Hugging Face's defaults, which it leaves out of a combined config. */
    *config = (qv_clip_text_config){
        .sizes = {.H = 8, .activation = QV_QUICK_GELU, .eps = 1e-5f},
        .end_id = 49407,
    };
    return qvpy_read_text_sizes(dict, &config->sizes) < 0 || read_pooling(dict, config) < 0
               ? -1
               : qvpy_read_settings(config, dict, &end, 1);
}

static qv_status load_t5(void **model, const void *config, qv_loader *loader) {
    qv_text_encoder *encoder = NULL;
    qv_status status = qv_t5_load(&encoder, config, loader);
    *model = encoder;
    return status;
}

static qv_status load_bert(void **model, const void *config, qv_loader *loader) {
    qv_text_encoder *encoder = NULL;
    qv_status status = qv_bert_load(&encoder, config, loader);
    *model = encoder;
    return status;
}

static qv_status load_clip(void **model, const void *config, qv_loader *loader) {
    qv_text_encoder *encoder = NULL;
    qv_status status = qv_clip_text_load(&encoder, config, loader);
    *model = encoder;
    return status;
}

static void free_model(void *encoder) {
    qv_text_free(encoder);
}

/* ---- encode ---- */

/* ids and mask of a call as int64 [B, M]. */
typedef struct {
    PyArrayObject *ids, *mask; /* mask may be NULL: nothing is padding */
    size_t B, M;
} token_arrays;

static PyArrayObject *integer_matrix(PyObject *object, const char *argument) {
    /* A copy: the core checks the numbers and uses them later, and meanwhile another thread may write to the caller's. */
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_OF(object, NPY_ARRAY_ENSURECOPY);
    if (array == NULL) {
        return NULL;
    }
    if (!PyArray_ISINTEGER(array) && !PyArray_ISBOOL(array)) {
        PyErr_Format(PyExc_TypeError, "%s: dtype %S, expected integers", argument, (PyObject *)PyArray_DESCR(array));
    } else if (PyArray_NDIM(array) != 2) {
        PyErr_Format(PyExc_ValueError, "%s has %d dimensions, expected 2: [rows, tokens]", argument,
                     PyArray_NDIM(array));
    } else {
        PyArrayObject *integers = qvpy_array((PyObject *)array, argument, NPY_INT64, 2);
        Py_DECREF(array);
        return integers;
    }
    Py_DECREF(array);
    return NULL;
}

static int read_tokens(PyObject *ids, PyObject *mask, token_arrays *tokens) {
    tokens->ids = integer_matrix(ids, "ids");
    if (tokens->ids == NULL) {
        return -1;
    }
    tokens->B = (size_t)PyArray_DIM(tokens->ids, 0);
    tokens->M = (size_t)PyArray_DIM(tokens->ids, 1);
    if (mask == Py_None) {
        return 0;
    }
    tokens->mask = integer_matrix(mask, "mask");
    if (tokens->mask == NULL) {
        return -1;
    }
    if (!PyArray_SAMESHAPE(tokens->ids, tokens->mask)) {
        PyErr_Format(PyExc_ValueError, "mask has shape [%zd, %zd], expected that of ids, [%zu, %zu]",
                     (Py_ssize_t)PyArray_DIM(tokens->mask, 0), (Py_ssize_t)PyArray_DIM(tokens->mask, 1), tokens->B,
                     tokens->M);
        return -1;
    }
    return 0;
}

static const int64_t *mask_data(const token_arrays *tokens) {
    return tokens->mask != NULL ? PyArray_DATA(tokens->mask) : NULL;
}

typedef qv_status (*encode_function)(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids,
                                     const int64_t *mask, size_t B, size_t M, qv_error *err);

/* A new array [B, M, width], or [B, width] where dims is 2, filled by `run`. */
static PyObject *run_encoder(qvpy_model *self, PyObject *ids, PyObject *mask, encode_function run, int dims,
                             size_t width) {
    token_arrays tokens = {0};
    PyArrayObject *states = NULL;
    qvpy_call call;
    if (read_tokens(ids, mask, &tokens) < 0) {
        goto done;
    }
    size_t shape[3] = {tokens.B, dims == 3 ? tokens.M : width, width};
    states = qvpy_new_floats(dims, shape);
    if (states == NULL) {
        goto done;
    }
    if (qvpy_begin(&call, self) < 0 ||
        qvpy_end(&call, run(self->model, &call.core, PyArray_DATA(states), PyArray_DATA(tokens.ids),
                            mask_data(&tokens), tokens.B, tokens.M, &call.err)) < 0) {
        Py_CLEAR(states);
    }
done:
    Py_XDECREF(tokens.ids);
    Py_XDECREF(tokens.mask);
    return (PyObject *)states;
}

static PyObject *encode(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"ids", "mask", NULL};
    PyObject *ids, *mask = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O:encode", names, &ids, &mask)) {
        return NULL;
    }
    return run_encoder(self, ids, mask, qv_text_encode, 3, ((const qv_text_encoder *)self->model)->width);
}

static PyObject *encode_picture(qvpy_model *self, PyObject *arguments) {
    const qv_text_encoder *encoder = self->model;
    PyObject *picture_object, *ids_object;
    if (!PyArg_ParseTuple(arguments, "OO:encode_picture", &picture_object, &ids_object)) {
        return NULL;
    }
    PyArrayObject *picture = qvpy_float_array(picture_object, "picture", 2), *states = NULL;
    PyArrayObject *ids = picture != NULL ? integer_matrix(ids_object, "ids") : NULL;
    if (ids == NULL) {
        goto done;
    }
    size_t S = (size_t)PyArray_DIM(picture, 0), M = (size_t)PyArray_DIM(ids, 1), shape[2] = {S + M, encoder->width};
    if ((size_t)PyArray_DIM(picture, 1) != encoder->picture_width) {
        PyErr_Format(PyExc_ValueError, "picture has shape [%zu, %zd], expected [tokens, %zu]", S,
                     (Py_ssize_t)PyArray_DIM(picture, 1), encoder->picture_width);
        goto done;
    }
    if (PyArray_DIM(ids, 0) != 1) {
        PyErr_Format(PyExc_ValueError, "ids: %zd rows behind one picture, expected 1", (Py_ssize_t)PyArray_DIM(ids, 0));
        goto done;
    }
    qvpy_call call;
    states = qvpy_new_floats(2, shape);
    if (states == NULL || qvpy_begin(&call, self) < 0 ||
        qvpy_end(&call, qv_text_encode_picture(self->model, &call.core, PyArray_DATA(states), PyArray_DATA(picture), S,
                                               PyArray_DATA(ids), M, &call.err)) < 0) {
        Py_CLEAR(states);
    }
done:
    Py_XDECREF(picture);
    Py_XDECREF(ids);
    return (PyObject *)states;
}

static PyObject *encode_pooled(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"ids", "mask", "project", NULL};
    PyObject *ids, *mask = Py_None;
    int project = 1;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|Op:encode_pooled", names, &ids, &mask, &project)) {
        return NULL;
    }
    const qv_text_encoder *encoder = self->model;
    return project ? run_encoder(self, ids, mask, qv_text_projected, 2, encoder->projection.columns)
                   : run_encoder(self, ids, mask, qv_text_pooled, 2, encoder->width);
}

/* ---- attributes and types ---- */

#define ATTRIBUTES                                                                      \
    QVPY_SIZE_OF(qv_text_encoder, "width", width, "Width of a token's state."),         \
        QVPY_SIZE_OF(qv_text_encoder, "vocab_size", vocab_size, "Ids are below it."),   \
        QVPY_SIZE_OF(qv_text_encoder, "max_tokens", max_tokens,                         \
                     "The most tokens a row may have; 0: the architecture sets no limit.")
#define ENCODE                                                                                                  \
    {"encode", QVPY_KEYWORDS(encode),                                                                           \
     "encode(ids, mask=None)\n--\n\nThe last hidden states, float32 [B, M, width], of integer ids [B, M].\n"    \
     "Where mask [B, M] is 0 is padding: it is never attended to, and its states are zero."}

static PyGetSetDef pooled_attributes[] = {
    ATTRIBUTES,
    QVPY_SIZE_OF(qv_text_encoder, "projection_dim", projection.columns,
                 "Width of the text embedding; 0: no text_projection."),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyGetSetDef t5_attributes[] = {
    ATTRIBUTES,
    QVPY_SIZE_OF(qv_text_encoder, "picture_width", picture_width, "Width of a picture's tokens; 0: it takes no pictures."),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef t5_methods[] = {
    ENCODE,
    {"encode_picture", (PyCFunction)(void (*)(void))encode_picture, METH_VARARGS,
     "encode_picture(picture, ids)\n--\n\nThe last hidden states, float32 [S + M, width], of a picture's tokens\n"
     "[S, picture_width] and words behind them, ids [1, M]."},
    {NULL, NULL, 0, NULL},
};
static PyMethodDef pooled_methods[] = {
    ENCODE,
    {"encode_pooled", QVPY_KEYWORDS(encode_pooled),
     "encode_pooled(ids, mask=None, project=True)\n--\n\nThe state that stands for each row (CLIP: the end-of-text token's,\n"
     "or the last; BERT: the first), through text_projection, float32 [B, projection_dim]; [B, width] with project=False."},
    {NULL, NULL, 0, NULL},
};

static PyObject *create_t5(PyTypeObject *type, PyObject *arguments, PyObject *keywords);
static PyObject *create_bert(PyTypeObject *type, PyObject *arguments, PyObject *keywords);
static PyObject *create_clip(PyTypeObject *type, PyObject *arguments, PyObject *keywords);

#define SIGNATURE "(config, weights, precision='float32', prefix='text_model.', device=None)\n--\n\n"
static const qvpy_kind t5 = {
    "qavit._core.T5Encoder", "T5Encoder" SIGNATURE "The encoder of a T5 over mapped weights.", "text_model.",
    sizeof(qv_t5_config), read_t5, load_t5, free_model, create_t5, t5_methods, t5_attributes,
};
static const qvpy_kind bert = {
    "qavit._core.BertEncoder", "BertEncoder" SIGNATURE "A BERT or RoBERTa over mapped weights.", "text_model.",
    sizeof(qv_bert_config), read_bert, load_bert, free_model, create_bert, pooled_methods, pooled_attributes,
};
static const qvpy_kind clip = {
    "qavit._core.ClipTextEncoder", "ClipTextEncoder" SIGNATURE "CLIP's text encoder over mapped weights.", "text_model.",
    sizeof(qv_clip_text_config), read_clip, load_clip, free_model, create_clip, pooled_methods, pooled_attributes,
};

static PyObject *create_t5(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    return qvpy_model_new(type, arguments, keywords, &t5);
}

static PyObject *create_bert(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    return qvpy_model_new(type, arguments, keywords, &bert);
}

static PyObject *create_clip(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    return qvpy_model_new(type, arguments, keywords, &clip);
}

int qvpy_add_text(PyObject *module) {
    return qvpy_add_model(module, &t5) < 0 || qvpy_add_model(module, &bert) < 0 ? -1 : qvpy_add_model(module, &clip);
}
