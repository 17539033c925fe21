/* _core.Vit: a vision transformer bound to the buffers that hold its weights. */
#include "python/binding.h"

#include "models/vit.h"

#include <string.h>

#define MAX_BLOCKS ((size_t)1024)

typedef struct {
    qv_vit_config core;
    bool integrated[MAX_BLOCKS];
} vit_config;

/* ---- construction ---- */

/* Flags of the blocks whose numbers stand under 'integrated'. */
static int read_integrated(PyObject *dict, vit_config *config) {
    PyObject *value = qvpy_config_item(dict, "integrated");
    if (value == NULL || config->core.L > MAX_BLOCKS) {
        Py_XDECREF(value);
        return 0;
    }
    PyObject *blocks = qvpy_tuple(value, "config: 'integrated' must be a sequence of block numbers");
    Py_DECREF(value);
    if (blocks == NULL) {
        return -1;
    }
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < PyTuple_GET_SIZE(blocks); i++) {
        size_t block = PyLong_AsSize_t(PyTuple_GET_ITEM(blocks, i));
        if (PyErr_Occurred()) {
            result = -1;
        } else if (block >= config->core.L) {
            PyErr_Format(PyExc_ValueError, "config: 'integrated' names block %zu of %zu", block, config->core.L);
            result = -1;
        } else {
            config->integrated[block] = true;
            config->core.integrated = config->integrated;
        }
    }
    Py_DECREF(blocks);
    return result;
}

/* Side of a square image, or (height, width) */
static int read_image_size(PyObject *dict, qv_vit_config *config) {
    static const qvpy_setting side = QVPY_SETTING("image_size", QVPY_REQUIRED_SIZE, qv_vit_config, height);
    PyObject *value = qvpy_config_item(dict, "image_size");
    if (value == NULL || !PySequence_Check(value) || PyUnicode_Check(value)) {
        Py_XDECREF(value);
        int status = qvpy_read_settings(config, dict, &side, 1);
        config->width = config->height;
        return status;
    }
    PyObject *sides = PySequence_Tuple(value);
    size_t *const sizes[] = {&config->height, &config->width};
    bool pair = sides != NULL && PyTuple_GET_SIZE(sides) == 2;
    for (Py_ssize_t i = 0; pair && i < 2; i++) {
        PyObject *item = PyTuple_GET_ITEM(sides, i);
        *sizes[i] = PyLong_Check(item) ? PyLong_AsSize_t(item) : (size_t)-1;
        pair = *sizes[i] <= (size_t)1 << 31;
    }
    if (!pair) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "config: 'image_size' is %R, expected a whole number or (height, width)", value);
    }
    Py_XDECREF(sides);
    Py_DECREF(value);
    return pair ? 0 : -1;
}

static int read_pooling(PyObject *dict, qv_vit_config *config) {
    static const char *const names[] = {"class", "mean", "mean_then_norm", "map"};
    PyObject *value = qvpy_config_item(dict, "pooling");
    bool known = value == NULL;
    for (size_t i = 0; !known && i < sizeof names / sizeof names[0]; i++) {
        known = PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, names[i]) == 0;
        config->pooling = (qv_pooling)i;
    }
    if (!known) {
        PyErr_Format(PyExc_ValueError, "config: 'pooling' is %R, expected class, mean, mean_then_norm or map", value);
    }
    Py_XDECREF(value);
    return known ? 0 : -1;
}

