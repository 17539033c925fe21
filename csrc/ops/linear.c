/* Linear layers on the CPU. Where a packed kernel beats OpenBLAS the weight is packed once, each part in panels of the
 * kernel's width (see kernels.h), or read where it lies if the file holds such panels; elsewhere the plain weight is
 * multiplied by OpenBLAS, a slab of columns a task. A column's result does not depend on how columns and rows are shared
 * out. */
#include "ops/cpu_ops.h"

#include "base/blas.h"
#include "base/threads.h"
#include "ops/kernels.h"

#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

/* ---- preparation ---- */

/* Depth steps that packing reads at once, and the padding that keeps its rows in different cache sets. */
#define PACK_STEPS ((size_t)64)
#define PACK_STRIDE (PACK_STEPS + 16)

static size_t source_depth(const qv_linear_source *source) {
    size_t rows = source->weight->shape[0];
    return rows == 0 ? 0 : qv_tensor_count(source->weight) / rows;
}

/* Steps of the packed depth: pairs in bfloat16. One step of one column is 4 bytes either way. */
static size_t packed_depth(const qv_linear_weight *weight) {
    return weight->precision == QV_PRECISION_BFLOAT16 ? (weight->depth + 1) / 2 : weight->depth;
}

static size_t panels_of(const qv_linear_weight *weight, size_t part, size_t panel_columns) {
    return (weight->part_columns[part] + panel_columns - 1) / panel_columns;
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
    return weight->panel_columns == width && weight->dtype == dtype && source->add_weight == NULL && is_aligned(weight);
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
            qv_tensor_read_sum(row, w->source->weight, w->source->add_weight, w->source->scale,
                               (first + c) * w->depth + k, count, spare);
            if (w->bfloat16) {
                row[count] = 0.0f; /* the partner of an odd last one */
                w->kernels->round_bfloat16((uint16_t *)row, row, 2 * steps);
            }
        }
        float *out = panel + (w->bfloat16 ? k / 2 : k) * width;
        w->kernels->transpose(out, width, rows, PACK_STRIDE, width, steps);
    }
}

/* The packed form stands in for the file's from now on. */
static void release_source(const qv_linear_source *source) {
    qv_tensor_release_pages(source->weight);
    if (source->add_weight != NULL) {
        qv_tensor_release_pages(source->add_weight);
    }
}

static qv_status prepare_packed(qv_linear_weight *weight, const qv_linear_source *sources, size_t parts,
                                const qv_kernels *kernels, qv_error *err) {
    bool bfloat16 = weight->precision == QV_PRECISION_BFLOAT16;
    qv_dtype dtype = bfloat16 ? QV_BFLOAT16 : QV_FLOAT32;
    size_t panels = 0, width = kernels->panel_columns, steps = packed_depth(weight), items;
    for (size_t i = 0; i < parts; i++) {
        if (has_panels(&sources[i], width, dtype)) {
            weight->packed[i] = sources[i].weight->data;
        } else {
            panels += panels_of(weight, i, width);
        }
    }
    float *packed = NULL;
    if (panels == 0) {
        return QV_OK;
    }
    if (qv_multiply_size(panels * width, steps, &items)) {
        packed = qv_allocate(items, sizeof *packed);
    }
    if (packed == NULL) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    weight->owned = packed;
    for (size_t i = 0; i < parts; i++) {
        if (weight->packed[i] != NULL) {
            continue;
        }
        pack_work work = {kernels, &sources[i], packed, weight->part_columns[i], weight->depth, steps, bfloat16};
        size_t count = panels_of(weight, i, width);
        qv_parallel(qv_thread_count(), count, pack_panel, &work);
        weight->packed[i] = packed;
        packed += count * width * steps;
        release_source(&sources[i]);
    }
    return QV_OK;
}

static bool can_borrow(const qv_linear_source *source) {
    return has_panels(source, 0, QV_FLOAT32);
}

