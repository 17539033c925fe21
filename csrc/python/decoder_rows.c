/* What outlives a call on a decoder: memories and caches. */
#include "python/decoder.h"

/* ---- memories ---- */

/* A new object of a type that has nothing to refer to yet: not for the collector. */
static PyObject *allocate(PyTypeObject *type) {
    PyObject *object = type->tp_alloc(type, 0);
    if (object != NULL) {
        PyObject_GC_UnTrack(object);
    }
    return object;
}

PyArrayObject *qvpy_copy_lengths(PyObject *object) {
    PyArrayObject *lengths = qvpy_copy(object, "lengths", NPY_INTP, 1);
    for (npy_intp b = 0; lengths != NULL && b < PyArray_DIM(lengths, 0); b++) {
        npy_intp length = ((npy_intp *)PyArray_DATA(lengths))[b];
        if (length < 0) {
            PyErr_Format(PyExc_ValueError, "lengths: item %zd is %zd, expected 1 or more", (Py_ssize_t)b, (Py_ssize_t)length);
            Py_CLEAR(lengths);
        }
    }
    return lengths;
}

/* lengths [count], which are all of S; None: one sequence */
static int read_lengths(PyObject *object, size_t S, PyArrayObject **array, size_t *count) {
    *array = NULL;
    *count = 1;
    if (object == Py_None) {
        return 0;
    }
    *array = qvpy_copy_lengths(object);
    if (*array == NULL) {
        return -1;
    }
    const size_t *lengths = PyArray_DATA(*array);
    size_t total = 0;
    *count = (size_t)PyArray_DIM(*array, 0);
    for (size_t b = 0; b < *count && total <= S; b++) {
        total = lengths[b] <= S - total ? total + lengths[b] : S + 1;
    }
    if (total != S) {
        PyErr_Format(PyExc_ValueError, "lengths: their sum is %s %zu, the number of states", total > S ? "above" : "below", S);
        return -1;
    }
    return 0;
}

PyObject *qvpy_decoder_read(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"states", "lengths", "tokens", NULL};
    PyObject *states_object, *lengths_object = Py_None;
    Py_ssize_t tokens = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|On:read", names, &states_object, &lengths_object, &tokens)) {
        return NULL;
    }
    size_t W = ((const qv_decoder *)self->model)->kind.cross_width, count;
    qvpy_decoder_memory *memory = NULL;
    qvpy_call call;
    PyArrayObject *lengths = NULL, *states = qvpy_float_array(states_object, "states", 2);
    if (states == NULL) {
        return NULL;
    }
    size_t S = (size_t)PyArray_DIM(states, 0);
    if ((size_t)PyArray_DIM(states, 1) != W || tokens < 0) {
        PyErr_Format(PyExc_ValueError, "states has shape [%zu, %zd], expected [S, %zu]; tokens is %zd, expected 0 or more", S,
                     (Py_ssize_t)PyArray_DIM(states, 1), W, tokens);
        goto done;
    }
    if (read_lengths(lengths_object, S, &lengths, &count) < 0) {
        goto done;
    }
    memory = (qvpy_decoder_memory *)allocate(qvpy_state_of(Py_TYPE(self))->decoder_memory);
    if (memory == NULL) {
        goto done;
    }
    Py_INCREF(self);
    memory->owner = self;
    if (qvpy_begin(&call, self) < 0 ||
        qvpy_end(&call, qv_decoder_read(self->model, &call.core, &memory->memory, PyArray_DATA(states),
                                        lengths != NULL ? PyArray_DATA(lengths) : &S, count, (size_t)tokens, &call.err)) < 0) {
        Py_CLEAR(memory);
    } else {
        PyObject_GC_Track(memory);
    }
done:
    Py_XDECREF(lengths);
    Py_DECREF(states);
    return (PyObject *)memory;
}

static int memory_traverse(qvpy_decoder_memory *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    return 0;
}