int qvpy_read_vision(PyObject *dict, qv_vit_config *config) {
    static const qvpy_setting eps = QVPY_SETTING("layer_norm_eps", QVPY_FLOAT, qv_vit_config, eps), settings[] = {
        QVPY_SETTING("patch_size", QVPY_REQUIRED_SIZE, qv_vit_config, patch_size),
        QVPY_SETTING("hidden_size", QVPY_REQUIRED_SIZE, qv_vit_config, D),
        QVPY_SETTING("num_attention_heads", QVPY_REQUIRED_SIZE, qv_vit_config, H),
        QVPY_SETTING("num_hidden_layers", QVPY_REQUIRED_SIZE, qv_vit_config, L),
        QVPY_SETTING("intermediate_size", QVPY_REQUIRED_SIZE, qv_vit_config, F),
        QVPY_SETTING("instruction_dim", QVPY_SIZE, qv_vit_config, instruction_dim),
        QVPY_SETTING("pre_norm_eps", QVPY_FLOAT, qv_vit_config, pre_norm_eps),
        QVPY_SETTING("post_norm_eps", QVPY_FLOAT, qv_vit_config, post_norm_eps),
        QVPY_SETTING("rope_theta", QVPY_FLOAT, qv_vit_config, rope_theta),
        QVPY_SETTING("hidden_act", QVPY_ACTIVATION, qv_vit_config, activation),
    };
    if (qvpy_read_settings(config, dict, &eps, 1) < 0) {
        return -1;
    }
    config->pre_norm_eps = config->post_norm_eps = config->eps;
    return read_image_size(dict, config) < 0 || read_pooling(dict, config) < 0
               ? -1
               : qvpy_read_settings(config, dict, settings, sizeof settings / sizeof settings[0]);
}

static int read_config(PyObject *dict, void *out) {
    vit_config *config = out;
    config->core = (qv_vit_config){.eps = 1e-5f, .activation = QV_QUICK_GELU};
    return qvpy_read_vision(dict, &config->core) < 0 ? -1 : read_integrated(dict, config);
}

static qv_status load(void **model, const void *config, qv_loader *loader) {
    qv_vit *vit = qv_allocate(1, sizeof *vit);
    if (vit == NULL) {
        return qv_fail_memory(loader->err, "a vision transformer");
    }
    qv_status status = qv_vit_load(vit, &((const vit_config *)config)->core, loader);
    if (status != QV_OK) {
        qv_free(vit);
        return status;
    }
    *model = vit;
    return QV_OK;
}

static void free_model(void *vit) {
    qv_vit_free(vit);
    qv_free(vit);
}

/* ---- forward ---- */

static const char *const output_names[] = {"last", "normed", "pooled", "projected", "pool_attention", "qkv"};

/* The arrays of one call: inputs held, outputs made. The call alone refers to its outputs: whatever the collector knows of,
 * a dict or a list, another thread can find there and empty while the core writes. */
typedef struct {
    qvpy_images images;
    PyArrayObject *states, *qkv, *instruct;
    size_t *indices; /* [2 N]: pair_image, instruct_length */
    qv_vit_tap *taps; /* [L] */
    PyArrayObject **outputs; /* [L] attentions, [L + 1] hidden states, one for each of output_names; NULL: not asked for */
    size_t output_count;
    qv_vit_request request;
} forward_call;

static void release_call(forward_call *c) {
    qvpy_images_release(&c->images);
    Py_XDECREF(c->states);
    Py_XDECREF(c->qkv);
    Py_XDECREF(c->instruct);
    for (size_t i = 0; c->outputs != NULL && i < c->output_count; i++) {
        Py_XDECREF(c->outputs[i]);
    }
    PyMem_Free(c->outputs);
    PyMem_Free(c->indices);
    PyMem_Free(c->taps);
}

static int read_images(forward_call *c, const qv_vit *vit, PyObject *object, PyObject *preprocessing) {
    if (qvpy_images_acquire(&c->images, vit, object, preprocessing) < 0) {
        return -1;
    }
    c->request.images = c->images.core;
    return 0;
}

/* [images, T, width] of each image; NULL with an exception */
static PyArrayObject *read_rows(const qv_vit *vit, PyObject *object, const char *argument, size_t width) {
    PyArrayObject *array = qvpy_float_array(object, argument, 3);
    const npy_intp *shape = array != NULL ? PyArray_DIMS(array) : NULL;
    if (array != NULL && ((size_t)shape[1] != vit->T || (size_t)shape[2] != width)) {
        PyErr_Format(PyExc_ValueError, "%s has shape [%zd, %zd, %zd], expected [images, %zu, %zu]", argument,
                     (Py_ssize_t)shape[0], (Py_ssize_t)shape[1], (Py_ssize_t)shape[2], vit->T, width);
        Py_CLEAR(array);
    }
    return array;
}

