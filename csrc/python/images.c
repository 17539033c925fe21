/* Image files and pictures. */
#include "python/binding.h"

#include "base/memory.h"
#include "image/decode.h"
#include "image/preprocess.h"
#include "image/resize.h"

#define MAX_EDGE ((Py_ssize_t)1 << 24)

static void free_pixels(PyObject *capsule) {
    qv_free(PyCapsule_GetPointer(capsule, "qavit pixels"));
}

/* The picture's memory as an array [H, W, 3], which frees it; on failure it is freed here. */
static PyObject *wrap_picture(qv_picture *picture) {
    npy_intp shape[3] = {(npy_intp)picture->height, (npy_intp)picture->width, 3};
    PyObject *owner = PyCapsule_New(picture->pixels, "qavit pixels", free_pixels);
    if (owner == NULL) {
        qv_picture_free(picture);
        return NULL;
    }
    PyObject *array = PyArray_SimpleNewFromData(3, shape, NPY_UINT8, picture->pixels);
    if (array == NULL) {
        Py_DECREF(owner);
        return NULL;
    }
    if (PyArray_SetBaseObject((PyArrayObject *)array, owner) < 0) { /* takes the reference, also when it fails */
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

static PyObject *decode_image(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"data", "exif", "max_pixels", NULL};
    (void)module;
    PyObject *object;
    int exif = 1;
    Py_ssize_t max_pixels = 89478485;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|pn:decode_image", names, &object, &exif, &max_pixels)) {
        return NULL;
    }
    /* Bytes, for they cannot change between the check of a file, which the decoder relies on, and its decoding. */
    PyObject *data = PyObject_CheckBuffer(object) ? PyBytes_FromObject(object) : NULL;
    if (data == NULL) {
        return PyErr_Occurred() ? NULL
                                : PyErr_Format(PyExc_TypeError, "data: expected a bytes-like object, got %s",
                                               Py_TYPE(object)->tp_name);
    }
    qv_error err;
    qv_picture picture;
    qv_status status;
    const uint8_t *bytes = (const uint8_t *)PyBytes_AS_STRING(data);
    size_t length = (size_t)PyBytes_GET_SIZE(data), limit = max_pixels < 0 ? 0 : (size_t)max_pixels;
    Py_BEGIN_ALLOW_THREADS;
    status = qv_image_decode(&picture, bytes, length, exif != 0, limit, &err);
    Py_END_ALLOW_THREADS;
    Py_DECREF(data);
    return status == QV_OK ? wrap_picture(&picture) : qvpy_raise(&err);
}

/* The argument as uint8 [H, W, 3] with H and W at least 1; other types are refused, not converted. */
static PyArrayObject *picture_array(PyObject *object) {
    if (!PyArray_Check(object) || PyArray_TYPE((PyArrayObject *)object) != NPY_UINT8) {
        PyErr_Format(PyExc_TypeError, "picture: expected a uint8 array [H, W, 3], got %R", (PyObject *)Py_TYPE(object));
        return NULL;
    }
    PyArrayObject *array = qvpy_array(object, "picture", NPY_UINT8, 3);
    if (array == NULL) {
        return NULL;
    }
    const npy_intp *shape = PyArray_DIMS(array);
    if (shape[2] != 3 || shape[0] < 1 || shape[1] < 1 || shape[0] > PY_SSIZE_T_MAX / 64 ||
        shape[1] > PY_SSIZE_T_MAX / 64) {
        PyErr_Format(PyExc_ValueError, "picture has the shape [%zd, %zd, %zd], expected [H, W, 3]",
                     (Py_ssize_t)shape[0], (Py_ssize_t)shape[1], (Py_ssize_t)shape[2]);
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

static PyObject *resize_image(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"picture", "height", "width", "filter", NULL};
    (void)module;
    PyObject *object;
    Py_ssize_t height, width;
    int filter = QV_BICUBIC;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "Onn|i:resize_image", names, &object, &height, &width, &filter)) {
        return NULL;
    }
    if (filter < 0 || filter >= QV_FILTER_COUNT) {
        return PyErr_Format(PyExc_ValueError, "filter is %d, expected one of Pillow's, 0 to %d", filter,
                            QV_FILTER_COUNT - 1);
    }
    if (height < 1 || width < 1 || height > MAX_EDGE || width > MAX_EDGE) {
        return PyErr_Format(PyExc_ValueError, "height and width are %zd and %zd, expected 1 to %zd", height, width,
                            MAX_EDGE);
    }
    PyArrayObject *picture = picture_array(object);
    if (picture == NULL) {
        return NULL;
    }
    npy_intp shape[3] = {height, width, 3};
    PyArrayObject *out = (PyArrayObject *)PyArray_SimpleNew(3, shape, NPY_UINT8);
    if (out == NULL) {
        Py_DECREF(picture);
        return NULL;
    }
    qv_error err;
    qv_status status;
    qv_window window = {0, 0, (size_t)height, (size_t)width};
    Py_BEGIN_ALLOW_THREADS;
    status = qv_resize(PyArray_DATA(out), PyArray_DATA(picture), (size_t)PyArray_DIM(picture, 0),
                       (size_t)PyArray_DIM(picture, 1), (size_t)height, (size_t)width, (qv_filter)filter, window, &err);
    Py_END_ALLOW_THREADS;
    Py_DECREF(picture);
    if (status != QV_OK) {
        Py_DECREF(out);
        return qvpy_raise(&err);
    }
    return (PyObject *)out;
}

