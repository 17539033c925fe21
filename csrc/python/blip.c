/* _core.BlipItm: image-text matching of BLIP, ALBEF and BLIP-2 over mapped weights; _core.BlipQuestionEncoder: BLIP-VQA's
 * question encoder; _core.BlipImage: what the questions on an image share. */
#include "python/binding.h"

#include "models/blip_gradcam.h"
#include "models/blip_heads.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    qv_blip_image image;
    qvpy_model *owner;
} BlipImageObject;

/* ---- construction ---- */

static int read_text(PyObject *dict, qv_blip_config *config) {
    static const qvpy_setting settings[] = {
        QVPY_SETTING("num_attention_heads", QVPY_REQUIRED_SIZE, qv_blip_config, H),
        QVPY_SETTING("hidden_size", QVPY_SIZE, qv_blip_config, D),
        QVPY_SETTING("num_hidden_layers", QVPY_SIZE, qv_blip_config, L),
        QVPY_SETTING("intermediate_size", QVPY_SIZE, qv_blip_config, F),
        QVPY_SETTING("vocab_size", QVPY_SIZE, qv_blip_config, vocabulary),
        QVPY_SETTING("max_position_embeddings", QVPY_SIZE, qv_blip_config, positions),
        QVPY_SETTING("fusion_layer", QVPY_SIZE, qv_blip_config, text_blocks),
        QVPY_SETTING("closing_tokens", QVPY_SIZE, qv_blip_config, closing),
        QVPY_SETTING("layer_norm_eps", QVPY_FLOAT, qv_blip_config, eps),
        QVPY_SETTING("hidden_act", QVPY_ACTIVATION, qv_blip_config, activation),
    };
    config->eps = 1e-12f;
    config->text_blocks = SIZE_MAX;
    config->closing = 1;
    config->activation = QV_GELU;
    return qvpy_read_settings(config, dict, settings, sizeof settings / sizeof settings[0]);
}

static int read_config(PyObject *dict, void *out) {
    qv_blip_config *config = out;
    PyObject *vision = qvpy_config_item(dict, "vision"), *text = qvpy_config_item(dict, "text");
    int result = -1;
    if (vision == NULL || text == NULL || !PyDict_Check(vision) || !PyDict_Check(text)) {
        PyErr_SetString(PyExc_TypeError, "config: expected a dict with the dicts 'vision' and 'text'");
    } else {
        config->vision = (qv_vit_config){.eps = 1e-6f, .activation = QV_GELU};
        result = qvpy_read_vision(vision, &config->vision) < 0 ? -1 : read_text(text, config);
    }
    Py_XDECREF(vision);
    Py_XDECREF(text);
    return result;
}

static int read_question_encoder(PyObject *dict, void *out) {
    ((qv_blip_config *)out)->question_encoder = true;
    return read_config(dict, out);
}

static qv_status load(void **model, const void *config, qv_loader *loader) {
    qv_blip *blip = qv_allocate(1, sizeof *blip);
    if (blip == NULL) {
        return qv_fail_memory(loader->err, "BLIP image-text matching");
    }
    qv_status status = qv_blip_load(blip, config, loader);
    if (status != QV_OK) {
        qv_free(blip);
        return status;
    }
    *model = blip;
    return QV_OK;
}

