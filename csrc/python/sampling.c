/* What chooses the next token, and the random numbers behind it. */
#include "python/binding.h"

#include "ops/sampling.h"

/* The arguments that every call begins with, as arrays and as the core takes them. */
typedef struct {
    PyArrayObject *logits, *ids;
    qv_logits in;
    qv_sampling how;
} sampling_call;

static void release(sampling_call *call) {
    Py_CLEAR(call->logits);
    Py_CLEAR(call->ids);
}

static int read_settings(qv_sampling *how, PyObject *settings) {
    Py_ssize_t min_length, top_k;
    long long eos;
    if (!PyTuple_Check(settings)) {
        PyErr_Format(PyExc_TypeError,
                     "settings: expected a tuple (repetition_penalty, min_length, eos, temperature, top_k, top_p), got %s",
                     Py_TYPE(settings)->tp_name);
        return -1;
    }
    if (!PyArg_ParseTuple(settings, "fnLfnd:settings", &how->repetition_penalty, &min_length, &eos, &how->temperature, &top_k,
                          &how->top_p)) {
        return -1;
    }
    if (min_length < 0 || top_k < 0) {
        PyErr_Format(PyExc_ValueError, "%s: %zd, expected at least 0", min_length < 0 ? "min_length" : "top_k",
                     min_length < 0 ? min_length : top_k);
        return -1;
    }
    how->min_length = (size_t)min_length;
    how->top_k = (size_t)top_k;
    how->eos = eos;
    return 0;
}

/* settings: (repetition_penalty, min_length, eos, temperature, top_k, top_p), or NULL for none. 0, or -1 with an exception. */
static int acquire(sampling_call *call, PyObject *logits, PyObject *ids, PyObject *settings) {
    *call = (sampling_call){.logits = NULL};
    if (settings != NULL && read_settings(&call->how, settings) < 0) {
        return -1;
    }
    call->logits = qvpy_float_array(logits, "logits", 2);
    call->ids = call->logits != NULL ? qvpy_copy(ids, "ids", NPY_INT64, 2) : NULL;
    if (call->ids == NULL) {
        release(call);
        return -1;
    }
    call->in = (qv_logits){PyArray_DATA(call->logits), PyArray_DATA(call->ids), (size_t)PyArray_DIM(call->logits, 0),
                           (size_t)PyArray_DIM(call->logits, 1), (size_t)PyArray_DIM(call->ids, 1)};
    if (PyArray_DIM(call->ids, 0) != PyArray_DIM(call->logits, 0)) {
        PyErr_Format(PyExc_ValueError, "ids: %zd rows, expected %zd, those of logits", (Py_ssize_t)PyArray_DIM(call->ids, 0),
                     (Py_ssize_t)PyArray_DIM(call->logits, 0));
        release(call);
        return -1;
    }
    return 0;
}

/* uint64 [rows, 4]: the key's two words, number, step. NULL with an exception. */
static PyArrayObject *key_array(PyObject *object, Py_ssize_t rows) {
    PyArrayObject *keys = qvpy_array(object, "keys", NPY_UINT64, 2);
    if (keys != NULL && (PyArray_DIM(keys, 1) != 4 || (rows >= 0 && PyArray_DIM(keys, 0) != rows))) {
        PyErr_Format(PyExc_ValueError, "keys: shape [%zd, %zd], expected 4 words for each row",
                     (Py_ssize_t)PyArray_DIM(keys, 0), (Py_ssize_t)PyArray_DIM(keys, 1));
        Py_CLEAR(keys);
    }
    return keys;
}

static PyObject *process_logits(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *logits, *ids, *settings;
    sampling_call call;
    if (!PyArg_ParseTuple(arguments, "OOO:process_logits", &logits, &ids, &settings) ||
        acquire(&call, logits, ids, settings) < 0) {
        return NULL;
    }
    const size_t shape[2] = {call.in.R, call.in.V};
    PyArrayObject *out = qvpy_new_floats(2, shape);
    if (out != NULL) {
        qv_error err;
        qvpy_poll poll;
        qvpy_release(&poll);
        qv_status status = qv_process_logits(PyArray_DATA(out), &call.in, &call.how,
                                             (qv_poll){qvpy_poll_signals, &poll}, &err);
        if (qvpy_acquire(&poll, status, &err) < 0) {
            Py_CLEAR(out);
        }
    }
    release(&call);
    return (PyObject *)out;
}

static PyObject *next_tokens(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *logits, *ids, *settings, *key_object = Py_None, *result = NULL;
    PyArrayObject *keys = NULL, *tokens = NULL, *log_probabilities = NULL;
    sampling_call call;
    if (!PyArg_ParseTuple(arguments, "OOO|O:next_tokens", &logits, &ids, &settings, &key_object) ||
        acquire(&call, logits, ids, settings) < 0) {
        return NULL;
    }
    npy_intp rows = (npy_intp)call.in.R;
    if (key_object != Py_None && (keys = key_array(key_object, rows)) == NULL) {
        goto done;
    }
    tokens = (PyArrayObject *)PyArray_SimpleNew(1, &rows, NPY_INT64);
    log_probabilities = (PyArrayObject *)PyArray_SimpleNew(1, &rows, NPY_FLOAT64);
    if (tokens == NULL || log_probabilities == NULL) {
        goto done;
    }
    qv_error err;
    qvpy_poll poll;
    qvpy_release(&poll);
    qv_status status = qv_next_tokens(PyArray_DATA(tokens), PyArray_DATA(log_probabilities), &call.in, &call.how,
                                      keys != NULL ? PyArray_DATA(keys) : NULL, (qv_poll){qvpy_poll_signals, &poll}, &err);
    if (qvpy_acquire(&poll, status, &err) == 0) {
        result = Py_BuildValue("OO", tokens, log_probabilities);
    }
done:
    Py_XDECREF(keys);
    Py_XDECREF(tokens);
    Py_XDECREF(log_probabilities);
    release(&call);
    return result;
}

