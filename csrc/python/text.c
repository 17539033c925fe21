/* _core.T5Encoder, BertEncoder, ClipTextEncoder: one object over any qv_text_encoder; a type adds how it is loaded. */
#include "python/binding.h"

#include "models/bert.h"
#include "models/clip_text.h"
#include "models/t5.h"

#include <stddef.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    qvpy_weights weights; /* what the encoder borrows */
    qv_text_encoder *encoder;
    PyObject *device; /* whose ops it computes with; NULL: the CPU's */
} EncoderObject;

/* ---- construction ---- */

/* How an architecture comes from a config dict: `read` fills its config under the GIL, `load` runs without it. */
typedef union {
    qv_t5_config t5;
    qv_bert_config bert;
    qv_clip_text_config clip;
} text_config;

typedef struct {
    const char *format; /* of PyArg_ParseTupleAndKeywords, with the type's name */
    int (*read)(PyObject *dict, text_config *config);
    qv_status (*load)(qv_text_encoder **encoder, const text_config *config, qv_loader *loader);
} text_type;

static PyObject *new_encoder(PyTypeObject *type, PyObject *arguments, PyObject *keywords, const text_type *kind) {
    static char *names[] = {"config", "weights", "precision", "prefix", "device", NULL};
    PyObject *dict, *weights_dict, *device = Py_None;
    const qv_ops *ops;
    const char *precision_name = "float32", *prefix = "text_model.";
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, kind->format, names, &dict, &weights_dict, &precision_name,
                                     &prefix, &device)) {
        return NULL;
    }
    if (!PyDict_Check(dict)) {
        return PyErr_Format(PyExc_TypeError, "config: expected a dict, got %s", Py_TYPE(dict)->tp_name);
    }
    text_config config;
    qv_precision precision;
    if (qvpy_precision(precision_name, &precision) < 0 || qvpy_device(device, &ops) < 0 ||
        kind->read(dict, &config) < 0) {
        return NULL;
    }
    EncoderObject *self = (EncoderObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    PyObject_GC_UnTrack(self);
    if (qvpy_weights_acquire(&self->weights, weights_dict) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    Py_INCREF(device);
    self->device = device;
    qv_weights weights = {.tensors = self->weights.tensors, .count = self->weights.count};
    qv_error err;
    qvpy_poll poll;
    qv_loader loader = {.weights = &weights, .prefix = prefix, .ops = ops, .precision = precision, .err = &err};
    loader.poll = qvpy_release_gil(&poll);
    qv_status status = kind->load(&self->encoder, &config, &loader);
    if (qvpy_acquire(&poll, status, &err) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

/* "relu", or "gated-gelu", which has always meant the tanh form */
static int read_feed_forward(PyObject *dict, qv_t5_config *config) {
    PyObject *value = PyDict_GetItemString(dict, "feed_forward_proj");
    if (value == NULL || value == Py_None) {
        return 0;
    }
    const char *text = PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    if (text != NULL && strcmp(text, "gated-gelu") == 0) {
        config->activation = QV_GELU_TANH;
        config->gated = true;
        return 0;
    }
    if (text != NULL && strncmp(text, "gated-", 6) == 0) {
        PyErr_Format(PyExc_ValueError, "config: 'feed_forward_proj' is %R, expected gated-gelu or relu", value);
        return -1;
    }
    return qvpy_config_activation(dict, "feed_forward_proj", 0, &config->activation);
}

static int read_t5(PyObject *dict, text_config *out) {
    qv_t5_config *config = &out->t5;
    *config = (qv_t5_config){.max_distance = 128, .activation = QV_RELU, .eps = 1e-6f};
    return qvpy_config_size(dict, "vocab_size", 0, &config->vocab_size) < 0 ||
                   qvpy_config_size(dict, "d_model", 0, &config->d_model) < 0 ||
                   qvpy_config_size(dict, "d_kv", 0, &config->d_kv) < 0 ||
                   qvpy_config_size(dict, "d_ff", 0, &config->d_ff) < 0 ||
                   qvpy_config_size(dict, "num_heads", 0, &config->num_heads) < 0 ||
                   qvpy_config_size(dict, "num_layers", 0, &config->num_layers) < 0 ||
                   qvpy_config_size(dict, "relative_attention_num_buckets", 0, &config->buckets) < 0 ||
                   qvpy_config_size(dict, "relative_attention_max_distance", 0, &config->max_distance) < 0 ||
                   qvpy_config_float(dict, "layer_norm_epsilon", 0, &config->eps) < 0 ||
                   read_feed_forward(dict, config) < 0
               ? -1
               : 0;
}

static qv_status load_t5(qv_text_encoder **encoder, const text_config *config, qv_loader *loader) {
    return qv_t5_load(encoder, &config->t5, loader);
}

/* The keys that BERT's and CLIP's configs share. */
static int read_sizes(PyObject *dict, qv_text_config *config) {
    return qvpy_config_size(dict, "vocab_size", 0, &config->vocab_size) < 0 ||
                   qvpy_config_size(dict, "max_position_embeddings", 0, &config->positions) < 0 ||
                   qvpy_config_size(dict, "hidden_size", 0, &config->D) < 0 ||
                   qvpy_config_size(dict, "num_attention_heads", 0, &config->H) < 0 ||
                   qvpy_config_size(dict, "intermediate_size", 0, &config->F) < 0 ||
                   qvpy_config_size(dict, "num_hidden_layers", 0, &config->L) < 0 ||
                   qvpy_config_activation(dict, "hidden_act", 0, &config->activation) < 0 ||
                   qvpy_config_float(dict, "layer_norm_eps", 0, &config->eps) < 0
               ? -1
               : 0;
}

/* dict[key] as text; NULL where it is missing or no string. Borrowed; never raises. */
static const char *config_text(PyObject *dict, const char *key) {
    PyObject *value = PyDict_GetItemString(dict, key);
    const char *text = value != NULL && PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    PyErr_Clear();
    return text;
}

static int read_bert(PyObject *dict, text_config *out) {
    qv_bert_config *config = &out->bert;
    *config = (qv_bert_config){.sizes = {.activation = QV_GELU, .eps = 1e-12f}};
    const char *type = config_text(dict, "model_type"), *positions = config_text(dict, "position_embedding_type");
    config->roberta = type != NULL && (strcmp(type, "roberta") == 0 || strcmp(type, "xlm-roberta") == 0 ||
                                       strcmp(type, "camembert") == 0);
    if (positions != NULL && strcmp(positions, "absolute") != 0) {
        PyErr_Format(PyExc_ValueError, "config: 'position_embedding_type' is '%s', expected absolute", positions);
        return -1;
    }
    config->pad_id = config->roberta ? 1 : 0;
    return read_sizes(dict, &config->sizes) < 0 || qvpy_config_size(dict, "pad_token_id", 0, &config->pad_id) < 0 ? -1
                                                                                                                  : 0;
}

static qv_status load_bert(qv_text_encoder **encoder, const text_config *config, qv_loader *loader) {
    return qv_bert_load(encoder, &config->bert, loader);
}

static int read_clip(PyObject *dict, text_config *out) {
    qv_clip_text_config *config = &out->clip;
    /* Hugging Face's defaults, which it leaves out of a combined config. */
    *config = (qv_clip_text_config){
        .sizes = {.H = 8, .activation = QV_QUICK_GELU, .eps = 1e-5f},
        .end_id = 49407,
    };
    return read_sizes(dict, &config->sizes) < 0 || qvpy_config_size(dict, "eos_token_id", 0, &config->end_id) < 0 ? -1
                                                                                                                  : 0;
}

static qv_status load_clip(qv_text_encoder **encoder, const text_config *config, qv_loader *loader) {
    return qv_clip_text_load(encoder, &config->clip, loader);
}

static PyObject *new_t5(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static const text_type kind = {"OO|ssO:T5Encoder", read_t5, load_t5};
    return new_encoder(type, arguments, keywords, &kind);
}

static PyObject *new_bert(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static const text_type kind = {"OO|ssO:BertEncoder", read_bert, load_bert};
    return new_encoder(type, arguments, keywords, &kind);
}

static PyObject *new_clip(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static const text_type kind = {"OO|ssO:ClipTextEncoder", read_clip, load_clip};
    return new_encoder(type, arguments, keywords, &kind);
}

static int traverse_encoder(EncoderObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    return qvpy_weights_traverse(&self->weights, visit, arg);
}

static void dealloc_encoder(EncoderObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    qv_text_free(self->encoder);
    qvpy_weights_release(&self->weights);
    Py_XDECREF(self->device);
    type->tp_free(self);
    Py_DECREF(type);
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
static PyObject *run_encoder(EncoderObject *self, PyObject *ids, PyObject *mask, encode_function run, int dims,
                             size_t width) {
    token_arrays tokens = {0};
    PyArrayObject *states = NULL;
    if (read_tokens(ids, mask, &tokens) < 0) {
        goto done;
    }
    size_t shape[3] = {tokens.B, dims == 3 ? tokens.M : width, width};
    states = qvpy_new_floats(dims, shape);
    if (states == NULL) {
        goto done;
    }
    qv_error err;
    qv_call call = {0};
    qvpy_poll poll;
    qvpy_release(&poll, &call);
    qv_status status = run(self->encoder, &call, PyArray_DATA(states), PyArray_DATA(tokens.ids), mask_data(&tokens),
                           tokens.B, tokens.M, &err);
    if (qvpy_acquire(&poll, status, &err) < 0) {
        Py_CLEAR(states);
    }
done:
    Py_XDECREF(tokens.ids);
    Py_XDECREF(tokens.mask);
    return (PyObject *)states;
}

static PyObject *encode(EncoderObject *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"ids", "mask", NULL};
    PyObject *ids, *mask = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O:encode", names, &ids, &mask)) {
        return NULL;
    }
    return run_encoder(self, ids, mask, qv_text_encode, 3, self->encoder->width);
}

static PyObject *encode_pooled(EncoderObject *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"ids", "mask", "project", NULL};
    PyObject *ids, *mask = Py_None;
    int project = 1;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|Op:encode_pooled", names, &ids, &mask, &project)) {
        return NULL;
    }
    if (project) {
        return run_encoder(self, ids, mask, qv_clip_text_projected, 2, qv_clip_text_projection_width(self->encoder));
    }
    return run_encoder(self, ids, mask, qv_clip_text_pooled, 2, self->encoder->width);
}

