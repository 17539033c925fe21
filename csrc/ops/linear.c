/* The product of a linear layer: by packed panels where the layer is packed, a group of columns and a chunk of rows a task;
 * elsewhere by OpenBLAS, a slab of columns a task. A column's result does not depend on how columns and rows are shared out. */
#include "ops/cpu_ops.h"

#include "base/blas.h"
#include "base/cpu.h"
#include "base/os.h"

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

/* ---- packed products ---- */

/* Rows that a task multiplies at most, and at least where there are as many: enough to hide reading the panel. */
#define MOST_CHUNK_ROWS ((size_t)768)
#define LEAST_CHUNK_ROWS ((size_t)48)
/* Chunks at most, so that lanes can count what is left of each. */
#define MOST_CHUNKS ((size_t)64)
/* Columns of a task: the widest panel. */
#define GROUP_COLUMNS QV_MAX_PANEL

/* What is known of a chunk's rows, where they must be written in the product's steps before they are multiplied. */
enum { NOT_WRITTEN, BEING_WRITTEN, WRITTEN };

typedef struct {
    const qv_product *product;
    const qv_linear *layer;
    const float *const *parts; /* of the weight, in panels */
    size_t row_words, panel_rows; /* of a row in steps, of a panel */
    qv_rows out;
    qv_const_rows x; /* [rows, depth] */
    float *written;  /* [rows, row_words] of x, by whichever lane first needs a chunk of them; NULL: x itself is in steps */
    float *spare;    /* [lanes, lane_words], each lane's for a panel; NULL: the product wants none */
    size_t lane_words;
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
    size_t row = chunk * w->tiles / w->chunks * w->product->tile_rows;
    return row < w->rows ? row : w->rows;
}

/* Rows of a chunk: a block of their depth fits into the second-level cache, beside a panel's. */
static size_t chunk_rows(const product_work *w) {
    size_t block = w->row_words < QV_DEPTH_BLOCK ? w->row_words : QV_DEPTH_BLOCK;
    size_t rows = qv_cpu().cache / 5 * 4 / ((block == 0 ? 1 : block) * sizeof(float));
    return rows < LEAST_CHUNK_ROWS ? LEAST_CHUNK_ROWS : rows > MOST_CHUNK_ROWS ? MOST_CHUNK_ROWS : rows;
}

