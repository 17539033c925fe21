/* The ops: what each launches. */
#include "cuda/cuda_ops.h"

#include <stdint.h>
#include <string.h>

_Static_assert((int)QVK_IDENTITY == (int)QV_IDENTITY && (int)QVK_GELU == (int)QV_GELU &&
                   (int)QVK_GELU_TANH == (int)QV_GELU_TANH && (int)QVK_QUICK_GELU == (int)QV_QUICK_GELU &&
                   (int)QVK_RELU == (int)QV_RELU && (int)QVK_SILU == (int)QV_SILU,
               "the kernels know the activations by the same numbers");

/* Rows of attention up to which a block takes a row: a class token's query alone. */
#define FEW_ROWS ((size_t)4)

size_t qv_cuda_chunks(size_t D) {
    return (D + QVK_CHUNK - 1) / QVK_CHUNK;
}

unsigned qv_cuda_row_threads(size_t D) {
    unsigned threads = 32;
    while (threads < QVK_MAX_THREADS && threads < D / 4) {
        threads *= 2;
    }
    return threads;
}

static void run_elements(qv_cuda_device *device, qvk_elements *p, size_t R) {
    p->chunks = qv_cuda_chunks(p->D);
    qv_cuda_launch_kernel(device, QVK_ELEMENTS, p, R * p->chunks, QVK_MAX_THREADS, 0);
}

/* ---- products ---- */

size_t qv_cuda_scratch_bytes(size_t lanes, size_t rows, size_t depth, size_t keys, size_t head_width) {
    (void)lanes;
    (void)rows;
    (void)depth;
    (void)keys;
    (void)head_width;
    return 0; /* rounded rows are the device's */
}

/* Of R D items; SIZE_MAX, which no device has, where they overflow. */
static size_t rounded_bytes(size_t R, size_t D) {
    size_t bytes;
    (void)qv_multiply_size(R, D, &bytes);
    (void)qv_multiply_size(bytes, sizeof(uint16_t), &bytes);
    return bytes;
}

/* Where a kernel that writes x [R, D] puts it in bfloat16, too: what it writes is most often what a product reads next. NULL
 * where products do not round, or so many never. */
static uint16_t *round_beside(qv_cuda_device *device, qv_const_rows x, size_t R, size_t D) {
    qv_cuda_rounded *rounded = &device->rounded;
    if (rounded_bytes(R, D) > rounded->bytes) {
        return NULL;
    }
    *rounded = (qv_cuda_rounded){rounded->memory, rounded->bytes, x.at, x.ld, R, D};
    return rounded->memory;
}

/* x [R, D] rounded, rows close together: as the kernel that wrote it left it, or by one of its own. */
static const uint16_t *round_rows(qv_cuda_device *device, const qv_cuda_rounded *known, qv_const_rows x, size_t R, size_t D) {
    if (known->of == x.at && known->ld == x.ld && known->R >= R && known->D == D) {
        device->rounded = *known;
        return known->memory;
    }
    size_t bytes = rounded_bytes(R, D);
    if (bytes > device->rounded.bytes) {
        qv_cuda_replace(device, &device->rounded.memory, &device->rounded.bytes, bytes, "rounded rows on the GPU");
    }
    qvk_round p = {round_beside(device, x, R, D), x, D, qv_cuda_chunks(D)};
    qv_cuda_launch_kernel(device, QVK_ROUND, &p, R * p.chunks, QVK_MAX_THREADS, 0);
    return p.out;
}