/* What enters block `first` of each image, in place of the images. */
static int read_states(forward_call *c, const qv_vit *vit, PyObject *object, Py_ssize_t first) {
    c->states = read_rows(vit, object, "states", vit->config.D);
    if (c->states == NULL) {
        return -1;
    }
    if (first < 0) {
        PyErr_Format(PyExc_ValueError, "first: block %zd does not exist", first);
        return -1;
    }
    c->request.states = PyArray_DATA(c->states);
    c->request.first = (size_t)first;
    c->request.images.count = (size_t)PyArray_DIM(c->states, 0);
    return 0;
}

/* q, k and v of the states, where they are given. */
static int read_qkv(forward_call *c, const qv_vit *vit, PyObject *object) {
    if (object == Py_None) {
        return 0;
    }
    c->qkv = read_rows(vit, object, "qkv", 3 * vit->config.D);
    if (c->qkv == NULL) {
        return -1;
    }
    if (c->states == NULL || PyArray_DIM(c->qkv, 0) != PyArray_DIM(c->states, 0)) {
        PyErr_SetString(PyExc_ValueError, "qkv: expected as many as states");
        return -1;
    }
    c->request.qkv = PyArray_DATA(c->qkv);
    return 0;
}

/* One of the two, images or states. */
static int read_pictures(forward_call *c, const qv_vit *vit, PyObject *images, PyObject *preprocessing, PyObject *states,
                         Py_ssize_t first) {
    if (states == Py_None && images != Py_None && first == 0) {
        return read_images(c, vit, images, preprocessing);
    }
    if (states == Py_None || images != Py_None || preprocessing != Py_None) {
        PyErr_SetString(PyExc_ValueError, "expected pixel_values, or states and the block `first` that they enter");
        return -1;
    }
    return read_states(c, vit, states, first);
}

int qvpy_read_indices(PyObject *object, const char *argument, size_t N, size_t *out, npy_int32 low, size_t high) {
    PyArrayObject *array = qvpy_copy(object, argument, NPY_INT32, 1);
    if (array == NULL) {
        return -1;
    }
    int result = 0;
    if ((size_t)PyArray_DIM(array, 0) != N) {
        PyErr_Format(PyExc_ValueError, "%s has %zd items, expected %zu", argument, (Py_ssize_t)PyArray_DIM(array, 0), N);
        result = -1;
    }
    const npy_int32 *items = PyArray_DATA(array);
    for (size_t n = 0; result == 0 && n < N; n++) {
        npy_int32 item = items[n];
        if (item < low || (size_t)item > high) {
            PyErr_Format(PyExc_ValueError, "%s[%zu] is %d, expected %d to %zu", argument, n, (int)item, (int)low, high);
            result = -1;
        }
        out[n] = (size_t)item;
    }
    Py_DECREF(array);
    return result;
}

