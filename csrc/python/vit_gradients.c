/* Vit.gradients: see models/vit_gradients.h. */
#include "python/binding.h"

#include "models/vit_gradients.h"

#include <string.h>

const char qvpy_vit_gradients_doc[] =
    "gradients(states, first, texts=None, paired=False, score='cosine', scale=1.0, answer=None, instruct=None,\n"
    "instruct_length=None, wanted=(), relevance=None, single_head=None, keep=False, kept=None)\n"
    "--\n\nGradients of scores, from what enters block `first`, states [N, T, D] (forward's hidden). A score is the cosine of\n"
    "what is pooled and one of texts [Q, E], of unit length, times scale; 'softmax': its share among the texts; without texts\n"
    "the log-probability of an answer, by default of the likeliest. There are I = N Q of them, picture by picture, or N where\n"
    "the texts are paired, or answers. wanted holds (name, block) pairs. Returns a dict of float32 arrays: scores [N, Q], or\n"
    "[N, 1]; image [N, E], what texts are compared with, or logits; relevance [I, T], of the blocks from that one on; and for\n"
    "each name {block: array}: legrad [I, H, M + T], class_attention [N, H, M + T], class_gradient [I, H, M + T], key_cosine\n"
    "[N, T], gradcam [I, P], attention_gradient [I, H, T, M + T], hidden_gradient [I, T, D]. Blocks from single_head on run\n"
    "with one head. keep, with legrad alone: also kept, float32 [N, .], what legrad reads of the pictures, whatever the\n"
    "texts; kept: that, of a call for the same blocks, in place of states. The block behind the last is the attention head,\n"
    "whose query stands for the class token.\n"
    "models/vit_gradients.h says what each is.";

/* Names of what is wanted of a block, where it goes, and its shape: I or N first, then what follows. */
typedef enum { HEADS, TOKENS, PATCHES, ATTENTION, STATES } item_shape;
static const struct {
    const char *name;
    size_t slot; /* in qv_vit_gradient_tap */
    bool by_item;
    item_shape shape;
} outputs[] = {
    {"legrad", offsetof(qv_vit_gradient_tap, legrad), true, HEADS},
    {"class_attention", offsetof(qv_vit_gradient_tap, class_attention), false, HEADS},
    {"class_gradient", offsetof(qv_vit_gradient_tap, class_gradient), true, HEADS},
    {"key_cosine", offsetof(qv_vit_gradient_tap, key_cosine), false, TOKENS},
    {"gradcam", offsetof(qv_vit_gradient_tap, gradcam), true, PATCHES},
    {"attention_gradient", offsetof(qv_vit_gradient_tap, attention_gradient), true, ATTENTION},
    {"hidden_gradient", offsetof(qv_vit_gradient_tap, hidden_gradient), true, STATES},
};
#define OUTPUTS (sizeof outputs / sizeof outputs[0])

typedef struct {
    PyArrayObject *states, *texts, *instruct;
    size_t *lengths;
    qv_vit_gradient_tap *taps; /* [L + 1] */
    PyArrayObject **arrays;    /* [OUTPUTS, L + 1] */
    PyArrayObject *scores, *image, *relevance;
    PyArrayObject *keep, *kept; /* written, read */
    size_t items;
    qv_vit_gradient_request request;
} gradient_call;

static void release_call(gradient_call *c, size_t L) {
    for (size_t i = 0; c->arrays != NULL && i < OUTPUTS * (L + 1); i++) {
        Py_XDECREF(c->arrays[i]);
    }
    PyMem_Free(c->arrays);
    PyMem_Free(c->taps);
    PyMem_Free(c->lengths);
    PyArrayObject *held[] = {c->states, c->texts, c->instruct, c->scores, c->image, c->relevance, c->keep, c->kept};
    for (size_t i = 0; i < sizeof held / sizeof held[0]; i++) {
        Py_XDECREF(held[i]);
    }
}

/* A block's number up to `last`, `open` for None. */
static int read_block(PyObject *object, const char *argument, size_t last, size_t open, size_t *out) {
    *out = object == Py_None ? open : PyLong_AsSize_t(object);
    if (*out == (size_t)-1 && PyErr_Occurred()) {
        return -1;
    }
    if (*out > last && object != Py_None) {
        PyErr_Format(PyExc_ValueError, "%s: block %zu does not exist; this model has blocks 0 to %zu", argument, *out, last);
        return -1;
    }
    return 0;
}