/* The chunk's rows are written when this returns, by this lane or another. */
static void write_chunk(product_work *w, size_t chunk) {
    if (atomic_load_explicit(&w->state[chunk], memory_order_acquire) == WRITTEN) {
        return;
    }
    int state = NOT_WRITTEN;
    if (atomic_compare_exchange_strong(&w->state[chunk], &state, BEING_WRITTEN)) {
        size_t first = chunk_start(w, chunk), rows = chunk_start(w, chunk + 1) - first;
        qv_const_rows x = {w->x.at + first * w->x.ld, w->x.ld};
        qv_write_rows(w->product, w->written + first * w->row_words, x, rows, w->layer->depth);
        atomic_store(&w->state[chunk], WRITTEN);
    }
    while (atomic_load(&w->state[chunk]) != WRITTEN) {
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
    size_t start = 0;
    for (size_t part = 0; part < layer->parts; part++) {
        size_t columns = layer->part_columns[part];
        if (start >= w->first && start < w->first + w->count) {
            size_t groups = (columns + GROUP_COLUMNS - 1) / GROUP_COLUMNS;
            if (group < groups) {
                size_t column = group * GROUP_COLUMNS;
                return (column_group){.column = start + column,
                                      .columns = columns - column < GROUP_COLUMNS ? columns - column : GROUP_COLUMNS,
                                      .panel = w->parts[part] + column * w->panel_rows};
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
    size_t row = chunk_start(w, chunk), rows = chunk_start(w, chunk + 1) - row;
    size_t steps = qv_steps(w->product, w->layer->depth);
    size_t width = rows <= w->product->few_rows ? GROUP_COLUMNS : w->product->panel_columns;
    qv_const_rows x = {w->x.at + row * w->x.ld, w->x.ld};
    if (w->written != NULL) {
        write_chunk(w, chunk);
        x = (qv_const_rows){w->written + row * w->row_words, w->row_words};
    }
    /* Lanes that share a chunk take its groups in turns. */
    size_t further = w->chunks < w->lanes ? w->lanes : 1;
    column_group group = find_group(w, number), next = find_group(w, (number + further) % w->groups);
    size_t most = qv_depth_block(steps), block = steps < most ? steps : most;
    for (size_t c = 0; c < group.columns; c += width) {
        size_t column = group.column - w->first + c;
        bool last = c + width >= group.columns;
        const char *prefetch = (const char *)(last ? next.panel : group.panel + (c + width) * w->panel_rows);
        qv_panel_product product = {
            .out = w->out.at + row * w->out.ld + column,
            .ld_out = w->out.ld,
            .x = x.at,
            .ld_x = x.ld,
            .panel = group.panel + c * w->panel_rows,
            .rows = rows,
            .columns = group.columns - c < width ? group.columns - c : width,
            .depth = steps,
            .add_to_out = w->add_to_out,
            .bias = w->layer->bias.data != NULL ? w->layer->bias.data + group.column + c : NULL,
            .epilogue = w->epilogue,
            .prefetch = prefetch,
            .prefetch_end = prefetch + block * width * sizeof(float),
            .spare = w->spare != NULL ? w->spare + lane * w->lane_words : NULL,
        };
        if (w->epilogue != NULL) {
            const qv_epilogue *e = w->epilogue;
            product.multiply = e->multiply.at != NULL ? e->multiply.at + row * e->multiply.ld + column : NULL;
            product.residual = e->residual.at != NULL ? e->residual.at + row * e->residual.ld + column : NULL;
        }
        w->product->multiply(&product);
    }
}

/* Spare memory of a lane, in floats: whole lines of the cache. */
static size_t lane_words(const qv_product *product, size_t depth) {
    return (qv_steps(product, depth) * product->spare_words * product->panel_columns + 15) / 16 * 16;
}

/* Where it begins behind `rows` rows in steps. */
static size_t written_words(size_t rows, size_t row_words) {
    return (rows * row_words + 15) / 16 * 16;
}

size_t qv_cpu_linear_scratch(size_t lanes, size_t rows, size_t depth) {
    /* In int8 spread to 16 bits, a row and what lies behind it are wider than in pairs. */
    const size_t words = (depth + 3) / 4 * 2 + 2;
    return (written_words(rows, words) + lanes * lane_words(qv_product_here(QV_PRECISION_INT8), depth)) * sizeof(float);
}

static void multiply_packed(qv_call *call, qv_rows out, qv_const_rows x, const qv_linear *layer, size_t first,
                            size_t count, const qv_epilogue *epilogue, bool add_to_out, size_t R) {
    const qv_cpu_weights *weights = layer->packed;
    const qv_product *product = weights->product;
    product_work work = {.product = product,
                         .layer = layer,
                         .parts = weights->parts,
                         .row_words = qv_row_words(product, layer->depth),
                         .panel_rows = qv_panel_rows(product, layer->depth),
                         .out = out,
                         .x = x,
                         .written = product->write_steps != NULL ? call->scratch : NULL,
                         .epilogue = epilogue,
                         .add_to_out = add_to_out,
                         .first = first,
                         .count = count,
                         .rows = R,
                         .lanes = call->lanes};
    if (product->spare_words != 0) {
        work.lane_words = lane_words(product, layer->depth);
        work.spare = (float *)call->scratch + written_words(R, work.row_words);
    }
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
    size_t tile = product->tile_rows, most = R / (4 * tile), chunk = chunk_rows(&work), chunks = (R + chunk - 1) / chunk;
    size_t shares = call->lanes < most ? call->lanes : most;
    chunks = chunks < shares ? shares : chunks;
    while (work.groups * chunks < 4 * call->lanes && R / (2 * chunks) >= 4 * tile) {
        chunks *= 2;
    }
    work.tiles = (R + tile - 1) / tile;
    work.chunks = chunks < MOST_CHUNKS ? chunks : MOST_CHUNKS;
    size_t width = R * count * layer->depth < QV_LEAST_SHARED ? 1 : call->lanes;
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
    size_t count, depth, rows;
} slab_work;

static void multiply_slab(void *context, size_t task, size_t lane) {
    (void)lane;
    const slab_work *w = context;
    size_t first = task * QV_SLAB_COLUMNS;
    size_t count = first + QV_SLAB_COLUMNS <= w->count ? QV_SLAB_COLUMNS : w->count - first;
    size_t column = w->offset + first;
    qv_rows out = {w->out.at + column, w->out.ld};
    qv_sgemm(out.at, out.ld, w->x.at, w->x.ld, false, w->plain + first * w->depth, w->depth, true, 1.0f,
             w->add_to_out ? 1.0f : 0.0f, w->rows, count, w->depth);
    qv_apply_epilogue(out, w->bias != NULL ? w->bias + first : NULL, w->epilogue, column, w->rows, count);
}

static void multiply_plain(qv_call *call, qv_rows out, qv_const_rows x, const qv_linear *layer, size_t first, size_t count,
                           const qv_epilogue *epilogue, bool add_to_out, size_t R) {
    const qv_cpu_weights *weights = layer->packed;
    size_t start = 0;
    for (size_t part = 0; part < layer->parts; start += layer->part_columns[part], part++) {
        if (start < first || start >= first + count) {
            continue;
        }
        size_t columns = layer->part_columns[part];
        slab_work work = {.out = out,
                          .x = x,
                          .plain = weights->parts[part],
                          .bias = layer->bias.data != NULL ? layer->bias.data + start : NULL,
                          .epilogue = epilogue,
                          .add_to_out = add_to_out,
                          .offset = start - first,
                          .count = columns,
                          .depth = layer->depth,
                          .rows = R};
        qv_cpu_run(call, call->lanes, (columns + QV_SLAB_COLUMNS - 1) / QV_SLAB_COLUMNS, multiply_slab, &work);
    }
}

void qv_cpu_linear(qv_call *call, qv_rows out, qv_const_rows x, const qv_linear *layer, size_t first, size_t count,
                   const qv_epilogue *epilogue, size_t R) {
    /* A residual that is the output itself is where the sums begin. */
    bool add_to_out = epilogue != NULL && epilogue->residual.at == out.at;
    qv_epilogue rest = epilogue != NULL ? *epilogue : (qv_epilogue){0};
    rest.residual.at = add_to_out ? NULL : rest.residual.at;
    bool plain = rest.activation == QV_IDENTITY && rest.multiply.at == NULL && rest.residual.at == NULL;
    (((const qv_cpu_weights *)layer->packed)->product != NULL ? multiply_packed : multiply_plain)(
        call, out, x, layer, first, count, plain ? NULL : &rest, add_to_out, R);
}
