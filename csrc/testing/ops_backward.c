/* The gradients of the ops by themselves: contiguous arrays in, new arrays out. */
#include "testing/testing.h"

#include "base/threads.h"

/* Arrays of one call: inputs held until it ends. */
typedef struct {
    PyArrayObject *arrays[16];
    size_t count;
} holder;

static void release(holder *held) {
    for (size_t i = 0; i < held->count; i++) {
        Py_XDECREF(held->arrays[i]);
    }
}

/* *data = the items of an array of `type` and `dims` dimensions; NULL for None. Returns it, or NULL with an exception. */
static PyArrayObject *take(holder *held, PyObject *object, const char *argument, int type, int dims, void **data) {
    *data = NULL;
    PyArrayObject *array = qvpy_array(object, argument, type, dims);
    if (array != NULL) {
        held->arrays[held->count++] = array;
        *data = PyArray_DATA(array);
    }
    return array;
}

static int take_optional(holder *held, PyObject *object, const char *argument, int type, int dims, void **data) {
    *data = NULL;
    return object == Py_None ? 0 : take(held, object, argument, type, dims, data) == NULL ? -1 : 0;
}

static size_t dim(PyArrayObject *array, int i) {
    return (size_t)PyArray_DIM(array, i);
}

static qv_call new_call(void) {
    return (qv_call){.ops = &qv_cpu_ops, .lanes = qv_thread_count()};
}

static PyArrayObject *new_like(PyArrayObject *array) {
    return (PyArrayObject *)PyArray_NewLikeArray(array, NPY_CORDER, NULL, 0);
}

static int fail_shapes(void) {
    PyErr_SetString(PyExc_ValueError, "the arrays' shapes do not fit together");
    return -1;
}

/* norm_backward(dy [R, D], x [R, D], weight [D], eps, rms) -> dx */
static PyObject *norm_backward(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *dy_object, *x_object, *weight_object;
    void *dy_data, *x_data, *weight_data;
    float eps;
    int rms;
    holder held = {.count = 0};
    PyArrayObject *dx = NULL;
    if (!PyArg_ParseTuple(arguments, "OOOfp", &dy_object, &x_object, &weight_object, &eps, &rms)) {
        return NULL;
    }
    PyArrayObject *dy = take(&held, dy_object, "dy", NPY_FLOAT32, 2, &dy_data);
    PyArrayObject *x = dy != NULL ? take(&held, x_object, "x", NPY_FLOAT32, 2, &x_data) : NULL;
    PyArrayObject *weight = x != NULL ? take(&held, weight_object, "weight", NPY_FLOAT32, 1, &weight_data) : NULL;
    if (weight == NULL) {
        goto done;
    }
    size_t R = dim(x, 0), D = dim(x, 1);
    if (dim(dy, 0) != R || dim(dy, 1) != D || dim(weight, 0) != D) {
        fail_shapes();
        goto done;
    }
    dx = new_like(x);
    if (dx != NULL) {
        qv_call call = new_call();
        const qv_norm norm = {rms ? QV_RMS_NORM : QV_LAYER_NORM, D, {weight_data, NULL}, {NULL, NULL}, eps};
        qv_cpu_ops.norm_backward(&call, (qv_rows){PyArray_DATA(dx), D}, (qv_const_rows){dy_data, D},
                                 (qv_const_rows){x_data, D}, &norm, R);
    }
done:
    release(&held);
    return (PyObject *)dx;
}

/* activation(x, name) -> act(x); with dy, dy act'(x), True: act'(x) alone; one dimension */
static PyObject *activation(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *x_object, *name, *dy_object = Py_None;
    void *x_data, *dy_data;
    qv_activation kind;
    holder held = {.count = 0};
    PyArrayObject *out = NULL;
    if (!PyArg_ParseTuple(arguments, "OO|O", &x_object, &name, &dy_object) ||
        qvpy_activation(name, "activation", &kind) < 0) {
        return NULL;
    }
    PyArrayObject *x = take(&held, x_object, "x", NPY_FLOAT32, 1, &x_data);
    bool slope = dy_object != Py_None;
    dy_object = dy_object == Py_True ? Py_None : dy_object;
    if (x == NULL || take_optional(&held, dy_object, "dy", NPY_FLOAT32, 1, &dy_data) < 0) {
        goto done;
    }
    if (dy_data != NULL && dim(held.arrays[1], 0) != dim(x, 0)) {
        fail_shapes();
        goto done;
    }
    out = new_like(x);
    if (out != NULL) {
        qv_call call = new_call();
        if (slope) {
            qv_cpu_ops.activation_backward(&call, PyArray_DATA(out), dy_data, x_data, kind, dim(x, 0));
        } else {
            qv_cpu_ops.activation(&call, PyArray_DATA(out), x_data, kind, dim(x, 0));
        }
    }
done:
    release(&held);
    return (PyObject *)out;
}