/* The pictures: their states, or what was kept of them. */
static int read_pictures(gradient_call *c, const qv_vit *vit, PyObject *states, PyObject *kept) {
    if (kept != Py_None) {
        if (states != Py_None) {
            PyErr_SetString(PyExc_ValueError, "states and kept are both given, expected one of them");
            return -1;
        }
        c->kept = qvpy_float_array(kept, "kept", 2);
        if (c->kept == NULL) {
            return -1;
        }
        c->request.kept = PyArray_DATA(c->kept);
        c->request.N = (size_t)PyArray_DIM(c->kept, 0);
        return 0;
    }
    c->states = qvpy_float_array(states, "states", 3);
    if (c->states == NULL) {
        return -1;
    }
    const npy_intp *shape = PyArray_DIMS(c->states);
    if ((size_t)shape[1] != vit->T || (size_t)shape[2] != vit->config.D) {
        PyErr_Format(PyExc_ValueError, "states has shape [%zd, %zd, %zd], expected [N, %zu, %zu]", (Py_ssize_t)shape[0],
                     (Py_ssize_t)shape[1], (Py_ssize_t)shape[2], vit->T, vit->config.D);
        return -1;
    }
    c->request.states = PyArray_DATA(c->states);
    c->request.N = (size_t)shape[0];
    return 0;
}

static int read_texts(gradient_call *c, PyObject *texts) {
    if (texts != Py_None) {
        c->texts = qvpy_float_array(texts, "texts", 2);
        if (c->texts == NULL) {
            return -1;
        }
        c->request.texts = PyArray_DATA(c->texts);
        c->request.Q = (size_t)PyArray_DIM(c->texts, 0);
        c->request.E = (size_t)PyArray_DIM(c->texts, 1);
    }
    bool one = c->request.paired || texts == Py_None;
    c->items = c->request.N * (one ? 1 : c->request.Q);
    return 0;
}

static int read_question(gradient_call *c, const qv_vit *vit, PyObject *instruct, PyObject *instruct_length) {
    if (instruct == Py_None) {
        return 0;
    }
    c->instruct = qvpy_float_array(instruct, "instruct", 3);
    if (c->instruct == NULL) {
        return -1;
    }
    const npy_intp *shape = PyArray_DIMS(c->instruct);
    size_t N = c->request.N;
    if ((size_t)shape[0] != N || shape[1] == 0 || (size_t)shape[2] != vit->config.instruction_dim) {
        PyErr_Format(PyExc_ValueError, "instruct has shape [%zd, %zd, %zd], expected [%zu, tokens, %zu]", (Py_ssize_t)shape[0],
                     (Py_ssize_t)shape[1], (Py_ssize_t)shape[2], N, vit->config.instruction_dim);
        return -1;
    }
    c->request.M = (size_t)shape[1];
    c->request.instruct = PyArray_DATA(c->instruct);
    c->lengths = PyMem_Calloc(N + 1, sizeof *c->lengths);
    if (c->lengths == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    c->request.instruct_length = c->lengths;
    return qvpy_read_indices(instruct_length, "instruct_length", N, c->lengths, 1, c->request.M);
}

static PyArrayObject *new_output(const gradient_call *c, const qv_vit *vit, size_t output, size_t block) {
    size_t heads = block >= c->request.single_head && block < vit->config.L ? 1 : vit->config.H;
    bool integrated = block < vit->config.L && vit->blocks[block].integrated;
    size_t keys = vit->T + (integrated ? c->request.M : 0), first = outputs[output].by_item ? c->items : c->request.N;
    const size_t shapes[][4] = {[HEADS] = {first, heads, keys},
                                [TOKENS] = {first, vit->T},
                                [PATCHES] = {first, vit->P},
                                [ATTENTION] = {first, heads, vit->T, keys},
                                [STATES] = {first, vit->T, vit->config.D}};
    static const int dims[] = {[HEADS] = 3, [TOKENS] = 2, [PATCHES] = 2, [ATTENTION] = 4, [STATES] = 3};
    item_shape shape = outputs[output].shape;
    PyArrayObject *array = qvpy_new_floats(dims[shape], shapes[shape]);
    if (array != NULL && shape == ATTENTION) {
        memset(PyArray_DATA(array), 0, (size_t)PyArray_NBYTES(array));
    }
    return array;
}

/* One (name, block) of what is wanted. */
static int add_output(gradient_call *c, const qv_vit *vit, PyObject *item) {
    const char *name;
    Py_ssize_t number;
    size_t L = vit->config.L, i = 0;
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "sn", &name, &number)) {
        PyErr_SetString(PyExc_TypeError, "wanted: expected (name, block) pairs");
        return -1;
    }
    while (i < OUTPUTS && strcmp(name, outputs[i].name) != 0) {
        i++;
    }
    bool head = i == 1 || i == 2;
    if (i == OUTPUTS) {
        PyErr_Format(PyExc_ValueError, "wanted: '%s' is unknown", name);
        return -1;
    }
    if (number < (Py_ssize_t)c->request.first || (size_t)number > (head ? L : L - 1)) {
        PyErr_Format(PyExc_ValueError, "wanted: %s of block %zd, expected a block from %zu to %zu", name, number,
                     c->request.first, head ? L : L - 1);
        return -1;
    }
    size_t block = (size_t)number, place = i * (L + 1) + block;
    if (c->arrays[place] != NULL) {
        PyErr_Format(PyExc_ValueError, "wanted: %s of block %zu is asked for twice", name, block);
        return -1;
    }
    c->arrays[place] = new_output(c, vit, i, block);
    if (c->arrays[place] == NULL) {
        return -1;
    }
    float *data = PyArray_DATA(c->arrays[place]);
    memcpy((char *)&c->taps[block] + outputs[i].slot, &data, sizeof data);
    return 0;
}

