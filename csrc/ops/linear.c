/* Linear layers on the CPU. Where a packed kernel beats OpenBLAS the weight is packed once, each part in panels of the
 * kernel's width (see kernels.h), or read where it lies if the file holds such panels; elsewhere the plain weight is
 * multiplied by OpenBLAS, a slab of columns a task. A column's result does not depend on how columns and rows are shared
 * out. */
#include "ops/cpu_ops.h"

#include "base/blas.h"
#include "base/os.h"
#include "ops/kernels.h"

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

/* ---- preparation ---- */

/* Depth steps that packing reads at once, and the padding that keeps its rows in different cache sets. */
#define PACK_STEPS ((size_t)64)
#define PACK_STRIDE (PACK_STEPS + 16)

/* What the CPU keeps of a layer: each part in panels of the kernels' width, or plain [part_columns, K] for OpenBLAS;
 * borrowed from the file or in `owned`. */
typedef struct {
    bool in_panels;
    const float *parts[QV_MAX_PARTS];
    void *owned;
} cpu_weights;

/* Steps of the packed depth: pairs in bfloat16. One step of one column is 4 bytes either way. */
static size_t packed_depth(const qv_linear *layer) {
    return layer->precision == QV_PRECISION_BFLOAT16 ? (layer->depth + 1) / 2 : layer->depth;
}

static size_t panels_of(const qv_linear *layer, size_t part, size_t panel_columns) {
    return (layer->part_columns[part] + panel_columns - 1) / panel_columns;
}

typedef struct {
    const qv_kernels *kernels;
    const qv_linear_source *source;
    float *packed; /* [panels, packed depth, panel_columns]; in bfloat16 an item is a pair */
    size_t columns, depth, steps;
    bool bfloat16;
} pack_work;

static bool is_aligned(const qv_tensor *tensor) {
    return (uintptr_t)tensor->data % sizeof(float) == 0;
}

/* Whether the file holds panels of this width in this type, which can be read where they lie. */
static bool has_panels(const qv_linear_source *source, size_t width, qv_dtype dtype) {
    const qv_tensor *weight = source->weight;
    return weight->panel_columns == width && weight->dtype == dtype && source->add_weight == NULL && source->row_scale == NULL &&
           is_aligned(weight);
}

/* Panel `task` from the file's float32 panel of the same width: steps of the depth, two by two. */
static void pair_panel(const pack_work *w, size_t task) {
    static const float zeros[QV_MAX_PANEL];
    size_t width = w->kernels->panel_columns;
    const float *from = (const float *)w->source->weight->data + task * w->depth * width;
    float *panel = w->packed + task * w->steps * width;
    for (size_t k = 0; k < w->depth; k += 2) {
        const float *partner = k + 1 < w->depth ? from + (k + 1) * width : zeros;
        w->kernels->pair_bfloat16(panel + k / 2 * width, from + k * width, partner, width);
    }
}

/* Panel `task`: the transposed rows of the weight, PACK_STEPS of the depth at a time. */
static void pack_panel(void *context, size_t task, size_t lane) {
    (void)lane;
    const pack_work *w = context;
    float rows[QV_MAX_PANEL * PACK_STRIDE], spare[PACK_STEPS];
    size_t width = w->kernels->panel_columns, first = task * width;
    size_t columns = w->columns - first < width ? w->columns - first : width;
    float *panel = w->packed + task * w->steps * width;
    if (w->bfloat16 && has_panels(w->source, width, QV_FLOAT32)) {
        pair_panel(w, task);
        return;
    }
    memset(rows, 0, sizeof rows);
    for (size_t k = 0; k < w->depth; k += PACK_STEPS) {
        size_t count = w->depth - k < PACK_STEPS ? w->depth - k : PACK_STEPS;
        size_t steps = w->bfloat16 ? (count + 1) / 2 : count;
        for (size_t c = 0; c < columns; c++) {
            float *row = rows + c * PACK_STRIDE;
            qv_linear_source_read(row, w->source, (first + c) * w->depth + k, count, spare);
            if (w->bfloat16) {
                row[count] = 0.0f; /* the partner of an odd last one */
                w->kernels->round_bfloat16((uint16_t *)row, row, 2 * steps);
            }
        }
        float *out = panel + (w->bfloat16 ? k / 2 : k) * width;
        w->kernels->transpose(out, width, rows, PACK_STRIDE, width, steps);
    }
}

