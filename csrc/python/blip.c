/* _core.BlipItm: BLIP image-text matching over mapped weights; _core.BlipImage: what the questions on an image share. */
#include "python/binding.h"

#include "base/threads.h"
#include "models/blip_itm.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    qv_blip model;
    qvpy_weights weights;
    PyObject *device; /* whose ops the model computes with; NULL: the CPU's */
    bool ready;
    PyTypeObject *image_type;
} BlipItmObject;

typedef struct {
    PyObject_HEAD
    qv_blip_image image;
    BlipItmObject *owner;
} BlipImageObject;

/* ---- construction ---- */

static int read_text(PyObject *object, qv_blip_config *config) {
    config->eps = 1e-12f;
    config->text_blocks = SIZE_MAX;
    config->activation = QV_GELU;
    return qvpy_config_size(object, "num_attention_heads", 1, &config->H) < 0 ||
                   qvpy_config_size(object, "hidden_size", 0, &config->D) < 0 ||
                   qvpy_config_size(object, "num_hidden_layers", 0, &config->L) < 0 ||
                   qvpy_config_size(object, "intermediate_size", 0, &config->F) < 0 ||
                   qvpy_config_size(object, "vocab_size", 0, &config->vocabulary) < 0 ||
                   qvpy_config_size(object, "max_position_embeddings", 0, &config->positions) < 0 ||
                   qvpy_config_size(object, "fusion_layer", 0, &config->text_blocks) < 0 ||
                   qvpy_config_float(object, "layer_norm_eps", 0, &config->eps) < 0 ||
                   qvpy_config_activation(object, "hidden_act", 0, &config->activation) < 0
               ? -1
               : 0;
}

static int read_config(PyObject *object, qv_blip_config *config) {
    *config = (qv_blip_config){.vision = {.eps = 1e-6f, .activation = QV_GELU}};
    if (!PyDict_Check(object)) {
        PyErr_Format(PyExc_TypeError, "config: expected a dict, got %s", Py_TYPE(object)->tp_name);
        return -1;
    }
    PyObject *vision = PyDict_GetItemString(object, "vision"), *text = PyDict_GetItemString(object, "text");
    if (vision == NULL || text == NULL || !PyDict_Check(vision) || !PyDict_Check(text)) {
        PyErr_SetString(PyExc_TypeError, "config: expected a dict with the dicts 'vision' and 'text'");
        return -1;
    }
    return qvpy_vit_config(vision, &config->vision) < 0 || read_text(text, config) < 0 ? -1 : 0;
}

static PyObject *itm_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"config", "weights", "precision", "device", NULL};
    PyObject *config_object, *weights_object, *device = Py_None;
    const qv_ops *ops;
    const char *precision_name = "float32";
    qv_blip_config config;
    qv_precision precision;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO|sO:BlipItm", names, &config_object, &weights_object,
                                     &precision_name, &device) ||
        qvpy_precision(precision_name, &precision) < 0 || qvpy_device(device, &ops) < 0 ||
        read_config(config_object, &config) < 0) {
        return NULL;
    }
    const qvpy_state *state = PyType_GetModuleState(type);
    BlipItmObject *self = state != NULL ? (BlipItmObject *)type->tp_alloc(type, 0) : NULL;
    if (self == NULL) {
        return NULL;
    }
    PyObject_GC_UnTrack(self);
    Py_INCREF(state->blip_image);
    self->image_type = state->blip_image;
    Py_INCREF(device);
    self->device = device;
    if (qvpy_weights_acquire(&self->weights, weights_object) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    qv_weights weights = {.tensors = self->weights.tensors, .count = self->weights.count};
    qv_error err;
    qvpy_poll poll;
    qv_loader loader = {.weights = &weights, .prefix = "", .ops = ops, .precision = precision, .err = &err};
    loader.poll = qvpy_release_gil(&poll);
    self->ready = qv_blip_load(&self->model, &config, &loader) == QV_OK;
    if (qvpy_acquire(&poll, loader.status, &err) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static int itm_traverse(BlipItmObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->image_type);
    return qvpy_weights_traverse(&self->weights, visit, arg);
}

static void itm_dealloc(BlipItmObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->ready) {
        qv_blip_free(&self->model);
    }
    qvpy_weights_release(&self->weights);
    Py_XDECREF(self->image_type);
    Py_XDECREF(self->device);
    type->tp_free(self);
    Py_DECREF(type);
}

static int image_traverse(BlipImageObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    return 0;
}

