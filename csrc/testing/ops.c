/* The ops by themselves: arrays in and out, shapes trusted less than a model's. */
#include "testing/testing.h"

#include "base/threads.h"
#include "ops/cpu_ops.h"

#include <string.h>

#define LAYER_CAPSULE "qavit._core_testing.layer"

/* A float32 array whose rows are contiguous: [..., R, C] with a row stride `ld`, in one run of rows. */
typedef struct {
    float *data;
    size_t rows, columns, ld;
    int dims;
    size_t shape[4];
} row_view;

/* Fill `view` from an array object (None where `optional`: data NULL). Returns 0, or -1 with an exception. */
static int view_rows(PyObject *object, const char *argument, bool optional, bool writable, row_view *view) {
    *view = (row_view){.ld = 0};
    if (object == Py_None && optional) {
        return 0;
    }
    if (!PyArray_Check(object) || PyArray_TYPE((PyArrayObject *)object) != NPY_FLOAT32) {
        PyErr_Format(PyExc_TypeError, "%s: expected a float32 array", argument);
        return -1;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    int dims = PyArray_NDIM(array);
    if (dims < 1 || dims > 4 || !PyArray_ISALIGNED(array) || (writable && !PyArray_ISWRITEABLE(array))) {
        PyErr_Format(PyExc_ValueError, "%s: expected an aligned array of 1 to 4 dimensions", argument);
        return -1;
    }
    view->data = PyArray_DATA(array);
    view->dims = dims;
    view->rows = 1;
    for (int i = 0; i < dims; i++) {
        view->shape[i] = (size_t)PyArray_DIM(array, i);
        view->rows *= i < dims - 1 ? view->shape[i] : 1;
    }
    view->columns = view->shape[dims - 1];
    view->ld = dims > 1 ? (size_t)PyArray_STRIDE(array, dims - 2) / sizeof(float) : view->columns;
    if (PyArray_SIZE(array) == 0) {
        view->ld = view->columns; /* NumPy gives it any strides */
        return 0;
    }
    npy_intp stride = (npy_intp)(view->ld * sizeof(float));
    if (view->rows > 1 && (stride < 0 || view->ld < view->columns)) {
        PyErr_Format(PyExc_ValueError, "%s: its rows overlap", argument);
        return -1;
    }
    for (int i = dims - 2; i >= 0; i--) {
        if (PyArray_DIM(array, i) > 1 && PyArray_STRIDE(array, i) != stride) {
            PyErr_Format(PyExc_ValueError, "%s: its rows do not lie one stride apart", argument);
            return -1;
        }
        stride *= PyArray_DIM(array, i);
    }
    if (view->columns > 1 && PyArray_STRIDE(array, dims - 1) != (npy_intp)sizeof(float)) {
        PyErr_Format(PyExc_ValueError, "%s: its rows are not contiguous", argument);
        return -1;
    }
    return 0;
}

static qv_rows rows_of(const row_view *view) {
    return (qv_rows){view->data, view->ld};
}

static qv_const_rows const_rows_of(const row_view *view) {
    return (qv_const_rows){view->data, view->ld};
}

/* Scratch and lanes for one call. */
static int start_call(qv_call *call, size_t rows, size_t depth, size_t keys, size_t head_width) {
    *call = (qv_call){.ops = &qv_cpu_ops, .lanes = qv_thread_count()};
    call->scratch = qv_allocate(qv_cpu_ops.scratch_bytes(call->lanes, rows, depth, keys, head_width), 1);
    if (call->scratch == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static void end_call(qv_call *call) {
    qv_free(call->scratch);
}

typedef struct {
    qv_linear linear;
    qvpy_weights source;
} layer;

static void free_layer(PyObject *capsule) {
    layer *object = PyCapsule_GetPointer(capsule, LAYER_CAPSULE);
    if (object != NULL) {
        qv_linear_free(&qv_cpu_ops, &object->linear);
        qvpy_weights_release(&object->source);
        PyMem_Free(object);
    }
}

/* prepare(weights: dict, parts: int, precision, scale): parts named "0.weight", "0.bias", "0.add_weight", ... */
static PyObject *prepare(PyObject *module, PyObject *arguments) {
    PyObject *weights;
    Py_ssize_t parts;
    const char *precision_name;
    float scale;
    if (!PyArg_ParseTuple(arguments, "Onsf", &weights, &parts, &precision_name, &scale)) {
        return NULL;
    }
    qv_precision precision;
    if (qvpy_precision(precision_name, &precision) < 0) {
        return NULL;
    }
    if (parts < 1 || parts > (Py_ssize_t)QV_MAX_PARTS) {
        return PyErr_Format(PyExc_ValueError, "parts: %zd, expected 1 to 3", parts);
    }
    layer *object = PyMem_Calloc(1, sizeof *object);
    if (object == NULL) {
        return PyErr_NoMemory();
    }
    if (qvpy_weights_acquire(&object->source, weights, PyModule_GetState(module)) < 0) {
        PyMem_Free(object);
        return NULL;
    }
    PyObject *capsule = PyCapsule_New(object, LAYER_CAPSULE, free_layer);
    if (capsule == NULL) {
        qvpy_weights_release(&object->source);
        PyMem_Free(object);
        return NULL;
    }
    qv_weights set = {.tensors = object->source.tensors, .count = object->source.count};
    qv_linear_source sources[QV_MAX_PARTS];
    for (Py_ssize_t i = 0; i < parts; i++) {
        static const char *const names[] = {"weight", "bias", "add_weight", "add_bias", "row_scale"};
        const qv_tensor *tensors[5];
        for (size_t j = 0; j < 5; j++) {
            char name[32];
            PyOS_snprintf(name, sizeof name, "%d.%s", (int)i, names[j]);
            tensors[j] = qv_weights_peek(&set, name);
        }
        sources[i] = (qv_linear_source){tensors[0], tensors[1], tensors[2], tensors[3], scale, tensors[4]};
    }
    qv_error err;
    if (qv_linear_prepare(&qv_cpu_ops, NULL, &object->linear, sources, (size_t)parts, precision, &err) != QV_OK) {
        Py_DECREF(capsule);
        return qvpy_raise(&err);
    }
    return capsule;
}

/* Whether columns first .. first + count are whole parts of the layer: all that the op can be asked for. */
static bool are_parts(const qv_linear *linear, Py_ssize_t first, Py_ssize_t count) {
    Py_ssize_t column = 0, last = first + count;
    bool begins = first == 0, ends = last == 0;
    for (size_t part = 0; part < linear->parts; part++) {
        column += (Py_ssize_t)linear->part_columns[part];
        begins = begins || first == column;
        ends = ends || last == column;
    }
    return first >= 0 && count >= 0 && begins && ends;
}

/* linear(layer, out, x, first, count, activation, multiply, residual) */
static PyObject *linear(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *capsule, *out_object, *x_object, *multiply_object, *residual_object, *activation;
    Py_ssize_t first, count;
    if (!PyArg_ParseTuple(arguments, "OOOnnOOO", &capsule, &out_object, &x_object, &first, &count, &activation,
                          &multiply_object, &residual_object)) {
        return NULL;
    }
    layer *object = PyCapsule_GetPointer(capsule, LAYER_CAPSULE);
    row_view out, x, multiply, residual;
    qv_epilogue epilogue = {.activation = QV_IDENTITY};
    if (object == NULL || view_rows(out_object, "out", false, true, &out) < 0 ||
        view_rows(x_object, "x", false, false, &x) < 0 ||
        view_rows(multiply_object, "multiply", true, false, &multiply) < 0 ||
        view_rows(residual_object, "residual", true, false, &residual) < 0 ||
        qvpy_activation(activation, "activation", &epilogue.activation) < 0) {
        return NULL;
    }
    if (x.columns != object->linear.depth || out.rows != x.rows || out.columns != (size_t)count ||
        !are_parts(&object->linear, first, count) ||
        (multiply.data != NULL && (multiply.rows != out.rows || multiply.columns != out.columns)) ||
        (residual.data != NULL && (residual.rows != out.rows || residual.columns != out.columns))) {
        PyErr_SetString(PyExc_ValueError, "the arrays' shapes do not fit the layer");
        return NULL;
    }
    epilogue.multiply = const_rows_of(&multiply);
    epilogue.residual = const_rows_of(&residual);
    qv_call call;
    if (start_call(&call, x.rows, x.columns, 0, 0) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    qv_cpu_ops.linear(&call, rows_of(&out), const_rows_of(&x), &object->linear, (size_t)first, (size_t)count, &epilogue,
                      x.rows);
    Py_END_ALLOW_THREADS
    end_call(&call);
    Py_RETURN_NONE;
}

/* linear_backward(layer, dx, dy, first, count, accumulate): dx (+)= dy W[first : first + count] */
static PyObject *linear_backward(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *capsule, *dx_object, *dy_object;
    Py_ssize_t first, count;
    int accumulate;
    if (!PyArg_ParseTuple(arguments, "OOOnnp", &capsule, &dx_object, &dy_object, &first, &count, &accumulate)) {
        return NULL;
    }
    layer *object = PyCapsule_GetPointer(capsule, LAYER_CAPSULE);
    row_view dx, dy;
    if (object == NULL || view_rows(dx_object, "dx", false, true, &dx) < 0 ||
        view_rows(dy_object, "dy", false, false, &dy) < 0) {
        return NULL;
    }
    if (dx.columns != object->linear.depth || dx.rows != dy.rows || dy.columns != (size_t)count ||
        !are_parts(&object->linear, first, count)) {
        PyErr_SetString(PyExc_ValueError, "the arrays' shapes do not fit the layer");
        return NULL;
    }
    qv_call call = {.ops = &qv_cpu_ops, .lanes = qv_thread_count()};
    call.scratch = qv_allocate(qv_cpu_ops.scratch_bytes(call.lanes, dy.rows, dy.columns, 0, 0) +
                                   qv_cpu_ops.backward_scratch_bytes(call.lanes, 0, 0, 0, 0),
                               1);
    if (call.scratch == NULL) {
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    qv_cpu_ops.linear_backward(&call, rows_of(&dx), const_rows_of(&dy), &object->linear, (size_t)first, (size_t)count,
                               accumulate != 0, dy.rows);
    Py_END_ALLOW_THREADS
    end_call(&call);
    Py_RETURN_NONE;
}

/* The optional arrays of attention that are not float32: data NULL where None. */
static int optional_array(PyObject *object, const char *argument, int type, int dims, PyArrayObject **array) {
    *array = NULL;
    if (object == Py_None) {
        return 0;
    }
    *array = qvpy_array(object, argument, type, dims);
    return *array != NULL ? 0 : -1;
}

static void *data_of(PyArrayObject *array) {
    return array != NULL ? PyArray_DATA(array) : NULL;
}

/* None, or rows with nothing between them, as the op reads and writes the arrays that have no row stride of their own */
static bool is_none_or_dense(const row_view *view) {
    return view->data == NULL || view->rows <= 1 || view->ld == view->columns;
}

/* None, or [a, b, c] */
static bool is_none_or(const row_view *view, size_t a, size_t b, size_t c) {
    return view->data == NULL || (view->dims == 3 && view->shape[0] == a && view->shape[1] == b && view->shape[2] == c);
}

/* None, or [a] or [a, b] */
static bool array_is_none_or(PyArrayObject *array, size_t a, size_t b) {
    return array == NULL || ((size_t)PyArray_DIM(array, 0) == a &&
                             (PyArray_NDIM(array) == 1 || (size_t)PyArray_DIM(array, 1) == b));
}

/* Each of the B sets named is one of those there are; where none are named, there are B. */
static bool sets_exist(const size_t *index, size_t B, size_t sets) {
    bool exist = index != NULL || sets == B;
    for (size_t b = 0; exist && index != NULL && b < B; b++) {
        exist = index[b] < sets;
    }
    return exist;
}

typedef struct {
    row_view out, q, k, v, extra_k, extra_v, bias, probabilities;
    PyArrayObject *extra_length, *key_mask, *q_index, *kv_index, *key_index;
} attention_arrays;

static int read_arrays(PyObject *const *objects, attention_arrays *x) {
    return view_rows(objects[0], "out", true, true, &x->out) < 0 || view_rows(objects[1], "q", false, false, &x->q) < 0 ||
                   view_rows(objects[2], "k", false, false, &x->k) < 0 ||
                   view_rows(objects[3], "v", true, false, &x->v) < 0 ||
                   view_rows(objects[4], "extra_k", true, false, &x->extra_k) < 0 ||
                   view_rows(objects[5], "extra_v", true, false, &x->extra_v) < 0 ||
                   optional_array(objects[6], "extra_length", NPY_UINTP, 1, &x->extra_length) < 0 ||
                   optional_array(objects[7], "key_mask", NPY_UINT8, 2, &x->key_mask) < 0 ||
                   view_rows(objects[8], "bias", true, false, &x->bias) < 0 ||
                   optional_array(objects[9], "q_index", NPY_UINTP, 1, &x->q_index) < 0 ||
                   optional_array(objects[10], "kv_index", NPY_UINTP, 1, &x->kv_index) < 0 ||
                   view_rows(objects[11], "probabilities", true, true, &x->probabilities) < 0 ||
                   optional_array(objects[12], "key_index", NPY_INT32, 2, &x->key_index) < 0
               ? -1
               : 0;
}

static void release_arrays(attention_arrays *x) {
    Py_XDECREF(x->extra_length);
    Py_XDECREF(x->key_mask);
    Py_XDECREF(x->q_index);
    Py_XDECREF(x->kv_index);
    Py_XDECREF(x->key_index);
}

/* Each of the B S keys named is a row of a set. */
static bool keys_exist(const qv_attention *a, const attention_arrays *x) {
    bool exist = array_is_none_or(x->key_index, a->B, a->S) && a->S <= (a->key_index != NULL ? a->S : x->k.shape[1]);
    for (size_t i = 0; exist && a->key_index != NULL && i < a->B * a->S; i++) {
        exist = a->key_index[i] >= 0 && (size_t)a->key_index[i] < x->k.shape[1];
    }
    return exist;
}

/* Whether the arrays are of the sizes that the op will take them to be. */
static bool arrays_fit(const qv_attention *a, const attention_arrays *x) {
    size_t D = x->q.columns;
    const row_view *seen = &x->probabilities;
    return x->k.columns == D && is_none_or(&x->out, a->B, a->T, D) && is_none_or(&x->v, x->k.shape[0], x->k.shape[1], D) &&
           keys_exist(a, x) &&
           is_none_or(&x->extra_k, a->B, a->M, D) && is_none_or(&x->extra_v, a->B, a->M, D) &&
           is_none_or(&x->bias, a->bias_rows == 0 ? 1 : a->H, a->T, a->S) &&
           array_is_none_or(x->extra_length, a->B, 0) && array_is_none_or(x->key_mask, a->B, a->S) &&
           array_is_none_or(x->q_index, a->B, 0) && array_is_none_or(x->kv_index, a->B, 0) &&
           sets_exist(a->q_index, a->B, x->q.shape[0]) && sets_exist(a->kv_index, a->B, x->k.shape[0]) &&
           (a->out.at == NULL || (a->v.at != NULL && (a->M == 0 || a->extra_v.at != NULL))) &&
           (a->probabilities == NULL ||
            (seen->dims == 4 && is_none_or_dense(seen) && seen->shape[0] == a->B && seen->shape[1] == a->H &&
             a->first_row <= a->T && a->row_count <= a->T - a->first_row && a->first_column <= a->M + a->S &&
             a->column_count <= a->M + a->S - a->first_column));
}

/* attention(out, q, k, v, extra_k, extra_v, extra_length, key_mask, bias, q_index, kv_index, probabilities, key_index, heads,
 * batch, scale, causal, past, keys, first_row, first_column, precision, device=None, tf32=False, repeats=0): every array but q
 * and k may be None, and bias [1, T, S] is of all heads; of a set's rows of k and v the first `keys` are seen, or those of
 * key_index. On a device, the seconds that it takes `repeats` times. */
static PyObject *attention(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *o[13], *result = NULL;
    Py_ssize_t heads, batch, past, keys, first_row, first_column;
    int causal, tf32 = 0;
    const char *precision, *device = NULL;
    Py_ssize_t repeats = 0;
    double seconds = 0.0;
    qv_error err;
    qv_status status = QV_OK;
    qv_attention a = {.scale = 1.0f};
    if (!PyArg_ParseTuple(arguments, "OOOOOOOOOOOOOnnfpnnnns|zpn", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5], &o[6], &o[7],
                          &o[8], &o[9], &o[10], &o[11], &o[12], &heads, &batch, &a.scale, &causal, &past, &keys, &first_row,
                          &first_column, &precision, &device, &tf32, &repeats) ||
        qvpy_precision(precision, &a.precision) < 0) {
        return NULL;
    }
    attention_arrays x = {.extra_length = NULL};
    qv_call call = {.scratch = NULL};
    if (read_arrays(o, &x) < 0) {
        goto done;
    }
    if (heads < 1 || repeats < 0 || batch < 0 || past < 0 || keys < 0 || first_row < 0 || first_column < 0 ||
        x.q.dims != 3 || x.k.dims != 3 || x.q.columns % (size_t)heads != 0) {
        PyErr_SetString(PyExc_ValueError, "the arrays' shapes do not fit together");
        goto done;
    }
    a = (qv_attention){
        .out = rows_of(&x.out), .q = const_rows_of(&x.q), .k = const_rows_of(&x.k), .v = const_rows_of(&x.v),
        .extra_k = const_rows_of(&x.extra_k), .extra_v = const_rows_of(&x.extra_v),
        .extra_length = data_of(x.extra_length), .key_mask = data_of(x.key_mask), .bias = const_rows_of(&x.bias),
        .bias_rows = x.bias.shape[0] == 1 ? 0 : x.q.shape[1],
        .q_index = data_of(x.q_index), .kv_index = data_of(x.kv_index), .kv_stride = x.k.shape[1],
        .key_index = data_of(x.key_index), .causal = causal != 0, .past = (size_t)past, .scale = a.scale,
        .precision = a.precision, .probabilities = x.probabilities.data, .first_row = (size_t)first_row,
        .row_count = x.probabilities.shape[2], .first_column = (size_t)first_column,
        .column_count = x.probabilities.shape[3], .B = (size_t)batch, .H = (size_t)heads, .T = x.q.shape[1],
        .S = (size_t)keys, .M = x.extra_k.data != NULL ? x.extra_k.shape[1] : 0, .d = x.q.columns / (size_t)heads,
    };
    if (!arrays_fit(&a, &x)) {
        PyErr_SetString(PyExc_ValueError, "the arrays' shapes do not fit together");
        goto done;
    }
    if (start_call(&call, a.T, x.q.columns, a.S + a.M, a.d) < 0) {
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    if (device == NULL) {
        qv_cpu_ops.attention(&call, &a, 1);
    } else {
        status = qvt_attention_on(device, tf32 != 0, &a, x.q.rows, x.k.rows, (size_t)repeats, &seconds, &err);
    }
    Py_END_ALLOW_THREADS
    result = status == QV_OK ? Py_BuildValue("d", seconds) : qvpy_raise(&err);
done:
    end_call(&call);
    release_arrays(&x);
    return result;
}

/* rotate(x [B, T, H d], angles [T - first, d], heads, back=False) */
static PyObject *rotate(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *x_object, *angles_object;
    Py_ssize_t heads;
    int back = 0;
    row_view x, angles;
    if (!PyArg_ParseTuple(arguments, "OOn|p", &x_object, &angles_object, &heads, &back) ||
        view_rows(x_object, "x", false, true, &x) < 0 || view_rows(angles_object, "angles", false, false, &angles) < 0) {
        return NULL;
    }
    if (x.dims != 3 || angles.dims != 2 || !is_none_or_dense(&angles) || heads < 1 || angles.columns % 2 != 0 ||
        x.columns != (size_t)heads * angles.columns || angles.rows > x.shape[1] || angles.rows == 0) {
        PyErr_SetString(PyExc_ValueError, "the arrays' shapes do not fit together");
        return NULL;
    }
    qv_call call = {.ops = &qv_cpu_ops, .lanes = qv_thread_count()};
    qv_cpu_ops.rotate(&call, rows_of(&x), angles.data, back != 0, x.shape[0], x.shape[1], x.shape[1] - angles.rows,
                      (size_t)heads, angles.columns);
    Py_RETURN_NONE;
}

/* norm(out, x, weight, bias, eps, rms) */
static PyObject *norm(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *out_object, *x_object, *weight_object, *bias_object;
    float eps;
    int rms;
    if (!PyArg_ParseTuple(arguments, "OOOOfp", &out_object, &x_object, &weight_object, &bias_object, &eps, &rms)) {
        return NULL;
    }
    row_view out, x, weight, bias;
    if (view_rows(out_object, "out", false, true, &out) < 0 || view_rows(x_object, "x", false, false, &x) < 0 ||
        view_rows(weight_object, "weight", false, false, &weight) < 0 ||
        view_rows(bias_object, "bias", true, false, &bias) < 0) {
        return NULL;
    }
    if (x.rows != out.rows || x.columns != out.columns || weight.columns != x.columns ||
        (bias.data != NULL && bias.columns != x.columns)) {
        PyErr_SetString(PyExc_ValueError, "the arrays' shapes do not fit together");
        return NULL;
    }
    qv_call call;
    qv_norm parameters = {.kind = rms ? QV_RMS_NORM : QV_LAYER_NORM,
                          .D = x.columns,
                          .weight = {weight.data, NULL},
                          .bias = {bias.data, NULL},
                          .eps = eps};
    if (start_call(&call, x.rows, x.columns, 0, 0) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    qv_cpu_ops.norm(&call, rows_of(&out), const_rows_of(&x), &parameters, x.rows);
    Py_END_ALLOW_THREADS
    end_call(&call);
    Py_RETURN_NONE;
}

/* head_lengths(out [B, T, H d], x, rows [B, T, D], factor, heads): out from x and the lengths of rows */
static PyObject *head_lengths(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *out_object, *x_object, *measured_object;
    float factor;
    Py_ssize_t heads;
    row_view out, x, measured;
    if (!PyArg_ParseTuple(arguments, "OOOfn", &out_object, &x_object, &measured_object, &factor, &heads) ||
        view_rows(out_object, "out", false, true, &out) < 0 || view_rows(x_object, "x", false, false, &x) < 0 ||
        view_rows(measured_object, "rows", false, false, &measured) < 0) {
        return NULL;
    }
    if (out.dims != 3 || out.rows != x.rows || out.columns != x.columns || measured.rows != out.rows || heads < 1 ||
        out.columns % (size_t)heads != 0) {
        PyErr_SetString(PyExc_ValueError, "the arrays' shapes do not fit together");
        return NULL;
    }
    float *lengths = PyMem_Malloc((out.rows + 1) * sizeof *lengths);
    if (lengths == NULL) {
        return PyErr_NoMemory();
    }
    qv_call call = {.ops = &qv_cpu_ops, .lanes = qv_thread_count()};
    Py_BEGIN_ALLOW_THREADS
    qv_cpu_ops.row_lengths(&call, lengths, const_rows_of(&measured), measured.rows, measured.columns);
    qv_cpu_ops.head_lengths(&call, rows_of(&out), const_rows_of(&x), lengths, factor, out.shape[0], out.shape[1],
                            (size_t)heads, out.columns / (size_t)heads);
    Py_END_ALLOW_THREADS
    PyMem_Free(lengths);
    Py_RETURN_NONE;
}

/* burn(precision, steps): multiply in registers on every lane; the operations done */
static PyObject *burn(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *name;
    Py_ssize_t steps;
    qv_precision precision;
    if (!PyArg_ParseTuple(arguments, "sn", &name, &steps) || qvpy_precision(name, &precision) < 0) {
        return NULL;
    }
    double operations;
    Py_BEGIN_ALLOW_THREADS
    operations = qv_cpu_burn(precision, qv_thread_count(), steps > 0 ? (size_t)steps : 0);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(operations);
}

static PyMethodDef functions[] = {
    {"prepare", prepare, METH_VARARGS, "A linear layer: prepare(weights, parts, precision, scale)."},
    {"linear", linear, METH_VARARGS,
     "linear(layer, out, x, first, count, activation, multiply, residual), written to out."},
    {"linear_backward", linear_backward, METH_VARARGS,
     "linear_backward(layer, dx, dy, first, count, accumulate), written or added to dx."},
    {"attention", attention, METH_VARARGS, "Attention, written to out and probabilities; see csrc/testing/ops.c."},
    {"rotate", rotate, METH_VARARGS, "rotate(x, angles, heads, back=False): the last rows of each sequence turn where they lie."},
    {"norm", norm, METH_VARARGS, "norm(out, x, weight, bias, eps, rms), written to out."},
    {"head_lengths", head_lengths, METH_VARARGS, "head_lengths(out, x, rows, factor, heads), written to out."},
    {"burn", burn, METH_VARARGS, "burn(precision, steps): operations done by multiplying in registers alone."},
    {NULL, NULL, 0, NULL},
};

int qvt_add_ops(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