static qv_status pack_panels(cpu_weights *weights, const qv_linear *layer, const qv_linear_source *sources,
                             const qv_kernels *kernels, qv_error *err) {
    bool bfloat16 = layer->precision == QV_PRECISION_BFLOAT16;
    qv_dtype dtype = bfloat16 ? QV_BFLOAT16 : QV_FLOAT32;
    size_t panels = 0, width = kernels->panel_columns, steps = packed_depth(layer), items;
    for (size_t i = 0; i < layer->parts; i++) {
        if (has_panels(&sources[i], width, dtype)) {
            weights->parts[i] = sources[i].weight->data;
        } else {
            panels += panels_of(layer, i, width);
        }
    }
    if (panels == 0) {
        return QV_OK;
    }
    float *packed = qv_multiply_size(panels * width, steps, &items) ? qv_allocate(items, sizeof *packed) : NULL;
    if (packed == NULL) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    weights->owned = packed;
    for (size_t i = 0; i < layer->parts; i++) {
        if (weights->parts[i] != NULL) {
            continue;
        }
        pack_work work = {kernels, &sources[i], packed, layer->part_columns[i], layer->depth, steps, bfloat16};
        size_t count = panels_of(layer, i, width);
        qv_parallel(qv_thread_count(), count, pack_panel, &work);
        weights->parts[i] = packed;
        packed += count * width * steps;
        qv_linear_source_release(&sources[i]);
    }
    return QV_OK;
}

static bool can_borrow(const qv_linear_source *source) {
    return has_panels(source, 0, QV_FLOAT32);
}

static qv_status copy_plain(cpu_weights *weights, const qv_linear *layer, const qv_linear_source *sources,
                            qv_error *err) {
    size_t copied = 0;
    for (size_t i = 0; i < layer->parts; i++) {
        copied += can_borrow(&sources[i]) ? 0 : qv_tensor_count(sources[i].weight);
    }
    /* one row more, for the sums */
    float *copy = copied != 0 ? qv_allocate(copied + layer->depth, sizeof *copy) : NULL;
    if (copied != 0 && copy == NULL) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    weights->owned = copy;
    float *spare = copied != 0 ? copy + copied : NULL;
    for (size_t i = 0; i < layer->parts; i++) {
        if (can_borrow(&sources[i])) {
            weights->parts[i] = sources[i].weight->data;
            continue;
        }
        weights->parts[i] = copy;
        for (size_t row = 0; row < layer->part_columns[i]; row++, copy += layer->depth) {
            qv_linear_source_read(copy, &sources[i], row * layer->depth, layer->depth, spare);
        }
        qv_linear_source_release(&sources[i]);
    }
    return QV_OK;
}

qv_status qv_cpu_linear_pack(const qv_ops *ops, qv_linear *layer, const qv_linear_source *sources, qv_error *err) {
    (void)ops;
    const qv_kernels *kernels = qv_kernels_here();
    cpu_weights *weights = qv_allocate(1, sizeof *weights);
    if (weights == NULL) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    *weights = (cpu_weights){.in_panels = kernels->packs_weights};
    layer->packed = weights;
    return weights->in_panels ? pack_panels(weights, layer, sources, kernels, err)
                              : copy_plain(weights, layer, sources, err);
}

void qv_cpu_linear_drop(const qv_ops *ops, qv_linear *layer) {
    (void)ops;
    cpu_weights *weights = layer->packed;
    qv_free(weights->owned);
    qv_free(weights);
}

/* ---- packed products ---- */

/* Rows that a task multiplies at most: enough to hide reading the panel, few enough for the second-level cache. */
#define CHUNK_ROWS ((size_t)768)
/* Chunks at most, so that lanes can count what is left of each. */
#define MOST_CHUNKS ((size_t)64)
/* Columns of a task: the widest panel. */
#define GROUP_COLUMNS QV_MAX_PANEL
/* Multiplications below which waking another thread costs more than it gains. */
#define LEAST_SHARED ((size_t)1 << 17)

/* What is known of a chunk's rows, where they must be rounded before they are multiplied. */
enum { NOT_ROUNDED, BEING_ROUNDED, ROUNDED };