void qv_cuda_linear(qv_call *call, qv_rows out, qv_const_rows x, const qv_linear *layer, size_t first, size_t count,
                    const qv_epilogue *epilogue, size_t R) {
    const qv_cuda_rounded rounded = qv_cuda_of(call->ops)->rounded;
    qv_cuda_device *device = qv_cuda_device_of(call);
    const qv_epilogue none = {0}, *e = epilogue != NULL ? epilogue : &none;
    const float *bias = layer->bias.data != NULL ? layer->bias.data + first : NULL;
    if (R == 0 || count == 0) {
        return;
    }
    qv_cuda_product product = {
        .out = out.at,
        .ld_out = out.ld,
        .x = x.at,
        .ld_x = x.ld,
        .weight = qv_cuda_columns(device, layer, first),
        .ld_weight = layer->depth,
        .bfloat16 = layer->precision == QV_PRECISION_BFLOAT16,
        .R = R,
        .N = count,
        .K = layer->depth,
    };
    if (product.bfloat16) {
        product.x = round_rows(device, &rounded, x, R, layer->depth);
        product.ld_x = layer->depth;
    }
    /* The product's own epilogue knows bias, the tanh form of gelu, and what to add; the rest follows it: relu too, because
     * cuBLASLt's does not promise to keep a NaN, which must be seen. */
    bool own = e->activation == QV_IDENTITY || e->activation == QV_GELU_TANH;
    bool fused = e->multiply.at == NULL && own && (e->residual.at == NULL || e->activation == QV_IDENTITY);
    if (fused) {
        product.bias = bias;
        product.activation = e->activation;
        product.residual = e->residual.at;
        product.ld_residual = e->residual.ld;
    }
    qv_cuda_multiply(device, &product);
    if (!fused) {
        uint16_t *beside = round_beside(device, qv_as_const(out), R, count);
        bool alone = e->for_product && product.bfloat16 && beside != NULL;
        qvk_elements p = {.out = alone ? (qv_rows){NULL, 0} : out,
                          .rounded = beside,
                          .x = qv_as_const(out),
                          .bias = bias,
                          .multiply = e->multiply,
                          .residual = e->residual,
                          .activation = (int)e->activation,
                          .D = count};
        run_elements(device, &p, R);
    }
}

void qv_cuda_linear_backward(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first,
                             size_t count, bool accumulate, size_t R) {
    const qv_cuda_rounded rounded = qv_cuda_of(call->ops)->rounded;
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
        product.x = round_rows(device, &rounded, dy, R, count);
        product.ld_x = count;
    }
    qv_cuda_multiply(device, &product);
}

/* ---- norms ---- */

void qv_cuda_norm(qv_call *call, qv_rows out, qv_const_rows x, const qv_norm *norm, size_t R) {
    qv_cuda_device *device = qv_cuda_device_of(call);
    qvk_norm p = {.out = out,
                  .x = x,
                  .rounded = round_beside(device, qv_as_const(out), R, norm->D),
                  .weight = norm->weight.data,
                  .bias = norm->bias.data,
                  .eps = norm->eps,
                  .rms = norm->kind == QV_RMS_NORM,
                  .D = norm->D};
    qv_cuda_launch_kernel(device, QVK_NORM, &p, R, qv_cuda_row_threads(norm->D), 0);
}

void qv_cuda_norm_backward(qv_call *call, qv_rows dx, qv_const_rows dy, qv_const_rows x, const qv_norm *norm, size_t R) {
    qvk_norm_backward p = {dx, dy, x, norm->weight.data, norm->eps, norm->kind == QV_RMS_NORM, norm->D};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_NORM_BACKWARD, &p, R, qv_cuda_row_threads(norm->D), 0);
}

/* ---- attention ---- */

/* Room for all of its index arrays. */
static size_t index_bytes(const qv_attention *a) {
    return 3 * a->B * sizeof(size_t) + a->B * a->S * (1 + sizeof(int32_t)) + 5 * QV_ALIGNMENT;
}