static void memory_dealloc(qvpy_decoder_memory *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->owner != NULL) {
        qv_decoder_memory_free(&self->memory, self->owner->model);
        Py_DECREF(self->owner);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- caches ---- */

/* A new tuple of the memories that were given, one or several, all of this decoder; *count their sequences. */
static PyObject *gather_memories(qvpy_model *self, PyObject *object, size_t *count) {
    PyTypeObject *type = qvpy_state_of(Py_TYPE(self))->decoder_memory;
    PyObject *memories = Py_TYPE(object) == type ? PyTuple_Pack(1, object) : PySequence_Tuple(object);
    *count = 0;
    for (Py_ssize_t i = 0; memories != NULL && i < PyTuple_GET_SIZE(memories); i++) {
        PyObject *item = PyTuple_GET_ITEM(memories, i);
        if (Py_TYPE(item) != type) {
            PyErr_Format(PyExc_TypeError, "memory: expected a DecoderMemory or several, got %s", Py_TYPE(item)->tp_name);
            Py_CLEAR(memories);
        } else if (((qvpy_decoder_memory *)item)->owner != self) {
            PyErr_SetString(PyExc_ValueError, "memory: it was read by another model");
            Py_CLEAR(memories);
        } else {
            *count += ((qvpy_decoder_memory *)item)->memory.count;
        }
    }
    return memories;
}

/* Sequence `number` of all memories' together. */
static qv_decoder_source find_source(PyObject *memories, size_t number) {
    Py_ssize_t i = 0;
    const qv_decoder_memory *memory = &((qvpy_decoder_memory *)PyTuple_GET_ITEM(memories, i))->memory;
    while (number >= memory->count) {
        number -= memory->count;
        memory = &((qvpy_decoder_memory *)PyTuple_GET_ITEM(memories, ++i))->memory;
    }
    return (qv_decoder_source){memory, number};
}

/* source [rows] from memory_of [rows], or None: the only sequence, or one a row; 0, or -1 with an exception. */
static int choose_sources(qv_decoder_source *source, size_t rows, PyObject *memories, size_t count, PyArrayObject *memory_of) {
    const npy_int32 *chosen = memory_of != NULL ? PyArray_DATA(memory_of) : NULL;
    if (chosen == NULL && count != 1 && count != rows) {
        PyErr_Format(PyExc_ValueError, "memory: %zu sequences for %zu rows; memory_of must say which each row reads", count,
                     rows);
        return -1;
    }
    if (chosen != NULL && (size_t)PyArray_DIM(memory_of, 0) != rows) {
        PyErr_Format(PyExc_ValueError, "memory_of has %zd items, expected %zu, the rows",
                     (Py_ssize_t)PyArray_DIM(memory_of, 0), rows);
        return -1;
    }
    for (size_t r = 0; r < rows; r++) {
        if (chosen != NULL && (chosen[r] < 0 || (size_t)chosen[r] >= count)) {
            PyErr_Format(PyExc_ValueError, "memory_of: row %zu reads %d, expected 0 to %zu", r, (int)chosen[r], count - 1);
            return -1;
        }
        source[r] = find_source(memories, chosen != NULL ? (size_t)chosen[r] : count == 1 ? 0 : r);
    }
    return 0;
}

static int optional_integers(PyObject *object, const char *argument, int dims, PyArrayObject **array) {
    *array = object != Py_None ? qvpy_copy(object, argument, NPY_INT32, dims) : NULL;
    return object != Py_None && *array == NULL ? -1 : 0;
}

/* A cache on memories, whose reference it takes over. */
static qvpy_decoder_cache *new_cache(qvpy_model *self, PyObject *memories) {
    qvpy_decoder_cache *cache = (qvpy_decoder_cache *)allocate(qvpy_state_of(Py_TYPE(self))->decoder_cache);
    if (cache == NULL) {
        Py_DECREF(memories);
        return NULL;
    }
    Py_INCREF(self);
    cache->owner = self;
    cache->memories = memories;
    return cache;
}

PyObject *qvpy_decoder_begin(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"memory", "rows", "capacity", "memory_of", "tokens", NULL};
    PyObject *memory_object, *memory_of_object = Py_None, *tokens_object = Py_None;
    Py_ssize_t rows, capacity;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "Onn|OO:begin", names, &memory_object, &rows, &capacity,
                                     &memory_of_object, &tokens_object)) {
        return NULL;
    }
    if (rows < 1 || capacity < 1) {
        return PyErr_Format(PyExc_ValueError, "%zd rows of up to %zd tokens, expected at least one of each", rows, capacity);
    }
    size_t count;
    const qv_ops *ops; /* asked for here, because memory is taken without a call */
    PyArrayObject *memory_of = NULL, *tokens = NULL;
    qv_decoder_source *source = NULL;
    qvpy_decoder_cache *cache = NULL;
    if (qvpy_device(self->device, qvpy_state_of(Py_TYPE(self)), &ops) < 0) {
        return NULL;
    }
    PyObject *memories = gather_memories(self, memory_object, &count);
    if (memories == NULL || (cache = new_cache(self, memories)) == NULL) {
        return NULL;
    }
    bool done = false;
    qv_error err;
    if (optional_integers(memory_of_object, "memory_of", 1, &memory_of) < 0 ||
        optional_integers(tokens_object, "tokens", 2, &tokens) < 0) {
        goto done;
    }
    if (tokens != NULL && PyArray_DIM(tokens, 0) != rows) {
        PyErr_Format(PyExc_ValueError, "tokens has %zd rows, expected %zd", (Py_ssize_t)PyArray_DIM(tokens, 0), rows);
        goto done;
    }
    source = PyMem_Calloc((size_t)rows, sizeof *source);
    if (source == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (choose_sources(source, (size_t)rows, memories, count, memory_of) < 0) {
        goto done;
    }
    done = qv_decoder_begin(self->model, &cache->cache, (size_t)rows, (size_t)capacity, source,
                            tokens != NULL ? PyArray_DATA(tokens) : NULL,
                            tokens != NULL ? (size_t)PyArray_DIM(tokens, 1) : 0, &err) == QV_OK;
    if (!done) {
        qvpy_raise(&err);
    }
done:
    PyMem_Free(source);
    Py_XDECREF(memory_of);
    Py_XDECREF(tokens);
    if (done) {
        PyObject_GC_Track(cache);
    } else {
        Py_CLEAR(cache);
    }
    return (PyObject *)cache;
}

