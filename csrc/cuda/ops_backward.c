/* The ops of BLIP's backward pass, and what makes maps of it. */
#include "cuda/cuda_ops.h"

size_t qv_cuda_backward_scratch(size_t lanes, size_t keys, size_t H, size_t rows) {
    (void)lanes;
    (void)keys;
    return 2 * H * rows * rows * sizeof(float);
}

void qv_cuda_linear_backward(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first,
                             size_t count, bool accumulate, size_t R) {
    qv_cuda_device *device = qv_cuda_device_of(call);
    if (R == 0 || count == 0 || layer->depth == 0) {
        return;
    }
    qv_cuda_product product = {
        .out = dx.at,
        .ld_out = dx.ld,
        .x = dy.at,
        .ld_x = dy.ld,
        .weight = qv_cuda_columns(device, layer, first),
        .ld_weight = layer->depth,
        .plain_order = true,
        .bfloat16 = layer->precision == QV_PRECISION_BFLOAT16,
        .residual = accumulate ? dx.at : NULL,
        .ld_residual = dx.ld,
        .R = R,
        .N = layer->depth,
        .K = count,
    };
    if (product.bfloat16) {
        qv_cuda_round_rows(call, dy, R, count);
        product.x = call->scratch;
        product.ld_x = count;
    }
    QV_CUDA_DO(device, multiply(device->state, &product, &device->error));
}

void qv_cuda_norm_backward(qv_call *call, qv_rows dx, qv_const_rows dy, qv_const_rows x, const qv_norm *norm, size_t R) {
    qvk_norm_backward p = {dx.at,    dx.ld, dy.at, dy.ld, x.at, x.ld, norm->weight.data, norm->eps,
                           norm->kind == QV_RMS_NORM, norm->D};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_NORM_BACKWARD, &p, R, qv_cuda_row_threads(norm->D), 0);
}

void qv_cuda_activation_backward(qv_call *call, float *dx, const float *dy, const float *x, qv_activation activation,
                                 size_t n) {
    qvk_elements p = {
        .out = dx, .x = x, .multiply = dy, .activation = (int)activation, .slope = 1, .D = n, .chunks = qv_cuda_chunks(n)};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_ELEMENTS, &p, p.chunks, QVK_MAX_THREADS, 0);
}

void qv_cuda_attention_backward(qv_call *call, const qv_attention_backward *backward) {
    qv_cuda_device *device = qv_cuda_device_of(call);
    const qv_attention *a = &backward->forward;
    size_t heads = a->B * a->H, keys = a->M + a->S, shared = (2 * keys + QVK_MAX_THREADS) * sizeof(float);
    if (shared > QVK_SHARED_BYTES) {
        if (device->status == QV_OK) {
            device->status = qv_fail(&device->error, QV_ERR_UNSUPPORTED,
                                     "%s: the gradient of attention over %zu keys is more than its kernels take (5984)",
                                     device->driver->name, keys);
        }
        return;
    }
    bool keeps = backward->d_k.at != NULL;
    qvk_attention_backward p = {
        .forward = qv_cuda_attention_parameters(device, a),
        .d_out = backward->d_out.at,
        .ld_d_out = backward->d_out.ld,
        .d_q = backward->d_q.at,
        .ld_d_q = backward->d_q.ld,
        .d_k = backward->d_k.at,
        .ld_d_k = backward->d_k.ld,
        .d_v = backward->d_v.at,
        .ld_d_v = backward->d_v.ld,
        .probabilities = backward->probabilities,
        .d_probabilities = backward->d_probabilities,
        .kept_probabilities = keeps ? call->scratch : NULL,
        .kept_d_scores = keeps ? (float *)call->scratch + heads * a->T * a->S : NULL,
    };
    qv_cuda_launch_kernel(device, QVK_ATTENTION_BACKWARD_ROW, &p, heads * a->T, QVK_MAX_THREADS, shared);
    if (keeps) {
        qv_cuda_launch_kernel(device, QVK_ATTENTION_BACKWARD_KEY, &p, heads * a->S, qv_cuda_row_threads(4 * a->d), 0);
    }
}

void qv_cuda_gradcam(qv_call *call, float *out, const float *probabilities, const float *d_probabilities, size_t first,
                     size_t H, size_t T, size_t S) {
    qvk_gradcam p = {out, probabilities, d_probabilities, first, H, T, S, qv_cuda_chunks(S - first)};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_GRADCAM, &p, T * p.chunks, QVK_MAX_THREADS, 0);
}

void qv_cuda_unit_length(qv_call *call, float *x, size_t R, size_t D) {
    qvk_unit_length p = {x, D};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_UNIT_LENGTH, &p, R, qv_cuda_row_threads(D), 0);
}

void qv_cuda_mean_rows(qv_call *call, float *out, const float *x, size_t R, size_t D) {
    qvk_mean_rows p = {out, x, R, D};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_MEAN_ROWS, &p, qv_cuda_chunks(D), QVK_MAX_THREADS, 0);
}