static int read_questions(forward_call *c, const qv_vit *vit, PyObject *pair_image, PyObject *instruct,
                          PyObject *instruct_length) {
    if (instruct == Py_None) {
        return 0;
    }
    c->instruct = qvpy_float_array(instruct, "instruct", 3);
    if (c->instruct == NULL) {
        return -1;
    }
    const npy_intp *shape = PyArray_DIMS(c->instruct);
    if ((size_t)shape[2] != vit->config.instruction_dim) {
        PyErr_Format(PyExc_ValueError, "instruct states are %zd wide, expected instruction_dim %zu",
                     (Py_ssize_t)shape[2], vit->config.instruction_dim);
        return -1;
    }
    if (shape[1] == 0) {
        PyErr_SetString(PyExc_ValueError, "instruct has no tokens");
        return -1;
    }
    size_t N = (size_t)shape[0];
    c->request.pair_count = N;
    c->request.M = (size_t)shape[1];
    c->request.instruct = PyArray_DATA(c->instruct);
    c->indices = PyMem_Calloc(2 * N + 1, sizeof *c->indices);
    if (c->indices == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    c->request.pair_image = c->indices;
    c->request.instruct_length = c->indices + N;
    size_t last_image = c->request.images.count == 0 ? 0 : c->request.images.count - 1;
    return qvpy_read_indices(pair_image, "pair_image", N, c->indices, 0, last_image) < 0
               ? -1
               : qvpy_read_indices(instruct_length, "instruct_length", N, c->indices + N, 1, c->request.M);
}

/* The data of output `i`, which is made unless it has been asked for before; NULL with an exception. */
static float *new_output(forward_call *c, size_t i, int dims, const size_t *shape) {
    if (c->outputs[i] == NULL) {
        c->outputs[i] = qvpy_new_floats(dims, shape);
    }
    return c->outputs[i] != NULL ? PyArray_DATA(c->outputs[i]) : NULL;
}

static size_t sequences_at(const forward_call *c, const qv_vit *vit, size_t block) {
    return block < vit->first_integrated ? c->request.images.count : c->request.pair_count;
}

/* One (block, "class" | "raw" | "mean") of the attention asked for: the class token's row, all, or all as one head. */
static int add_attention(forward_call *c, const qv_vit *vit, PyObject *item) {
    Py_ssize_t block;
    const char *kind;
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "ns", &block, &kind)) {
        PyErr_SetString(PyExc_TypeError, "attention: expected (block, 'class' | 'raw' | 'mean') pairs");
        return -1;
    }
    if (block < 0 || (size_t)block >= vit->config.L) {
        PyErr_Format(PyExc_ValueError, "block %zd does not exist; this model has blocks 0 to %zu", block,
                     vit->config.L - 1);
        return -1;
    }
    size_t i = (size_t)block, extra = vit->blocks[i].integrated ? c->request.M : 0;
    qv_vit_tap *tap = &c->taps[i];
    if (tap->attention != NULL) {
        PyErr_Format(PyExc_ValueError, "attention: block %zu is asked for twice", i);
        return -1;
    }
    tap->row_count = vit->T;
    tap->column_count = extra + vit->T;
    if (strcmp(kind, "class") == 0) {
        tap->row_count = 1;
    } else if (strcmp(kind, "mean") == 0) {
        tap->mean = true;
    } else if (strcmp(kind, "raw") != 0) {
        PyErr_Format(PyExc_ValueError, "attention: '%s' of block %zu, expected 'class', 'raw' or 'mean'", kind, i);
        return -1;
    }
    size_t shape[4] = {sequences_at(c, vit, i), tap->mean ? 1 : vit->config.H, tap->row_count, tap->column_count};
    tap->attention = new_output(c, i, 4, shape);
    return tap->attention == NULL ? -1 : 0;
}

/* Hidden state l: 0 what enters block 0, l what leaves block l - 1. */
static int add_hidden(forward_call *c, const qv_vit *vit, PyObject *item) {
    size_t l = PyLong_AsSize_t(item);
    if (l == (size_t)-1 && PyErr_Occurred()) {
        return -1;
    }
    if (l > vit->config.L) {
        PyErr_Format(PyExc_ValueError, "hidden state %zu does not exist; this model has 0 to %zu", l, vit->config.L);
        return -1;
    }
    size_t shape[3] = {l == 0 ? c->request.images.count : sequences_at(c, vit, l - 1), vit->T, vit->config.D};
    float *data = new_output(c, vit->config.L + l, 3, shape);
    if (data == NULL) {
        return -1;
    }
    if (l == 0) {
        c->request.embedded = data;
    } else {
        c->taps[l - 1].hidden = data;
    }
    return 0;
}

