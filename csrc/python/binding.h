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
#include "base/threads.h"
#include "models/t5.h"
#include "models/vit.h"
#include "ops/ops.h"

/* Raise the Python exception of a failed call (ValueError, MemoryError, KeyboardInterrupt..., RuntimeError); returns
 * NULL. A pending exception (a signal handler that raised) is left as it is. */
PyObject *qvpy_raise(const qv_error *err);

/* What a copy of a module keeps. Its attributes anybody can replace. */
typedef struct {
    PyTypeObject *device, *blip_image, *decoder_memory, *decoder_cache;
    PyTypeObject *file_mapping; /* mmap.mmap */
    unsigned long main_thread;  /* the one that signal handlers run in */
} qvpy_state;
/* Borrowed; of the module that a heap type of this folder belongs to. */
const qvpy_state *qvpy_state_of(PyTypeObject *type);

/* The time without the GIL, in which the core is asked now and then whether to stop: its poll looks for signals, so that
 * Ctrl-C stops it within an op's task. */
typedef struct {
    PyThreadState *thread; /* saved by qvpy_release */
    int raised;            /* a signal handler raised; the exception is pending */
} qvpy_poll;
void qvpy_release(qvpy_poll *poll);
/* For the core, with the qvpy_poll as its context: true when a signal handler raised. */
bool qvpy_poll_signals(void *poll);
/* Take the GIL back. Returns 0, or -1 with an exception: the one of a signal handler, even if the core came to its end,
 * or that of `status`. */
int qvpy_acquire(qvpy_poll *poll, qv_status status, const qv_error *err);

/* A new reference to `object` as a C-contiguous aligned array of a NumPy type and `dims` dimensions (-1: any);
 * raises TypeError or ValueError naming `argument`. */
PyArrayObject *qvpy_float_array(PyObject *object, const char *argument, int dims);
PyArrayObject *qvpy_array(PyObject *object, const char *argument, int type_number, int dims);
/* The same, but never the caller's own memory: what is checked and then relied on, such as indices, another thread may write to
 * in between. */
PyArrayObject *qvpy_copy(PyObject *object, const char *argument, int type_number, int dims);
PyArrayObject *qvpy_new_floats(int dims, const size_t *shape);
/* A new tuple of what a sequence holds now, whatever others do to it meanwhile; TypeError with the message where it is none. */
PyObject *qvpy_tuple(PyObject *object, const char *message);
/* int32 [N] into out, each item in low .. high. 0, or -1 with an exception. */
int qvpy_read_indices(PyObject *object, const char *argument, size_t N, size_t *out, npy_int32 low, size_t high);

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
int qvpy_weights_acquire(qvpy_weights *weights, PyObject *dict, const qvpy_state *state);
void qvpy_weights_release(qvpy_weights *weights);
/* For tp_traverse: the buffers' owners can refer back to the model. Such a cycle is cleared at its other objects: a model
 * is immutable. What is still being made must not be tracked: whoever walks the collector's objects could call it. */
int qvpy_weights_traverse(const qvpy_weights *weights, visitproc visit, void *arg);

/* A key of a config dict, and the member of the core's config that it fills. What is left open, missing or None, keeps
 * the member's value. */
typedef enum { QVPY_SIZE, QVPY_REQUIRED_SIZE, QVPY_FLOAT, QVPY_ACTIVATION } qvpy_setting_kind;
typedef struct {
    const char *key;
    qvpy_setting_kind kind;
    size_t offset;
} qvpy_setting;
#define QVPY_SETTING(key, kind, type, member) {key, kind, offsetof(type, member)}
/* Return 0, or -1 with an exception that names the key. */
int qvpy_read_settings(void *config, PyObject *dict, const qvpy_setting *settings, size_t count);
/* A new reference to dict[key]; NULL, without an exception, where it is missing or None. */
PyObject *qvpy_config_item(PyObject *dict, const char *key);

/* What a dict says of a vision tower; *config begins as the family's defaults. 0, or -1 with an exception. */
int qvpy_read_vision(PyObject *dict, qv_vit_config *config);

/* What a dict says of a T5's encoder, and the keys that BERT's and CLIP's dicts share; 0, or -1 with an exception. */
int qvpy_read_t5(PyObject *dict, qv_t5_config *config);
int qvpy_read_text_sizes(PyObject *dict, qv_text_config *config);

/* An activation by its name; `what` says in an error what has that name. 0, or -1 with an exception. */
int qvpy_activation(PyObject *value, const char *what, qv_activation *out);

/* "float32" or "bfloat16"; 0, or -1 with an exception. */
int qvpy_precision(const char *text, qv_precision *out);

/* The ops of a _core.Device, or the CPU's for None; 0, or -1 with an exception: of another type, or opened before this
 * process was forked. The caller keeps the object alive. */
int qvpy_device(PyObject *object, const qvpy_state *state, const qv_ops **ops);

/* uint8 pictures [H, W, 3] of a sequence, and how they become pixel values [3, height, width]: `preprocessing` is a tuple
 * as preprocess_image takes it. Holds the arrays until qvpy_pictures_release. Returns 0, or -1 with an exception. */