static qv_status prepare_plain(qv_linear_weight *weight, const qv_linear_source *sources, size_t parts, qv_error *err) {
    size_t copied = 0;
    for (size_t i = 0; i < parts; i++) {
        copied += can_borrow(&sources[i]) ? 0 : qv_tensor_count(sources[i].weight);
    }
    /* one row more, for the sums */
    float *copy = copied != 0 ? qv_allocate(copied + weight->depth, sizeof *copy) : NULL;
    if (copied != 0 && copy == NULL) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    weight->owned = copy;
    for (size_t i = 0; i < parts; i++) {
        if (can_borrow(&sources[i])) {
            weight->plain[i] = sources[i].weight->data;
            continue;
        }
        weight->plain[i] = copy;
        for (size_t row = 0; row < weight->part_columns[i]; row++, copy += weight->depth) {
            qv_tensor_read_sum(copy, sources[i].weight, sources[i].add_weight, sources[i].scale,
                               row * weight->depth, weight->depth, (float *)weight->owned + copied);
        }
        release_source(&sources[i]);
    }
    return QV_OK;
}

static qv_status prepare_bias(qv_linear_weight *weight, const qv_linear_source *sources, size_t parts, qv_error *err) {
    bool any = false;
    for (size_t i = 0; i < parts; i++) {
        any = any || sources[i].bias != NULL;
    }
    if (!any) {
        return QV_OK;
    }
    float *bias = qv_allocate(2 * weight->columns, sizeof *bias);
    if (bias == NULL) {
        return qv_fail_memory(err, sources[0].weight->name);
    }
    memset(bias, 0, weight->columns * sizeof *bias);
    float *part = bias;
    for (size_t i = 0; i < parts; i++) {
        if (sources[i].bias != NULL) {
            qv_tensor_read_sum(part, sources[i].bias, sources[i].add_bias, sources[i].scale, 0,
                               weight->part_columns[i], bias + weight->columns);
        }
        part += weight->part_columns[i];
    }
    weight->bias = bias;
    weight->owned_bias = bias;
    return QV_OK;
}

qv_status qv_cpu_linear_prepare(const qv_ops *ops, qv_linear_weight *weight, const qv_linear_source *sources,
                                size_t parts, qv_precision precision, qv_error *err) {
    const qv_kernels *kernels = qv_kernels_here();
    bool in_bfloat16 = precision == QV_PRECISION_BFLOAT16 && qv_cpu_has_bfloat16();
    *weight = (qv_linear_weight){.parts = parts,
                                 .precision = in_bfloat16 ? QV_PRECISION_BFLOAT16 : QV_PRECISION_FLOAT32};
    for (size_t i = 0; i < parts; i++) {
        if (sources[i].weight == NULL) {
            return QV_OK; /* missing: qv_weights_check reports it */
        }
        weight->part_columns[i] = sources[i].weight->shape[0];
        weight->columns += sources[i].weight->shape[0];
    }
    weight->depth = source_depth(&sources[0]);
    if (weight->columns > INT_MAX / 4 || weight->depth > INT_MAX / 4) {
        return qv_fail(err, QV_ERR_VALUE, "%s: a linear layer of %zu x %zu is too large", sources[0].weight->name,
                       weight->columns, weight->depth);
    }
    qv_status status = kernels->packs_weights ? prepare_packed(weight, sources, parts, kernels, err)
                                              : prepare_plain(weight, sources, parts, err);
    if (status == QV_OK) {
        status = prepare_bias(weight, sources, parts, err);
    }
    if (status != QV_OK) {
        qv_cpu_linear_free(ops, weight);
    }
    return status;
}