static int add_output(forward_call *c, const qv_vit *vit, PyObject *item) {
    float **const slots[] = {&c->request.last, &c->request.normed, &c->request.pooled, &c->request.projected,
                             &c->request.pool_attention, &c->request.patch_qkv};
    size_t B = sequences_at(c, vit, vit->config.L - 1), D = vit->config.D, E = vit->projection.columns;
    const size_t shapes[][3] = {{B, vit->T, D}, {B, vit->T, D}, {B, D}, {B, E}, {B, vit->config.H, vit->T},
                                {c->request.images.count, vit->T, 3 * D}};
    static const int dims[] = {3, 3, 2, 2, 3, 3};
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        if (PyUnicode_Check(item) && PyUnicode_CompareWithASCIIString(item, output_names[i]) == 0) {
            if (slots[i] == &c->request.pool_attention && vit->config.pooling != QV_POOL_MAP) {
                PyErr_SetString(PyExc_ValueError, "outputs: 'pool_attention' of a model that pools without attention");
                return -1;
            }
            if (slots[i] == &c->request.projected && E == 0) {
                PyErr_SetString(PyExc_ValueError, "outputs: 'projected' of weights without a visual_projection");
                return -1;
            }
            *slots[i] = new_output(c, 2 * vit->config.L + 1 + i, dims[i], shapes[i]);
            return *slots[i] == NULL ? -1 : 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "outputs: %R, expected 'last', 'normed', 'pooled', 'projected', 'pool_attention' or 'qkv'",
                 item);
    return -1;
}

static int for_each(PyObject *sequence, const char *argument, forward_call *c, const qv_vit *vit,
                    int (*add)(forward_call *, const qv_vit *, PyObject *)) {
    PyObject *items = qvpy_tuple(sequence, argument);
    if (items == NULL) {
        return -1;
    }
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < PyTuple_GET_SIZE(items); i++) {
        result = add(c, vit, PyTuple_GET_ITEM(items, i));
    }
    Py_DECREF(items);
    return result;
}

static int make_outputs(forward_call *c, const qv_vit *vit, PyObject *attention, PyObject *hidden, PyObject *outputs) {
    c->taps = PyMem_Calloc(vit->config.L, sizeof *c->taps);
    c->output_count = 2 * vit->config.L + 1 + sizeof output_names / sizeof output_names[0];
    c->outputs = PyMem_Calloc(c->output_count, sizeof *c->outputs);
    if (c->taps == NULL || c->outputs == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    c->request.taps = c->taps;
    return (attention != NULL && for_each(attention, "attention must be a sequence", c, vit, add_attention) < 0) ||
                   (hidden != NULL && for_each(hidden, "hidden must be a sequence", c, vit, add_hidden) < 0) ||
                   (outputs != NULL && for_each(outputs, "outputs must be a sequence", c, vit, add_output) < 0)
               ? -1
               : 0;
}

/* dict {i: outputs[i]} of those that were asked for; NULL with an exception */
static PyObject *numbered(PyArrayObject *const *outputs, size_t count) {
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict != NULL && i < count; i++) {
        PyObject *key = outputs[i] != NULL ? PyLong_FromSize_t(i) : NULL;
        if (outputs[i] != NULL && (key == NULL || PyDict_SetItem(dict, key, (PyObject *)outputs[i]) < 0)) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(key);
    }
    return dict;
}

/* What forward returns, when the core is done with the arrays. */
static PyObject *build_result(const forward_call *c, size_t L) {
    PyObject *result = Py_BuildValue("{s:N, s:N}", "attentions", numbered(c->outputs, L), "hidden",
                                     numbered(c->outputs + L, L + 1));
    PyArrayObject *const *named = c->outputs + 2 * L + 1;
    for (size_t i = 0; result != NULL && i < sizeof output_names / sizeof output_names[0]; i++) {
        if (named[i] != NULL && PyDict_SetItemString(result, output_names[i], (PyObject *)named[i]) < 0) {
            Py_CLEAR(result);
        }
    }
    return result;
}

