/* The images of a call on a vision tower. */
#include "python/binding.h"

int qvpy_images_acquire(qvpy_images *images, const qv_vit *vit, PyObject *object, PyObject *preprocessing) {
    *images = (qvpy_images){.array = NULL};
    if (preprocessing != Py_None) {
        if (qvpy_pictures_acquire(&images->pictures, object, preprocessing, vit->config.height, vit->config.width) < 0) {
            return -1;
        }
        images->core = (qv_vit_images){NULL, images->pictures.views, &images->pictures.how, images->pictures.count};
        return 0;
    }
    images->array = qvpy_float_array(object, "pixel_values", 4);
    if (images->array == NULL) {
        return -1;
    }
    const npy_intp *shape = PyArray_DIMS(images->array);
    npy_intp height = (npy_intp)vit->config.height, width = (npy_intp)vit->config.width;
    if (shape[1] != 3 || shape[2] != height || shape[3] != width) {
        PyErr_Format(PyExc_ValueError, "pixel_values has shape [%zd, %zd, %zd, %zd], expected [images, 3, %zd, %zd]",
                     (Py_ssize_t)shape[0], (Py_ssize_t)shape[1], (Py_ssize_t)shape[2], (Py_ssize_t)shape[3],
                     (Py_ssize_t)height, (Py_ssize_t)width);
        qvpy_images_release(images);
        return -1;
    }
    images->core = (qv_vit_images){.pixels = PyArray_DATA(images->array), .count = (size_t)shape[0]};
    return 0;
}

void qvpy_images_release(qvpy_images *images) {
    Py_CLEAR(images->array);
    qvpy_pictures_release(&images->pictures);
}