/* ---- attributes and types ---- */

static PyObject *get_size(EncoderObject *self, void *offset) {
    size_t value;
    memcpy(&value, (const char *)self->encoder + (size_t)(uintptr_t)offset, sizeof value);
    return PyLong_FromSize_t(value);
}

#define SIZE(name, field, doc) \
    {name, (getter)get_size, NULL, doc, (void *)(uintptr_t)offsetof(qv_text_encoder, field)}

static PyObject *get_projection_dim(EncoderObject *self, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(qv_clip_text_projection_width(self->encoder));
}

#define ATTRIBUTES                                                               \
    SIZE("width", width, "Width of a token's state."),                           \
        SIZE("vocab_size", vocab_size, "Ids are below it."),                     \
        SIZE("max_tokens", max_tokens, "The most tokens a row may have; 0: the architecture sets no limit.")
#define ENCODE                                                                                                  \
    {"encode", (PyCFunction)(void (*)(void))encode, METH_VARARGS | METH_KEYWORDS,                               \
     "encode(ids, mask=None)\n--\n\nThe last hidden states, float32 [B, M, width], of integer ids [B, M].\n"    \
     "Where mask [B, M] is 0 is padding: it is never attended to, and its states are zero."}

static PyGetSetDef attributes[] = {ATTRIBUTES, {NULL, NULL, NULL, NULL, NULL}};
static PyGetSetDef clip_attributes[] = {
    ATTRIBUTES,
    {"projection_dim", (getter)get_projection_dim, NULL, "Width of the text embedding; 0: no text_projection.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {ENCODE, {NULL, NULL, 0, NULL}};
static PyMethodDef clip_methods[] = {
    ENCODE,
    {"encode_pooled", (PyCFunction)(void (*)(void))encode_pooled, METH_VARARGS | METH_KEYWORDS,
     "encode_pooled(ids, mask=None, project=True)\n--\n\nThe state at each row's end-of-text token, through\n"
     "text_projection, float32 [B, projection_dim]; [B, width] with project=False."},
    {NULL, NULL, 0, NULL},
};

/* The slots and the spec of one type: what differs is how it is made and what it offers. */
#define ENCODER_TYPE(variable, type_name, create, its_methods, its_attributes, doc)                          \
    static PyType_Slot variable##_slots[] = {                                                                \
        {Py_tp_new, (void *)(create)},                                                                       \
        {Py_tp_dealloc, (void *)dealloc_encoder},                                                            \
        {Py_tp_traverse, (void *)traverse_encoder},                                                          \
        {Py_tp_methods, (void *)(its_methods)},                                                              \
        {Py_tp_getset, (void *)(its_attributes)},                                                            \
        {Py_tp_doc, (void *)(type_name "(config, weights, precision='float32', prefix='text_model.', "       \
                                       "device=None)\n--\n\n" doc)},                                         \
        {0, NULL},                                                                                           \
    };                                                                                                       \
    static PyType_Spec variable##_spec = {                                                                   \
        .name = "qavit._core." type_name,                                                                    \
        .basicsize = sizeof(EncoderObject),                                                                  \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,                                                    \
        .slots = variable##_slots,                                                                           \
    }

ENCODER_TYPE(t5, "T5Encoder", new_t5, methods, attributes, "The encoder of a T5 over mapped weights.");
ENCODER_TYPE(bert, "BertEncoder", new_bert, methods, attributes, "A BERT or RoBERTa over mapped weights.");
ENCODER_TYPE(clip, "ClipTextEncoder", new_clip, clip_methods, clip_attributes,
             "CLIP's text encoder over mapped weights.");

int qvpy_add_text(PyObject *module) {
    struct {
        const char *name;
        PyType_Spec *spec;
    } types[] = {{"T5Encoder", &t5_spec}, {"BertEncoder", &bert_spec}, {"ClipTextEncoder", &clip_spec}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        PyObject *type = PyType_FromSpec(types[i].spec);
        if (type == NULL || PyModule_AddObject(module, types[i].name, type) < 0) {
            Py_XDECREF(type);
            return -1;
        }
    }
    return 0;
}