static PyObject *forward(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"pixel_values", "pair_image", "instruct", "instruct_length",
                            "attention",    "hidden",     "outputs",  "preprocessing",   "states", "first", "qkv",
                            NULL};
    PyObject *images, *pair_image = Py_None, *instruct = Py_None, *instruct_length = Py_None, *states = Py_None;
    PyObject *qkv = Py_None;
    PyObject *attention = NULL, *hidden = NULL, *outputs = NULL, *preprocessing = Py_None, *result = NULL;
    Py_ssize_t first = 0;
    const qv_vit *vit = self->model;
    forward_call c = {0};
    qvpy_call call;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|OOOOOOOOnO:forward", names, &images, &pair_image, &instruct,
                                     &instruct_length, &attention, &hidden, &outputs, &preprocessing, &states, &first,
                                     &qkv) ||
        read_pictures(&c, vit, images, preprocessing, states, first) < 0 || read_qkv(&c, vit, qkv) < 0 ||
        read_questions(&c, vit, pair_image, instruct, instruct_length) < 0 ||
        make_outputs(&c, vit, attention, hidden, outputs) < 0 || qvpy_begin(&call, self) < 0) {
        goto done;
    }
    if (qvpy_end(&call, qv_vit_forward(self->model, &call.core, &c.request, &call.err)) == 0) {
        result = build_result(&c, vit->config.L);
    }
done:
    release_call(&c);
    return result;
}

/* ---- attributes and type ---- */

static PyObject *get_integrated(qvpy_model *self, void *unused) {
    (void)unused;
    const qv_vit *vit = self->model;
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < vit->config.L; i++) {
        PyObject *number = vit->blocks[i].integrated ? PyLong_FromSize_t(i) : NULL;
        if (number != NULL && PyList_Append(list, number) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(number);
    }
    PyObject *blocks = list != NULL ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return blocks;
}

static PyGetSetDef attributes[] = {
    QVPY_SIZE_OF(qv_vit, "image_size", config.height, "Height of the input in pixels; of a square one its width, too."),
    QVPY_SIZE_OF(qv_vit, "image_width", config.width, "Width of the input in pixels."),
    QVPY_SIZE_OF(qv_vit, "patch_size", config.patch_size, "Side of a patch in pixels."),
    QVPY_SIZE_OF(qv_vit, "hidden_size", config.D, "Width of a token."),
    QVPY_SIZE_OF(qv_vit, "heads", config.H, "Attention heads of a block."),
    QVPY_SIZE_OF(qv_vit, "blocks", config.L, "Number of blocks."),
    QVPY_SIZE_OF(qv_vit, "tokens", T, "Tokens of an image: prefix + patches."),
    QVPY_SIZE_OF(qv_vit, "prefix", prefix, "Tokens in front of the patches: class, distillation, registers."),
    QVPY_SIZE_OF(qv_vit, "projection_dim", projection.columns, "Width of the texts' space; 0: no projection."),
    QVPY_SIZE_OF(qv_vit, "instruction_dim", config.instruction_dim, "Width of the question's states; 0: takes no question."),
    {"integrated", (getter)get_integrated, NULL, "Blocks that take the question.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* ---- other sizes ---- */

/* The positions [P, D] that a tower of another size is given, or none where it has none; -1 with an exception. */
static int read_positions(PyObject *object, const qv_vit *vit, size_t height, size_t width, PyArrayObject **positions) {
    size_t p = vit->config.patch_size, P = (height / p) * (width / p), D = vit->config.D;
    bool wanted = vit->positions.data != NULL;
    *positions = NULL;
    if ((object != Py_None) != wanted) {
        PyErr_Format(PyExc_ValueError, "positions: this tower has %s table of positions", wanted ? "a" : "no");
        return -1;
    }
    if (!wanted) {
        return 0;
    }
    *positions = qvpy_float_array(object, "positions", 2);
    if (*positions != NULL && ((size_t)PyArray_DIM(*positions, 0) != P || (size_t)PyArray_DIM(*positions, 1) != D)) {
        PyErr_Format(PyExc_ValueError, "positions has shape [%zd, %zd], expected [%zu, %zu]",
                     (Py_ssize_t)PyArray_DIM(*positions, 0), (Py_ssize_t)PyArray_DIM(*positions, 1), P, D);
        Py_CLEAR(*positions);
    }
    return *positions != NULL ? 0 : -1;
}

static PyObject *resized(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"height", "width", "positions", NULL};
    Py_ssize_t height, width;
    PyObject *object = Py_None, *result = NULL;
    PyArrayObject *positions;
    const qv_vit *vit = self->model;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "nn|O:resized", names, &height, &width, &object)) {
        return NULL;
    }
    if (height < 1 || width < 1) {
        return PyErr_Format(PyExc_ValueError, "image_size %zd x %zd, expected at least one patch", height, width);
    }
    if (read_positions(object, vit, (size_t)height, (size_t)width, &positions) < 0) {
        return NULL;
    }
    qv_error err;
    qv_vit *other = qv_allocate(1, sizeof *other);
    qv_status status =
        other == NULL ? qv_fail_memory(&err, "a vision transformer")
                      : qv_vit_resize(other, vit, (size_t)height, (size_t)width,
                                      positions != NULL ? PyArray_DATA(positions) : NULL, &err);
    if (status == QV_OK) {
        result = qvpy_model_sharing(self, other);
    } else {
        qv_free(other);
        qvpy_raise(&err);
    }
    Py_XDECREF(positions);
    return result;
}

