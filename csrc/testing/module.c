/* qavit._core_testing: module definition. Its threads and its state are its own, not qavit._core's. */
#include "testing/testing.h"

#include "base/cgroup.h"
#include "base/threads.h"

static PyObject *get_num_threads(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromSize_t(qv_thread_count());
}

static PyObject *set_num_threads(PyObject *module, PyObject *argument) {
    (void)module;
    size_t n = PyLong_AsSize_t(argument);
    if (n == (size_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    qv_set_thread_count(n);
    Py_RETURN_NONE;
}

static PyObject *cgroup_quota(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *membership, *mount;
    if (!PyArg_ParseTuple(arguments, "ss", &membership, &mount)) {
        return NULL;
    }
    return PyLong_FromSize_t(qv_cgroup_quota(membership, mount));
}

static PyMethodDef functions[] = {
    {"cgroup_quota", cgroup_quota, METH_VARARGS, "cgroup_quota(membership, mount): see base/cgroup.h."},
    {"get_num_threads", get_num_threads, METH_NOARGS, "The width of this module's own thread pool."},
    {"set_num_threads", set_num_threads, METH_O, "Set it, 1 to 256."},
    {NULL, NULL, 0, NULL},
};

static int add_threads(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}

static int execute(PyObject *module) {
    static int (*const parts[])(PyObject *) = {add_threads, qvt_add_ops, qvt_add_ops_backward, qvt_add_device_ops, NULL};
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
    .m_name = "qavit._core_testing",
    .m_doc = "The core's ops by themselves, for tests and benchmarks.",
    .m_size = sizeof(qvpy_state),
    .m_slots = slots,
    .m_traverse = qvpy_traverse,
    .m_clear = qvpy_clear,
    .m_free = qvpy_free,
};

PyMODINIT_FUNC PyInit__core_testing(void);

PyMODINIT_FUNC PyInit__core_testing(void) {
    return PyModuleDef_Init(&definition);
}