typedef struct {
    const qv_kernels *kernels;
    const qv_linear *layer;
    const cpu_weights *weights;
    void (*multiply)(const qv_panel_product *product);
    qv_rows out;
    qv_const_rows x; /* [rows, depth] */
    float *rounded; /* [rows, steps] pairs of x in bfloat16, made by whichever lane first needs a chunk of them; or NULL */
    const qv_epilogue *epilogue;
    bool add_to_out;
    size_t first, count; /* columns */
    size_t rows, tiles;
    size_t groups, chunks, lanes;
    atomic_size_t taken[MOST_CHUNKS]; /* groups of each chunk that are given out */
    atomic_int state[MOST_CHUNKS];
} product_work;

/* Chunks are of whole tiles, as even as can be. */
static size_t chunk_start(const product_work *w, size_t chunk) {
    size_t row = chunk * w->tiles / w->chunks * w->kernels->tile_rows;
    return row < w->rows ? row : w->rows;
}

void qv_round_rows(const qv_kernels *kernels, float *out, qv_const_rows x, size_t n, size_t d) {
    size_t pairs = (d + 1) / 2;
    for (size_t r = 0; r < n; r++) {
        uint16_t *row = (uint16_t *)(void *)(out + r * pairs);
        kernels->round_bfloat16(row, x.at + r * x.ld, d);
        if (d % 2 != 0) {
            row[d] = 0;
        }
    }
}

/* The chunk's rows are rounded when this returns, by this lane or another. */
static void round_chunk(product_work *w, size_t chunk) {
    if (atomic_load_explicit(&w->state[chunk], memory_order_acquire) == ROUNDED) {
        return;
    }
    int state = NOT_ROUNDED;
    if (atomic_compare_exchange_strong(&w->state[chunk], &state, BEING_ROUNDED)) {
        size_t first = chunk_start(w, chunk), rows = chunk_start(w, chunk + 1) - first;
        qv_const_rows x = {w->x.at + first * w->x.ld, w->x.ld};
        qv_round_rows(w->kernels, w->rounded + first * packed_depth(w->layer), x, rows, w->layer->depth);
        atomic_store(&w->state[chunk], ROUNDED);
    }
    while (atomic_load(&w->state[chunk]) != ROUNDED) {
        qv_os_yield();
    }
}

/* Columns of group `group` among the columns asked for: where they begin, how many, and their panel. */
typedef struct {
    size_t column, columns;
    const float *panel;
} column_group;

static column_group find_group(const product_work *w, size_t group) {
    const qv_linear *layer = w->layer;
    size_t steps = packed_depth(layer), start = 0;
    for (size_t part = 0; part < layer->parts; part++) {
        size_t columns = layer->part_columns[part];
        if (start >= w->first && start < w->first + w->count) {
            size_t groups = (columns + GROUP_COLUMNS - 1) / GROUP_COLUMNS;
            if (group < groups) {
                size_t column = group * GROUP_COLUMNS;
                return (column_group){.column = start + column,
                                      .columns = columns - column < GROUP_COLUMNS ? columns - column : GROUP_COLUMNS,
                                      .panel = w->weights->parts[part] + column * steps};
            }
            group -= groups;
        }
        start += columns;
    }
    return (column_group){0, 0, NULL};
}

/* The next group and chunk for a lane. It stays with its own rows, which the op before left in its cache, while there
 * are any. There are as many calls as groups in all chunks. */
static void take_group(product_work *w, size_t lane, size_t *group, size_t *chunk) {
    for (size_t i = 0; i < 2 * w->chunks; i++) {
        size_t c = i < w->chunks ? lane + i * w->lanes : i - w->chunks;
        if (c < w->chunks && atomic_load_explicit(&w->taken[c], memory_order_relaxed) < w->groups) {
            *chunk = c;
            *group = atomic_fetch_add_explicit(&w->taken[c], 1, memory_order_relaxed);
            if (*group < w->groups) {
                return;
            }
        }
    }
}