static void image_dealloc(BlipImageObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->owner != NULL) {
        qv_blip_image_free(&self->image, &self->owner->model);
        Py_DECREF(self->owner);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- images ---- */

static BlipImageObject *new_image(BlipItmObject *self) {
    BlipImageObject *image = (BlipImageObject *)self->image_type->tp_alloc(self->image_type, 0);
    if (image == NULL) {
        return NULL;
    }
    PyObject_GC_UnTrack(image);
    Py_INCREF(self);
    image->owner = self;
    qv_error err;
    if (qv_blip_image_allocate(&image->image, &self->model, &err) != QV_OK) {
        Py_DECREF(image);
        return (BlipImageObject *)qvpy_raise(&err);
    }
    return image;
}

/* What questions share, of an image whose pixels, whose picture or whose embeddings are given. */
static PyObject *finish_image(BlipItmObject *self, const float *pixels, const qvpy_pictures *picture,
                              const float *embeddings) {
    BlipImageObject *image = new_image(self);
    if (image == NULL) {
        return NULL;
    }
    qv_error err;
    qv_call call = {.ops = self->model.ops, .lanes = qv_thread_count()};
    qvpy_poll poll;
    qvpy_release(&poll, &call);
    qv_status status = embeddings != NULL
                           ? qv_blip_set_embeddings(&self->model, &call, &image->image, embeddings, &err)
                           : qv_blip_embed_image(&self->model, &call, &image->image, pixels, picture->views,
                                                 &picture->how, &err);
    if (status == QV_OK) {
        status = qv_blip_cross_attend(&self->model, &call, &image->image, &err);
    }
    if (qvpy_acquire(&poll, status, &err) < 0) {
        Py_CLEAR(image);
    } else {
        PyObject_GC_Track(image);
    }
    return (PyObject *)image;
}

static PyObject *encode_picture(BlipItmObject *self, PyObject *object, PyObject *preprocessing) {
    qvpy_pictures picture;
    PyObject *one = PyTuple_Pack(1, object), *result = NULL;
    if (one != NULL &&
        qvpy_pictures_acquire(&picture, one, preprocessing, self->model.vision.config.height) == 0) {
        result = finish_image(self, NULL, &picture, NULL);
        qvpy_pictures_release(&picture);
    }
    Py_XDECREF(one);
    return result;
}

static PyObject *itm_encode_image(BlipItmObject *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"pixel_values", "preprocessing", NULL};
    PyObject *object, *preprocessing = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O:encode_image", names, &object, &preprocessing)) {
        return NULL;
    }
    if (preprocessing != Py_None) {
        return encode_picture(self, object, preprocessing);
    }
    PyArrayObject *pixels = qvpy_float_array(object, "pixel_values", 3);
    if (pixels == NULL) {
        return NULL;
    }
    npy_intp size = (npy_intp)self->model.vision.config.height;
    const npy_intp *shape = PyArray_DIMS(pixels);
    PyObject *result = NULL;
    if (shape[0] != 3 || shape[1] != size || shape[2] != size) {
        PyErr_Format(PyExc_ValueError, "pixel_values has shape [%zd, %zd, %zd], expected [3, %zd, %zd]",
                     (Py_ssize_t)shape[0], (Py_ssize_t)shape[1], (Py_ssize_t)shape[2], (Py_ssize_t)size,
                     (Py_ssize_t)size);
    } else {
        const qvpy_pictures none = {.views = NULL};
        result = finish_image(self, PyArray_DATA(pixels), &none, NULL);
    }
    Py_DECREF(pixels);
    return result;
}

static PyObject *itm_image_from_embeddings(BlipItmObject *self, PyObject *object) {
    PyArrayObject *embeddings = qvpy_float_array(object, "embeddings", 2);
    if (embeddings == NULL) {
        return NULL;
    }
    size_t S = self->model.vision.T, width = self->model.vision.config.D;
    PyObject *result = NULL;
    if ((size_t)PyArray_DIM(embeddings, 0) != S || (size_t)PyArray_DIM(embeddings, 1) != width) {
        PyErr_Format(PyExc_ValueError, "embeddings has shape [%zd, %zd], expected [%zu, %zu]",
                     (Py_ssize_t)PyArray_DIM(embeddings, 0), (Py_ssize_t)PyArray_DIM(embeddings, 1), S, width);
    } else {
        result = finish_image(self, NULL, NULL, PyArray_DATA(embeddings));
    }
    Py_DECREF(embeddings);
    return result;
}