/* The parameters, with the index arrays on the device, where there is room. */
static qvk_attention attention_parameters(qv_cuda_device *device, const qv_attention *a) {
    size_t sets = a->B * sizeof(size_t);
    return (qvk_attention){
        .out = a->out,
        .q = a->q,
        .k = a->k,
        .v = a->v,
        .extra_k = a->extra_k,
        .extra_v = a->extra_v,
        .extra_length = qv_cuda_index(device, a->M != 0 ? a->extra_length : NULL, sets),
        .key_mask = qv_cuda_index(device, a->key_mask, a->B * a->S),
        .bias = a->bias.at,
        .ld_bias = a->bias.ld,
        .bias_rows = a->bias_rows,
        .q_index = qv_cuda_index(device, a->q_index, sets),
        .kv_index = qv_cuda_index(device, a->kv_index, sets),
        .kv_stride = a->kv_stride != 0 ? a->kv_stride : a->S,
        .key_index = qv_cuda_index(device, a->key_index, a->B * a->S * sizeof(int32_t)),
        .causal = a->causal ? 1 : 0,
        .past = a->past,
        .scale = a->scale,
        .probabilities = a->probabilities,
        .first_row = a->first_row,
        .row_count = a->row_count,
        .first_column = a->first_column,
        .column_count = a->column_count,
        .H = a->H,
        .T = a->T,
        .S = a->S,
        .M = a->M,
        .d = a->d,
        .rows = a->B * a->H * a->T,
    };
}

static size_t tile_bytes(size_t rows, size_t keys, size_t d) {
    return ((rows + keys) * (d + 1) + rows * (keys + 1)) * sizeof(float);
}

/* Whether a warp may read and write four numbers of a row at once, and a tile's rows lie within what a word counts. */
static bool in_fours(const float *at, size_t ld) {
    return at == NULL || ((uintptr_t)at % 16 == 0 && ld % 4 == 0 && ld < UINT32_MAX / QVK_TENSOR_KEYS(true));
}

/* Launch attention on tensor cores, where its precision has them, for heads of the widths that models have. */
static bool start_tensor_attention(qv_cuda_device *device, const qv_attention *a, qvk_attention *p) {
    static const struct {
        qvk_kernel bfloat16, tf32;
        size_t widest;
    } tiles[] = {{QVK_BFLOAT16_ATTENTION_64, QVK_TF32_ATTENTION_64, 64},
                 {QVK_BFLOAT16_ATTENTION_80, QVK_TF32_ATTENTION_80, 80},
                 {QVK_BFLOAT16_ATTENTION_96, QVK_TF32_ATTENTION_96, 96},
                 {QVK_BFLOAT16_ATTENTION_128, QVK_TF32_ATTENTION_128, 128}};
    bool half = a->precision != QV_PRECISION_FLOAT32 && device->driver->has_tensor_cores(device->state);
    /* The kernels count queries and keys in words. */
    bool counts = a->T < UINT32_MAX / 2 && a->M < UINT32_MAX / 4 && a->S < UINT32_MAX / 4;
    if ((!half && !device->tf32) || !counts || a->d % 8 != 0 || !in_fours(a->q.at, a->q.ld) || !in_fours(a->k.at, a->k.ld) ||
        !in_fours(a->v.at, a->v.ld) || !in_fours(a->extra_k.at, a->extra_k.ld) || !in_fours(a->extra_v.at, a->extra_v.ld) ||
        !in_fours(a->out.at, a->out.ld)) {
        return false;
    }
    for (size_t i = 0; i < sizeof tiles / sizeof tiles[0]; i++) {
        if (a->d <= tiles[i].widest) {
            /* All of a block's warps load keys and values, those too that have no queries. */
            size_t width = tiles[i].widest, warps = (a->T + 15) / 16, each = warps <= 4 ? 4 : QVK_MAX_THREADS / 32;
            p->rounded = half ? round_beside(device, qv_as_const(a->out), a->B * a->T, a->H * a->d) : NULL;
            size_t words = QVK_TENSOR_KEYS(half) * QVK_TENSOR_KEY_STRIDE(half, width) +
                           QVK_TENSOR_VALUE_ROWS * QVK_TENSOR_VALUE_STRIDE(half, width);
            qv_cuda_launch_kernel(device, half ? tiles[i].bfloat16 : tiles[i].tf32, p,
                                  a->B * a->H * ((warps + each - 1) / each), (unsigned)each * 32, words * sizeof(uint32_t));
            return true;
        }
    }
    return false;
}