static qv_picture_view view_of(PyArrayObject *picture) {
    return (qv_picture_view){PyArray_DATA(picture), (size_t)PyArray_DIM(picture, 0), (size_t)PyArray_DIM(picture, 1)};
}

void qvpy_pictures_release(qvpy_pictures *pictures) {
    for (size_t i = 0; pictures->arrays != NULL && i < pictures->count; i++) {
        Py_XDECREF(pictures->arrays[i]);
    }
    PyMem_Free(pictures->arrays);
    PyMem_Free(pictures->views);
    *pictures = (qvpy_pictures){.views = NULL};
}

/* (rule, (edge, edge), filter, even margins, rescale, mean, std) for a model of height x width; 0, or -1 with an exception. */
static int read_preprocessing(qv_preprocessing *how, PyObject *preprocessing, size_t height, size_t width) {
    float *mean = how->mean, *std = how->std;
    int rule, filter, even;
    Py_ssize_t first, second;
    if (!PyTuple_Check(preprocessing)) {
        PyErr_Format(PyExc_TypeError,
                     "preprocessing: expected a tuple (rule, edges, filter, even_margins, rescale, mean, std), got %s",
                     Py_TYPE(preprocessing)->tp_name);
        return -1;
    }
    if (!PyArg_ParseTuple(preprocessing, "i(nn)ipd(fff)(fff):preprocessing", &rule, &first, &second, &filter, &even,
                          &how->rescale, &mean[0], &mean[1], &mean[2], &std[0], &std[1], &std[2])) {
        return -1;
    }
    if (height < 1 || height > QV_MAX_MODEL_EDGE || width < 1 || width > QV_MAX_MODEL_EDGE) {
        PyErr_Format(PyExc_ValueError, "size is %zu x %zu, expected 1 to %zu", height, width, QV_MAX_MODEL_EDGE);
        return -1;
    }
    const Py_ssize_t most = (Py_ssize_t)QV_MAX_MODEL_EDGE;
    const bool bounded = rule == QV_RESIZE_SHORTEST && second == 0;
    if (rule < 0 || rule >= QV_RESIZE_RULE_COUNT || filter < 0 || filter >= QV_FILTER_COUNT || first < 1 ||
        first > most || (second < 1 && !bounded) || second > most) {
        PyErr_Format(PyExc_ValueError, "preprocessing: rule %d, edges %zd and %zd, filter %d", rule, first, second, filter);
        return -1;
    }
    how->height = height;
    how->width = width;
    how->rule = (qv_resize_rule)rule;
    how->edges[0] = (size_t)first;
    how->edges[1] = (size_t)second;
    how->filter = (qv_filter)filter;
    how->even_margins = even != 0;
    return 0;
}