typedef struct {
    qv_picture_view *views; /* [count] */
    PyArrayObject **arrays; /* [count] */
    size_t count;
    qv_preprocessing how;
} qvpy_pictures;
int qvpy_pictures_acquire(qvpy_pictures *pictures, PyObject *sequence, PyObject *preprocessing, size_t height,
                           size_t width);
void qvpy_pictures_release(qvpy_pictures *pictures);

/* Images for a vision tower: pixel values [N, 3, height, width] or, with `preprocessing` other than None, a sequence of
 * pictures. Holds the arrays until qvpy_images_release. Returns 0, or -1 with an exception. */
typedef struct {
    PyArrayObject *array;
    qvpy_pictures pictures;
    qv_vit_images core;
} qvpy_images;
int qvpy_images_acquire(qvpy_images *images, const qv_vit *vit, PyObject *object, PyObject *preprocessing);
void qvpy_images_release(qvpy_images *images);

/* ---- models (model.c) ---- */

/* A kind of model: a heap type NAME(config, weights, precision='float32', prefix=..., device=None). */
typedef struct {
    const char *name; /* with the module's: "qavit._core.Vit" */
    const char *doc;
    const char *prefix; /* by default */
    size_t config_size;
    int (*read)(PyObject *dict, void *config); /* with the GIL */
    qv_status (*load)(void **model, const void *config, qv_loader *loader); /* without it; *model NULL on failure */
    void (*free)(void *model);
    newfunc create; /* qvpy_model_new with this kind */
    PyMethodDef *methods;
    PyGetSetDef *attributes;
} qvpy_kind;

typedef struct {
    PyObject_HEAD
    const qvpy_kind *kind;
    void *model;          /* NULL while it is loaded */
    qvpy_weights weights; /* what it borrows */
    PyObject *device;     /* whose ops it computes with; None: the CPU's */
    PyObject *owner;      /* of the weights that it shares, a model of its type; NULL: they are its own */
} qvpy_model;

PyObject *qvpy_model_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords, const qvpy_kind *kind);
/* A model of the owner's kind around a core model that shares its weights, and which it takes over; NULL with an
 * exception, and then it is freed. */
PyObject *qvpy_model_sharing(qvpy_model *owner, void *model);
int qvpy_add_model(PyObject *module, const qvpy_kind *kind);
/* A new type of the module by the last part of its name; borrowed. NULL with an exception. */
PyTypeObject *qvpy_add_type(PyObject *module, PyType_Spec *spec);

/* A call on a model, from arguments that are read to its result: between begin and end the GIL is released. */
typedef struct {
    qv_call core;
    qv_error err;
    qvpy_poll poll;
} qvpy_call;
/* 0, or -1 with an exception and the GIL; then nothing is to be ended. */
int qvpy_begin(qvpy_call *call, const qvpy_model *self);
/* As qvpy_acquire. */
int qvpy_end(qvpy_call *call, qv_status status);

/* The getter of a size_t of the core's model. */
PyObject *qvpy_get_size(PyObject *self, void *offset);
#define QVPY_SIZE_OF(type, name, member, doc) {name, qvpy_get_size, NULL, doc, (void *)(uintptr_t)offsetof(type, member)}

/* Functions with keywords have another C type than the table's; the cast goes through a neutral one. */
#define QVPY_KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

/* Vit's methods in files of their own. */
PyObject *qvpy_vit_gradients(qvpy_model *self, PyObject *arguments, PyObject *keywords);
extern const char qvpy_vit_gradients_doc[];
PyObject *qvpy_vit_dense(qvpy_model *self, PyObject *arguments, PyObject *keywords);
extern const char qvpy_vit_dense_doc[];

/* A method of _core.Decoder (decoder_gradient.c). */
PyObject *qvpy_decoder_gradient(qvpy_model *self, PyObject *arguments);

/* ---- the module ---- */

/* The slot that says so, in Pythons that ask: NumPy's own module is for the main interpreter alone. */
#if PY_VERSION_HEX >= 0x030C0000
#define QVPY_ONE_INTERPRETER {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#else
#define QVPY_ONE_INTERPRETER
#endif

/* The slot that says that the module needs no GIL, in Pythons that can be without: models are immutable, a decoder's cache takes
 * one call at a time, and what lists and dicts hold is taken at the door. */
#if PY_VERSION_HEX >= 0x030D0000
#define QVPY_NO_GIL {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#else
#define QVPY_NO_GIL
#endif

/* Each adds its functions or its heap types to the module; 0 or -1 with an exception. */
int qvpy_add_runtime(PyObject *module);
int qvpy_add_device(PyObject *module);
int qvpy_add_vit(PyObject *module);
int qvpy_add_text(PyObject *module);
int qvpy_add_blip(PyObject *module);
int qvpy_add_decoder(PyObject *module);
int qvpy_add_images(PyObject *module);
int qvpy_add_sampling(PyObject *module);

/* A module's beginning: what all parts need, then the parts, which NULL ends. The rest are its slots. */
int qvpy_start(PyObject *module, int (*const *parts)(PyObject *module));
int qvpy_traverse(PyObject *module, visitproc visit, void *arg);
int qvpy_clear(PyObject *module);
void qvpy_free(void *module);

#endif
