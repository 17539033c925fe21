/* qavit._core: module definition. Every other file of this folder adds its part. */
#define QV_IMPORT_ARRAY
#include "python/binding.h"

#include "base/blas.h"

static int execute(PyObject *module) {
    if (PyArray_ImportNumPyAPI() < 0) {
        return -1;
    }
    qv_error err;
    if (qv_blas_start(&err) != QV_OK) {
        qvpy_raise(&err);
        return -1;
    }
    int (*const parts[])(PyObject *) = {
        qvpy_add_runtime,
        qvpy_add_ops,
        qvpy_add_ops_backward,
        qvpy_add_device,
        qvpy_add_vit,
        qvpy_add_text,
        qvpy_add_blip,
        qvpy_add_images,
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (parts[i](module) < 0) {
            return -1;
        }
    }
    return 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg) {
    const qvpy_state *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_VISIT(state->blip_image);
    }
    return 0;
}

static int clear(PyObject *module) {
    qvpy_state *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_CLEAR(state->blip_image);
    }
    return 0;
}

static void release(void *module) {
    clear(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)execute},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "qavit._core",
    .m_doc = "The C core of qavit. Use it through the qavit package.",
    .m_size = sizeof(qvpy_state),
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
    .m_free = release,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&definition);
}