static void free_model(void *blip) {
    qv_blip_free(blip);
    qv_free(blip);
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
        qv_blip_image_free(&self->image, self->owner->model);
        Py_DECREF(self->owner);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- images ---- */

static BlipImageObject *new_image(qvpy_model *self) {
    PyTypeObject *type = qvpy_state_of(Py_TYPE(self))->blip_image;
    BlipImageObject *image = (BlipImageObject *)type->tp_alloc(type, 0);
    if (image == NULL) {
        return NULL;
    }
    PyObject_GC_UnTrack(image);
    Py_INCREF(self);
    image->owner = self;
    qv_error err;
    if (qv_blip_image_allocate(&image->image, self->model, &err) != QV_OK) {
        Py_DECREF(image);
        return (BlipImageObject *)qvpy_raise(&err);
    }
    return image;
}

static const qv_vit *vision_of(const qvpy_model *self) {
    return &((const qv_blip *)self->model)->vision;
}

/* The list of `count` images, their embeddings made of `from`, or (NULL) the one image's `embeddings`. */
static PyObject *make_images(qvpy_model *self, size_t count, const qv_vit_images *from, const float *embeddings) {
    PyObject *list = PyList_New((Py_ssize_t)count), *result = NULL;
    qv_blip_image **images = PyMem_Calloc(count + 1, sizeof *images);
    if (list == NULL || images == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < count; i++) {
        BlipImageObject *image = new_image(self);
        if (image == NULL) {
            goto done;
        }
        images[i] = &image->image;
        PyList_SET_ITEM(list, (Py_ssize_t)i, (PyObject *)image);
    }
    qvpy_call call;
    if (qvpy_begin(&call, self) < 0) {
        goto done;
    }
    qv_status status = from != NULL
                           ? qv_blip_embed_images(self->model, &call.core, images, from, &call.err)
                           : qv_blip_set_embeddings(self->model, &call.core, images[0], embeddings, &call.err);
    if (status == QV_OK) {
        status = qv_blip_cross_attend(self->model, &call.core, images, count, &call.err);
    }
    if (qvpy_end(&call, status) == 0) {
        for (size_t i = 0; i < count; i++) {
            PyObject_GC_Track(PyList_GET_ITEM(list, (Py_ssize_t)i));
        }
        result = Py_NewRef(list);
    }
done:
    PyMem_Free(images);
    Py_XDECREF(list);
    return result;
}

static PyObject *itm_encode_images(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"pixel_values", "preprocessing", NULL};
    PyObject *object, *preprocessing = Py_None, *result;
    qvpy_images images;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|O:encode_images", names, &object, &preprocessing) ||
        qvpy_images_acquire(&images, vision_of(self), object, preprocessing) < 0) {
        return NULL;
    }
    result = make_images(self, images.core.count, &images.core, NULL);
    qvpy_images_release(&images);
    return result;
}

static PyObject *images_at_once(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(qv_vit_images_at_once(vision_of((const qvpy_model *)self)));
}

static PyObject *itm_image_from_embeddings(qvpy_model *self, PyObject *object) {
    PyArrayObject *embeddings = qvpy_float_array(object, "embeddings", 2);
    if (embeddings == NULL) {
        return NULL;
    }
    size_t S = vision_of(self)->T, width = vision_of(self)->config.D;
    PyObject *result = NULL;
    if ((size_t)PyArray_DIM(embeddings, 0) != S || (size_t)PyArray_DIM(embeddings, 1) != width) {
        PyErr_Format(PyExc_ValueError, "embeddings has shape [%zd, %zd], expected [%zu, %zu]",
                     (Py_ssize_t)PyArray_DIM(embeddings, 0), (Py_ssize_t)PyArray_DIM(embeddings, 1), S, width);
    } else {
        PyObject *list = make_images(self, 1, NULL, PyArray_DATA(embeddings));
        result = list != NULL ? Py_NewRef(PyList_GET_ITEM(list, 0)) : NULL;
        Py_XDECREF(list);
    }
    Py_DECREF(embeddings);
    return result;
}

static PyObject *image_embeddings(BlipImageObject *self, void *unused) {
    (void)unused;
    size_t shape[2] = {self->image.S, vision_of(self->owner)->config.D};
    PyArrayObject *array = qvpy_new_floats(2, shape);
    qvpy_call call;
    if (array == NULL || qvpy_begin(&call, self->owner) < 0 ||
        qvpy_end(&call, qv_blip_get_embeddings(self->owner->model, &call.core, PyArray_DATA(array), &self->image,
                                               &call.err)) < 0) {
        Py_CLEAR(array);
    }
    return (PyObject *)array;
}

/* ---- questions ---- */

/* Padded ids and their mask, packed, and the questions' images, held. */
typedef struct {
    qv_blip_questions questions;
    int32_t *ids;
    size_t *start;
    const qv_blip_image **images;
    PyObject *held;
} packed_questions;

