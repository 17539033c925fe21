/* _core.Vit: a vision transformer bound to the buffers that hold its weights. */
#include "python/binding.h"

#include "base/threads.h"
#include "models/vit.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    qv_vit vit;
    qvpy_weights weights;
    PyObject *device; /* whose ops the model computes with; NULL: the CPU's */
    bool ready;
} VitObject;

/* ---- construction ---- */

/* [L] flags from a sequence of block numbers under `key`; *out NULL where there are none. Freed by PyMem_Free. */
static int read_integrated(PyObject *config, size_t L, bool **out) {
    *out = NULL;
    PyObject *value = PyDict_GetItemString(config, "integrated");
    if (value == NULL || value == Py_None) {
        return 0;
    }
    PyObject *blocks = PySequence_Fast(value, "config: 'integrated' must be a sequence of block numbers");
    if (blocks == NULL) {
        return -1;
    }
    int result = -1;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(blocks);
    bool *flags = count == 0 ? NULL : PyMem_Calloc(L, sizeof *flags);
    if (count != 0 && flags == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        size_t block = PyLong_AsSize_t(PySequence_Fast_GET_ITEM(blocks, i));
        if (PyErr_Occurred()) {
            goto done;
        }
        if (block >= L) {
            PyErr_Format(PyExc_ValueError, "config: 'integrated' names block %zu of %zu", block, L);
            goto done;
        }
        flags[block] = true;
    }
    *out = flags;
    flags = NULL;
    result = 0;
done:
    PyMem_Free(flags);
    Py_DECREF(blocks);
    return result;
}

static int read_vit_config(PyObject *object, qv_vit_config *config, bool **integrated) {
    if (!PyDict_Check(object)) {
        PyErr_Format(PyExc_TypeError, "config: expected a dict, got %s", Py_TYPE(object)->tp_name);
        return -1;
    }
    *config = (qv_vit_config){.layout = QV_VIT_CLIP, .eps = 1e-5f, .activation = QV_QUICK_GELU};
    if (qvpy_config_size(object, "image_size", 1, &config->image_size) < 0 ||
        qvpy_config_size(object, "patch_size", 1, &config->patch_size) < 0 ||
        qvpy_config_size(object, "hidden_size", 1, &config->D) < 0 ||
        qvpy_config_size(object, "num_attention_heads", 1, &config->H) < 0 ||
        qvpy_config_size(object, "num_hidden_layers", 1, &config->L) < 0 ||
        qvpy_config_size(object, "intermediate_size", 1, &config->F) < 0 ||
        qvpy_config_size(object, "instruction_dim", 0, &config->instruction_dim) < 0 ||
        qvpy_config_float(object, "layer_norm_eps", 0, &config->eps) < 0 ||
        qvpy_config_activation(object, "hidden_act", 0, &config->activation) < 0 ||
        (config->L <= 1024 && read_integrated(object, config->L, integrated) < 0)) {
        return -1;
    }
    config->integrated = *integrated;
    return 0;
}

static PyObject *vit_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"config", "weights", "precision", "prefix", "device", NULL};
    PyObject *config_object, *weights_object, *device = Py_None;
    const char *precision_name = "float32", *prefix = "vision_model.";
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO|ssO:Vit", names, &config_object, &weights_object,
                                     &precision_name, &prefix, &device)) {
        return NULL;
    }
    qv_vit_config config;
    qv_precision precision;
    const qv_ops *ops;
    bool *integrated = NULL;
    VitObject *self = NULL;
    if (qvpy_precision(precision_name, &precision) < 0 || qvpy_device(device, &ops) < 0 ||
        read_vit_config(config_object, &config, &integrated) < 0) {
        goto done;
    }
    self = (VitObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        goto done;
    }
    PyObject_GC_UnTrack(self);
    if (qvpy_weights_acquire(&self->weights, weights_object) < 0) {
        Py_CLEAR(self);
        goto done;
    }
    Py_INCREF(device);
    self->device = device;
    qv_weights weights = {.tensors = self->weights.tensors, .count = self->weights.count};
    qv_error err;
    qv_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qv_vit_init(&self->vit, &config, ops, precision, &weights, prefix, &err);
    Py_END_ALLOW_THREADS
    if (status != QV_OK) {
        qvpy_raise(&err);
        Py_CLEAR(self);
        goto done;
    }
    self->ready = true;
    PyObject_GC_Track(self);