static PyObject *image_embeddings(BlipImageObject *self, void *unused) {
    (void)unused;
    size_t shape[2] = {self->image.S, self->owner->model.vision.config.D};
    const qv_blip *model = &self->owner->model;
    PyArrayObject *array = qvpy_new_floats(2, shape);
    if (array == NULL) {
        return NULL;
    }
    qv_error err;
    qv_call call = {.ops = model->ops, .lanes = 1};
    qv_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qv_blip_get_embeddings(model, &call, PyArray_DATA(array), &self->image, &err);
    Py_END_ALLOW_THREADS
    if (status != QV_OK) {
        Py_DECREF(array);
        return qvpy_raise(&err);
    }
    return (PyObject *)array;
}

/* ---- questions ---- */

/* Padded ids and their mask, packed. */
typedef struct {
    qv_blip_questions questions;
    int32_t *ids;
    size_t *start;
} packed_questions;

static void release_questions(packed_questions *packed) {
    PyMem_Free(packed->ids);
    PyMem_Free(packed->start);
}

/* The tokens of row q that count: a run of ones from the first column on. Returns its length, or -1. */
static Py_ssize_t row_length(const npy_uint8 *mask, size_t M, size_t q) {
    size_t length = 0;
    while (length < M && mask[length] != 0) {
        length++;
    }
    for (size_t m = length; m < M; m++) {
        if (mask[m] != 0) {
            PyErr_Format(PyExc_ValueError, "mask: row %zu has a hole; padding must follow the tokens", q);
            return -1;
        }
    }
    return (Py_ssize_t)length;
}

static int pack_questions(BlipItmObject *self, PyObject *ids_object, PyObject *mask_object, packed_questions *packed) {
    *packed = (packed_questions){.ids = NULL};
    PyArrayObject *ids = qvpy_array(ids_object, "ids", NPY_INT32, 2);
    PyArrayObject *mask = ids != NULL ? qvpy_array(mask_object, "mask", NPY_UINT8, 2) : NULL;
    int result = -1;
    if (mask == NULL) {
        goto done;
    }
    size_t Q = (size_t)PyArray_DIM(ids, 0), M = (size_t)PyArray_DIM(ids, 1), R = 0;
    if ((size_t)PyArray_DIM(mask, 0) != Q || (size_t)PyArray_DIM(mask, 1) != M) {
        PyErr_Format(PyExc_ValueError, "mask has shape [%zd, %zd], expected that of ids, [%zu, %zu]",
                     (Py_ssize_t)PyArray_DIM(mask, 0), (Py_ssize_t)PyArray_DIM(mask, 1), Q, M);
        goto done;
    }
    packed->ids = PyMem_Calloc(Q * M + 1, sizeof *packed->ids);
    packed->start = PyMem_Calloc(Q + 1, sizeof *packed->start);
    if (packed->ids == NULL || packed->start == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    const npy_int32 *id = PyArray_DATA(ids);
    const npy_uint8 *seen = PyArray_DATA(mask);
    for (size_t q = 0; q < Q; q++) {
        Py_ssize_t length = row_length(seen + q * M, M, q);
        if (length < 0) {
            goto done;
        }
        memcpy(packed->ids + R, id + q * M, (size_t)length * sizeof *id);
        R += (size_t)length;
        packed->start[q + 1] = R;
    }
    packed->questions = (qv_blip_questions){Q, packed->ids, packed->start};
    qv_error err;
    if (qv_blip_check_questions(&self->model, &packed->questions, &err) != QV_OK) {
        qvpy_raise(&err);
        goto done;
    }
    result = 0;
done:
    Py_XDECREF(ids);
    Py_XDECREF(mask);
    if (result < 0) {
        release_questions(packed);
    }
    return result;
}

static const qv_blip_image *image_of(BlipItmObject *self, PyObject *object) {
    if (Py_TYPE(object) != self->image_type) {
        PyErr_Format(PyExc_TypeError, "image: expected a BlipImage, got %s", Py_TYPE(object)->tp_name);
        return NULL;
    }
    BlipImageObject *image = (BlipImageObject *)object;
    if (image->owner != self) {
        PyErr_SetString(PyExc_ValueError, "image: it was encoded by another model");
        return NULL;
    }
    return &image->image;
}

static PyObject *itm_gradcam(BlipItmObject *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"image", "ids", "mask", "block", "tokens", NULL};
    PyObject *image_object, *ids, *mask, *result = NULL;
    Py_ssize_t block;
    int want_tokens = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOn|p:gradcam", names, &image_object, &ids, &mask, &block,
                                     &want_tokens)) {
        return NULL;
    }
    const qv_blip_image *image = image_of(self, image_object);
    packed_questions packed;
    if (image == NULL || pack_questions(self, ids, mask, &packed) < 0) {
        return NULL;
    }
    size_t Q = packed.questions.Q, P = self->model.vision.P;
    size_t map_shape[2] = {Q, P}, token_shape[2] = {packed.start[Q], P}, logit_shape[2] = {Q, 2};
    PyArrayObject *maps = qvpy_new_floats(2, map_shape), *logits = qvpy_new_floats(2, logit_shape);
    PyArrayObject *tokens = want_tokens ? qvpy_new_floats(2, token_shape) : NULL;
    if (maps == NULL || logits == NULL || (want_tokens && tokens == NULL)) {
        goto done;
    }
    qv_gradcam_maps out = {PyArray_DATA(maps), tokens != NULL ? PyArray_DATA(tokens) : NULL, PyArray_DATA(logits)};
    qv_error err;
    qv_call call = {.ops = self->model.ops, .lanes = qv_thread_count()};
    qvpy_poll poll;
    qvpy_release(&poll, &call);
    qv_status status = block < 0 ? qv_fail(&err, QV_ERR_VALUE, "block %zd does not exist", block)
                                 : qv_blip_gradcam(&self->model, &call, &out, image, &packed.questions, (size_t)block,
                                                   &err);
    if (qvpy_acquire(&poll, status, &err) == 0) {
        result = Py_BuildValue("OOO", maps, logits, tokens != NULL ? (PyObject *)tokens : Py_None);
    }
