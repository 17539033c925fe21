/* How a module of the core begins and ends, and what a copy of it keeps. */
#define QV_IMPORT_ARRAY
#include "python/binding.h"

#include "base/blas.h"

int qvpy_start(PyObject *module, int (*const *parts)(PyObject *module)) {
    if (PyArray_ImportNumPyAPI() < 0) {
        return -1;
    }
    qv_error err;
    if (qv_blas_start(&err) != QV_OK) {
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
        Py_VISIT(state->blip_image);
    }
    return 0;
}

int qvpy_clear(PyObject *module) {
    qvpy_state *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_CLEAR(state->blip_image);
    }
    return 0;
}

void qvpy_free(void *module) {
    qvpy_clear(module);
}