static int make_outputs(gradient_call *c, const qv_vit *vit, PyObject *wanted, bool relevance) {
    size_t L = vit->config.L, scores[2] = {c->request.N, c->request.texts != NULL ? c->request.Q : 1};
    size_t rows[2] = {c->items, vit->T}, image[2] = {c->request.N, qv_vit_gradient_width(vit, c->request.texts == NULL)};
    c->taps = PyMem_Calloc(L + 1, sizeof *c->taps);
    c->arrays = PyMem_Calloc(OUTPUTS * (L + 1), sizeof *c->arrays);
    if (c->taps == NULL || c->arrays == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    c->request.taps = c->taps;
    c->scores = qvpy_new_floats(2, scores);
    c->image = qvpy_new_floats(2, image);
    c->relevance = relevance ? qvpy_new_floats(2, rows) : NULL;
    if (c->scores == NULL || c->image == NULL || (relevance && c->relevance == NULL)) {
        return -1;
    }
    c->request.scores = PyArray_DATA(c->scores);
    c->request.image = PyArray_DATA(c->image);
    c->request.relevance = relevance ? PyArray_DATA(c->relevance) : NULL;
    PyObject *items = wanted != NULL ? PySequence_Tuple(wanted) : PyTuple_New(0);
    int result = items == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; result == 0 && i < PyTuple_GET_SIZE(items); i++) {
        result = add_output(c, vit, PyTuple_GET_ITEM(items, i));
    }
    Py_XDECREF(items);
    return result;
}

/* The array for what is kept, or the check of the one that is given. */
static int make_kept(gradient_call *c, const qv_vit *vit, bool keep) {
    size_t shape[2] = {c->request.N, 0};
    if (!keep && c->kept == NULL) {
        return 0;
    }
    if (!qv_vit_gradients_keep(vit, &c->request, &shape[1])) {
        PyErr_SetString(PyExc_ValueError, "keep, kept: what is kept of a picture is for legrad alone, without a question");
        return -1;
    }
    if (c->kept != NULL && (size_t)PyArray_DIM(c->kept, 1) != shape[1]) {
        PyErr_Format(PyExc_ValueError, "kept has shape [%zd, %zd], expected [N, %zu] for these blocks",
                     (Py_ssize_t)PyArray_DIM(c->kept, 0), (Py_ssize_t)PyArray_DIM(c->kept, 1), shape[1]);
        return -1;
    }
    if (keep) {
        c->keep = qvpy_new_floats(2, shape);
        c->request.keep = c->keep != NULL ? PyArray_DATA(c->keep) : NULL;
    }
    return keep && c->keep == NULL ? -1 : 0;
}