done:
    PyMem_Free(integrated);
    return (PyObject *)self;
}

static int vit_traverse(VitObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    return qvpy_weights_traverse(&self->weights, visit, arg);
}

static void vit_dealloc(VitObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->ready) {
        qv_vit_free(&self->vit);
    }
    qvpy_weights_release(&self->weights);
    Py_XDECREF(self->device);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- forward ---- */

static const char *const output_names[] = {"last", "normed", "pooled"};

/* The arrays of one call: inputs held, outputs made. The call alone refers to its outputs: whatever the collector knows of,
 * a dict or a list, another thread can find there and empty while the core writes. */
typedef struct {
    PyArrayObject *images, *instruct, *pair_image, *instruct_length;
    qvpy_pictures pictures; /* in place of images */
    size_t *indices; /* [2 N]: pair_image, instruct_length */
    qv_vit_tap *taps; /* [L] */
    PyArrayObject **outputs; /* [L] attentions, [L + 1] hidden states, one for each of output_names; NULL: not asked for */
    size_t output_count;
    qv_vit_request request;
} forward_call;

static void release_call(forward_call *c) {
    Py_XDECREF(c->images);
    qvpy_pictures_release(&c->pictures);
    Py_XDECREF(c->instruct);
    Py_XDECREF(c->pair_image);
    Py_XDECREF(c->instruct_length);
    for (size_t i = 0; c->outputs != NULL && i < c->output_count; i++) {
        Py_XDECREF(c->outputs[i]);
    }
    PyMem_Free(c->outputs);
    PyMem_Free(c->indices);
    PyMem_Free(c->taps);
}

static int read_images(forward_call *c, const qv_vit *vit, PyObject *object, PyObject *preprocessing) {
    if (preprocessing != Py_None) {
        if (qvpy_pictures_acquire(&c->pictures, object, preprocessing, vit->config.image_size) < 0) {
            return -1;
        }
        c->request.pictures = c->pictures.views;
        c->request.preprocessing = &c->pictures.how;
        c->request.image_count = c->pictures.count;
        return 0;
    }
    c->images = qvpy_float_array(object, "pixel_values", 4);
    if (c->images == NULL) {
        return -1;
    }
    const npy_intp *shape = PyArray_DIMS(c->images);
    npy_intp size = (npy_intp)vit->config.image_size;
    if (shape[1] != 3 || shape[2] != size || shape[3] != size) {
        PyErr_Format(PyExc_ValueError, "pixel_values has shape [%zd, %zd, %zd, %zd], expected [images, 3, %zd, %zd]",
                     (Py_ssize_t)shape[0], (Py_ssize_t)shape[1], (Py_ssize_t)shape[2], (Py_ssize_t)shape[3],
                     (Py_ssize_t)size, (Py_ssize_t)size);
        return -1;
    }
    c->request.images = PyArray_DATA(c->images);
    c->request.image_count = (size_t)shape[0];
    return 0;
}