/* The arrays of _attention_backward as the op takes them. */
static int read_attention(holder *held, PyObject *const *objects, qv_attention_backward *w) {
    qv_attention *a = &w->forward;
    void *q, *k, *v, *d_out, *extra_k, *extra_v, *mask, *bias, *length;
    if (take(held, objects[0], "q", NPY_FLOAT32, 3, &q) == NULL ||
        take(held, objects[1], "k", NPY_FLOAT32, 3, &k) == NULL ||
        take(held, objects[2], "v", NPY_FLOAT32, 3, &v) == NULL ||
        take(held, objects[3], "d_out", NPY_FLOAT32, 3, &d_out) == NULL) {
        return -1;
    }
    PyArrayObject *const *arrays = held->arrays;
    a->B = dim(arrays[0], 0);
    a->T = dim(arrays[0], 1);
    a->S = dim(arrays[1], 1);
    size_t D = dim(arrays[0], 2);
    if (dim(arrays[3], 0) != a->B || dim(arrays[3], 1) != a->T || dim(arrays[3], 2) != D || a->H == 0 || D % a->H != 0 ||
        dim(arrays[1], 0) != a->B || dim(arrays[1], 2) != D || !PyArray_SAMESHAPE(arrays[1], arrays[2])) {
        return fail_shapes();
    }
    a->d = D / a->H;
    a->q = (qv_const_rows){q, D};
    a->k = (qv_const_rows){k, D};
    a->v = (qv_const_rows){v, D};
    w->d_out = (qv_const_rows){d_out, D};
    size_t first = held->count;
    if (take_optional(held, objects[4], "extra_k", NPY_FLOAT32, 3, &extra_k) < 0 ||
        take_optional(held, objects[5], "extra_v", NPY_FLOAT32, 3, &extra_v) < 0) {
        return -1;
    }
    if (extra_k != NULL && extra_v != NULL) {
        a->M = dim(arrays[first], 1);
        a->extra_k = (qv_const_rows){extra_k, D};
        a->extra_v = (qv_const_rows){extra_v, D};
        if (dim(arrays[first], 0) != a->B || dim(arrays[first], 2) != D ||
            !PyArray_SAMESHAPE(arrays[first], arrays[first + 1])) {
            return fail_shapes();
        }
    }
    if (take_optional(held, objects[6], "extra_length", NPY_UINTP, 1, &length) < 0 ||
        (length != NULL && dim(arrays[held->count - 1], 0) != a->B) ||
        take_optional(held, objects[7], "key_mask", NPY_UINT8, 2, &mask) < 0 ||
        (mask != NULL && (dim(arrays[held->count - 1], 0) != a->B || dim(arrays[held->count - 1], 1) != a->S)) ||
        take_optional(held, objects[8], "bias", NPY_FLOAT32, 3, &bias) < 0 ||
        (bias != NULL && (dim(arrays[held->count - 1], 0) != a->H || dim(arrays[held->count - 1], 1) != a->T ||
                          dim(arrays[held->count - 1], 2) != a->S))) {
        return PyErr_Occurred() ? -1 : fail_shapes();
    }
    a->extra_length = length;
    a->key_mask = mask;
    a->bias = (qv_const_rows){bias, a->S};
    a->bias_rows = a->T;
    return 0;
}

/* Which set of keys belongs to each b: None, or [B], each below the number of sets, which is B. */
static int read_sets(holder *held, PyObject *object, qv_attention *a) {
    void *sets;
    if (take_optional(held, object, "kv_index", NPY_UINTP, 1, &sets) < 0) {
        return -1;
    }
    a->kv_index = sets;
    if (sets != NULL && dim(held->arrays[held->count - 1], 0) != a->B) {
        return fail_shapes();
    }
    for (size_t b = 0; sets != NULL && b < a->B; b++) {
        if (a->kv_index[b] >= a->B) {
            return fail_shapes();
        }
    }
    return 0;
}

