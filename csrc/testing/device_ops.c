/* Ops of a CUDA device by themselves: contiguous arrays in, new arrays out. The device is opened for the one op. */
#include "testing/testing.h"

#include "cuda/device.h"

#define MOST_ARRAYS 4

/* The arrays of an op, in the order that it reads them; NULL: there is none. The first one's shape is the result's. */
typedef struct {
    PyArrayObject *arrays[MOST_ARRAYS];
    size_t count;
} inputs;

static int take(inputs *in, PyObject *object, const char *argument, int dims, bool optional) {
    bool given = !optional || object != Py_None;
    PyArrayObject *array = given ? qvpy_array(object, argument, NPY_FLOAT32, dims) : NULL;
    in->arrays[in->count++] = array;
    return given && array == NULL ? -1 : 0;
}

static void release(inputs *in) {
    for (size_t i = 0; i < in->count; i++) {
        Py_XDECREF(in->arrays[i]);
    }
}

static size_t items(PyArrayObject *array) {
    return array != NULL ? (size_t)PyArray_SIZE(array) : 0;
}

/* What an op is told beside its arrays. */
typedef struct {
    size_t R;
    qv_norm norm;
    qv_activation activation;
} op_parameters;

/* Start the op: out [as arrays[0]] from arrays in the device's memory. */
typedef void (*start_op)(qv_call *call, float *out, const float *const *arrays, const op_parameters *parameters);

static qv_status run_on(const qv_ops *ops, float *out, const inputs *in, start_op start, const op_parameters *parameters,
                        qv_error *err) {
    const float *given[MOST_ARRAYS] = {NULL};
    qv_arena_cache cache = {.memory = ops->memory};
    qv_call call = {.ops = ops, .lanes = 1};
    size_t count = items(in->arrays[0]);
    qv_arena measured = {.base = NULL}, arena;
    qv_arena_floats(&measured, count);
    for (size_t i = 0; i < in->count; i++) {
        qv_arena_floats(&measured, items(in->arrays[i]));
    }
    arena = qv_arena_acquire(&cache, &measured);
    if (arena.base == NULL) {
        return qv_fail_memory(err, "an op's arrays");
    }
    qv_output result = qv_output_lay_out(&arena, ops, out, count);
    qv_status status = qv_call_begin(&call, err);
    if (status == QV_OK) {
        for (size_t i = 0; i < in->count; i++) {
            size_t n = items(in->arrays[i]);
            float *place = qv_arena_floats(&arena, n);
            given[i] = n != 0 ? qv_give_floats(&call, place, PyArray_DATA(in->arrays[i]), n) : NULL;
        }
        start(&call, result.at, given, parameters);
        qv_output_take(&call, &result);
        status = qv_call_end(&call, status, err);
    }
    qv_arena_release(&cache, &arena);
    qv_arena_cache_clear(&cache);
    return status;
}

/* The op's result as a new array; NULL with an exception. Releases the inputs. */
static PyObject *run(const char *device_name, inputs *in, start_op start, const op_parameters *parameters) {
    qv_error err;
    qv_cuda_device *device = NULL;
    const qv_cuda_options options = {.tf32 = false};
    PyArrayObject *out = (PyArrayObject *)PyArray_NewLikeArray(in->arrays[0], NPY_CORDER, NULL, 0);
    qv_status status = out != NULL ? qv_cuda_open(&device, device_name, &options, &err) : QV_OK;
    if (out != NULL && status == QV_OK) {
        status = run_on(qv_cuda_ops(device), PyArray_DATA(out), in, start, parameters, &err);
    }
    qv_cuda_close(device);
    if (status != QV_OK) {
        qvpy_raise(&err);
        Py_CLEAR(out);
    }
    release(in);
    return (PyObject *)out;
}

static void start_norm(qv_call *call, float *out, const float *const *arrays, const op_parameters *parameters) {
    qv_norm norm = parameters->norm;
    qv_rows result = {out, norm.D};
    qv_const_rows x = {arrays[0], norm.D}, dy = {arrays[3], norm.D};
    norm.weight.data = arrays[1];
    norm.bias.data = arrays[2];
    if (dy.at != NULL) {
        call->ops->norm_backward(call, result, dy, x, &norm, parameters->R);
    } else {
        call->ops->norm(call, result, x, &norm, parameters->R);
    }
}

/* device_norm(device, x [R, D], weight [D], bias [D] or None, eps, rms, dy [R, D] or None) -> norm(x), or dx of dy */
static PyObject *device_norm(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *device;
    PyObject *x, *weight, *bias, *dy;
    op_parameters parameters = {.R = 0};
    int rms;
    if (!PyArg_ParseTuple(arguments, "sOOOfpO", &device, &x, &weight, &bias, &parameters.norm.eps, &rms, &dy)) {
        return NULL;
    }
    inputs in = {.count = 0};
    if (take(&in, x, "x", 2, false) < 0 || take(&in, weight, "weight", 1, false) < 0 ||
        take(&in, bias, "bias", 1, true) < 0 || take(&in, dy, "dy", 2, true) < 0) {
        release(&in);
        return NULL;
    }
    parameters.norm.kind = rms ? QV_RMS_NORM : QV_LAYER_NORM;
    parameters.R = (size_t)PyArray_DIM(in.arrays[0], 0);
    size_t D = parameters.norm.D = (size_t)PyArray_DIM(in.arrays[0], 1);
    if (items(in.arrays[1]) != D || (in.arrays[2] != NULL && items(in.arrays[2]) != D) ||
        (in.arrays[3] != NULL && !PyArray_SAMESHAPE(in.arrays[0], in.arrays[3]))) {
        release(&in);
        return PyErr_Format(PyExc_ValueError, "the arrays' shapes do not fit together");
    }
    return run(device, &in, start_norm, &parameters);
}

static void start_activation(qv_call *call, float *out, const float *const *arrays, const op_parameters *parameters) {
    if (arrays[1] != NULL) {
        call->ops->activation_backward(call, out, arrays[1], arrays[0], parameters->activation, parameters->R);
    } else {
        call->ops->activation(call, out, arrays[0], parameters->activation, parameters->R);
    }
}

/* device_activation(device, x [n], name, dy [n] or None) -> act(x), or dy act'(x) */
static PyObject *device_activation(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *device;
    PyObject *x, *name, *dy;
    op_parameters parameters = {.R = 0};
    inputs in = {.count = 0};
    if (!PyArg_ParseTuple(arguments, "sOOO", &device, &x, &name, &dy) ||
        qvpy_activation(name, "activation", &parameters.activation) < 0) {
        return NULL;
    }
    if (take(&in, x, "x", 1, false) < 0 || take(&in, dy, "dy", 1, true) < 0) {
        release(&in);
        return NULL;
    }
    parameters.R = items(in.arrays[0]);
    if (in.arrays[1] != NULL && items(in.arrays[1]) != parameters.R) {
        release(&in);
        return PyErr_Format(PyExc_ValueError, "the arrays' shapes do not fit together");
    }
    return run(device, &in, start_activation, &parameters);
}

static PyMethodDef functions[] = {
    {"device_norm", device_norm, METH_VARARGS, "device_norm(device, x, weight, bias, eps, rms, dy)."},
    {"device_activation", device_activation, METH_VARARGS, "device_activation(device, x, name, dy)."},
    {NULL, NULL, 0, NULL},
};

int qvt_add_device_ops(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
