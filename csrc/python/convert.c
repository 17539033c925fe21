/* Arguments in, exceptions out. */
#include "python/binding.h"

#include <stdlib.h>
#include <string.h>

PyObject *qvpy_raise(const qv_error *err) {
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyObject *type = PyExc_RuntimeError;
    switch (err->code) {
    case QV_ERR_VALUE:
        type = PyExc_ValueError;
        break;
    case QV_ERR_MEMORY:
        type = PyExc_MemoryError;
        break;
    case QV_ERR_CANCELLED:
        type = PyExc_KeyboardInterrupt;
        break;
    case QV_OK:
    case QV_ERR_UNSUPPORTED:
        break;
    }
    PyErr_SetString(type, err->message);
    return NULL;
}

void qvpy_release(qvpy_poll *poll) {
    poll->raised = 0;
    poll->thread = PyEval_SaveThread();
}

bool qvpy_poll_signals(void *context) {
    qvpy_poll *poll = context;
    PyEval_RestoreThread(poll->thread);
    if (PyErr_CheckSignals() < 0) {
        poll->raised = 1;
    }
    poll->thread = PyEval_SaveThread();
    return poll->raised != 0;
}

int qvpy_acquire(qvpy_poll *poll, qv_status status, const qv_error *err) {
    PyEval_RestoreThread(poll->thread);
    if (status != QV_OK) {
        qvpy_raise(err);
    }
    return status != QV_OK || poll->raised ? -1 : 0;
}

static PyArrayObject *array_of(PyObject *object, const char *argument, int type_number, int dims, int flags) {
    PyArrayObject *array = (PyArrayObject *)PyArray_FROMANY(
        object, type_number, 0, 0, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED | flags);
    if (array == NULL) {
        return NULL;
    }
    if (dims >= 0 && PyArray_NDIM(array) != dims) {
        PyErr_Format(PyExc_ValueError, "%s has %d dimensions, expected %d", argument, PyArray_NDIM(array), dims);
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

PyArrayObject *qvpy_array(PyObject *object, const char *argument, int type_number, int dims) {
    return array_of(object, argument, type_number, dims, 0);
}

PyArrayObject *qvpy_copy(PyObject *object, const char *argument, int type_number, int dims) {
    return array_of(object, argument, type_number, dims, NPY_ARRAY_ENSURECOPY);
}

PyArrayObject *qvpy_float_array(PyObject *object, const char *argument, int dims) {
    return qvpy_array(object, argument, NPY_FLOAT32, dims);
}

PyArrayObject *qvpy_new_floats(int dims, const size_t *shape) {
    npy_intp sizes[NPY_MAXDIMS > 8 ? 8 : NPY_MAXDIMS];
    for (int i = 0; i < dims; i++) {
        sizes[i] = (npy_intp)shape[i];
    }
    return (PyArrayObject *)PyArray_SimpleNew(dims, sizes, NPY_FLOAT32);
}

static int compare_tensors(const void *a, const void *b) {
    return strcmp(((const qv_tensor *)a)->name, ((const qv_tensor *)b)->name);
}

/* "float32", "float16", "bfloat16"; "float32@64", "bfloat16@64", "int8@64": in panels of so many rows, in
 * which int8 always is */
static int read_dtype(qv_tensor *tensor, const char *text) {
    static const char *const names[] = {"float32", "float16", "bfloat16", "int8"};
    size_t length = strcspn(text, "@");
    unsigned long columns = 0;
    char *end = NULL;
    if (text[length] == '@') {
        columns = strtoul(text + length + 1, &end, 10);
    }
    bool known = end == NULL || (*end == '\0' && columns > 0 && columns <= 4096);
    for (size_t i = 0; known && i < sizeof names / sizeof names[0]; i++) {
        bool there = (qv_dtype)i != QV_INT8 || columns != 0;
        if (there && strlen(names[i]) == length && strncmp(text, names[i], length) == 0) {
            tensor->dtype = (qv_dtype)i;
            tensor->panel_columns = columns;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "weights[%s]: dtype %s, expected float32, float16 or bfloat16", tensor->name, text);
    return -1;
}

/* Whether a tensor can be in the panels that it says it is in. */
static int check_panels(const qv_tensor *tensor) {
    size_t items = tensor->dtype == QV_INT8 ? 4 : tensor->dtype == QV_BFLOAT16 ? 2 : 1; /* of a step */
    size_t deepest = tensor->dtype == QV_INT8 ? QV_INT8_DEPTH : SIZE_MAX;
    if (tensor->panel_columns == 0 ||
        (tensor->dims == 2 && tensor->dtype != QV_FLOAT16 && tensor->shape[0] % tensor->panel_columns == 0 &&
         tensor->shape[0] != 0 && tensor->shape[1] != 0 && tensor->shape[1] % items == 0 && tensor->shape[1] <= deepest)) {
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "weights[%s]: panels of %zu rows do not hold a tensor of %zu dimensions, %zu rows",
                 tensor->name, tensor->panel_columns, tensor->dims, tensor->dims > 0 ? tensor->shape[0] : (size_t)0);
    return -1;
}

/* One (buffer, dtype, shape, offset) entry: a view inside the buffer, checked against its length. */
static int read_tensor(qvpy_weights *weights, qv_tensor *tensor, PyObject *value, const qvpy_state *state) {
    PyObject *owner, *shape;
    const char *dtype;
    Py_ssize_t offset;
    if (!PyTuple_Check(value) || !PyArg_ParseTuple(value, "OsO!n", &owner, &dtype, &PyTuple_Type, &shape, &offset)) {
        PyErr_Format(PyExc_TypeError, "weights[%s]: expected (buffer, dtype, shape, offset)", tensor->name);
        return -1;
    }
    if (read_dtype(tensor, dtype) < 0) {
        return -1;
    }
    Py_ssize_t dims = PyTuple_GET_SIZE(shape);
    if (dims > (Py_ssize_t)QV_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "weights[%s]: %zd dimensions, at most 4 are expected", tensor->name, dims);
        return -1;
    }
    tensor->dims = (size_t)dims;
    size_t bytes = qv_dtype_size(tensor->dtype);
    for (Py_ssize_t i = 0; i < dims; i++) {
        tensor->shape[i] = PyLong_AsSize_t(PyTuple_GET_ITEM(shape, i));
        if (PyErr_Occurred()) {
            return -1;
        }
        if (!qv_multiply_size(bytes, tensor->shape[i], &bytes)) {
            PyErr_Format(PyExc_ValueError, "weights[%s]: the shape is too large", tensor->name);
            return -1;
        }
    }
    if (check_panels(tensor) < 0) {
        return -1;
    }
    size_t behind = 0; /* the scales and sums of int8 panels */
    if (tensor->dtype == QV_INT8 &&
        (!qv_multiply_size(tensor->shape[0], 8, &behind) || !qv_add_size(bytes, behind, &bytes))) {
        PyErr_Format(PyExc_ValueError, "weights[%s]: the shape is too large", tensor->name);
        return -1;
    }
    Py_buffer *buffer = &weights->buffers[weights->buffer_count];
    if (PyObject_GetBuffer(owner, buffer, PyBUF_C_CONTIGUOUS) < 0) {
        return -1;
    }
    weights->buffer_count++;
    size_t length = (size_t)buffer->len;
    if (offset < 0 || (size_t)offset > length || bytes > length - (size_t)offset) {
        PyErr_Format(PyExc_ValueError, "weights[%s]: %zu bytes at %zd do not lie inside the buffer of %zu",
                     tensor->name, bytes, offset, length);
        return -1;
    }
    tensor->data = (const char *)buffer->buf + offset;
    /* Read-only and of this type means that a file is behind it: nobody maps zeros that he can't write. */
    tensor->mapped = buffer->readonly && Py_TYPE(owner) == state->file_mapping;
    return 0;
}

/* A new reference, since whatever is done with the item can run code that takes it out of the dict, as other threads can; NULL
 * with or without an exception. */
static PyObject *find_item(PyObject *dict, PyObject *name) {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *value;
    return PyDict_GetItemRef(dict, name, &value) > 0 ? value : NULL;
#else
    PyObject *value = PyDict_GetItemWithError(dict, name);
    Py_XINCREF(value);
    return value;
#endif
}

PyObject *qvpy_tuple(PyObject *object, const char *message) {
    PyObject *iterator = PyObject_GetIter(object);
    if (iterator == NULL) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_SetString(PyExc_TypeError, message);
        }
        return NULL;
    }
    Py_DECREF(iterator);
    return PySequence_Tuple(object);
}