void qv_cpu_linear_free(const qv_ops *ops, qv_linear_weight *weight) {
    (void)ops;
    qv_free(weight->owned);
    qv_free(weight->owned_bias);
    *weight = (qv_linear_weight){0};
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
    const qv_linear_weight *weight;
    void (*multiply)(const qv_panel_product *product);
    float *out;
    size_t ld_out;
    const float *x; /* [rows, depth] */
    size_t ld_x;
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

void qv_round_rows(const qv_kernels *kernels, float *out, const float *x, size_t ld_x, size_t n, size_t d) {
    size_t pairs = (d + 1) / 2;
    for (size_t r = 0; r < n; r++) {
        uint16_t *row = (uint16_t *)(void *)(out + r * pairs);
        kernels->round_bfloat16(row, x + r * ld_x, d);
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
        qv_round_rows(w->kernels, w->rounded + first * packed_depth(w->weight), w->x + first * w->ld_x, w->ld_x, rows,
                      w->weight->depth);
        atomic_store(&w->state[chunk], ROUNDED);
    }
    while (atomic_load(&w->state[chunk]) != ROUNDED) {
        sched_yield();
    }
}

/* Columns of group `group` among the columns asked for: where they begin, how many, and their panel. */
typedef struct {
    size_t column, columns;
    const float *panel;
} column_group;

static column_group find_group(const product_work *w, size_t group) {
    const qv_linear_weight *weight = w->weight;
    size_t steps = packed_depth(weight), start = 0;
    for (size_t part = 0; part < weight->parts; part++) {
        size_t columns = weight->part_columns[part];
        if (start >= w->first && start < w->first + w->count) {
            size_t groups = (columns + GROUP_COLUMNS - 1) / GROUP_COLUMNS;
            if (group < groups) {
                size_t column = group * GROUP_COLUMNS;
                return (column_group){.column = start + column,
                                      .columns = columns - column < GROUP_COLUMNS ? columns - column : GROUP_COLUMNS,
                                      .panel = weight->packed[part] + column * steps};
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
    size_t width = w->kernels->panel_columns, steps = packed_depth(w->weight);
    size_t row = chunk_start(w, chunk), rows = chunk_start(w, chunk + 1) - row;
    if (w->rounded != NULL) {
        round_chunk(w, chunk);
    }
    const float *x = w->rounded != NULL ? w->rounded + row * steps : w->x + row * w->ld_x;
    column_group group = find_group(w, number), next = find_group(w, (number + 1) % w->groups);
    size_t block = steps < QV_DEPTH_BLOCK ? steps : QV_DEPTH_BLOCK;
    for (size_t c = 0; c < group.columns; c += width) {
        size_t column = group.column - w->first + c;
        bool last = c + width >= group.columns;
        const char *prefetch = (const char *)(last ? next.panel : group.panel + (c + width) * steps);
        qv_panel_product product = {
            .out = w->out + row * w->ld_out + column,
            .ld_out = w->ld_out,
            .x = x,
            .ld_x = w->rounded != NULL ? steps : w->ld_x,
            .panel = group.panel + c * steps,
            .rows = rows,
            .columns = group.columns - c < width ? group.columns - c : width,
            .depth = steps,
            .add_to_out = w->add_to_out,
            .bias = w->weight->bias != NULL ? w->weight->bias + group.column + c : NULL,
            .epilogue = w->epilogue,
            .prefetch = prefetch,
            .prefetch_end = prefetch + block * width * sizeof(float),
        };
        if (w->epilogue != NULL) {
            const qv_epilogue *e = w->epilogue;
            product.multiply = e->multiply != NULL ? e->multiply + row * e->ld_multiply + column : NULL;
            product.residual = e->residual != NULL ? e->residual + row * e->ld_residual + column : NULL;
        }
        w->multiply(&product);
    }
}

size_t qv_cpu_linear_scratch(size_t rows, size_t depth) {
    return qv_cpu_has_bfloat16() ? rows * (depth + 1) * sizeof(uint16_t) : 0;
}

static void multiply_packed(const qv_call *call, float *out, size_t ld_out, const float *x, size_t ld_x,
                            const qv_linear_weight *weight, size_t first, size_t count, const qv_epilogue *epilogue,
                            bool add_to_out, size_t R) {
    const qv_kernels *kernels = qv_kernels_here();
    bool in_bfloat16 = weight->precision == QV_PRECISION_BFLOAT16;
    product_work work = {.kernels = kernels,
                         .weight = weight,
                         .multiply = in_bfloat16 ? kernels->multiply_bfloat16 : kernels->multiply,
                         .out = out,
                         .ld_out = ld_out,
                         .x = x,
                         .ld_x = ld_x,
                         .rounded = in_bfloat16 ? call->scratch : NULL,
                         .epilogue = epilogue,
                         .add_to_out = add_to_out,
                         .first = first,
                         .count = count,
                         .rows = R,
                         .lanes = call->lanes};
    size_t start = 0;
    for (size_t part = 0; part < weight->parts; start += weight->part_columns[part], part++) {
        if (start >= first && start < first + count) {
            work.groups += (weight->part_columns[part] + GROUP_COLUMNS - 1) / GROUP_COLUMNS;
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
    size_t width = R * count * weight->depth < LEAST_SHARED ? 1 : call->lanes;
    qv_parallel(width, work.groups * work.chunks, multiply_group, &work);
}

/* ---- OpenBLAS ---- */

typedef struct {
    float *out;
    size_t ld_out;
    const float *x;
    size_t ld_x;
    const qv_linear_weight *weight;
    const float *plain; /* [count, K] */
    const float *bias;  /* [count] or NULL */
    const qv_epilogue *epilogue;
    bool add_to_out;
    size_t offset; /* of this part's first column in out */
    size_t count, rows, slab;
} slab_work;

static void multiply_slab(void *context, size_t task, size_t lane) {
    (void)lane;
    const slab_work *w = context;
    size_t first = task * w->slab;
    size_t count = first + w->slab <= w->count ? w->slab : w->count - first;
    size_t column = w->offset + first;
    float *out = w->out + column;
    qv_sgemm(out, w->ld_out, w->x, w->ld_x, false, w->plain + first * w->weight->depth, w->weight->depth, true, 1.0f,
             w->add_to_out ? 1.0f : 0.0f, w->rows, count, w->weight->depth);
    const qv_epilogue none = {QV_IDENTITY, NULL, 0, NULL, 0};
    qv_apply_epilogue(out, w->ld_out, w->bias != NULL ? w->bias + first : NULL,
                      w->epilogue != NULL ? w->epilogue : &none, column, w->rows, count);
}

static void multiply_plain(const qv_call *call, float *out, size_t ld_out, const float *x, size_t ld_x,
                           const qv_linear_weight *weight, size_t first, size_t count, const qv_epilogue *epilogue,
                           bool add_to_out, size_t R) {
    size_t start = 0;
    for (size_t part = 0; part < weight->parts; start += weight->part_columns[part], part++) {
        if (start < first || start >= first + count) {
            continue;
        }
        size_t columns = weight->part_columns[part];
        size_t slabs = call->lanes < columns / 16 ? call->lanes : 1;
        size_t slab = (columns + slabs - 1) / slabs;
        slab = (slab + 15) / 16 * 16;
        slab_work work = {.out = out,
                          .ld_out = ld_out,
                          .x = x,
                          .ld_x = ld_x,
                          .weight = weight,
                          .plain = weight->plain[part],
                          .bias = weight->bias != NULL ? weight->bias + start : NULL,
                          .epilogue = epilogue,
                          .add_to_out = add_to_out,
                          .offset = start - first,
                          .count = columns,
                          .rows = R,
                          .slab = slab};
        qv_parallel(call->lanes, (columns + slab - 1) / slab, multiply_slab, &work);
    }
}

void qv_cpu_linear(qv_call *call, float *out, size_t ld_out, const float *x, size_t ld_x,
                   const qv_linear_weight *weight, size_t first, size_t count, const qv_epilogue *epilogue, size_t R) {
    /* A residual that is the output itself is where the sums begin. */
    bool add_to_out = epilogue != NULL && epilogue->residual == out;
    qv_epilogue rest = {QV_IDENTITY, NULL, 0, NULL, 0};
    if (epilogue != NULL) {
        rest = *epilogue;
        rest.residual = add_to_out ? NULL : rest.residual;
    }
    bool plain = rest.activation == QV_IDENTITY && rest.multiply == NULL && rest.residual == NULL;
    if (weight->packed[0] != NULL) {
        multiply_packed(call, out, ld_out, x, ld_x, weight, first, count, plain ? NULL : &rest, add_to_out, R);
    } else {
        multiply_plain(call, out, ld_out, x, ld_x, weight, first, count, plain ? NULL : &rest, add_to_out, R);
    }
}
