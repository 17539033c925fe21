/* What the files of qavit._core_testing share: the ops by themselves, for tests and benchmarks. No wheel holds it. */
#ifndef QV_TESTING_TESTING_H
#define QV_TESTING_TESTING_H

#include "python/binding.h"

int qvt_add_ops(PyObject *module);
int qvt_add_ops_backward(PyObject *module);
int qvt_add_device_ops(PyObject *module);

#endif
