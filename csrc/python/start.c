/* How a module of the core begins and ends, and what a copy of it keeps. */
#define QV_IMPORT_ARRAY
#include "python/binding.h"

#include "base/blas.h"
#include "base/cpu.h"

const qvpy_state *qvpy_state_of(PyTypeObject *type) {
    return PyType_GetModuleState(type);
}

static int import_type(PyTypeObject **type, const char *module_name, const char *name) {
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *found = module != NULL ? PyObject_GetAttrString(module, name) : NULL;
    Py_XDECREF(module);
    if (found != NULL && !PyType_Check(found)) {
        PyErr_Format(PyExc_ImportError, "%s.%s is no type", module_name, name);
        Py_CLEAR(found);
    }
    *type = (PyTypeObject *)found;
    return found != NULL ? 0 : -1;
}

static int find_main_thread(unsigned long *ident) {
    PyObject *threading = PyImport_ImportModule("threading");
    PyObject *thread = threading != NULL ? PyObject_CallMethod(threading, "main_thread", NULL) : NULL;
    PyObject *number = thread != NULL ? PyObject_GetAttrString(thread, "ident") : NULL;
    *ident = number != NULL ? PyLong_AsUnsignedLong(number) : 0;
    Py_XDECREF(threading);
    Py_XDECREF(thread);
    Py_XDECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

int qvpy_start(PyObject *module, int (*const *parts)(PyObject *module)) {
    if (PyArray_ImportNumPyAPI() < 0) {
        return -1;
    }
    qvpy_state *state = PyModule_GetState(module);
    if (import_type(&state->file_mapping, "mmap", "mmap") < 0 || find_main_thread(&state->main_thread) < 0) {
        return -1;
    }
    qv_error err;
    if (qv_cpu_check(&err) != QV_OK || qv_threads_check(&err) != QV_OK || qv_blas_start(&err) != QV_OK) {
        qvpy_raise(&err);
        return -1;
    }
    for (; *parts != NULL; parts++) {
        if ((*parts)(module) < 0) {
            return -1;
        }
    }
    return 0;
}

int qvpy_traverse(PyObject *module, visitproc visit, void *arg) {
    const qvpy_state *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_VISIT(state->device);
        Py_VISIT(state->blip_image);
        Py_VISIT(state->decoder_memory);
        Py_VISIT(state->decoder_cache);
        Py_VISIT(state->file_mapping);
    }
    return 0;
}

int qvpy_clear(PyObject *module) {
    qvpy_state *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_CLEAR(state->device);
        Py_CLEAR(state->blip_image);
        Py_CLEAR(state->decoder_memory);
        Py_CLEAR(state->decoder_cache);
        Py_CLEAR(state->file_mapping);
    }
    return 0;
}

void qvpy_free(void *module) {
    qvpy_clear(module);
}