int qvpy_weights_acquire(qvpy_weights *weights, PyObject *dict, const qvpy_state *state) {
    *weights = (qvpy_weights){NULL, 0, NULL, 0, NULL};
    if (!PyDict_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "weights: expected a dict, got %s", Py_TYPE(dict)->tp_name);
        return -1;
    }
    weights->names = PySequence_Tuple(dict);
    if (weights->names == NULL) {
        return -1;
    }
    size_t count = (size_t)PyTuple_GET_SIZE(weights->names);
    weights->tensors = PyMem_Calloc(count + 1, sizeof *weights->tensors);
    weights->buffers = PyMem_Calloc(count + 1, sizeof *weights->buffers);
    if (weights->tensors == NULL || weights->buffers == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    for (; weights->count < count; weights->count++) {
        PyObject *name = PyTuple_GET_ITEM(weights->names, (Py_ssize_t)weights->count);
        qv_tensor *tensor = &weights->tensors[weights->count];
        if (!PyUnicode_Check(name)) {
            PyErr_Format(PyExc_TypeError, "weights: expected names, got %s", Py_TYPE(name)->tp_name);
            goto fail;
        }
        tensor->name = PyUnicode_AsUTF8(name);
        PyObject *value = tensor->name != NULL ? find_item(dict, name) : NULL;
        if (value == NULL) {
            if (!PyErr_Occurred()) {
                PyErr_SetObject(PyExc_KeyError, name); /* gone since the names were read */
            }
            goto fail;
        }
        int status = read_tensor(weights, tensor, value, state);
        Py_DECREF(value);
        if (status < 0) {
            goto fail;
        }
    }
    qsort(weights->tensors, weights->count, sizeof *weights->tensors, compare_tensors);
    return 0;
fail:
    qvpy_weights_release(weights);
    return -1;
}