/* Tiles: rows, keys and the widest head. */
static const struct {
    qvk_kernel kernel;
    size_t rows, keys, widest;
} tiles[] = {{QVK_ATTENTION_64, 64, 32, 64}, {QVK_ATTENTION_128, 32, 32, 128}, {QVK_ATTENTION_256, 16, 16, 256}};

static size_t row_bytes(const qv_attention *a) {
    return (a->M + a->S + QVK_MAX_THREADS) * sizeof(float);
}

static void start_tiles(qv_cuda_device *device, const qv_attention *a, qvk_attention *p) {
    for (size_t i = 0; i < sizeof tiles / sizeof tiles[0]; i++) {
        if (a->d <= tiles[i].widest) {
            size_t blocks = a->B * a->H * ((a->T + tiles[i].rows - 1) / tiles[i].rows);
            qv_cuda_launch_kernel(device, tiles[i].kernel, p, blocks, QVK_SIDE * QVK_SIDE,
                                  tile_bytes(tiles[i].rows, tiles[i].keys, a->d));
            return;
        }
    }
    if (device->status == QV_OK) {
        device->status = qv_fail(&device->error, QV_ERR_UNSUPPORTED,
                                 "%s: heads %zu wide over %zu keys are more than its kernels take (256, or 11968 keys)",
                                 device->driver->name, a->d, a->M + a->S);
    }
}

/* Launch all but what a block is to take a row of: few rows, and those that all run at once, which are done before a tile of
 * them is. Rows whose scores shared memory cannot hold go through tiles, too. */
static bool start_others(qv_cuda_device *device, const qv_attention *a, qvk_attention *p) {
    bool fits = row_bytes(a) <= QVK_SHARED_BYTES, few = a->T <= FEW_ROWS || a->d > tiles[2].widest;
    if (!(few && fits) && start_tensor_attention(device, a, p)) {
        return true;
    }
    if (fits && (few || p->rows <= device->driver->blocks_at_once(device->state))) {
        return false;
    }
    start_tiles(device, a, p);
    return true;
}

/* Up to QVK_TOGETHER, whose index arrays have room. */
static void start_attention(qv_cuda_device *device, const qv_attention *each, size_t count) {
    qvk_attentions rows = {.count = 0};
    size_t blocks = 0, shared = 0;
    for (size_t i = 0; i < count; i++) {
        const qv_attention *a = &each[i];
        qvk_attention p = attention_parameters(device, a);
        if (p.rows != 0 && !start_others(device, a, &p)) {
            rows.each[rows.count++] = p;
            blocks += p.rows;
            shared = row_bytes(a) > shared ? row_bytes(a) : shared;
        }
    }
    if (rows.count == 1) {
        qv_cuda_launch_kernel(device, QVK_ATTENTION_ROW, &rows.each[0], blocks, QVK_MAX_THREADS, shared);
    } else if (rows.count != 0) {
        qv_cuda_launch_kernel(device, QVK_ATTENTION_ROWS, &rows, blocks, QVK_MAX_THREADS, shared);
    }
}

void qv_cuda_attention(qv_call *call, const qv_attention *each, size_t count) {
    qv_cuda_device *device = qv_cuda_device_of(call);
    for (size_t first = 0, n; first < count; first += n) {
        size_t bytes = index_bytes(&each[first]);
        for (n = 1; n < QVK_TOGETHER && first + n < count; n++) {
            size_t more = index_bytes(&each[first + n]);
            if (bytes + more > QV_CUDA_INDEX_BYTES) {
                break;
            }
            bytes += more;
        }
        qv_cuda_reserve_indices(device, bytes);
        start_attention(device, each + first, n);
    }
}

size_t qv_cuda_backward_scratch(size_t lanes, size_t keys, size_t head_width, size_t H, size_t rows) {
    (void)lanes;
    (void)keys;
    (void)head_width;
    return 2 * H * rows * rows * sizeof(float);
}

static size_t backward_bytes(const qv_attention *a) {
    return (2 * (a->M + a->S) + QVK_MAX_THREADS) * sizeof(float);
}