static PyMethodDef methods[] = {
    {"forward", QVPY_KEYWORDS(forward),
     "forward(pixel_values, pair_image=None, instruct=None, instruct_length=None, attention=(), hidden=(), outputs=(),\n"
     "preprocessing=None, states=None, first=0, qkv=None)\n"
     "--\n\nRun as far as asked. Returns a dict of float32 arrays: attentions {block: [B, H, rows, keys]}, hidden\n"
     "{l: [B, T, D]}, and the named outputs: last and normed [B, T, D], pooled [B, D], projected [B, E],\n"
     "pool_attention [B, H, T], qkv [N, T, 3 D], of the first integrated block.\n"
     "B counts images before the first integrated block, pairs from it on.\n"
     "With preprocessing, a tuple as preprocess_image takes it, pixel_values is a sequence of uint8 pictures [H, W, 3],\n"
     "which become pixel values where the model computes. With states [N, T, D], what enters block `first` (hidden of an\n"
     "earlier call), pixel_values is None, and the pass begins at that block, with the same bits; with qkv, too, where that\n"
     "is the first integrated block."},
    {"dense", QVPY_KEYWORDS(qvpy_vit_dense), qvpy_vit_dense_doc},
    {"resized", QVPY_KEYWORDS(resized),
     "resized(height, width, positions=None)\n--\n\nThe same tower for images of another size, as a Vit that shares the\n"
     "weights; positions [P, D] of its patches, where the tower has a table of them."},
    {"gradients", QVPY_KEYWORDS(qvpy_vit_gradients), qvpy_vit_gradients_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *create(PyTypeObject *type, PyObject *arguments, PyObject *keywords);

static const qvpy_kind kind = {
    .name = "qavit._core.Vit",
    .doc = "Vit(config, weights, precision='float32', prefix='vision_model.', device=None)\n--\n\n"
           "A vision transformer over mapped weights.",
    .prefix = "vision_model.",
    .config_size = sizeof(vit_config),
    .read = read_config,
    .load = load,
    .free = free_model,
    .create = create,
    .methods = methods,
    .attributes = attributes,
};

static PyObject *create(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    return qvpy_model_new(type, arguments, keywords, &kind);
}

int qvpy_add_vit(PyObject *module) {
    return qvpy_add_model(module, &kind);
}
