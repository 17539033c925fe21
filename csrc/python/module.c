/* qavit._core: module definition. Every other file of this folder adds its part. */
#include "python/binding.h"

static int execute(PyObject *module) {
    static int (*const parts[])(PyObject *) = {
        qvpy_add_runtime, qvpy_add_device, qvpy_add_vit,    qvpy_add_text,    qvpy_add_blip,
        qvpy_add_decoder, qvpy_add_images, qvpy_add_sampling, NULL,
    };
    return qvpy_start(module, parts);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)execute},
    QVPY_ONE_INTERPRETER
    QVPY_NO_GIL
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "qavit._core",
    .m_doc = "The C core of qavit. Use it through the qavit package.",
    .m_size = sizeof(qvpy_state),
    .m_slots = slots,
    .m_traverse = qvpy_traverse,
    .m_clear = qvpy_clear,
    .m_free = qvpy_free,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&definition);
}