static bool backward_fits(qv_cuda_device *device, const qv_attention *a) {
    bool fits = backward_bytes(a) <= QVK_SHARED_BYTES;
    if (!fits && device->status == QV_OK) {
        device->status = qv_fail(&device->error, QV_ERR_UNSUPPORTED,
                                 "%s: the gradient of attention over %zu keys is more than its kernels take (5984)",
                                 device->driver->name, a->M + a->S);
    }
    return fits;
}

/* The parameters; what the relevance is made of lies in scratch behind what the keys need, where the caller does not take
 * it. */
static qvk_attention_backward backward_parameters(qv_call *call, const qv_attention_backward *backward) {
    const qv_attention *a = &backward->forward;
    bool keeps = backward->d_k.at != NULL, relevant = backward->relevance != NULL;
    size_t rows = a->B * a->H * a->T, keys = a->M + a->S;
    float *scratch = (float *)call->scratch + (keeps ? 2 * rows * a->S : 0);
    float *A = backward->probabilities, *G = backward->d_probabilities;
    if (relevant && A == NULL && !backward->gradient_alone) {
        A = scratch;
        scratch += rows * keys;
    }
    if (relevant && G == NULL) {
        G = scratch;
    }
    return (qvk_attention_backward){
        .forward = attention_parameters(qv_cuda_device_of(call), a),
        .d_out = backward->d_out,
        .d_q = backward->d_q,
        .d_k = backward->d_k,
        .d_v = backward->d_v,
        .probabilities = A,
        .d_probabilities = G,
        .kept_probabilities = keeps ? call->scratch : NULL,
        .kept_d_scores = keeps ? (float *)call->scratch + rows * a->S : NULL,
    };
}

static void start_backward(qv_call *call, const qv_attention_backward *backward) {
    qv_cuda_device *device = qv_cuda_device_of(call);
    const qv_attention *a = &backward->forward;
    size_t heads = a->B * a->H, keys = a->M + a->S;
    qv_cuda_reserve_indices(device, index_bytes(a));
    qvk_attention_backward p = backward_parameters(call, backward);
    qv_cuda_launch_kernel(device, QVK_ATTENTION_BACKWARD_ROW, &p, p.forward.rows, QVK_MAX_THREADS, backward_bytes(a));
    if (backward->d_k.at != NULL) {
        qv_cuda_launch_kernel(device, QVK_ATTENTION_BACKWARD_KEY, &p, heads * a->S, qv_cuda_row_threads(4 * a->d), 0);
    }
    if (backward->relevance != NULL) {
        qvk_relevance r = {backward->relevance, backward->gradient_alone ? NULL : p.probabilities, p.d_probabilities,
                           backward->query_weights, a->H, a->T, keys, qv_cuda_chunks(keys)};
        qv_cuda_launch_kernel(device, QVK_RELEVANCE, &r, heads * r.chunks, QVK_MAX_THREADS, 0);
    }
}

/* Whether it needs no scratch, which those that are launched together would share, and no index arrays. */
static bool goes_with_others(const qv_attention_backward *backward) {
    const qv_attention *a = &backward->forward;
    return backward->d_k.at == NULL && backward->relevance == NULL && a->M == 0 && a->q_index == NULL && a->kv_index == NULL &&
           a->key_mask == NULL && a->B * a->H * a->T != 0;
}

/* So many at the front can be launched together. */
static size_t count_together(const qv_attention_backward *each, size_t count) {
    size_t n = 0;
    while (n < QVK_TOGETHER && n < count && goes_with_others(&each[n])) {
        n++;
    }
    return n;
}

static void start_together(qv_call *call, const qv_attention_backward *each, size_t count) {
    qvk_attentions_backward rows = {.count = count};
    size_t blocks = 0, shared = 0;
    for (size_t i = 0; i < count; i++) {
        size_t bytes = backward_bytes(&each[i].forward);
        rows.each[i] = backward_parameters(call, &each[i]);
        blocks += rows.each[i].forward.rows;
        shared = bytes > shared ? bytes : shared;
    }
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_ATTENTION_BACKWARD_ROWS, &rows, blocks, QVK_MAX_THREADS, shared);
}

