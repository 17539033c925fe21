/* What the files of the binding share. The binding converts arguments, releases the GIL and raises; it computes nothing. */
#ifndef QV_PYTHON_BINDING_H
#define QV_PYTHON_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
/* One file (start.c) defines QV_IMPORT_ARRAY and imports NumPy; the others share its table. */
#define PY_ARRAY_UNIQUE_SYMBOL qavit_core_array_api
#ifndef QV_IMPORT_ARRAY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "base/error.h"
#include "base/tensor.h"
#include "ops/ops.h"

/* Raise the Python exception of a failed call (ValueError, MemoryError, KeyboardInterrupt..., RuntimeError); returns
 * NULL. A pending exception (a signal handler that raised) is left as it is. */
PyObject *qvpy_raise(const qv_error *err);

/* A call's context with the poll that looks for signals: fill before the GIL is released. */
typedef struct {
    PyThreadState *thread; /* saved by qvpy_release */
    int raised;            /* a signal handler raised; the exception is pending */
} qvpy_poll;
/* Release the GIL and set call->poll, so that Ctrl-C stops the core within a layer. */
void qvpy_release(qvpy_poll *poll, qv_call *call);
/* Take it back. Returns 0, or -1 with an exception: the one of a signal handler, even if the call came to its end, or
 * that of `status`. */
int qvpy_acquire(qvpy_poll *poll, qv_status status, const qv_error *err);

/* A new reference to `object` as a C-contiguous aligned array of a NumPy type and `dims` dimensions (-1: any);
 * raises TypeError or ValueError naming `argument`. */
PyArrayObject *qvpy_float_array(PyObject *object, const char *argument, int dims);
PyArrayObject *qvpy_array(PyObject *object, const char *argument, int type_number, int dims);
PyArrayObject *qvpy_new_floats(int dims, const size_t *shape);

/* The weights given as a dict name -> (buffer, dtype, shape tuple, byte offset). The dtype is "float32", "float16" or
 * "bfloat16", for a matrix in panels followed by their width: "float32@64" (see base/tensor.h).
 * Holds the buffers until qvpy_weights_release. Returns 0, or -1 with an exception. */
typedef struct {
    qv_tensor *tensors; /* [count], sorted by name */
    size_t count;
    Py_buffer *buffers; /* [buffer_count] */
    size_t buffer_count;
    PyObject *names; /* a tuple, which nobody can change: keeps the names' UTF-8 alive */
} qvpy_weights;
int qvpy_weights_acquire(qvpy_weights *weights, PyObject *dict);
void qvpy_weights_release(qvpy_weights *weights);
/* For tp_traverse: the buffers' owners can refer back to the model. Such a cycle is cleared at its other objects: a model
 * is immutable. What is still being made must not be tracked: whoever walks the collector's objects could call it. */
int qvpy_weights_traverse(const qvpy_weights *weights, visitproc visit, void *arg);

/* Items of a config dict, with an error that names the key. Return 0, or -1 with an exception. `required` 0 leaves
 * *out as it is when the key is missing or None. */
int qvpy_config_size(PyObject *config, const char *key, int required, size_t *out);
int qvpy_config_float(PyObject *config, const char *key, int required, float *out);
int qvpy_config_activation(PyObject *config, const char *key, int required, qv_activation *out);

/* An activation by its name; `what` says in an error what has that name. 0, or -1 with an exception. */
int qvpy_activation(PyObject *value, const char *what, qv_activation *out);

/* "float32" or "bfloat16"; 0, or -1 with an exception. */
int qvpy_precision(const char *text, qv_precision *out);

/* The ops of a _core.Device, or the CPU's for None; 0, or -1 with an exception. The caller keeps the object alive. */
int qvpy_device(PyObject *object, const qv_ops **ops);

/* uint8 pictures [H, W, 3] of a sequence, and how they become pixel values [3, size, size]: `preprocessing` is a tuple
 * as preprocess_image takes it. Holds the arrays until qvpy_pictures_release. Returns 0, or -1 with an exception. */
typedef struct {
    qv_picture_view *views; /* [count] */
    PyArrayObject **arrays; /* [count] */
    size_t count;
    qv_preprocessing how;
} qvpy_pictures;
int qvpy_pictures_acquire(qvpy_pictures *pictures, PyObject *sequence, PyObject *preprocessing, size_t size);
void qvpy_pictures_release(qvpy_pictures *pictures);

/* What a copy of the module keeps. Its attributes anybody can replace. */
typedef struct {
    PyTypeObject *blip_image;
} qvpy_state;

/* Each adds its functions or its heap types to the module; 0 or -1 with an exception. */
int qvpy_add_runtime(PyObject *module);
int qvpy_add_device(PyObject *module);
int qvpy_add_vit(PyObject *module);
int qvpy_add_text(PyObject *module);
int qvpy_add_blip(PyObject *module);
int qvpy_add_images(PyObject *module);

/* A module's beginning: what all parts need, then the parts, which NULL ends. The rest are its slots. */
int qvpy_start(PyObject *module, int (*const *parts)(PyObject *module));
int qvpy_traverse(PyObject *module, visitproc visit, void *arg);
int qvpy_clear(PyObject *module);
void qvpy_free(void *module);

#endif