int qvpy_pictures_acquire(qvpy_pictures *pictures, PyObject *sequence, PyObject *preprocessing, size_t height,
                           size_t width) {
    *pictures = (qvpy_pictures){.views = NULL};
    if (read_preprocessing(&pictures->how, preprocessing, height, width) < 0) {
        return -1;
    }
    PyObject *items = qvpy_tuple(sequence, "pictures: expected a sequence of uint8 arrays [H, W, 3]");
    if (items == NULL) {
        return -1;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(items);
    pictures->count = (size_t)count;
    pictures->arrays = PyMem_Calloc((size_t)count + 1, sizeof *pictures->arrays);
    pictures->views = PyMem_Calloc((size_t)count + 1, sizeof *pictures->views);
    int result = 0;
    if (pictures->arrays == NULL || pictures->views == NULL) {
        PyErr_NoMemory();
        result = -1;
    }
    for (Py_ssize_t i = 0; result == 0 && i < count; i++) {
        pictures->arrays[i] = picture_array(PyTuple_GET_ITEM(items, i));
        if (pictures->arrays[i] == NULL) {
            result = -1;
        } else {
            pictures->views[i] = view_of(pictures->arrays[i]);
        }
    }
    Py_DECREF(items);
    if (result < 0) {
        qvpy_pictures_release(pictures);
    }
    return result;
}

/* A whole number as a size; sizes below 0 become ones that no model has. */
static size_t model_edge(Py_ssize_t size) {
    return size < 0 ? 0 : (size_t)size;
}

static PyObject *place_picture(PyObject *module, PyObject *args) {
    (void)module;
    Py_ssize_t height, width, rows, columns;
    PyObject *preprocessing;
    qv_preprocessing how;
    if (!PyArg_ParseTuple(args, "nn(nn)O:place_picture", &height, &width, &rows, &columns, &preprocessing) ||
        read_preprocessing(&how, preprocessing, model_edge(rows), model_edge(columns)) < 0) {
        return NULL;
    }
    if (height < 1 || width < 1 || height > PY_SSIZE_T_MAX / 64 || width > PY_SSIZE_T_MAX / 64) {
        return PyErr_Format(PyExc_ValueError, "height and width are %zd and %zd, expected at least 1", height, width);
    }
    qv_placement place = qv_place_picture((size_t)height, (size_t)width, &how);
    return Py_BuildValue("(nnnn)", (Py_ssize_t)place.new_height, (Py_ssize_t)place.new_width, (Py_ssize_t)place.top,
                         (Py_ssize_t)place.left);
}

static PyObject *preprocess_image(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"picture", "size", "preprocessing", NULL};
    (void)module;
    PyObject *object, *preprocessing;
    Py_ssize_t height, width;
    qv_preprocessing how;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O(nn)O:preprocess_image", names, &object, &height, &width,
                                     &preprocessing) ||
        read_preprocessing(&how, preprocessing, model_edge(height), model_edge(width)) < 0) {
        return NULL;
    }
    PyArrayObject *picture = picture_array(object);
    if (picture == NULL) {
        return NULL;
    }
    const size_t shape[3] = {3, how.height, how.width};
    PyArrayObject *out = qvpy_new_floats(3, shape);
    if (out == NULL) {
        Py_DECREF(picture);
        return NULL;
    }
    qv_error err;
    qv_status status;
    const qv_picture_view view = view_of(picture);
    Py_BEGIN_ALLOW_THREADS;
    status = qv_preprocess(PyArray_DATA(out), &view, &how, &err);
    Py_END_ALLOW_THREADS;
    Py_DECREF(picture);
    if (status != QV_OK) {
        Py_DECREF(out);
        return qvpy_raise(&err);
    }
    return (PyObject *)out;
}

static PyMethodDef functions[] = {
    {"decode_image", QVPY_KEYWORDS(decode_image),
     "decode_image(data, exif=True, max_pixels=89478485) -> uint8 [H, W, 3] of a JPEG, PNG or BMP file's bytes.\n"
     "RuntimeError where another decoder may do better, ValueError where none should try."},
    {"resize_image", QVPY_KEYWORDS(resize_image),
     "resize_image(picture, height, width, filter=3) -> uint8 [height, width, 3], as Pillow's of that number."},
    {"preprocess_image", QVPY_KEYWORDS(preprocess_image),
     "preprocess_image(picture, size, preprocessing) -> float32 [3, height, width], which is size; preprocessing is a tuple\n"
     "(rule, (edge, edge), filter, even_margins, rescale, mean, std), see qv_preprocessing."},
    {"place_picture", place_picture, METH_VARARGS,
     "place_picture(height, width, size, preprocessing) -> (new_height, new_width, top, left): what the picture is resized\n"
     "to, and where the model's input, of size (height, width), lies in that."},
    {NULL, NULL, 0, NULL},
};

int qvpy_add_images(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