done:
    Py_XDECREF(maps);
    Py_XDECREF(logits);
    Py_XDECREF(tokens);
    release_questions(&packed);
    return result;
}

/* match(image, ids, mask), or (image NULL) text_features(ids, mask) */
static PyObject *run_text(BlipItmObject *self, const qv_blip_image *image, PyObject *ids, PyObject *mask) {
    packed_questions packed;
    if (pack_questions(self, ids, mask, &packed) < 0) {
        return NULL;
    }
    size_t shape[2] = {packed.questions.Q, image != NULL ? 2 : self->model.projection};
    PyArrayObject *out = qvpy_new_floats(2, shape);
    if (out != NULL) {
        qv_error err;
        qv_call call = {.ops = self->model.ops, .lanes = qv_thread_count()};
        qvpy_poll poll;
        qvpy_release(&poll, &call);
        qv_status status =
            image != NULL ? qv_blip_match(&self->model, &call, PyArray_DATA(out), image, &packed.questions, &err)
                          : qv_blip_text_features(&self->model, &call, PyArray_DATA(out), &packed.questions, &err);
        if (qvpy_acquire(&poll, status, &err) < 0) {
            Py_CLEAR(out);
        }
    }
    release_questions(&packed);
    return (PyObject *)out;
}

static PyObject *itm_match(BlipItmObject *self, PyObject *arguments) {
    PyObject *image_object, *ids, *mask;
    if (!PyArg_ParseTuple(arguments, "OOO:match", &image_object, &ids, &mask)) {
        return NULL;
    }
    const qv_blip_image *image = image_of(self, image_object);
    return image != NULL ? run_text(self, image, ids, mask) : NULL;
}

static PyObject *itm_text_features(BlipItmObject *self, PyObject *arguments) {
    PyObject *ids, *mask;
    if (!PyArg_ParseTuple(arguments, "OO:text_features", &ids, &mask)) {
        return NULL;
    }
    return run_text(self, NULL, ids, mask);
}

static PyObject *itm_image_features(BlipItmObject *self, PyObject *object) {
    const qv_blip_image *image = image_of(self, object);
    if (image == NULL) {
        return NULL;
    }
    PyArrayObject *out = qvpy_new_floats(1, &self->model.projection);
    if (out == NULL) {
        return NULL;
    }
    qv_error err;
    qv_call call = {.ops = self->model.ops, .lanes = qv_thread_count()};
    qvpy_poll poll;
    /* Small as it is: on a device it waits for the call that is running, which may be waiting for the GIL. */
    qvpy_release(&poll, &call);
    qv_status status = qv_blip_image_features(&self->model, &call, PyArray_DATA(out), image, &err);
    if (qvpy_acquire(&poll, status, &err) < 0) {
        Py_CLEAR(out);
    }
    return (PyObject *)out;
}

/* ---- attributes and types ---- */

static PyObject *get_size(BlipItmObject *self, void *offset) {
    size_t value;
    memcpy(&value, (const char *)&self->model + (size_t)(uintptr_t)offset, sizeof value);
    return PyLong_FromSize_t(value);
}

#define SIZE(name, field, doc) {name, (getter)get_size, NULL, doc, (void *)(uintptr_t)offsetof(qv_blip, field)}

