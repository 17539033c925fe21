/* Attention alone on a CUDA device, and how long it takes there. */
#include "testing/testing.h"

#include "base/os.h"
#include "cuda/device.h"

enum { Q, K, V, EXTRA_K, EXTRA_V, BIAS, INPUTS };

/* Rows of the host's, and how many of their floats there are. */
typedef struct {
    qv_const_rows *rows;
    size_t count;
} input;

/* From the floats in the first row to the end of the last. */
static size_t floats_of(const qv_const_rows *rows, size_t count, size_t columns) {
    return rows->at != NULL && count != 0 ? (count - 1) * rows->ld + columns : 0;
}

static qv_status run(const qv_ops *ops, qv_attention *a, const input *inputs, size_t repeats, double *seconds,
                     qv_error *err) {
    qv_arena_cache cache = {.memory = ops->memory};
    qv_call call = {.ops = ops, .lanes = 1};
    qv_arena measured = {.base = NULL};
    size_t out_count = a->out.at != NULL ? a->B * a->T * a->H * a->d : 0;
    size_t probability_count = a->probabilities != NULL ? a->B * a->H * a->row_count * a->column_count : 0;
    for (size_t i = 0; i < INPUTS; i++) {
        qv_arena_floats(&measured, inputs[i].count);
    }
    qv_output_lay_out(&measured, ops, a->out.at, out_count);
    qv_output_lay_out(&measured, ops, a->probabilities, probability_count);
    qv_arena arena = qv_arena_acquire(&cache, &measured);
    if (arena.base == NULL) {
        return qv_fail_memory(err, "attention's arrays");
    }
    qv_status status = qv_call_begin(&call, err);
    if (status == QV_OK) {
        for (size_t i = 0; i < INPUTS; i++) {
            float *place = qv_arena_floats(&arena, inputs[i].count);
            inputs[i].rows->at = inputs[i].count != 0 ? qv_give_floats(&call, place, inputs[i].rows->at, inputs[i].count) : NULL;
        }
        qv_output out = qv_output_lay_out(&arena, ops, a->out.at, out_count);
        qv_output probabilities = qv_output_lay_out(&arena, ops, a->probabilities, probability_count);
        a->out.at = out_count != 0 ? out.at : NULL;
        a->probabilities = probability_count != 0 ? probabilities.at : NULL;
        ops->attention(&call, a, 1);
        qv_output_take(&call, &out);
        qv_output_take(&call, &probabilities);
        status = qv_call_end(&call, status, err);
    }
    int64_t start = qv_os_nanoseconds();
    if (status == QV_OK && repeats != 0) {
        status = qv_call_begin(&call, err);
        for (size_t i = 0; status == QV_OK && i < repeats; i++) {
            ops->attention(&call, a, 1);
        }
        status = status == QV_OK ? qv_call_end(&call, status, err) : status;
    }
    *seconds = (double)(qv_os_nanoseconds() - start) / 1e9;
    qv_arena_release(&cache, &arena);
    qv_arena_cache_clear(&cache);
    return status;
}

qv_status qvt_attention_on(const char *name, bool tf32, qv_attention *a, size_t query_rows, size_t key_rows, size_t repeats,
                           double *seconds, qv_error *err) {
    const qv_cuda_options options = {.tf32 = tf32};
    qv_cuda_device *device = NULL;
    size_t D = a->H * a->d, bias_rows = a->bias_rows == 0 ? a->T : a->H * a->bias_rows;
    if (a->out.at != NULL && a->out.ld != D) {
        return qv_fail(err, QV_ERR_VALUE, "out: expected rows with nothing between them");
    }
    const input inputs[INPUTS] = {
        [Q] = {&a->q, floats_of(&a->q, query_rows, D)},
        [K] = {&a->k, floats_of(&a->k, key_rows, D)},
        [V] = {&a->v, floats_of(&a->v, key_rows, D)},
        [EXTRA_K] = {&a->extra_k, floats_of(&a->extra_k, a->B * a->M, D)},
        [EXTRA_V] = {&a->extra_v, floats_of(&a->extra_v, a->B * a->M, D)},
        [BIAS] = {&a->bias, floats_of(&a->bias, bias_rows, a->S)},
    };
    qv_status status = qv_cuda_open(&device, name, &options, err);
    if (status == QV_OK) {
        status = run(qv_cuda_ops(device), a, inputs, repeats, seconds, err);
    }
    qv_cuda_close(device);
    return status;
}
