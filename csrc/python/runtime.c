/* Threads and what is in this build. */
#include "python/binding.h"

#include "base/blas.h"
#include "base/cpu.h"
#include "base/os.h"
#include "base/threads.h"
#include "cuda/device.h"

static PyObject *get_num_threads(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromSize_t(qv_thread_count());
}

static PyObject *set_num_threads(PyObject *module, PyObject *argument) {
    (void)module;
    Py_ssize_t n = PyNumber_AsSsize_t(argument, PyExc_OverflowError);
    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (n < 1 || n > 256) {
        return PyErr_Format(PyExc_ValueError, "n: %zd threads asked for, expected 1 to 256", n);
    }
    qv_set_thread_count((size_t)n);
    Py_RETURN_NONE;
}

#if defined(QV_DEBUG)
static PyObject *fail_allocation(PyObject *module, PyObject *argument) {
    (void)module;
    size_t n = PyLong_AsSize_t(argument);
    if (n == (size_t)-1 && PyErr_Occurred()) {
        return NULL;
    }
    qv_fail_allocation(n);
    Py_RETURN_NONE;
}
#endif

#define TEXT_OF(words) #words
#define TEXT(words) TEXT_OF(words)
#if defined(__clang__)
#define COMPILER "clang " TEXT(__clang_major__) "." TEXT(__clang_minor__)
#else
#define COMPILER "gcc " TEXT(__GNUC__) "." TEXT(__GNUC_MINOR__)
#endif

static PyObject *truth(bool is) {
    return is ? Py_True : Py_False;
}

static PyObject *build_info(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    qv_cpu_features cpu = qv_cpu();
#if defined(QV_HAVE_STB)
    bool stb = true;
#else
    bool stb = false;
#endif
#if defined(QV_DEBUG)
    bool debug = true;
#else
    bool debug = false;
#endif
    PyObject *features = Py_BuildValue(
        "{s:O, s:O, s:O, s:O, s:O, s:O, s:O, s:O, s:O}", "avx2_fma", truth(cpu.avx2_fma), "avx_vnni", truth(cpu.avx_vnni),
        "avx512", truth(cpu.avx512), "avx512_vnni", truth(cpu.avx512_vnni), "avx512_bf16", truth(cpu.avx512_bf16), "amx",
        truth(cpu.amx), "neon", truth(cpu.neon), "neon_dotprod", truth(cpu.neon_dotprod), "neon_bf16",
        truth(cpu.neon_bf16));
    PyObject *kernels = Py_BuildValue("{s:s, s:s, s:s}", "float32", qv_cpu_kernels(QV_PRECISION_FLOAT32), "bfloat16",
                                      qv_cpu_kernels(QV_PRECISION_BFLOAT16), "int8", qv_cpu_kernels(QV_PRECISION_INT8));
    return Py_BuildValue("{s:s, s:s, s:s, s:n, s:n, s:N, s:N, s:n, s:O, s:O, s:O}", "compiler", COMPILER, "blas",
                         qv_blas_config(), "blas_kernels", qv_blas_kernels(), "threads", (Py_ssize_t)qv_thread_count(), "cpus",
                         (Py_ssize_t)qv_os_cpus(), "cpu_features", features, "kernels", kernels, "panel_columns",
                         (Py_ssize_t)qv_cpu_panel_columns(), "stb_image", truth(stb), "cuda", truth(qv_cuda_built()),
                         "debug", truth(debug));
}

static PyMethodDef functions[] = {
    {"get_num_threads", get_num_threads, METH_NOARGS, "The width of the thread pool."},
    {"set_num_threads", set_num_threads, METH_O, "Set the width of the thread pool, 1 to 256."},
    {"build_info", build_info, METH_NOARGS, "What is in this build, as a dict."},
#if defined(QV_DEBUG)
    {"fail_allocation", fail_allocation, METH_O, "Let the n-th allocation from now fail (0: none)."},
#endif
    {NULL, NULL, 0, NULL},
};

int qvpy_add_runtime(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