void qvpy_weights_release(qvpy_weights *weights) {
    for (size_t i = 0; i < weights->buffer_count; i++) {
        PyBuffer_Release(&weights->buffers[i]);
    }
    PyMem_Free(weights->buffers);
    PyMem_Free(weights->tensors);
    Py_CLEAR(weights->names);
    *weights = (qvpy_weights){NULL, 0, NULL, 0, NULL};
}

int qvpy_weights_traverse(const qvpy_weights *weights, visitproc visit, void *arg) {
    for (size_t i = 0; i < weights->buffer_count; i++) {
        Py_VISIT(weights->buffers[i].obj);
    }
    Py_VISIT(weights->names);
    return 0;
}

int qvpy_activation(PyObject *value, const char *what, qv_activation *out) {
    static const struct {
        const char *name;
        qv_activation activation;
    } known[] = {
        {"gelu", QV_GELU},         {"gelu_new", QV_GELU_TANH},     {"gelu_pytorch_tanh", QV_GELU_TANH},
        {"relu", QV_RELU},         {"quick_gelu", QV_QUICK_GELU},  {"gelu_fast", QV_GELU_TANH},
        {"linear", QV_IDENTITY},    {"silu", QV_SILU},
    };
    const char *text = PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    for (size_t i = 0; text != NULL && i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(known[i].name, text) == 0) {
            *out = known[i].activation;
            return 0;
        }
    }
    PyErr_Clear();
    PyErr_Format(PyExc_ValueError, "%s is %R, expected one of gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, silu",
                 what, value);
    return -1;
}

PyObject *qvpy_config_item(PyObject *dict, const char *key) {
    PyObject *name = PyUnicode_FromString(key);
    PyObject *value = name != NULL ? find_item(dict, name) : NULL;
    Py_XDECREF(name);
    if (value == NULL) {
        PyErr_Clear();
    } else if (value == Py_None) {
        Py_CLEAR(value);
    }
    return value;
}

static int read_size(void *out, PyObject *value, const char *key) {
    size_t size = PyLong_Check(value) ? PyLong_AsSize_t(value) : (size_t)-1;
    if (size == (size_t)-1 || size > (size_t)1 << 31) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "config: '%s' is %R, expected a whole number from 0 to 2^31", key, value);
        return -1;
    }
    memcpy(out, &size, sizeof size);
    return 0;
}

static int read_float(void *out, PyObject *value, const char *key) {
    double number = PyFloat_AsDouble(value);
    if ((number == -1.0 && PyErr_Occurred()) || !(number > -1e30 && number < 1e30)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "config: '%s' is %R, expected a finite number", key, value);
        return -1;
    }
    float item = (float)number;
    memcpy(out, &item, sizeof item);
    return 0;
}

static int read_activation(void *out, PyObject *value, const char *key) {
    char what[64];
    qv_activation activation;
    PyOS_snprintf(what, sizeof what, "config: '%s'", key);
    if (qvpy_activation(value, what, &activation) < 0) {
        return -1;
    }
    memcpy(out, &activation, sizeof activation);
    return 0;
}

int qvpy_read_settings(void *config, PyObject *dict, const qvpy_setting *settings, size_t count) {
    int (*const readers[])(void *, PyObject *, const char *) = {
        [QVPY_SIZE] = read_size,
        [QVPY_REQUIRED_SIZE] = read_size,
        [QVPY_FLOAT] = read_float,
        [QVPY_ACTIVATION] = read_activation,
    };
    for (size_t i = 0; i < count; i++) {
        PyObject *value = qvpy_config_item(dict, settings[i].key);
        if (value == NULL && settings[i].kind == QVPY_REQUIRED_SIZE) {
            PyErr_Format(PyExc_ValueError, "config: '%s' is missing", settings[i].key);
            return -1;
        }
        int status = value == NULL ? 0 : readers[settings[i].kind]((char *)config + settings[i].offset, value, settings[i].key);
        Py_XDECREF(value);
        if (status < 0) {
            return -1;
        }
    }
    return 0;
}

int qvpy_precision(const char *text, qv_precision *out) {
    if (strcmp(text, "float32") == 0) {
        *out = QV_PRECISION_FLOAT32;
    } else if (strcmp(text, "bfloat16") == 0) {
        *out = QV_PRECISION_BFLOAT16;
    } else if (strcmp(text, "int8") == 0) {
        *out = QV_PRECISION_INT8;
    } else if (strcmp(text, "int8_mixed") == 0) {
        *out = QV_PRECISION_INT8_MIXED;
    } else {
        PyErr_Format(PyExc_ValueError, "precision is '%s', expected 'float32', 'bfloat16', 'int8' or 'int8_mixed'", text);
        return -1;
    }
    return 0;
}