/* int32 [N] into out, each item in low..high */
static int read_indices(PyObject *object, const char *argument, PyArrayObject **keep, size_t N, size_t *out,
                        npy_int32 low, size_t high) {
    *keep = qvpy_array(object, argument, NPY_INT32, 1);
    if (*keep == NULL) {
        return -1;
    }
    if ((size_t)PyArray_DIM(*keep, 0) != N) {
        PyErr_Format(PyExc_ValueError, "%s has %zd items, expected %zu", argument, (Py_ssize_t)PyArray_DIM(*keep, 0), N);
        return -1;
    }
    const npy_int32 *items = PyArray_DATA(*keep);
    for (size_t n = 0; n < N; n++) {
        npy_int32 item = items[n];
        if (item < low || (size_t)item > high) {
            PyErr_Format(PyExc_ValueError, "%s[%zu] is %d, expected %d to %zu", argument, n, (int)item, (int)low, high);
            return -1;
        }
        out[n] = (size_t)item;
    }
    return 0;
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
    size_t last_image = c->request.image_count == 0 ? 0 : c->request.image_count - 1;
    return read_indices(pair_image, "pair_image", &c->pair_image, N, c->indices, 0, last_image) < 0
               ? -1
               : read_indices(instruct_length, "instruct_length", &c->instruct_length, N, c->indices + N, 1,
                              c->request.M);
}

/* The data of output `i`, which is made unless it has been asked for before; NULL with an exception. */
static float *new_output(forward_call *c, size_t i, int dims, const size_t *shape) {
    if (c->outputs[i] == NULL) {
        c->outputs[i] = qvpy_new_floats(dims, shape);
    }
    return c->outputs[i] != NULL ? PyArray_DATA(c->outputs[i]) : NULL;
}

static size_t sequences_at(const forward_call *c, const qv_vit *vit, size_t block) {
    return block < vit->first_integrated ? c->request.image_count : c->request.pair_count;
}

/* One (block, "class" | "raw") of the attention asked for: the class token's row, or all. */
static int add_attention(forward_call *c, const qv_vit *vit, PyObject *item) {
    Py_ssize_t block;
    const char *kind;
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "ns", &block, &kind)) {
        PyErr_SetString(PyExc_TypeError, "attention: expected (block, 'class' | 'raw') pairs");
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
    } else if (strcmp(kind, "raw") != 0) {
        PyErr_Format(PyExc_ValueError, "attention: '%s' of block %zu, expected 'class' or 'raw'", kind, i);
        return -1;
    }
    size_t shape[4] = {sequences_at(c, vit, i), vit->config.H, tap->row_count, tap->column_count};
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
    size_t shape[3] = {l == 0 ? c->request.image_count : sequences_at(c, vit, l - 1), vit->T, vit->config.D};
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
    float **const slots[] = {&c->request.last, &c->request.normed, &c->request.pooled};
    size_t B = sequences_at(c, vit, vit->config.L - 1), D = vit->config.D, tokens[3] = {B, vit->T, D}, pooled[2] = {B, D};
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        if (PyUnicode_Check(item) && PyUnicode_CompareWithASCIIString(item, output_names[i]) == 0) {
            bool one = slots[i] == &c->request.pooled;
            *slots[i] = new_output(c, 2 * vit->config.L + 1 + i, one ? 2 : 3, one ? pooled : tokens);
            return *slots[i] == NULL ? -1 : 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "outputs: %R, expected 'last', 'normed' or 'pooled'", item);
    return -1;
}

static int for_each(PyObject *sequence, const char *argument, forward_call *c, const qv_vit *vit,
                    int (*add)(forward_call *, const qv_vit *, PyObject *)) {
    PyObject *items = PySequence_Fast(sequence, argument);
    if (items == NULL) {
        return -1;
    }
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < PySequence_Fast_GET_SIZE(items); i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(items, i);
        Py_INCREF(item); /* reading a number of it can run code that takes it out of the sequence */
        result = add(c, vit, item);
        Py_DECREF(item);
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

static PyObject *vit_forward(VitObject *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"pixel_values", "pair_image", "instruct", "instruct_length",
                            "attention",    "hidden",     "outputs",  "preprocessing",   NULL};
    PyObject *images, *pair_image = Py_None, *instruct = Py_None, *instruct_length = Py_None;
    PyObject *attention = NULL, *hidden = NULL, *outputs = NULL, *preprocessing = Py_None, *result = NULL;
    forward_call c = {0};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|OOOOOOO:forward", names, &images, &pair_image, &instruct,
                                     &instruct_length, &attention, &hidden, &outputs, &preprocessing) ||
        read_images(&c, &self->vit, images, preprocessing) < 0 ||
        read_questions(&c, &self->vit, pair_image, instruct, instruct_length) < 0 ||
        make_outputs(&c, &self->vit, attention, hidden, outputs) < 0) {
        goto done;
    }
    qv_error err;
    qv_call call = {.ops = self->vit.ops, .lanes = qv_thread_count()};
    qvpy_poll poll;
    qvpy_release(&poll, &call);
    qv_status status = qv_vit_forward(&self->vit, &call, &c.request, &err);
    if (qvpy_acquire(&poll, status, &err) == 0) {
        result = build_result(&c, self->vit.config.L);
    }