static PyObject *best_tokens(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *logits, *ids, *settings, *result = NULL;
    PyArrayObject *scores = NULL, *tokens = NULL, *log_probabilities = NULL;
    Py_ssize_t count;
    sampling_call call;
    if (!PyArg_ParseTuple(arguments, "OOOn:best_tokens", &logits, &ids, &settings, &count) ||
        acquire(&call, logits, ids, settings) < 0) {
        return NULL;
    }
    if (count < 1 || (size_t)count > call.in.V) {
        PyErr_Format(PyExc_ValueError, "count: %zd, expected 1 to %zu", count, call.in.V);
        goto done;
    }
    npy_intp shape[2] = {(npy_intp)call.in.R, count};
    scores = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    tokens = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_INT64);
    log_probabilities = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT64);
    if (scores == NULL || tokens == NULL || log_probabilities == NULL) {
        goto done;
    }
    qv_error err;
    qvpy_poll poll;
    qvpy_release(&poll);
    qv_status status = qv_best_tokens(PyArray_DATA(scores), PyArray_DATA(tokens), PyArray_DATA(log_probabilities),
                                      (size_t)count, &call.in, &call.how, (qv_poll){qvpy_poll_signals, &poll}, &err);
    if (qvpy_acquire(&poll, status, &err) == 0) {
        result = Py_BuildValue("OOO", scores, tokens, log_probabilities);
    }
done:
    Py_XDECREF(scores);
    Py_XDECREF(tokens);
    Py_XDECREF(log_probabilities);
    release(&call);
    return result;
}

static PyObject *token_log_probabilities(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *logits, *ids;
    sampling_call call;
    if (!PyArg_ParseTuple(arguments, "OO:token_log_probabilities", &logits, &ids) ||
        acquire(&call, logits, ids, NULL) < 0) {
        return NULL;
    }
    npy_intp rows = (npy_intp)call.in.R;
    PyArrayObject *out = NULL;
    if (call.in.L != 1) {
        PyErr_Format(PyExc_ValueError, "ids: %zu a row, expected 1", call.in.L);
    } else {
        out = (PyArrayObject *)PyArray_SimpleNew(1, &rows, NPY_FLOAT64);
    }
    if (out != NULL) {
        qv_error err;
        qvpy_poll poll;
        qvpy_release(&poll);
        qv_status status = qv_token_log_probabilities(PyArray_DATA(out), &call.in, (qv_poll){qvpy_poll_signals, &poll}, &err);
        if (qvpy_acquire(&poll, status, &err) < 0) {
            Py_CLEAR(out);
        }
    }
    release(&call);
    return (PyObject *)out;
}

static PyObject *random_uniforms(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *object;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(arguments, "On:random_uniforms", &object, &count)) {
        return NULL;
    }
    PyArrayObject *keys = key_array(object, -1);
    if (keys == NULL) {
        return NULL;
    }
    npy_intp shape[2] = {PyArray_DIM(keys, 0), count};
    PyArrayObject *out = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT64); /* raises where count is below 0 */
    const qv_random_key *key = PyArray_DATA(keys);
    if (out != NULL) {
        double *row = PyArray_DATA(out);
        Py_BEGIN_ALLOW_THREADS;
        for (npy_intp r = 0; r < shape[0]; r++) {
            qv_random_uniforms(row + r * count, &key[r], (size_t)count);
        }
        Py_END_ALLOW_THREADS;
    }
    Py_DECREF(keys);
    return (PyObject *)out;
}

static PyMethodDef functions[] = {
    {"process_logits", process_logits, METH_VARARGS,
     "process_logits(logits, ids, settings) -> float32 [R, V], -inf where one was removed. ids int64 [R, L]; settings is a\n"
     "tuple (repetition_penalty, min_length, eos, temperature, top_k, top_p), see qv_sampling."},
    {"next_tokens", next_tokens, METH_VARARGS,
     "next_tokens(logits, ids, settings, keys=None) -> int64 [R], float64 [R]: the best token of each row, or one drawn by\n"
     "its key (uint64 [R, 4]: the key, number, step), and its log-probability by the softmax of the logits."},
    {"best_tokens", best_tokens, METH_VARARGS,
     "best_tokens(logits, ids, settings, count) -> float32, int64, float64 [R, count]: of the log-softmax that the settings\n"
     "changed, the best of each row, best first; the tokens; their log-probabilities."},
    {"token_log_probabilities", token_log_probabilities, METH_VARARGS,
     "token_log_probabilities(logits, ids) -> float64 [R], of ids int64 [R, 1] by the softmax of the logits."},
    {"random_uniforms", random_uniforms, METH_VARARGS,
     "random_uniforms(keys, count) -> float64 [R, count], above 0 and below 1, by uint64 [R, 4]."},
    {NULL, NULL, 0, NULL},
};

int qvpy_add_sampling(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