void qv_cuda_attention_backward(qv_call *call, const qv_attention_backward *each, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!backward_fits(qv_cuda_device_of(call), &each[i].forward)) {
            return;
        }
    }
    for (size_t i = 0, n; i < count; i += n) {
        n = count_together(each + i, count - i);
        if (n > 1) {
            start_together(call, each + i, n);
        } else {
            start_backward(call, &each[i]);
            n = 1;
        }
    }
}

/* ---- in front of the blocks ---- */

void qv_cuda_patches(qv_call *call, float *out, const float *image, size_t height, size_t width, size_t patch) {
    qvk_patches p = {out, image, height, width, patch};
    size_t items = 3 * patch * patch;
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_PATCHES, &p, (height / patch) * (width / patch),
                          qv_cuda_row_threads(items), 0);
}

void qv_cuda_embedding(qv_call *call, float *out, const qv_tensor *table, const int32_t *ids, const float *positions,
                       size_t n, size_t D) {
    qv_cuda_device *device = qv_cuda_device_of(call);
    size_t row_bytes = D * sizeof(float);
    if (row_bytes > QV_CUDA_STAGE_BYTES) {
        if (device->status == QV_OK) {
            device->status = qv_fail(&device->error, QV_ERR_UNSUPPORTED, "%s: an embedding %zu wide is too large",
                                     device->driver->name, D);
        }
        return;
    }
    for (size_t i = 0, rows; i < n && device->status == QV_OK; i += rows) {
        size_t room;
        float *staged = qv_cuda_stage(device, row_bytes, &room);
        rows = n - i < room / row_bytes ? n - i : room / row_bytes;
        for (size_t r = 0; r < rows; r++) {
            qv_tensor_read(staged + r * D, table, (size_t)ids[i + r] * D, D);
        }
        qv_cuda_send_staged(device, out + i * D, staged, rows * row_bytes);
    }
    if (positions != NULL) {
        qv_cuda_add(call, out, positions, n, D);
    }
}

void qv_cuda_rotate(qv_call *call, qv_rows x, const float *angles, bool back, size_t B, size_t T, size_t first, size_t H,
                    size_t d) {
    qvk_rotate p = {x.at, x.ld, angles, back ? -1.0f : 1.0f, T, first, H, d};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_ROTATE, &p, B * (T - first), qv_cuda_row_threads(2 * H * d), 0);
}

void qv_cuda_relative_bias(qv_call *call, float *out, const float *offsets, size_t reach, size_t first, size_t H,
                           size_t T, size_t S) {
    qvk_relative_bias p = {out, offsets, reach, first, T, S};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_RELATIVE_BIAS, &p, H * T, qv_cuda_row_threads(S), 0);
}

/* ---- element by element ---- */

void qv_cuda_add(qv_call *call, float *out, const float *x, size_t R, size_t D) {
    qvk_elements p = {.out = {out, D}, .x = {x, D}, .residual = {out, D}, .D = D};
    run_elements(qv_cuda_device_of(call), &p, R);
}

void qv_cuda_multiply_items(qv_call *call, qv_rows out, qv_const_rows x, qv_const_rows y, size_t R, size_t D) {
    qvk_elements p = {.out = out, .x = x, .multiply = y, .D = D};
    run_elements(qv_cuda_device_of(call), &p, R);
}

void qv_cuda_copy(qv_call *call, qv_rows out, qv_const_rows x, size_t R, size_t D) {
    qvk_elements p = {.out = out, .x = x, .D = D};
    run_elements(qv_cuda_device_of(call), &p, R);
}

void qv_cuda_softmax(qv_call *call, float *x, float scale, size_t R, size_t S) {
    qvk_softmax_rows p = {x, scale, S};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_SOFTMAX, &p, R, qv_cuda_row_threads(S), 0);
}