/* attention_backward(q, k, v, d_out, extra_k, extra_v, extra_length, key_mask, bias, heads, scale, causal, keys, given=True,
 * precision="float32", kv_index=None) -> (d_q, d_k, d_v, A, G); d_k and d_v None unless `keys`, A and G unless `given` */
static PyObject *attention_backward(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *o[9], *sets = Py_None, *result = NULL;
    const char *precision = "float32";
    Py_ssize_t heads;
    int causal, keys, given = 1;
    qv_attention_backward w = {.forward = {.B = 0}};
    if (!PyArg_ParseTuple(arguments, "OOOOOOOOOnfpp|psO", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5], &o[6], &o[7], &o[8],
                          &heads, &w.forward.scale, &causal, &keys, &given, &precision, &sets) ||
        qvpy_precision(precision, &w.forward.precision) < 0) {
        return NULL;
    }
    holder held = {.count = 0};
    PyArrayObject *d_q = NULL, *d_k = NULL, *d_v = NULL, *A = NULL, *G = NULL;
    qv_call call = new_call();
    w.forward.H = heads > 0 ? (size_t)heads : 0;
    w.forward.causal = causal != 0;
    if (read_attention(&held, o, &w) < 0 || read_sets(&held, sets, &w.forward) < 0) {
        goto done;
    }
    if (w.forward.kv_index != NULL && keys) {
        PyErr_SetString(PyExc_ValueError, "sets of keys that are shared have no gradient of their own");
        goto done;
    }
    size_t all = w.forward.M + w.forward.S, shape[4] = {w.forward.B, w.forward.H, w.forward.T, all};
    d_q = new_like(held.arrays[0]);
    d_k = keys ? new_like(held.arrays[1]) : NULL;
    d_v = keys ? new_like(held.arrays[1]) : NULL;
    A = given ? qvpy_new_floats(4, shape) : NULL;
    G = given ? qvpy_new_floats(4, shape) : NULL;
    call.scratch = qv_allocate(qv_cpu_ops.backward_scratch_bytes(call.lanes, all, w.forward.d, 0, 0), 1);
    if (d_q == NULL || (keys && (d_k == NULL || d_v == NULL)) || (given && (A == NULL || G == NULL)) ||
        call.scratch == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    w.d_q = (qv_rows){PyArray_DATA(d_q), w.d_out.ld};
    w.d_k = (qv_rows){keys ? PyArray_DATA(d_k) : NULL, w.d_out.ld};
    w.d_v = (qv_rows){keys ? PyArray_DATA(d_v) : NULL, w.d_out.ld};
    w.probabilities = given ? PyArray_DATA(A) : NULL;
    w.d_probabilities = given ? PyArray_DATA(G) : NULL;
    Py_BEGIN_ALLOW_THREADS
    qv_cpu_ops.attention_backward(&call, &w, 1);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("OOOOO", d_q, keys ? (PyObject *)d_k : Py_None, keys ? (PyObject *)d_v : Py_None,
                           given ? (PyObject *)A : Py_None, given ? (PyObject *)G : Py_None);
done:
    qv_free(call.scratch);
    release(&held);
    Py_XDECREF(d_q);
    Py_XDECREF(d_k);
    Py_XDECREF(d_v);
    Py_XDECREF(A);
    Py_XDECREF(G);
    return result;
}

/* gradcam(A [H, T, S], G [H, T, S], first) -> [T, S - first] */
static PyObject *gradcam(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *a_object, *g_object;
    Py_ssize_t first;
    void *a_data, *g_data;
    holder held = {.count = 0};
    PyArrayObject *out = NULL;
    if (!PyArg_ParseTuple(arguments, "OOn", &a_object, &g_object, &first)) {
        return NULL;
    }
    PyArrayObject *A = take(&held, a_object, "A", NPY_FLOAT32, 3, &a_data);
    PyArrayObject *G = A != NULL ? take(&held, g_object, "G", NPY_FLOAT32, 3, &g_data) : NULL;
    if (G == NULL) {
        goto done;
    }
    if (!PyArray_SAMESHAPE(A, G) || first < 0 || (size_t)first > dim(A, 2)) {
        fail_shapes();
        goto done;
    }
    size_t shape[2] = {dim(A, 1), dim(A, 2) - (size_t)first};
    out = qvpy_new_floats(2, shape);
    if (out != NULL) {
        qv_call call = new_call();
        qv_cpu_ops.gradcam(&call, PyArray_DATA(out), a_data, g_data, (size_t)first, dim(A, 0), dim(A, 1), dim(A, 2));
    }
done:
    release(&held);
    return (PyObject *)out;
}