static void release_questions(packed_questions *packed) {
    PyMem_Free(packed->ids);
    PyMem_Free(packed->start);
    PyMem_Free(packed->images);
    Py_XDECREF(packed->held);
}

static const qv_blip_image *image_of(qvpy_model *self, PyObject *object) {
    if (Py_TYPE(object) != qvpy_state_of(Py_TYPE(self))->blip_image) {
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

/* packed->images [Q] of one image for all questions, or a list of one a question. */
static int pack_images(qvpy_model *self, PyObject *object, size_t Q, packed_questions *packed) {
    bool several = PyList_Check(object);
    packed->held = several ? PyList_AsTuple(object) : Py_NewRef(object);
    packed->images = PyMem_Calloc(Q + 1, sizeof *packed->images);
    if (packed->held == NULL || packed->images == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (several && (size_t)PyTuple_GET_SIZE(packed->held) != Q) {
        PyErr_Format(PyExc_ValueError, "image: %zd images for %zu questions", PyTuple_GET_SIZE(packed->held), Q);
        return -1;
    }
    for (size_t q = 0; q < Q; q++) {
        packed->images[q] = image_of(self, several ? PyTuple_GET_ITEM(packed->held, (Py_ssize_t)q) : packed->held);
        if (packed->images[q] == NULL) {
            return -1;
        }
    }
    return 0;
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

/* image: as pack_images takes it, or NULL: text alone */
static int pack_questions(qvpy_model *self, PyObject *image, PyObject *ids_object, PyObject *mask_object,
                          packed_questions *packed) {
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
    if (image != NULL && pack_images(self, image, Q, packed) < 0) {
        goto done;
    }
    packed->questions = (qv_blip_questions){Q, packed->ids, packed->start, packed->images};
    qv_error err;
    if (qv_blip_check_questions(self->model, &packed->questions, &err) != QV_OK) {
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

/* Maps and, where there are such, logits and tokens' maps; else None. d_states: of a question encoder. */
static PyObject *run_gradcam(qvpy_model *self, const packed_questions *packed, Py_ssize_t block, bool want_tokens,
                             const float *d_states) {
    size_t Q = packed->questions.Q, P = vision_of(self)->P, n = ((const qv_blip *)self->model)->queries;
    size_t map_shape[2] = {Q, P}, token_shape[2] = {n != 0 ? Q * n : packed->start[Q], P}, logit_shape[2] = {Q, 2};
    PyArrayObject *maps = qvpy_new_floats(2, map_shape), *tokens = NULL, *logits = NULL;
    PyObject *result = NULL;
    if (maps == NULL || (want_tokens && (tokens = qvpy_new_floats(2, token_shape)) == NULL) ||
        (d_states == NULL && (logits = qvpy_new_floats(2, logit_shape)) == NULL)) {
        goto done;
    }
    qv_gradcam_maps out = {PyArray_DATA(maps), tokens != NULL ? PyArray_DATA(tokens) : NULL,
                           logits != NULL ? PyArray_DATA(logits) : NULL};
    qvpy_call call;
    if (qvpy_begin(&call, self) < 0) {
        goto done;
    }
    qv_status status = block < 0 ? qv_fail(&call.err, QV_ERR_VALUE, "block %zd does not exist", block)
                                 : qv_blip_gradcam(self->model, &call.core, &out, &packed->questions, (size_t)block,
                                                   d_states, &call.err);
    if (qvpy_end(&call, status) == 0) {
        result = Py_BuildValue("OOO", maps, logits != NULL ? (PyObject *)logits : Py_None,
                               tokens != NULL ? (PyObject *)tokens : Py_None);
    }
done:
    Py_XDECREF(maps);
    Py_XDECREF(logits);
    Py_XDECREF(tokens);
    return result;
}

static PyObject *itm_gradcam(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"image", "ids", "mask", "block", "tokens", NULL};
    PyObject *image, *ids, *mask, *result;
    Py_ssize_t block;
    int tokens = 0;
    packed_questions packed;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOn|p:gradcam", names, &image, &ids, &mask, &block, &tokens) ||
        pack_questions(self, image, ids, mask, &packed) < 0) {
        return NULL;
    }
    result = run_gradcam(self, &packed, block, tokens != 0, NULL);
    release_questions(&packed);
    return result;
}

static PyObject *question_gradcam(qvpy_model *self, PyObject *arguments) {
    PyObject *image, *ids, *mask, *gradient, *result = NULL;
    Py_ssize_t block;
    packed_questions packed;
    if (!PyArg_ParseTuple(arguments, "OOOnO:gradcam", &image, &ids, &mask, &block, &gradient) ||
        pack_questions(self, image, ids, mask, &packed) < 0) {
        return NULL;
    }
    PyArrayObject *d_states = qvpy_float_array(gradient, "d_states", 2);
    size_t R = packed.start[packed.questions.Q], D = ((const qv_blip *)self->model)->config.D;
    if (d_states != NULL && ((size_t)PyArray_DIM(d_states, 0) != R || (size_t)PyArray_DIM(d_states, 1) != D)) {
        PyErr_Format(PyExc_ValueError, "d_states has shape [%zd, %zd], expected [%zu, %zu]",
                     (Py_ssize_t)PyArray_DIM(d_states, 0), (Py_ssize_t)PyArray_DIM(d_states, 1), R, D);
    } else if (d_states != NULL) {
        result = run_gradcam(self, &packed, block, true, PyArray_DATA(d_states));
    }
    Py_XDECREF(d_states);
    release_questions(&packed);
    return result;
}

static PyObject *encode_questions(qvpy_model *self, PyObject *arguments) {
    PyObject *image, *ids, *mask;
    packed_questions packed;
    if (!PyArg_ParseTuple(arguments, "OOO:encode_questions", &image, &ids, &mask) ||
        pack_questions(self, image, ids, mask, &packed) < 0) {
        return NULL;
    }
    size_t shape[2] = {packed.start[packed.questions.Q], ((const qv_blip *)self->model)->config.D};
    PyArrayObject *states = qvpy_new_floats(2, shape);
    qvpy_call call;
    if (states == NULL || qvpy_begin(&call, self) < 0 ||
        qvpy_end(&call, qv_blip_encode_questions(self->model, &call.core, PyArray_DATA(states), &packed.questions,
                                                 &call.err)) < 0) {
        Py_CLEAR(states);
    }
    release_questions(&packed);
    return (PyObject *)states;
}

/* match(image, ids, mask), or (image NULL) text_features(ids, mask) */
static PyObject *run_text(qvpy_model *self, PyObject *image, PyObject *ids, PyObject *mask) {
    packed_questions packed;
    if (pack_questions(self, image, ids, mask, &packed) < 0) {
        return NULL;
    }
    const qv_blip *model = self->model;
    size_t shape[2] = {packed.questions.Q, image != NULL ? 2 : model->projection};
    PyArrayObject *out = qvpy_new_floats(2, shape);
    qvpy_call call;
    if (out != NULL && qvpy_begin(&call, self) == 0) {
        qv_status status =
            image != NULL ? qv_blip_match(model, &call.core, PyArray_DATA(out), &packed.questions, &call.err)
                          : qv_blip_text_features(model, &call.core, PyArray_DATA(out), &packed.questions, &call.err);
        if (qvpy_end(&call, status) < 0) {
            Py_CLEAR(out);
        }
    } else {
        Py_CLEAR(out);
    }
    release_questions(&packed);
    return (PyObject *)out;
}

static PyObject *itm_match(qvpy_model *self, PyObject *arguments) {
    PyObject *image, *ids, *mask;
    return PyArg_ParseTuple(arguments, "OOO:match", &image, &ids, &mask) ? run_text(self, image, ids, mask) : NULL;
}

static PyObject *itm_text_features(qvpy_model *self, PyObject *arguments) {
    PyObject *ids, *mask;
    if (!PyArg_ParseTuple(arguments, "OO:text_features", &ids, &mask)) {
        return NULL;
    }
    return run_text(self, NULL, ids, mask);
}

static PyObject *itm_image_features(qvpy_model *self, PyObject *object) {
    const qv_blip_image *image = image_of(self, object);
    if (image == NULL) {
        return NULL;
    }
    const qv_blip *model = self->model;
    size_t shape[2] = {model->queries, model->projection};
    PyArrayObject *out = model->queries != 0 ? qvpy_new_floats(2, shape) : qvpy_new_floats(1, &model->projection);
    qvpy_call call;
    /* Small as it is, without the GIL: on a device it waits for the call that is running, which may be waiting for it. */
    if (out == NULL || qvpy_begin(&call, self) < 0 ||
        qvpy_end(&call, qv_blip_image_features(model, &call.core, PyArray_DATA(out), image, &call.err)) < 0) {
        Py_CLEAR(out);
    }
    return (PyObject *)out;
}

/* ---- attributes and types ---- */

#define ATTRIBUTES                                                                                              \
    QVPY_SIZE_OF(qv_blip, "image_size", vision.config.height, "Side of the square input in pixels."),           \
        QVPY_SIZE_OF(qv_blip, "patch_size", vision.config.patch_size, "Side of a patch in pixels."),            \
        QVPY_SIZE_OF(qv_blip, "image_tokens", vision.T, "1 + number of patches."),                              \
        QVPY_SIZE_OF(qv_blip, "image_width", vision.config.D, "Width of an image token."),                      \
        QVPY_SIZE_OF(qv_blip, "width", config.D, "Width of a text token."),                                     \
        QVPY_SIZE_OF(qv_blip, "heads", config.H, "Attention heads of a text block."),                           \
        QVPY_SIZE_OF(qv_blip, "blocks", config.L, "Number of text blocks."),                                    \
        QVPY_SIZE_OF(qv_blip, "vocab_size", config.vocabulary, "Rows of the word embedding."),                  \
        QVPY_SIZE_OF(qv_blip, "max_tokens", config.positions, "Rows of the position embedding.")

static PyGetSetDef itm_attributes[] = {
    ATTRIBUTES,
    {"images_at_once", images_at_once, NULL, "So many images are enough for encode_images' full speed.", NULL},
    QVPY_SIZE_OF(qv_blip, "cross_first", cross_first, "The first text block that attends to the image."),
    QVPY_SIZE_OF(qv_blip, "cross_step", cross_step, "From there on, one block in so many does."),
    QVPY_SIZE_OF(qv_blip, "queries", queries, "Learned queries in front of a text; 0: there are none."),
    QVPY_SIZE_OF(qv_blip, "projection", projection, "Width of the contrastive heads' joint space; 0: there are none."),
    {NULL, NULL, NULL, NULL, NULL},
};
static PyGetSetDef question_attributes[] = {ATTRIBUTES, {NULL, NULL, NULL, NULL, NULL}};

#define ENCODE_IMAGE                                                                                              \
    {"encode_images", QVPY_KEYWORDS(itm_encode_images),                                                           \
     "encode_images(pixel_values, preprocessing=None)\n--\n\n"                                                    \
     "What every question on each of the images [N, 3, size, size] shares: a list of BlipImages. With\n"          \
     "preprocessing, a tuple as preprocess_image takes it, they are a sequence of uint8 pictures [H, W, 3], which\n" \
     "become pixel values where the model computes."},                                                            \
    {"image_from_embeddings", (PyCFunction)(void (*)(void))itm_image_from_embeddings, METH_O,                     \
     "image_from_embeddings(embeddings)\n--\n\nThe same from the image's tokens [image_tokens, image_width]."}

static PyMethodDef itm_methods[] = {
    ENCODE_IMAGE,
    {"gradcam", QVPY_KEYWORDS(itm_gradcam),
     "gradcam(image, ids, mask, block, tokens=False)\n--\n\nMaps [Q, P], logits [Q, 2] and, where asked for, the maps\n"
     "of all tokens that count, [R, P], one question after another, or of all queries, [Q * queries, P]; else None.\n"
     "image: of all questions, or a list of one a question. ids int32, mask uint8 [Q, M]."},
    {"match", (PyCFunction)(void (*)(void))itm_match, METH_VARARGS,
     "match(image, ids, mask)\n--\n\nLogits [Q, 2]: no match, match."},
    {"text_features", (PyCFunction)(void (*)(void))itm_text_features, METH_VARARGS,
     "text_features(ids, mask)\n--\n\nUnit vectors [Q, projection] of the contrastive text head."},
    {"image_features", (PyCFunction)(void (*)(void))itm_image_features, METH_O,
     "image_features(image)\n--\n\nThe unit vector [projection] of the contrastive image head; of each query, where there are\n"
     "any: [queries, projection]."},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef question_methods[] = {
    ENCODE_IMAGE,
    {"encode_questions", (PyCFunction)(void (*)(void))encode_questions, METH_VARARGS,
     "encode_questions(image, ids, mask)\n--\n\nThe last states of all tokens that count, [R, width], one question after\n"
     "another. image: of all questions, or a list of one a question. ids int32, mask uint8 [Q, M]."},
    {"gradcam", (PyCFunction)(void (*)(void))question_gradcam, METH_VARARGS,
     "gradcam(image, ids, mask, block, d_states)\n--\n\nMaps [Q, P], None, and the maps of all tokens that count, [R, P],\n"
     "from the gradient [R, width] of encode_questions' states."},
    {NULL, NULL, 0, NULL},
};

static PyObject *create(PyTypeObject *type, PyObject *arguments, PyObject *keywords);
static PyObject *create_question_encoder(PyTypeObject *type, PyObject *arguments, PyObject *keywords);

static const qvpy_kind kind = {
    .name = "qavit._core.BlipItm",
    .doc = "BlipItm(config, weights, precision='float32', prefix='', device=None)\n--\n\n"
           "Image-text matching of BLIP, ALBEF and BLIP-2 over mapped weights.",
    .prefix = "",
    .config_size = sizeof(qv_blip_config),
    .read = read_config,
    .load = load,
    .free = free_model,
    .create = create,
    .methods = itm_methods,
    .attributes = itm_attributes,
};
static const qvpy_kind question_encoder = {
    .name = "qavit._core.BlipQuestionEncoder",
    .doc = "BlipQuestionEncoder(config, weights, precision='float32', prefix='', device=None)\n--\n\n"
           "BLIP-VQA's picture and question halves over mapped weights.",
    .prefix = "",
    .config_size = sizeof(qv_blip_config),
    .read = read_question_encoder,
    .load = load,
    .free = free_model,
    .create = create_question_encoder,
    .methods = question_methods,
    .attributes = question_attributes,
};

static PyObject *create(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    return qvpy_model_new(type, arguments, keywords, &kind);
}

static PyObject *create_question_encoder(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    return qvpy_model_new(type, arguments, keywords, &question_encoder);
}

static PyGetSetDef image_attributes[] = {
    {"embeddings", (getter)image_embeddings, NULL, "A copy of the image's tokens, [image_tokens, image_width].", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyObject *refuse_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    (void)arguments;
    (void)keywords;
    return PyErr_Format(PyExc_TypeError, "%s is made by a model's encode_images", type->tp_name);
}

static PyType_Slot image_slots[] = {
    {Py_tp_new, (void *)refuse_new},
    {Py_tp_dealloc, (void *)image_dealloc},
    {Py_tp_traverse, (void *)image_traverse},
    {Py_tp_getset, image_attributes},
    {Py_tp_doc, (void *)"What every question on an image shares; made by a model's encode_images."},
    {0, NULL},
};

static PyType_Spec image_spec = {
    .name = "qavit._core.BlipImage",
    .basicsize = sizeof(BlipImageObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = image_slots,
};

int qvpy_add_blip(PyObject *module) {
    qvpy_state *state = PyModule_GetState(module);
    state->blip_image = qvpy_add_type(module, &image_spec);
    Py_XINCREF(state->blip_image);
    return state->blip_image == NULL || qvpy_add_model(module, &kind) < 0 ? -1 : qvpy_add_model(module, &question_encoder);
}