static void multiply_group(void *context, size_t task, size_t lane) {
    (void)task;
    product_work *w = context;
    size_t number = 0, chunk = 0;
    take_group(w, lane, &number, &chunk);
    size_t width = w->kernels->panel_columns, steps = packed_depth(w->layer);
    size_t row = chunk_start(w, chunk), rows = chunk_start(w, chunk + 1) - row;
    if (w->rounded != NULL) {
        round_chunk(w, chunk);
    }
    const float *x = w->rounded != NULL ? w->rounded + row * steps : w->x.at + row * w->x.ld;
    column_group group = find_group(w, number), next = find_group(w, (number + 1) % w->groups);
    size_t block = steps < QV_DEPTH_BLOCK ? steps : QV_DEPTH_BLOCK;
    for (size_t c = 0; c < group.columns; c += width) {
        size_t column = group.column - w->first + c;
        bool last = c + width >= group.columns;
        const char *prefetch = (const char *)(last ? next.panel : group.panel + (c + width) * steps);
        qv_panel_product product = {
            .out = w->out.at + row * w->out.ld + column,
            .ld_out = w->out.ld,
            .x = x,
            .ld_x = w->rounded != NULL ? steps : w->x.ld,
            .panel = group.panel + c * steps,
            .rows = rows,
            .columns = group.columns - c < width ? group.columns - c : width,
            .depth = steps,
            .add_to_out = w->add_to_out,
            .bias = w->layer->bias.data != NULL ? w->layer->bias.data + group.column + c : NULL,
            .epilogue = w->epilogue,
            .prefetch = prefetch,
            .prefetch_end = prefetch + block * width * sizeof(float),
        };
        if (w->epilogue != NULL) {
            const qv_epilogue *e = w->epilogue;
            product.multiply = e->multiply.at != NULL ? e->multiply.at + row * e->multiply.ld + column : NULL;
            product.residual = e->residual.at != NULL ? e->residual.at + row * e->residual.ld + column : NULL;
        }
        w->multiply(&product);
    }
}

size_t qv_cpu_linear_scratch(size_t rows, size_t depth) {
    return qv_cpu_has_bfloat16() ? rows * (depth + 1) * sizeof(uint16_t) : 0;
}

static void multiply_packed(qv_call *call, qv_rows out, qv_const_rows x, const qv_linear *layer, size_t first,
                            size_t count, const qv_epilogue *epilogue, bool add_to_out, size_t R) {
    const qv_kernels *kernels = qv_kernels_here();
    bool in_bfloat16 = layer->precision == QV_PRECISION_BFLOAT16;
    product_work work = {.kernels = kernels,
                         .layer = layer,
                         .weights = layer->packed,
                         .multiply = in_bfloat16 ? kernels->multiply_bfloat16 : kernels->multiply,
                         .out = out,
                         .x = x,
                         .rounded = in_bfloat16 ? call->scratch : NULL,
                         .epilogue = epilogue,
                         .add_to_out = add_to_out,
                         .first = first,
                         .count = count,
                         .rows = R,
                         .lanes = call->lanes};
    size_t start = 0;
    for (size_t part = 0; part < layer->parts; start += layer->part_columns[part], part++) {
        if (start >= first && start < first + count) {
            work.groups += (layer->part_columns[part] + GROUP_COLUMNS - 1) / GROUP_COLUMNS;
        }
    }
    if (R == 0 || work.groups == 0) {
        return;
    }
    /* Equal chunks of whole tiles, one a lane: lanes that work side by side share a panel, and each keeps its rows in its
     * cache. More of them where tasks are too few to share out. */
    size_t tile = kernels->tile_rows, most = R / (4 * tile), chunks = (R + CHUNK_ROWS - 1) / CHUNK_ROWS;
    size_t shares = call->lanes < most ? call->lanes : most;
    chunks = chunks < shares ? shares : chunks;
    while (work.groups * chunks < 4 * call->lanes && R / (2 * chunks) >= 4 * tile) {
        chunks *= 2;
    }
    work.tiles = (R + tile - 1) / tile;
    work.chunks = chunks < MOST_CHUNKS ? chunks : MOST_CHUNKS;
    size_t width = R * count * layer->depth < LEAST_SHARED ? 1 : call->lanes;
    qv_cpu_run(call, width, work.groups * work.chunks, multiply_group, &work);
}

/* ---- OpenBLAS ---- */

typedef struct {
    qv_rows out;
    qv_const_rows x;
    const float *plain; /* [count, K] */
    const float *bias;  /* [count] or NULL */
    const qv_epilogue *epilogue;
    bool add_to_out;
    size_t offset; /* of this part's first column in out */
    size_t count, depth, rows, slab;
} slab_work;

static void multiply_slab(void *context, size_t task, size_t lane) {
    (void)lane;
    const slab_work *w = context;
    size_t first = task * w->slab;
    size_t count = first + w->slab <= w->count ? w->slab : w->count - first;
    size_t column = w->offset + first;
    qv_rows out = {w->out.at + column, w->out.ld};
    qv_sgemm(out.at, out.ld, w->x.at, w->x.ld, false, w->plain + first * w->depth, w->depth, true, 1.0f,
             w->add_to_out ? 1.0f : 0.0f, w->rows, count, w->depth);
    qv_apply_epilogue(out, w->bias != NULL ? w->bias + first : NULL, w->epilogue, column, w->rows, count);
}

