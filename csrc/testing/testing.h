/* What the files of qavit._core_testing share: the ops by themselves, for tests and benchmarks. No wheel holds it. */
#ifndef QV_TESTING_TESTING_H
#define QV_TESTING_TESTING_H

#include "ops/ops.h"
#include "python/binding.h"

int qvt_add_ops(PyObject *module);
int qvt_add_ops_backward(PyObject *module);
int qvt_add_device_ops(PyObject *module);
/* Attention on a CUDA device: the host's arrays (q of query_rows rows, k and v of key_rows) go there, and what it writes comes
 * back. *seconds: of doing it `repeats` times more, without what crosses. Leaves `a` with the device's addresses. */
qv_status qvt_attention_on(const char *name, bool tf32, qv_attention *a, size_t query_rows, size_t key_rows, size_t repeats,
                           double *seconds, qv_error *err);

#endif