done:
    release_call(&c);
    return result;
}

/* ---- attributes and type ---- */

static PyObject *get_size(VitObject *self, void *offset) {
    size_t value;
    memcpy(&value, (const char *)&self->vit + (size_t)(uintptr_t)offset, sizeof value);
    return PyLong_FromSize_t(value);
}

static PyObject *get_integrated(VitObject *self, void *unused) {
    (void)unused;
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < self->vit.config.L; i++) {
        PyObject *number = self->vit.blocks[i].integrated ? PyLong_FromSize_t(i) : NULL;
        if (number != NULL && PyList_Append(list, number) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(number);
    }
    PyObject *blocks = list != NULL ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return blocks;
}

#define SIZE(name, field, doc) {name, (getter)get_size, NULL, doc, (void *)(uintptr_t)offsetof(qv_vit, field)}

static PyGetSetDef attributes[] = {
    SIZE("image_size", config.image_size, "Side of the square input in pixels."),
    SIZE("patch_size", config.patch_size, "Side of a patch in pixels."),
    SIZE("hidden_size", config.D, "Width of a token."),
    SIZE("heads", config.H, "Attention heads of a block."),
    SIZE("blocks", config.L, "Number of blocks."),
    SIZE("tokens", T, "1 + number of patches."),
    SIZE("instruction_dim", config.instruction_dim, "Width of the question's states; 0: takes no question."),
    {"integrated", (getter)get_integrated, NULL, "Blocks that take the question.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"forward", (PyCFunction)(void (*)(void))vit_forward, METH_VARARGS | METH_KEYWORDS,
     "forward(pixel_values, pair_image=None, instruct=None, instruct_length=None, attention=(), hidden=(), outputs=(),\n"
     "preprocessing=None)\n"
     "--\n\nRun as far as asked. Returns a dict of float32 arrays: attentions {block: [B, H, rows, keys]}, hidden\n"
     "{l: [B, T, D]}, and the named outputs. B counts images before the first integrated block, pairs from it on.\n"
     "With preprocessing, a tuple as preprocess_image takes it, pixel_values is a sequence of uint8 pictures [H, W, 3],\n"
     "which become pixel values where the model computes."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot vit_slots[] = {
    {Py_tp_new, (void *)vit_new},
    {Py_tp_dealloc, (void *)vit_dealloc},
    {Py_tp_traverse, (void *)vit_traverse},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_tp_doc, (void *)"Vit(config, weights, precision='float32', prefix='vision_model.', device=None)\n--\n\n"
                        "A vision transformer over mapped weights."},
    {0, NULL},
};

static PyType_Spec vit_spec = {
    .name = "qavit._core.Vit",
    .basicsize = sizeof(VitObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = vit_slots,
};

int qvpy_add_vit(PyObject *module) {
    PyObject *type = PyType_FromSpec(&vit_spec);
    if (type == NULL) {
        return -1;
    }
    if (PyModule_AddObject(module, "Vit", type) < 0) {
        Py_DECREF(type);
        return -1;
    }
    return 0;
}