/* relevance(q [B, T, H d], k [B, S, H d], v, d_out, weights [B, T] or None, heads, scale, alone) -> [B, H, S] */
static PyObject *relevance(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *o[9] = {NULL, NULL, NULL, NULL, Py_None, Py_None, Py_None, Py_None, Py_None}, *weights_object;
    Py_ssize_t heads;
    int alone;
    void *weights;
    qv_attention_backward w = {.forward = {.B = 0}};
    if (!PyArg_ParseTuple(arguments, "OOOOOnfp", &o[0], &o[1], &o[2], &o[3], &weights_object, &heads, &w.forward.scale,
                          &alone)) {
        return NULL;
    }
    holder held = {.count = 0};
    PyArrayObject *out = NULL;
    qv_call call = new_call();
    w.forward.H = heads > 0 ? (size_t)heads : 0;
    w.gradient_alone = alone != 0;
    if (read_attention(&held, o, &w) < 0 || take_optional(&held, weights_object, "weights", NPY_FLOAT32, 2, &weights) < 0) {
        goto done;
    }
    PyArrayObject *last = held.arrays[held.count - 1];
    if (weights != NULL && (dim(last, 0) != w.forward.B || dim(last, 1) != w.forward.T)) {
        fail_shapes();
        goto done;
    }
    size_t shape[3] = {w.forward.B, w.forward.H, w.forward.S};
    out = qvpy_new_floats(3, shape);
    call.scratch = qv_allocate(qv_cpu_ops.backward_scratch_bytes(call.lanes, w.forward.S, w.forward.d, 0, 0), 1);
    if (out != NULL && call.scratch != NULL) {
        w.query_weights = weights;
        w.relevance = PyArray_DATA(out);
        qv_cpu_ops.attention_backward(&call, &w, 1);
    }
done:
    qv_free(call.scratch);
    release(&held);
    return (PyObject *)out;
}

/* text_scores(y [E], texts [Q, E] or None, first, count, softmax, scale, factor, answer) -> (scores, d_y); answer -1: the
 * likeliest */
static PyObject *text_scores(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *y_object, *texts_object, *result = NULL;
    Py_ssize_t first, count, answer;
    int softmax;
    void *y_data, *texts_data;
    qv_text_scores w = {.Q = 1};
    holder held = {.count = 0};
    PyArrayObject *scores = NULL, *d_y = NULL;
    if (!PyArg_ParseTuple(arguments, "OOnnpffn", &y_object, &texts_object, &first, &count, &softmax, &w.scale, &w.factor,
                          &answer)) {
        return NULL;
    }
    PyArrayObject *y = take(&held, y_object, "y", NPY_FLOAT32, 1, &y_data);
    if (y == NULL || take_optional(&held, texts_object, "texts", NPY_FLOAT32, 2, &texts_data) < 0) {
        goto done;
    }
    w.E = dim(y, 0);
    w.Q = texts_data != NULL ? dim(held.arrays[1], 0) : 1;
    if ((texts_data != NULL && dim(held.arrays[1], 1) != w.E) || first < 0 || count < 0 ||
        (size_t)first + (size_t)count > w.Q) {
        fail_shapes();
        goto done;
    }
    size_t shape[2] = {(size_t)count, w.E};
    scores = qvpy_new_floats(1, &w.Q);
    d_y = qvpy_new_floats(2, shape);
    if (scores != NULL && d_y != NULL) {
        qv_call call = new_call();
        w.scores = PyArray_DATA(scores);
        w.d_y = PyArray_DATA(d_y);
        w.y = y_data;
        w.texts = texts_data;
        w.first = (size_t)first;
        w.count = (size_t)count;
        w.softmax = softmax != 0;
        w.answer = (size_t)answer;
        qv_cpu_ops.text_scores(&call, &w);
        result = Py_BuildValue("OO", scores, d_y);
    }
done:
    release(&held);
    Py_XDECREF(scores);
    Py_XDECREF(d_y);
    return result;
}