static PyObject *build_result(const gradient_call *c, size_t L) {
    PyObject *result = Py_BuildValue("{s:O, s:O}", "scores", c->scores, "image", c->image);
    if (result != NULL && c->relevance != NULL && PyDict_SetItemString(result, "relevance", (PyObject *)c->relevance) < 0) {
        Py_CLEAR(result);
    }
    if (result != NULL && c->keep != NULL && PyDict_SetItemString(result, "kept", (PyObject *)c->keep) < 0) {
        Py_CLEAR(result);
    }
    for (size_t i = 0; result != NULL && i < OUTPUTS; i++) {
        PyObject *blocks = PyDict_New();
        for (size_t l = 0; blocks != NULL && l <= L; l++) {
            PyObject *array = (PyObject *)c->arrays[i * (L + 1) + l], *key = array != NULL ? PyLong_FromSize_t(l) : NULL;
            if (array != NULL && (key == NULL || PyDict_SetItem(blocks, key, array) < 0)) {
                Py_CLEAR(blocks);
            }
            Py_XDECREF(key);
        }
        if (blocks == NULL || (PyDict_GET_SIZE(blocks) != 0 && PyDict_SetItemString(result, outputs[i].name, blocks) < 0)) {
            Py_CLEAR(result);
        }
        Py_XDECREF(blocks);
    }
    return result;
}

static int read_score(gradient_call *c, const char *score, PyObject *answer) {
    c->request.softmax = strcmp(score, "softmax") == 0;
    if (!c->request.softmax && strcmp(score, "cosine") != 0) {
        PyErr_Format(PyExc_ValueError, "score: '%s', expected cosine or softmax", score);
        return -1;
    }
    c->request.answer = answer == Py_None ? SIZE_MAX : PyLong_AsSize_t(answer);
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *qvpy_vit_gradients(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"states", "first",           "texts",  "paired",    "score",       "scale", "answer",
                            "instruct", "instruct_length", "wanted", "relevance", "single_head", "keep", "kept", NULL};
    PyObject *states, *first, *texts = Py_None, *answer = Py_None, *instruct = Py_None, *instruct_length = Py_None;
    PyObject *wanted = NULL, *relevance = Py_None, *single_head = Py_None, *kept = Py_None, *result = NULL;
    const char *score = "cosine";
    int paired = 0, keep = 0;
    const qv_vit *vit = self->model;
    size_t L = vit->config.L;
    gradient_call c = {.request = {.scale = 1.0f}};
    qv_vit_gradient_request *request = &c.request;
    qvpy_call call;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OO|OpsfOOOOOOpO:gradients", names, &states, &first, &texts, &paired,
                                     &score, &request->scale, &answer, &instruct, &instruct_length, &wanted, &relevance,
                                     &single_head, &keep, &kept)) {
        return NULL;
    }
    request->paired = paired != 0;
    if (read_score(&c, score, answer) < 0 || read_block(first, "first", L - 1, 0, &request->first) < 0 ||
        read_block(relevance, "relevance", L - 1, L, &request->relevance_from) < 0 ||
        read_block(single_head, "single_head", L - 1, L, &request->single_head) < 0 ||
        read_pictures(&c, vit, states, kept) < 0 || read_texts(&c, texts) < 0 ||
        read_question(&c, vit, instruct, instruct_length) < 0 || make_outputs(&c, vit, wanted, relevance != Py_None) < 0 ||
        make_kept(&c, vit, keep != 0 && c.items != 0) < 0) {
        goto done;
    }
    if (relevance != Py_None && request->relevance_from < request->first) {
        PyErr_Format(PyExc_ValueError, "relevance from block %zu, but states are of block %zu", request->relevance_from,
                     request->first);
        goto done;
    }
    if (qvpy_begin(&call, self) == 0 && qvpy_end(&call, qv_vit_gradients(vit, &call.core, request, &call.err)) == 0) {
        result = build_result(&c, L);
    }
done:
    release_call(&c, L);
    return result;
}
