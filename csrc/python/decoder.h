/* _core.DecoderMemory: what a decoder's cross-attention reads; _core.DecoderCache: the rows that it is writing. */
#ifndef QV_PYTHON_DECODER_H
#define QV_PYTHON_DECODER_H

#include "python/binding.h"

#include "models/decoder.h"

#include <stdatomic.h>

typedef struct {
    PyObject_HEAD
    qv_decoder_memory memory;
    qvpy_model *owner;
} qvpy_decoder_memory;

typedef struct {
    PyObject_HEAD
    qv_decoder_cache cache;
    qvpy_model *owner;
    PyObject *memories; /* a tuple, which keeps them alive */
    atomic_bool busy;   /* a call is working on it */
} qvpy_decoder_cache;

/* The methods of a Decoder that make them. */
PyObject *qvpy_decoder_read(qvpy_model *self, PyObject *arguments, PyObject *keywords);
PyObject *qvpy_decoder_begin(qvpy_model *self, PyObject *arguments, PyObject *keywords);

/* The cache that is meant, for this thread alone until qvpy_leave_cache (NULL: nothing to leave); NULL with an exception. */
qvpy_decoder_cache *qvpy_enter_cache(qvpy_model *self, PyObject *object);
void qvpy_leave_cache(qvpy_decoder_cache *cache);

/* A new copy of lengths [count], none of them negative, which is how the core has them. */
PyArrayObject *qvpy_copy_lengths(PyObject *object);

int qvpy_add_decoder_rows(PyObject *module);

#endif