static int cache_traverse(qvpy_decoder_cache *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    Py_VISIT(self->memories);
    return 0;
}

static void cache_dealloc(qvpy_decoder_cache *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->owner != NULL) {
        qv_decoder_cache_free(&self->cache, self->owner->model);
        Py_DECREF(self->owner);
    }
    Py_XDECREF(self->memories);
    type->tp_free(self);
    Py_DECREF(type);
}

qvpy_decoder_cache *qvpy_enter_cache(qvpy_model *self, PyObject *object) {
    if (Py_TYPE(object) != qvpy_state_of(Py_TYPE(self))->decoder_cache) {
        PyErr_Format(PyExc_TypeError, "cache: expected a DecoderCache, got %s", Py_TYPE(object)->tp_name);
        return NULL;
    }
    qvpy_decoder_cache *cache = (qvpy_decoder_cache *)object;
    if (cache->owner != self) {
        PyErr_SetString(PyExc_ValueError, "cache: it was begun by another model");
        return NULL;
    }
    if (atomic_exchange(&cache->busy, true)) {
        PyErr_SetString(PyExc_RuntimeError, "cache: another thread is writing to it; begin one for each thread");
        return NULL;
    }
    Py_INCREF(cache);
    return cache;
}

void qvpy_leave_cache(qvpy_decoder_cache *cache) {
    if (cache != NULL) {
        atomic_store(&cache->busy, false);
        Py_DECREF(cache);
    }
}

/* ---- types ---- */

static PyObject *cache_lengths(qvpy_decoder_cache *self, void *unused) {
    (void)unused;
    if (qvpy_enter_cache(self->owner, (PyObject *)self) == NULL) { /* reorder moves the lengths */
        return NULL;
    }
    const npy_intp rows = (npy_intp)self->cache.rows;
    PyArrayObject *lengths = (PyArrayObject *)PyArray_SimpleNew(1, &rows, NPY_INTP);
    for (npy_intp r = 0; lengths != NULL && r < rows; r++) {
        ((npy_intp *)PyArray_DATA(lengths))[r] = (npy_intp)self->cache.length[r];
    }
    qvpy_leave_cache(self);
    return (PyObject *)lengths;
}

static PyObject *memory_absorbed(qvpy_decoder_memory *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(self->memory.kv == NULL);
}

static PyGetSetDef memory_attributes[] = {
    {"absorbed", (getter)memory_absorbed, NULL, "Whether it holds the states alone, without keys and values.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyGetSetDef cache_attributes[] = {
    {"lengths", (getter)cache_lengths, NULL, "How many tokens each row holds, [rows].", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyObject *refuse_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    (void)arguments;
    (void)keywords;
    return PyErr_Format(PyExc_TypeError, "%s is made by a Decoder: read, begin", type->tp_name);
}

static PyType_Slot memory_slots[] = {
    {Py_tp_new, (void *)refuse_new},
    {Py_tp_dealloc, (void *)memory_dealloc},
    {Py_tp_traverse, (void *)memory_traverse},
    {Py_tp_getset, memory_attributes},
    {Py_tp_doc, (void *)"What a decoder's cross-attention reads; made by Decoder.read."},
    {0, NULL},
};

static PyType_Slot cache_slots[] = {
    {Py_tp_new, (void *)refuse_new},
    {Py_tp_dealloc, (void *)cache_dealloc},
    {Py_tp_traverse, (void *)cache_traverse},
    {Py_tp_getset, cache_attributes},
    {Py_tp_doc, (void *)"The rows that a decoder is writing; made by Decoder.begin. For one thread at a time."},
    {0, NULL},
};

static PyType_Spec memory_spec = {
    .name = "qavit._core.DecoderMemory",
    .basicsize = sizeof(qvpy_decoder_memory),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = memory_slots,
};

static PyType_Spec cache_spec = {
    .name = "qavit._core.DecoderCache",
    .basicsize = sizeof(qvpy_decoder_cache),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = cache_slots,
};

int qvpy_add_decoder_rows(PyObject *module) {
    qvpy_state *state = PyModule_GetState(module);
    state->decoder_memory = qvpy_add_type(module, &memory_spec);
    Py_XINCREF(state->decoder_memory);
    if (state->decoder_memory == NULL) {
        return -1;
    }
    state->decoder_cache = qvpy_add_type(module, &cache_spec);
    Py_XINCREF(state->decoder_cache);
    return state->decoder_cache == NULL ? -1 : 0;
}
