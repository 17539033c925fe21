/* _core.Device: a GPU that models are loaded onto, and whether there is one. */
#include "python/binding.h"

#include "cuda/device.h"
#include "ops/ops.h"

typedef struct {
    PyObject_HEAD
    qv_cuda_device *device;
    PyObject *name;
} DeviceObject;

static PyObject *device_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"name", "tf32", "offload", NULL};
    PyObject *name;
    int tf32 = 0, offload = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "U|pp:Device", names, &name, &tf32, &offload)) {
        return NULL;
    }
    const char *text = PyUnicode_AsUTF8(name);
    DeviceObject *self = text != NULL ? (DeviceObject *)type->tp_alloc(type, 0) : NULL;
    if (self == NULL) {
        return NULL;
    }
    Py_INCREF(name);
    self->name = name;
    const qv_cuda_options options = {.tf32 = tf32 != 0, .offload = offload != 0};
    qv_error err;
    qv_status status;
    Py_BEGIN_ALLOW_THREADS
    status = qv_cuda_open(&self->device, text, &options, &err);
    Py_END_ALLOW_THREADS
    if (status != QV_OK) {
        Py_DECREF(self);
        return qvpy_raise(&err);
    }
    return (PyObject *)self;
}

static void device_dealloc(DeviceObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    qv_cuda_close(self->device);
    Py_XDECREF(self->name);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *device_counters(DeviceObject *self, PyObject *unused) {
    (void)unused;
    qv_cuda_counters counters = qv_cuda_count_up(self->device);
    return Py_BuildValue("{s:n, s:n, s:n, s:n}", "held", (Py_ssize_t)counters.held, "allocations",
                         (Py_ssize_t)counters.allocations, "launches", (Py_ssize_t)counters.launches, "streamed",
                         (Py_ssize_t)counters.streamed);
}

static PyObject *device_name(DeviceObject *self, void *unused) {
    (void)unused;
    Py_INCREF(self->name);
    return self->name;
}

static PyMethodDef methods[] = {
    {"counters", (PyCFunction)(void (*)(void))device_counters, METH_NOARGS,
     "counters()\n--\n\nAllocations held and made on the device, kernels launched, blocks of weights streamed."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"name", (getter)device_name, NULL, "As it was opened.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, (void *)device_new},
    {Py_tp_dealloc, (void *)device_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_tp_doc, (void *)"Device(name, tf32=False, offload=False)\n--\n\nA GPU: 'cuda' or 'cuda:N'; 'cuda-host' runs its "
                        "kernels on the CPU, for tests."},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "qavit._core.Device",
    .basicsize = sizeof(DeviceObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int qvpy_device(PyObject *object, const qvpy_state *state, const qv_ops **ops) {
    *ops = &qv_cpu_ops;
    if (object == Py_None) {
        return 0;
    }
    if (Py_TYPE(object) != state->device) {
        PyErr_Format(PyExc_TypeError, "device: expected a Device or None, got %s", Py_TYPE(object)->tp_name);
        return -1;
    }
    const qv_cuda_device *device = ((DeviceObject *)object)->device;
    qv_error err;
    if (qv_cuda_check_process(device, &err) != QV_OK) {
        qvpy_raise(&err);
        return -1;
    }
    *ops = qv_cuda_ops(device);
    return 0;
}

static PyObject *check_device(PyObject *module, PyObject *name) {
    (void)module;
    const char *text = PyUnicode_AsUTF8(name);
    qv_error err;
    if (text == NULL) {
        return NULL;
    }
    if (qv_cuda_check(text, &err) != QV_OK) {
        return qvpy_raise(&err);
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"check_device", check_device, METH_O, "Raise what is missing for a device 'cuda' or 'cuda:N', if anything is."},
    {NULL, NULL, 0, NULL},
};

int qvpy_add_device(PyObject *module) {
    qvpy_state *state = PyModule_GetState(module);
    state->device = qvpy_add_type(module, &spec);
    Py_XINCREF(state->device);
    return state->device == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