/* Columns of a lane's slab, of `columns` */
static size_t slab_columns(const qv_call *call, size_t columns) {
    size_t slabs = call->lanes < columns / 16 ? call->lanes : 1;
    return ((columns + slabs - 1) / slabs + 15) / 16 * 16;
}

static void multiply_plain(qv_call *call, qv_rows out, qv_const_rows x, const qv_linear *layer, size_t first, size_t count,
                           const qv_epilogue *epilogue, bool add_to_out, size_t R) {
    const cpu_weights *weights = layer->packed;
    size_t start = 0;
    for (size_t part = 0; part < layer->parts; start += layer->part_columns[part], part++) {
        if (start < first || start >= first + count) {
            continue;
        }
        size_t columns = layer->part_columns[part], slab = slab_columns(call, columns);
        slab_work work = {.out = out,
                          .x = x,
                          .plain = weights->parts[part],
                          .bias = layer->bias.data != NULL ? layer->bias.data + start : NULL,
                          .epilogue = epilogue,
                          .add_to_out = add_to_out,
                          .offset = start - first,
                          .count = columns,
                          .depth = layer->depth,
                          .rows = R,
                          .slab = slab};
        qv_cpu_run(call, call->lanes, (columns + slab - 1) / slab, multiply_slab, &work);
    }
}

void qv_cpu_linear(qv_call *call, qv_rows out, qv_const_rows x, const qv_linear *layer, size_t first, size_t count,
                   const qv_epilogue *epilogue, size_t R) {
    /* A residual that is the output itself is where the sums begin. */
    bool add_to_out = epilogue != NULL && epilogue->residual.at == out.at;
    qv_epilogue rest = epilogue != NULL ? *epilogue : (qv_epilogue){0};
    rest.residual.at = add_to_out ? NULL : rest.residual.at;
    bool plain = rest.activation == QV_IDENTITY && rest.multiply.at == NULL && rest.residual.at == NULL;
    (((const cpu_weights *)layer->packed)->in_panels ? multiply_packed : multiply_plain)(
        call, out, x, layer, first, count, plain ? NULL : &rest, add_to_out, R);
}

/* ---- the gradient ---- */

/* dx = dy W, some columns of dx a task. The product's kernel wants W itself in panels, [N, width] of so many columns: they
 * are made of the forward's panels, which hold W^T, a block of the depth N at a time. */
typedef struct {
    const qv_kernels *kernels;
    const qv_linear *layer;
    const cpu_weights *weights;
    qv_rows dx;
    qv_const_rows dy;
    size_t first, count;
    bool accumulate;
    size_t rows, chunks;
    float *scratch; /* [lanes, QV_DEPTH_BLOCK, QV_MAX_PANEL] */
} backward_work;

size_t qv_cpu_linear_backward_scratch(size_t lanes) {
    return qv_kernels_here()->packs_weights ? lanes * QV_DEPTH_BLOCK * QV_MAX_PANEL * sizeof(float) : 0;
}

/* out [columns, width] = inputs k .. k + count of so many columns of a panel, as float32 */
static void unpack(const backward_work *w, float *out, const float *panel, size_t columns, size_t k, size_t count) {
    size_t width = w->kernels->panel_columns;
    if (w->layer->precision != QV_PRECISION_BFLOAT16) {
        w->kernels->transpose(out, width, panel + k * width, width, count, columns);
        return;
    }
    float pairs[QV_MAX_PANEL / 2 * QV_MAX_PANEL];
    w->kernels->transpose(pairs, width / 2, panel + k / 2 * width, width, (count + 1) / 2, columns);
    for (size_t c = 0; c < columns; c++) {
        const uint16_t *halves = (const uint16_t *)(void *)(pairs + c * (width / 2));
        for (size_t i = 0; i < count; i++) {
            uint32_t bits = (uint32_t)halves[i] << 16;
            memcpy(out + c * width + i, &bits, sizeof bits);
        }
    }
}

