/* Decoder.gradient: how likely texts are, and what of the states that they read makes them so. */
#include "python/binding.h"

#include "models/decoder_gradient.h"

/* A new array of counts [T], each above 0; with `total` SIZE_MAX of any sum, else of that one. NULL with an exception. */
static PyArrayObject *counts(PyObject *object, const char *argument, npy_intp T, size_t total) {
    PyArrayObject *result = qvpy_copy(object, argument, NPY_INTP, 1);
    size_t sum = 0, most = total != SIZE_MAX ? total : (size_t)NPY_MAX_INT32;
    if (result == NULL) {
        return NULL;
    }
    bool fits = PyArray_DIM(result, 0) == T;
    for (npy_intp t = 0; fits && t < T; t++) {
        npy_intp count = ((const npy_intp *)PyArray_DATA(result))[t];
        fits = count > 0 && (size_t)count <= most - sum;
        sum += fits ? (size_t)count : 0;
    }
    if (!fits || (total != SIZE_MAX && sum != total)) {
        PyErr_Format(PyExc_ValueError, "%s: expected %zd numbers above 0%s", argument, (Py_ssize_t)T,
                     total != SIZE_MAX ? ", whose sum is the number of states" : "");
        Py_CLEAR(result);
    }
    return result;
}

/* log-probabilities and d_states of texts that were read */
static PyObject *differentiate(qvpy_model *self, const qv_decoder_texts *texts, size_t S) {
    size_t W = ((const qv_decoder *)self->model)->kind.cross_width, shape[2] = {S, W}, R = 0;
    for (size_t t = 0; t < texts->count; t++) {
        R += texts->lengths[t] > 1 ? texts->lengths[t] - 1 : 0;
    }
    PyArrayObject *log_probabilities = qvpy_new_floats(1, &R), *d_states = qvpy_new_floats(2, shape);
    PyObject *result = NULL;
    qvpy_call call;
    if (log_probabilities != NULL && d_states != NULL && qvpy_begin(&call, self) == 0 &&
        qvpy_end(&call, qv_decoder_differentiate(self->model, &call.core, PyArray_DATA(log_probabilities),
                                                 PyArray_DATA(d_states), texts, &call.err)) == 0) {
        result = Py_BuildValue("OO", log_probabilities, d_states);
    }
    Py_XDECREF(log_probabilities);
    Py_XDECREF(d_states);
    return result;
}

PyObject *qvpy_decoder_gradient(qvpy_model *self, PyObject *arguments) {
    PyObject *states_object, *lengths_object, *ids_object, *ids_lengths_object, *result = NULL;
    PyArrayObject *states = NULL, *lengths = NULL, *ids = NULL, *ids_lengths = NULL;
    if (!PyArg_ParseTuple(arguments, "OOOO:gradient", &states_object, &lengths_object, &ids_object, &ids_lengths_object)) {
        return NULL;
    }
    if ((states = qvpy_float_array(states_object, "states", 2)) == NULL ||
        (ids = qvpy_copy(ids_object, "ids", NPY_INT64, 2)) == NULL) {
        goto done;
    }
    size_t S = (size_t)PyArray_DIM(states, 0), W = ((const qv_decoder *)self->model)->kind.cross_width;
    if ((size_t)PyArray_DIM(states, 1) != W) {
        PyErr_Format(PyExc_ValueError, "states has shape [%zu, %zd], expected [S, %zu]", S, (Py_ssize_t)PyArray_DIM(states, 1),
                     W);
        goto done;
    }
    if ((lengths = counts(lengths_object, "lengths", PyArray_DIM(ids, 0), S)) == NULL ||
        (ids_lengths = counts(ids_lengths_object, "ids_lengths", PyArray_DIM(ids, 0), SIZE_MAX)) == NULL) {
        goto done;
    }
    const qv_decoder_texts texts = {
        .count = (size_t)PyArray_DIM(ids, 0),
        .n = (size_t)PyArray_DIM(ids, 1),
        .ids = PyArray_DATA(ids),
        .lengths = PyArray_DATA(ids_lengths),
        .states = PyArray_DATA(states),
        .states_lengths = PyArray_DATA(lengths),
    };
    result = differentiate(self, &texts, S);
done:
    Py_XDECREF(states);
    Py_XDECREF(lengths);
    Py_XDECREF(ids);
    Py_XDECREF(ids_lengths);
    return result;
}