static PyGetSetDef itm_attributes[] = {
    SIZE("image_size", vision.config.height, "Side of the square input in pixels."),
    SIZE("patch_size", vision.config.patch_size, "Side of a patch in pixels."),
    SIZE("image_tokens", vision.T, "1 + number of patches."),
    SIZE("image_width", vision.config.D, "Width of an image token."),
    SIZE("width", config.D, "Width of a text token."),
    SIZE("heads", config.H, "Attention heads of a text block."),
    SIZE("blocks", config.L, "Number of text blocks."),
    SIZE("vocab_size", config.vocabulary, "Rows of the word embedding."),
    SIZE("max_tokens", config.positions, "Rows of the position embedding."),
    SIZE("projection", projection, "Width of the contrastive heads' joint space; 0: there are none."),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef itm_methods[] = {
    {"encode_image", (PyCFunction)(void (*)(void))itm_encode_image, METH_VARARGS | METH_KEYWORDS,
     "encode_image(pixel_values, preprocessing=None)\n--\n\n"
     "What every question on the image [3, size, size] shares, as a BlipImage. With preprocessing = (resize_exact, mean,\n"
     "std), the image is a uint8 picture [H, W, 3], which becomes pixel values where the model computes."},
    {"image_from_embeddings", (PyCFunction)(void (*)(void))itm_image_from_embeddings, METH_O,
     "image_from_embeddings(embeddings)\n--\n\nThe same from the image's tokens [image_tokens, image_width]."},
    {"gradcam", (PyCFunction)(void (*)(void))itm_gradcam, METH_VARARGS | METH_KEYWORDS,
     "gradcam(image, ids, mask, block, tokens=False)\n--\n\nMaps [Q, P], logits [Q, 2] and, where asked for, the maps\n"
     "of all tokens that count, [R, P], one question after another; else None. ids int32, mask uint8 [Q, M]."},
    {"match", (PyCFunction)(void (*)(void))itm_match, METH_VARARGS,
     "match(image, ids, mask)\n--\n\nLogits [Q, 2]: no match, match."},
    {"text_features", (PyCFunction)(void (*)(void))itm_text_features, METH_VARARGS,
     "text_features(ids, mask)\n--\n\nUnit vectors [Q, projection] of the contrastive text head."},
    {"image_features", (PyCFunction)(void (*)(void))itm_image_features, METH_O,
     "image_features(image)\n--\n\nThe unit vector [projection] of the contrastive image head."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot itm_slots[] = {
    {Py_tp_new, (void *)itm_new},
    {Py_tp_dealloc, (void *)itm_dealloc},
    {Py_tp_traverse, (void *)itm_traverse},
    {Py_tp_methods, itm_methods},
    {Py_tp_getset, itm_attributes},
    {Py_tp_doc, (void *)"BlipItm(config, weights, precision='float32', device=None)\n--\n\n"
                        "BLIP image-text matching over mapped weights."},
    {0, NULL},
};

static PyType_Spec itm_spec = {
    .name = "qavit._core.BlipItm",
    .basicsize = sizeof(BlipItmObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = itm_slots,
};

static PyGetSetDef image_attributes[] = {
    {"embeddings", (getter)image_embeddings, NULL, "A copy of the image's tokens, [image_tokens, image_width].", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyObject *refuse_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    (void)arguments;
    (void)keywords;
    return PyErr_Format(PyExc_TypeError, "%s is made by BlipItm.encode_image", type->tp_name);
}

static PyType_Slot image_slots[] = {
    {Py_tp_new, (void *)refuse_new},
    {Py_tp_dealloc, (void *)image_dealloc},
    {Py_tp_traverse, (void *)image_traverse},
    {Py_tp_getset, image_attributes},
    {Py_tp_doc, (void *)"What every question on an image shares; made by BlipItm.encode_image."},
    {0, NULL},
};

static PyType_Spec image_spec = {
    .name = "qavit._core.BlipImage",
    .basicsize = sizeof(BlipImageObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = image_slots,
};

/* Borrowed from the module. */
static PyObject *add_type(PyObject *module, PyType_Spec *spec, const char *name) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddObject(module, name, type) < 0) {
        Py_CLEAR(type);
    }
    return type;
}

int qvpy_add_blip(PyObject *module) {
    qvpy_state *state = PyModule_GetState(module);
    PyObject *image = add_type(module, &image_spec, "BlipImage");
    if (image == NULL || add_type(module, &itm_spec, "BlipItm") == NULL) {
        return -1;
    }
    Py_INCREF(image);
    state->blip_image = (PyTypeObject *)image;
    return 0;
}