static void multiply_block(const backward_work *w, const float *block, size_t k, size_t columns, size_t n, size_t depth,
                           size_t chunk) {
    size_t row = chunk * w->rows / w->chunks, end = (chunk + 1) * w->rows / w->chunks;
    qv_panel_product product = {
        .out = w->dx.at + row * w->dx.ld + k,
        .ld_out = w->dx.ld,
        .x = w->dy.at + row * w->dy.ld + n,
        .ld_x = w->dy.ld,
        .panel = block,
        .rows = end - row,
        .columns = columns,
        .depth = depth,
        .add_to_out = w->accumulate || n != 0,
    };
    w->kernels->multiply(&product);
}

static void backward_panel(void *context, size_t task, size_t lane) {
    const backward_work *w = context;
    const qv_linear *layer = w->layer;
    size_t width = w->kernels->panel_columns, steps = packed_depth(layer), k = task / w->chunks * width;
    size_t count = layer->depth - k < width ? layer->depth - k : width;
    float *block = w->scratch + lane * QV_DEPTH_BLOCK * QV_MAX_PANEL;
    if (count < width) {
        memset(block, 0, QV_DEPTH_BLOCK * width * sizeof *block);
    }
    size_t start = 0, done = 0, filled = 0;
    for (size_t part = 0; part < layer->parts; start += layer->part_columns[part], part++) {
        if (start < w->first || start >= w->first + w->count) {
            continue;
        }
        for (size_t c = 0; c < layer->part_columns[part]; c += width) {
            size_t columns = layer->part_columns[part] - c < width ? layer->part_columns[part] - c : width;
            if (filled + columns > QV_DEPTH_BLOCK) {
                multiply_block(w, block, k, count, done, filled, task % w->chunks);
                done += filled;
                filled = 0;
            }
            unpack(w, block + filled * width, w->weights->parts[part] + c * steps, columns, k, count);
            filled += columns;
        }
    }
    multiply_block(w, block, k, count, done, filled, task % w->chunks);
}

typedef struct {
    qv_rows dx;
    qv_const_rows dy;
    const float *plain; /* [N, K] */
    bool accumulate;
    size_t R, N, K, slab;
} backward_slab_work;

static void backward_slab(void *context, size_t task, size_t lane) {
    (void)lane;
    const backward_slab_work *w = context;
    size_t first = task * w->slab;
    size_t count = first + w->slab <= w->K ? w->slab : w->K - first;
    qv_sgemm(w->dx.at + first, w->dx.ld, w->dy.at, w->dy.ld, false, w->plain + first, w->K, false, 1.0f,
             w->accumulate ? 1.0f : 0.0f, w->R, count, w->N);
}

static void backward_plain(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first, size_t count,
                           bool accumulate, size_t R) {
    const cpu_weights *weights = layer->packed;
    size_t K = layer->depth, slab = slab_columns(call, K), start = 0;
    for (size_t part = 0; part < layer->parts; start += layer->part_columns[part], part++) {
        if (start >= first && start < first + count) {
            qv_const_rows columns = {dy.at + start - first, dy.ld};
            backward_slab_work work = {
                dx, columns, weights->parts[part], accumulate || start != first, R, layer->part_columns[part], K, slab};
            qv_cpu_run(call, call->lanes, (K + slab - 1) / slab, backward_slab, &work);
        }
    }
}

void qv_cpu_linear_backward(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first, size_t count,
                            bool accumulate, size_t R) {
    const cpu_weights *weights = layer->packed;
    if (R == 0 || count == 0) {
        return;
    }
    if (!weights->in_panels) {
        backward_plain(call, dx, dy, layer, first, count, accumulate, R);
        return;
    }
    const qv_kernels *kernels = qv_kernels_here();
    backward_work work = {.kernels = kernels,
                          .layer = layer,
                          .weights = weights,
                          .dx = dx,
                          .dy = dy,
                          .first = first,
                          .count = count,
                          .accumulate = accumulate,
                          .rows = R,
                          .chunks = 1,
                          .scratch = call->scratch};
    size_t panels = (layer->depth + kernels->panel_columns - 1) / kernels->panel_columns;
    /* Each chunk of the rows makes the panels anew. */
    while (panels * work.chunks < 2 * call->lanes && R / (2 * work.chunks) >= 16 * kernels->tile_rows) {
        work.chunks *= 2;
    }
    size_t lanes = R * count * layer->depth < LEAST_SHARED ? 1 : call->lanes;
    qv_cpu_run(call, lanes, panels * work.chunks, backward_panel, &work);
}
