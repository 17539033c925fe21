/* What every kind of model shares: how it is made of a config and weights, called, asked for its sizes and let go of. */
#include "python/binding.h"

#include <string.h>

static int read_config(PyObject *dict, const qvpy_kind *kind, void *config) {
    if (!PyDict_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "config: expected a dict, got %s", Py_TYPE(dict)->tp_name);
        return -1;
    }
    return kind->read(dict, config);
}

/* The model itself, without the GIL. */
static int load(qvpy_model *self, const void *config, const char *prefix, qv_precision precision, const qv_ops *ops) {
    qv_weights weights = {.tensors = self->weights.tensors, .count = self->weights.count};
    qv_error err;
    qvpy_poll poll;
    qv_loader loader = {.weights = &weights, .prefix = prefix, .ops = ops, .precision = precision, .err = &err,
                        .poll = {qvpy_poll_signals, &poll}};
    qvpy_release(&poll);
    qv_status status = self->kind->load(&self->model, config, &loader);
    qv_pool_close(&loader.pool);
    return qvpy_acquire(&poll, status, &err);
}

PyObject *qvpy_model_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords, const qvpy_kind *kind) {
    static char *names[] = {"config", "weights", "precision", "prefix", "device", NULL};
    PyObject *dict, *weights, *device = Py_None;
    const char *precision_name = "float32", *prefix = kind->prefix;
    char format[48];
    PyOS_snprintf(format, sizeof format, "OO|ssO:%s", strrchr(kind->name, '.') + 1);
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, format, names, &dict, &weights, &precision_name, &prefix,
                                     &device)) {
        return NULL;
    }
    const qvpy_state *state = qvpy_state_of(type);
    qv_precision precision;
    const qv_ops *ops;
    qvpy_model *self = NULL;
    void *config = PyMem_Calloc(1, kind->config_size);
    if (config == NULL) {
        return PyErr_NoMemory();
    }
    if (state == NULL || qvpy_precision(precision_name, &precision) < 0 || qvpy_device(device, state, &ops) < 0 ||
        read_config(dict, kind, config) < 0) {
        goto done;
    }
    self = (qvpy_model *)type->tp_alloc(type, 0);
    if (self == NULL) {
        goto done;
    }
    PyObject_GC_UnTrack(self);
    self->kind = kind;
    Py_INCREF(device);
    self->device = device;
    if (qvpy_weights_acquire(&self->weights, weights, state) < 0 || load(self, config, prefix, precision, ops) < 0) {
        Py_CLEAR(self);
    } else {
        PyObject_GC_Track(self);
    }
done:
    PyMem_Free(config);
    return (PyObject *)self;
}

PyObject *qvpy_model_sharing(qvpy_model *owner, void *model) {
    PyTypeObject *type = Py_TYPE(owner);
    qvpy_model *self = (qvpy_model *)type->tp_alloc(type, 0);
    if (self == NULL) {
        owner->kind->free(model);
        return NULL;
    }
    self->kind = owner->kind;
    self->model = model;
    Py_INCREF(owner->device);
    self->device = owner->device;
    Py_INCREF(owner);
    self->owner = (PyObject *)owner;
    return (PyObject *)self;
}

static int traverse(qvpy_model *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    return qvpy_weights_traverse(&self->weights, visit, arg);
}

static void deallocate(qvpy_model *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->model != NULL) {
        self->kind->free(self->model);
    }
    qvpy_weights_release(&self->weights);
    Py_XDECREF(self->device);
    Py_XDECREF(self->owner);
    type->tp_free(self);
    Py_DECREF(type);
}

int qvpy_begin(qvpy_call *call, const qvpy_model *self) {
    *call = (qvpy_call){.core = {.lanes = qv_thread_count(), .poll = qvpy_poll_signals}};
    call->core.poll_context = &call->poll;
    const qvpy_state *state = qvpy_state_of(Py_TYPE(self));
    if (qvpy_device(self->device, state, &call->core.ops) < 0) {
        return -1;
    }
    /* Other threads hear of no signal, and one that asks for the GIL when Python has ended does not come back. */
    call->core.polls_in_ops = PyThread_get_thread_ident() == state->main_thread;
    qvpy_release(&call->poll);
    return 0;
}

int qvpy_end(qvpy_call *call, qv_status status) {
    return qvpy_acquire(&call->poll, status, &call->err);
}

PyObject *qvpy_get_size(PyObject *self, void *offset) {
    size_t value;
    memcpy(&value, (const char *)((qvpy_model *)self)->model + (size_t)(uintptr_t)offset, sizeof value);
    return PyLong_FromSize_t(value);
}

int qvpy_add_model(PyObject *module, const qvpy_kind *kind) {
    PyType_Slot slots[] = {
        {Py_tp_new, (void *)kind->create},
        {Py_tp_dealloc, (void *)deallocate},
        {Py_tp_traverse, (void *)traverse},
        {Py_tp_methods, kind->methods},
        {Py_tp_getset, kind->attributes},
        {Py_tp_doc, (void *)(uintptr_t)kind->doc},
        {0, NULL},
    };
    PyType_Spec spec = {
        .name = kind->name,
        .basicsize = sizeof(qvpy_model),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
        .slots = slots,
    };
    return qvpy_add_type(module, &spec) != NULL ? 0 : -1;
}
