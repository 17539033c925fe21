/* Vit.dense: see models/vit_dense.h. */
#include "python/binding.h"

#include "models/vit_dense.h"

#include <string.h>

const char qvpy_vit_dense_doc[] =
    "dense(pixel_values, method, first=None, preprocessing=None)\n"
    "--\n\nEvery patch in the space of texts, and the image itself: float32 [N, P, E] and [N, E], all of length 1.\n"
    "method is 'maskclip', 'sclip', 'clearclip', 'naclip', 'surgery' or 'gem'; of the last two the second path begins in\n"
    "block `first`, by default the sixth from the end. Images as forward takes them.";

#define USUAL_BLOCKS ((size_t)6) /* of surgery and gem */

static int read_method(const char *name, qv_dense_method *method) {
    static const char *const names[] = {"maskclip", "sclip", "clearclip", "naclip", "surgery", "gem"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i]) == 0) {
            *method = (qv_dense_method)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "method: '%s', expected maskclip, sclip, clearclip, naclip, surgery or gem", name);
    return -1;
}

static int read_first(PyObject *object, const qv_vit *vit, size_t *first) {
    size_t L = vit->config.L;
    *first = L > USUAL_BLOCKS ? L - USUAL_BLOCKS : 0;
    if (object == Py_None) {
        return 0;
    }
    *first = PyLong_AsSize_t(object);
    return *first == (size_t)-1 && PyErr_Occurred() ? -1 : 0;
}

PyObject *qvpy_vit_dense(qvpy_model *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"pixel_values", "method", "first", "preprocessing", NULL};
    PyObject *images_object, *first = Py_None, *preprocessing = Py_None, *result = NULL;
    const char *method;
    const qv_vit *vit = self->model;
    qvpy_images images = {.array = NULL};
    qv_dense_request request = {.first = 0};
    PyArrayObject *patches = NULL, *pooled = NULL;
    qvpy_call call;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "Os|OO:dense", names, &images_object, &method, &first,
                                     &preprocessing) ||
        read_method(method, &request.method) < 0 || read_first(first, vit, &request.first) < 0 ||
        qvpy_images_acquire(&images, vit, images_object, preprocessing) < 0) {
        goto done;
    }
    request.images = images.core;
    const size_t E = qv_vit_text_width(vit), N = images.core.count;
    patches = qvpy_new_floats(3, (size_t[]){N, vit->P, E});
    pooled = qvpy_new_floats(2, (size_t[]){N, E});
    if (patches == NULL || pooled == NULL) {
        goto done;
    }
    request.patches = PyArray_DATA(patches);
    request.pooled = PyArray_DATA(pooled);
    if (qvpy_begin(&call, self) == 0 && qvpy_end(&call, qv_vit_dense(vit, &call.core, &request, &call.err)) == 0) {
        result = PyTuple_Pack(2, patches, pooled);
    }
done:
    Py_XDECREF(patches);
    Py_XDECREF(pooled);
    qvpy_images_release(&images);
    return result;
}