void qv_cuda_activation(qv_call *call, float *out, const float *x, qv_activation activation, size_t n) {
    qvk_elements p = {.out = {out, n}, .x = {x, n}, .activation = (int)activation, .D = n};
    run_elements(qv_cuda_device_of(call), &p, 1);
}

void qv_cuda_activation_backward(qv_call *call, float *dx, const float *dy, const float *x, qv_activation activation,
                                 size_t n) {
    qvk_elements p = {.out = {dx, n}, .x = {x, n}, .multiply = {dy, n}, .activation = (int)activation, .slope = 1, .D = n};
    run_elements(qv_cuda_device_of(call), &p, 1);
}

/* ---- behind the blocks ---- */

void qv_cuda_likelihood(qv_call *call, float *log_probability, float *logits, const int32_t *targets, size_t R, size_t V) {
    qv_cuda_device *device = qv_cuda_device_of(call);
    qv_cuda_reserve_indices(device, R * sizeof *targets + QV_ALIGNMENT);
    qvk_likelihood p = {log_probability, logits, qv_cuda_index(device, targets, R * sizeof *targets), V};
    qv_cuda_launch_kernel(device, QVK_LIKELIHOOD, &p, R, QVK_MAX_THREADS, 0);
}

void qv_cuda_gradcam(qv_call *call, float *out, const float *probabilities, const float *d_probabilities, size_t first,
                     size_t H, size_t T, size_t S) {
    qvk_gradcam p = {out, probabilities, d_probabilities, first, H, T, S, qv_cuda_chunks(S - first)};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_GRADCAM, &p, T * p.chunks, QVK_MAX_THREADS, 0);
}

void qv_cuda_text_scores(qv_call *call, const qv_text_scores *s) {
    qv_cuda_device *device = qv_cuda_device_of(call);
    size_t shared = s->Q * sizeof(float);
    if (shared > QVK_SHARED_BYTES) {
        if (device->status == QV_OK) {
            device->status = qv_fail(&device->error, QV_ERR_UNSUPPORTED, "%s: %zu texts are more than its kernels take (12224)",
                                     device->driver->name, s->Q);
        }
        return;
    }
    qvk_text_scores p = {s->scores, s->d_y,   s->y,      s->texts, s->Q, s->E, s->first, s->softmax ? 1 : 0,
                         s->scale,  s->factor, s->answer};
    qv_cuda_launch_kernel(device, QVK_TEXT_SCORES, &p, s->texts != NULL ? s->count : 1, qv_cuda_row_threads(s->E), shared);
}

void qv_cuda_dots(qv_call *call, float *out, qv_const_rows x, qv_const_rows w, size_t Q, size_t R, size_t D) {
    qvk_dots p = {out, x, w, Q, R, D};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_DOTS, &p, R, qv_cuda_row_threads(D), 0);
}

void qv_cuda_unit_length(qv_call *call, float *x, size_t R, size_t D) {
    qvk_unit_length p = {x, D};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_UNIT_LENGTH, &p, R, qv_cuda_row_threads(D), 0);
}

void qv_cuda_row_lengths(qv_call *call, float *out, qv_const_rows x, size_t R, size_t D) {
    qvk_row_lengths p = {out, x, D};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_ROW_LENGTHS, &p, R, qv_cuda_row_threads(D), 0);
}

void qv_cuda_head_lengths(qv_call *call, qv_rows out, qv_const_rows x, const float *lengths, float factor, size_t B, size_t T,
                          size_t H, size_t d) {
    qvk_head_lengths p = {out, x, lengths, factor, T, H, d};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_HEAD_LENGTHS, &p, B * T, qv_cuda_row_threads(H * d), 0);
}

void qv_cuda_mean_rows(qv_call *call, float *out, const float *x, size_t R, size_t D) {
    qvk_mean_rows p = {out, x, R, D};
    qv_cuda_launch_kernel(qv_cuda_device_of(call), QVK_MEAN_ROWS, &p, qv_cuda_chunks(D), QVK_MAX_THREADS, 0);
}