/* dots(x [R, D], w [Q, D]) -> [Q, R]; multiply_items(x [R, D], w [R, D] or [1, D]) -> [R, D] */
static PyObject *pairwise(PyObject *arguments, bool dots) {
    PyObject *x_object, *w_object;
    void *x_data, *w_data;
    holder held = {.count = 0};
    PyArrayObject *out = NULL;
    if (!PyArg_ParseTuple(arguments, "OO", &x_object, &w_object)) {
        return NULL;
    }
    PyArrayObject *x = take(&held, x_object, "x", NPY_FLOAT32, 2, &x_data);
    PyArrayObject *w = x != NULL ? take(&held, w_object, "w", NPY_FLOAT32, 2, &w_data) : NULL;
    if (w == NULL) {
        goto done;
    }
    size_t R = dim(x, 0), D = dim(x, 1), Q = dim(w, 0), shape[2] = {dots ? Q : R, dots ? R : D};
    if (dim(w, 1) != D || (!dots && Q != R && Q != 1)) {
        fail_shapes();
        goto done;
    }
    out = qvpy_new_floats(2, shape);
    if (out != NULL) {
        qv_call call = new_call();
        if (dots) {
            qv_cpu_ops.dots(&call, PyArray_DATA(out), (qv_const_rows){x_data, D}, (qv_const_rows){w_data, D}, Q, R, D);
        } else {
            qv_cpu_ops.multiply_items(&call, (qv_rows){PyArray_DATA(out), D}, (qv_const_rows){x_data, D},
                                      (qv_const_rows){w_data, Q == R ? D : 0}, R, D);
        }
    }
done:
    release(&held);
    return (PyObject *)out;
}

static PyObject *dots(PyObject *module, PyObject *arguments) {
    (void)module;
    return pairwise(arguments, true);
}

static PyObject *multiply_items(PyObject *module, PyObject *arguments) {
    (void)module;
    return pairwise(arguments, false);
}


/* likelihood(logits [R, V], targets [R]) -> log-probabilities [R], their gradient [R, V] */
static PyObject *likelihood(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *logits_object, *targets_object, *result = NULL;
    void *logits_data, *targets_data;
    holder held = {.count = 0};
    PyArrayObject *out = NULL, *gradient = NULL;
    if (!PyArg_ParseTuple(arguments, "OO", &logits_object, &targets_object)) {
        return NULL;
    }
    PyArrayObject *logits = take(&held, logits_object, "logits", NPY_FLOAT32, 2, &logits_data);
    PyArrayObject *targets = logits != NULL ? take(&held, targets_object, "targets", NPY_INT32, 1, &targets_data) : NULL;
    if (targets == NULL) {
        goto done;
    }
    size_t R = dim(logits, 0), V = dim(logits, 1);
    bool fits = dim(targets, 0) == R;
    for (size_t r = 0; fits && r < R; r++) {
        int32_t target = ((const int32_t *)targets_data)[r];
        fits = target >= 0 && (size_t)target < V;
    }
    if (!fits) {
        fail_shapes();
        goto done;
    }
    out = qvpy_new_floats(1, &R);
    gradient = (PyArrayObject *)PyArray_NewCopy(logits, NPY_CORDER);
    if (out != NULL && gradient != NULL) {
        qv_call call = new_call();
        qv_cpu_ops.likelihood(&call, PyArray_DATA(out), PyArray_DATA(gradient), targets_data, R, V);
        result = Py_BuildValue("OO", out, gradient);
    }
done:
    release(&held);
    Py_XDECREF(out);
    Py_XDECREF(gradient);
    return result;
}

static PyMethodDef functions[] = {
    {"relevance", relevance, METH_VARARGS, "What attention_backward adds up over queries; see ops_backward.c."},
    {"text_scores", text_scores, METH_VARARGS, "How y fits texts, and the gradient of that; see ops_backward.c."},
    {"dots", dots, METH_VARARGS, "dots(x, w): w x^T."},
    {"multiply_items", multiply_items, METH_VARARGS, "multiply_items(x, w): item by item, a single row for all."},
    {"norm_backward", norm_backward, METH_VARARGS, "norm_backward(dy, x, weight, eps, rms)."},
    {"activation", activation, METH_VARARGS, "activation(x, name), or with dy: dy act'(x); True: act'(x)."},
    {"attention_backward", attention_backward, METH_VARARGS, "The gradients of attention; see ops_backward.c."},
    {"likelihood", likelihood, METH_VARARGS, "likelihood(logits, targets): log-probabilities and their gradient."},
    {"gradcam", gradcam, METH_VARARGS, "gradcam(A, G, first): the mean over heads of A max(G, 0)."},
    {NULL, NULL, 0, NULL},
};

int qvt_add_ops_backward(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
