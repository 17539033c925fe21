/* Attention and its gradients. The tiles keep a running maximum and sum of each row (Milakov & Gimelshein, arXiv
 * 1805.02867; as Dao et al., arXiv 2205.14135, put it to use), so that probabilities exist for a tile of keys at a time;
 * where a window of them is asked for, its scores lie there until the sums are known. */
#ifndef QV_CUDA_KERNEL_ATTENTION_H
#define QV_CUDA_KERNEL_ATTENTION_H

#include "cuda/kernel_bodies.h"

/* Head h of set b: where its rows begin. No values where no output is wanted, nothing in front where there are no question
 * tokens. */
typedef struct {
    const float *q, *k, *v, *extra_k, *extra_v;
    size_t b, h;
} qvk_head;

QVK_FUNCTION const float *qvk_place(qv_const_rows rows, size_t row, size_t column) {
    return rows.at != NULL ? rows.at + row * rows.ld + column : NULL;
}

QVK_FUNCTION qvk_head qvk_view(const qvk_attention *p, size_t b, size_t h) {
    const size_t q_set = p->q_index != NULL ? p->q_index[b] : b, kv_set = p->kv_index != NULL ? p->kv_index[b] : b;
    const size_t column = h * p->d, kv_row = kv_set * p->kv_stride;
    qvk_head head;
    head.q = qvk_place(p->q, q_set * p->T, column);
    head.k = qvk_place(p->k, kv_row, column);
    head.v = qvk_place(p->v, kv_row, column);
    head.extra_k = qvk_place(p->extra_k, b * p->M, column);
    head.extra_v = qvk_place(p->extra_v, b * p->M, column);
    head.b = b;
    head.h = h;
    return head;
}

/* Which lines of a head: its T queries, or its M + S keys or values. */
typedef enum { QVK_QUERIES, QVK_KEYS, QVK_VALUES } qvk_lines;

/* Where key s of the S lies in its set. */
QVK_FUNCTION size_t qvk_key(const qvk_attention *p, const qvk_head *head, size_t s) {
    return p->key_index != NULL ? (size_t)p->key_index[head->b * p->S + s] : s;
}

/* Line i; the kind is a constant where this is called. */
QVK_FUNCTION const float *qvk_line(const qvk_attention *p, const qvk_head *head, qvk_lines kind, size_t i) {
    switch (kind) {
    case QVK_KEYS:
        return i < p->M ? head->extra_k + i * p->extra_k.ld : head->k + qvk_key(p, head, i - p->M) * p->k.ld;
    case QVK_VALUES:
        return i < p->M ? head->extra_v + i * p->extra_v.ld : head->v + qvk_key(p, head, i - p->M) * p->v.ld;
    default:
        return head->q + i * p->q.ld;
    }
}

/* The score of query t and a key from their product; -INFINITY where the query does not see it. */
QVK_FUNCTION float qvk_score(const qvk_attention *p, const qvk_head *head, float product, size_t t, size_t key) {
    if (key < p->M) {
        const size_t seen = p->extra_length != NULL ? p->extra_length[head->b] : p->M;
        return key < seen ? product * p->scale : -INFINITY;
    }
    const size_t s = key - p->M;
    const bool hidden = p->key_mask != NULL && s < p->S && p->key_mask[head->b * p->S + s] == 0;
    if (s >= p->S || (hidden && !(p->causal && s == p->past + t)) || (p->causal && s > p->past + t)) {
        return -INFINITY;
    }
    return product * p->scale + (p->bias != NULL ? p->bias[(head->h * p->bias_rows + t) * p->ld_bias + s] : 0.0f);
}

/* exp(score - top); 0 for what is not seen, also while nothing has been seen. NaN stays. */
QVK_FUNCTION float qvk_weight(float score, float top) {
    return score == -INFINITY ? 0.0f : expf(score - top);
}

/* The asked window's part of row t: out[key - first_column] */
QVK_FUNCTION float *qvk_window(const qvk_attention *p, const qvk_head *head, size_t t) {
    if (p->probabilities == NULL || t < p->first_row || t >= p->first_row + p->row_count) {
        return NULL;
    }
    const size_t row = (head->b * p->H + head->h) * p->row_count + (t - p->first_row);
    return p->probabilities + row * p->column_count;
}

/* Whether any of `rows` rows from `first` on are asked for. */
QVK_FUNCTION bool qvk_asks(const qvk_attention *p, size_t first, size_t rows) {
    return p->probabilities != NULL && first < p->first_row + p->row_count && first + rows > p->first_row;
}

/* ---- a row by itself ---- */

/* A row is 16 threads a key, and what a thread reads at once: the time that memory takes to answer is waited for once. */
#define QVK_ROW_KEYS 8
#define QVK_ROW_COLUMNS 4

/* out [M + S] in shared memory = x [d] times each key's or value's line. */
QVK_FUNCTION void qvk_row_products(float *out, const float *x, const qvk_attention *p, const qvk_head *head,
                                   qvk_lines kind QVK_AT) {
    const size_t keys = p->M + p->S, side = QVK_WIDTH / QVK_SIDE, d = p->d;
    QVK_PRIVATES(products, QVK_ROW_KEYS);
    for (size_t s0 = 0; s0 < keys; s0 += QVK_ROW_KEYS * side) {
        QVK_THREADS(t) {
            const float *lines[QVK_ROW_KEYS];
            QVK_UNROLL for (unsigned j = 0; j < QVK_ROW_KEYS; j++) {
                const size_t key = s0 + j * side + t / QVK_SIDE;
                lines[j] = qvk_line(p, head, kind, key < keys ? key : keys - 1);
                QVK_OURS(products, j) = 0.0f;
            }
            for (size_t c0 = t % QVK_SIDE; c0 < d; c0 += QVK_ROW_COLUMNS * QVK_SIDE) {
                QVK_UNROLL for (unsigned i = 0; i < QVK_ROW_COLUMNS; i++) {
                    const size_t c = c0 + i * QVK_SIDE, place = c < d ? c : c0;
                    const float factor = x[place];
                    QVK_UNROLL for (unsigned j = 0; j < QVK_ROW_KEYS; j++) {
                        const float product = factor * lines[j][place];
                        QVK_OURS(products, j) += c < d ? product : 0.0f;
                    }
                }
            }
        }
        QVK_UNROLL for (unsigned j = 0; j < QVK_ROW_KEYS; j++) {
            QVK_GROUP_SUM(products, j);
        }
        QVK_THREADS(t) {
            QVK_UNROLL for (unsigned j = 0; j < QVK_ROW_KEYS; j++) {
                const size_t key = s0 + j * side + t / QVK_SIDE;
                if (t % QVK_SIDE == 0 && key < keys) {
                    out[key] = QVK_OURS(products, j);
                }
            }
        }
    }
    QVK_SYNC();
}

/* What a thread's own keys add to columns c0 + t % 16 + 16 i of the weighted sum. */
QVK_FUNCTION void qvk_row_sums(float sums[QVK_ROW_COLUMNS], const float *weights, const qvk_attention *p, const qvk_head *head,
                               qvk_lines kind, size_t c0, unsigned t, unsigned side) {
    const size_t keys = p->M + p->S, d = p->d;
    QVK_UNROLL for (unsigned i = 0; i < QVK_ROW_COLUMNS; i++) {
        sums[i] = 0.0f;
    }
    for (size_t s0 = t / QVK_SIDE; s0 < keys; s0 += QVK_ROW_KEYS * side) {
        QVK_UNROLL for (unsigned j = 0; j < QVK_ROW_KEYS; j++) {
            const size_t key = s0 + j * side, place = key < keys ? key : s0;
            const float *line = qvk_line(p, head, kind, place), weight = weights[place];
            QVK_UNROLL for (unsigned i = 0; i < QVK_ROW_COLUMNS; i++) {
                const size_t c = c0 + t % QVK_SIDE + i * QVK_SIDE;
                const float product = weight * line[c < d ? c : 0];
                sums[i] += key < keys ? product : 0.0f;
            }
        }
    }
}

/* out [d] = factor times the sum over keys of weights[key] times its line; `parts` [threads] is shared memory. */
QVK_FUNCTION void qvk_weighted_sum(float *out, float factor, const float *weights, const qvk_attention *p,
                                   const qvk_head *head, qvk_lines kind, float *parts QVK_AT) {
    QVK_PRIVATES(sums, QVK_ROW_COLUMNS);
    for (size_t c0 = 0; c0 < p->d; c0 += QVK_ROW_COLUMNS * QVK_SIDE) {
        QVK_THREADS(t) {
            float own[QVK_ROW_COLUMNS];
            qvk_row_sums(own, weights, p, head, kind, c0, t, QVK_WIDTH / QVK_SIDE);
            QVK_UNROLL for (unsigned i = 0; i < QVK_ROW_COLUMNS; i++) {
                QVK_OURS(sums, i) = own[i];
            }
        }
        QVK_UNROLL for (unsigned i = 0; i < QVK_ROW_COLUMNS; i++) {
            QVK_THREADS(t) {
                parts[t] = QVK_OURS(sums, i);
            }
            QVK_SYNC();
            QVK_THREADS(t) {
                const size_t c = c0 + t + i * QVK_SIDE;
                if (t < QVK_SIDE && c < p->d) {
                    float sum = 0.0f;
                    for (unsigned group = 0; group < QVK_WIDTH; group += QVK_SIDE) {
                        sum += parts[group + t];
                    }
                    out[c] = sum * factor;
                }
            }
            QVK_SYNC();
        }
    }
}

/* A row's scores [keys], in shared memory, become exp(score - the largest); returns 1 / their sum, NaN where nothing is
 * seen. Thread t wrote the scores of keys t, t + threads, ..., and the same ones are its own here. */
QVK_FUNCTION float qvk_softmax(float *scores, size_t keys QVK_AT) {
    QVK_PRIVATE(part);
    QVK_THREADS(t) {
        float top = -INFINITY;
        for (size_t key = t; key < keys; key += QVK_WIDTH) {
            top = fmaxf(top, scores[key]);
        }
        QVK_MINE(part) = top;
    }
    const float top = QVK_BLOCK_MAX(part);
    QVK_THREADS(t) {
        float sum = 0.0f;
        for (size_t key = t; key < keys; key += QVK_WIDTH) {
            scores[key] = qvk_weight(scores[key], top);
            sum += scores[key];
        }
        QVK_MINE(part) = sum;
    }
    const float total = QVK_BLOCK_SUM(part);
    return total == 0.0f ? NAN : 1.0f / total;
}

QVK_BODY(qvk_softmax_row, qvk_softmax_rows) {
    float *x = p->x + QVK_BLOCK * p->S;
    QVK_THREADS(t) {
        for (size_t s = t; s < p->S; s += QVK_WIDTH) {
            x[s] *= p->scale;
        }
    }
    const float inverse = qvk_softmax(x, p->S QVK_HERE);
    QVK_THREADS(t) {
        for (size_t s = t; s < p->S; s += QVK_WIDTH) {
            x[s] *= inverse;
        }
    }
}

/* Row `row` of the B H T. Shared: scores [M + S], parts [threads]. */
QVK_FUNCTION void qvk_attend_row(const qvk_attention *p QVK_AT, size_t row) {
    const size_t pair = row / p->T, query = row % p->T, keys = p->M + p->S;
    const qvk_head head = qvk_view(p, pair / p->H, pair % p->H);
    float *scores = QVK_DYNAMIC, *parts = scores + keys;
    qvk_row_products(scores, qvk_line(p, &head, QVK_QUERIES, query), p, &head, QVK_KEYS QVK_HERE);
    QVK_THREADS(t) {
        for (size_t key = t; key < keys; key += QVK_WIDTH) {
            scores[key] = qvk_score(p, &head, scores[key], query, key);
        }
    }
    const float inverse = qvk_softmax(scores, keys QVK_HERE);
    float *window = qvk_window(p, &head, query);
    QVK_SYNC();
    if (window != NULL) {
        QVK_THREADS(t) {
            for (size_t i = t; i < p->column_count; i += QVK_WIDTH) {
                window[i] = scores[p->first_column + i] * inverse;
            }
        }
    }
    if (p->out.at != NULL) {
        float *out = p->out.at + (head.b * p->T + query) * p->out.ld + head.h * p->d;
        qvk_weighted_sum(out, inverse, scores, p, &head, QVK_VALUES, parts QVK_HERE);
    }
}

QVK_BODY(qvk_attention_row, qvk_attention) {
    qvk_attend_row(QVK_PASS, QVK_BLOCK);
}

QVK_BODY(qvk_attention_rows, qvk_attentions) {
    size_t row = QVK_BLOCK, i = 0;
    for (; i + 1 < p->count && row >= p->each[i].rows; i++) {
        row -= p->each[i].rows;
    }
    qvk_attend_row(&p->each[i] QVK_HERE, row);
}

/* ---- a tile of rows ---- */

/* shared [rows, d + 1] = lines `first` .. of `end` in all, zero beyond the last. A thread steps through rows and columns
 * without dividing: a GPU divides integers slowly. */
QVK_FUNCTION void qvk_load_lines(float *shared, size_t rows, const qvk_attention *p, const qvk_head *head, qvk_lines kind,
                                 size_t first, size_t end QVK_AT) {
    QVK_THREADS(t) {
        const unsigned width = (unsigned)p->d, rows_on = QVK_WIDTH / width, columns_on = QVK_WIDTH % width;
        unsigned c = t % width;
        for (unsigned row = t / width; row < rows;) {
            const size_t line = first + row;
            shared[row * (width + 1) + c] = line < end ? qvk_line(p, head, kind, line)[c] : 0.0f;
            row += rows_on;
            c += columns_on;
            if (c >= width) {
                c -= width;
                row++;
            }
        }
    }
}

/* A tile: 16 x 16 threads; thread (ty, tx) has rows ty rows_each + i, keys tx + 16 j and columns tx + 16 j. The numbers a
 * thread has of each are constants where the tile is called, so that loops over them unroll. */
typedef struct {
    unsigned rows_each, keys_each, columns_each;
    size_t rows, keys;      /* of the tile */
    size_t first, all_keys; /* its first query; M + S */
    /* Shared; a float behind each row keeps the two rows that a warp reads at once in different banks. */
    float *q;       /* [rows, d + 1] */
    float *lines;   /* keys or values [keys, d + 1] */
    float *weights; /* [rows, keys + 1] */
} qvk_tile;

/* What each thread keeps. */
typedef struct {
    QVK_PRIVATE_GRID(sums, QVK_TILE_ROWS, QVK_TILE_COLUMNS);
    QVK_PRIVATE_GRID(scores, QVK_TILE_ROWS, QVK_TILE_KEYS);
    QVK_PRIVATES(best, QVK_TILE_ROWS);
    QVK_PRIVATES(total, QVK_TILE_ROWS); /* of the thread's own keys; in the end 1 / that of the row */
    QVK_PRIVATES(top, QVK_TILE_ROWS);
} qvk_own;

/* The scores of keys s0 .. of the tile, and each row's largest among the thread's own. */
QVK_FUNCTION void qvk_tile_scores(const qvk_attention *p QVK_AT, const qvk_tile *tile, const qvk_head *head, qvk_own *own,
                                  size_t s0) {
    const size_t d = p->d;
    QVK_SYNC();
    qvk_load_lines(tile->lines, tile->keys, p, head, QVK_KEYS, s0, tile->all_keys QVK_HERE);
    QVK_SYNC();
    QVK_THREADS(t) {
        const unsigned ty = t / QVK_SIDE, tx = t % QVK_SIDE;
        const float *queries = tile->q + ty * tile->rows_each * (d + 1), *keys = tile->lines + tx * (d + 1);
        float products[QVK_TILE_ROWS][QVK_TILE_KEYS] = {{0.0f}};
        for (size_t c = 0; c < d; c++) {
            QVK_UNROLL for (unsigned j = 0; j < tile->keys_each; j++) {
                const float key = keys[QVK_SIDE * j * (d + 1) + c];
                QVK_UNROLL for (unsigned i = 0; i < tile->rows_each; i++) {
                    products[i][j] += queries[i * (d + 1) + c] * key;
                }
            }
        }
        QVK_UNROLL for (unsigned i = 0; i < tile->rows_each; i++) {
            const size_t query = tile->first + ty * tile->rows_each + i;
            float top = -INFINITY;
            QVK_UNROLL for (unsigned j = 0; j < tile->keys_each; j++) {
                const size_t key = s0 + tx + QVK_SIDE * j;
                const float score = query < p->T ? qvk_score(p, head, products[i][j], query, key) : -INFINITY;
                QVK_GRID(own->scores, i, j) = score;
                top = fmaxf(top, score);
            }
            QVK_OURS(own->top, i) = top;
        }
    }
}

/* The scores as weights into shared memory; what was summed so far shrinks where a row's maximum has grown. */
QVK_FUNCTION void qvk_tile_weights(const qvk_attention *p QVK_AT, const qvk_tile *tile, qvk_own *own) {
    (void)p;
    QVK_UNROLL for (unsigned i = 0; i < tile->rows_each; i++) {
        QVK_GROUP_MAX(own->top, i);
    }
    QVK_THREADS(t) {
        const unsigned ty = t / QVK_SIDE, tx = t % QVK_SIDE;
        QVK_UNROLL for (unsigned i = 0; i < tile->rows_each; i++) {
            const float before = QVK_OURS(own->best, i), now = fmaxf(before, QVK_OURS(own->top, i));
            const float shrink = before == now ? 1.0f : expf(before - now);
            float part = QVK_OURS(own->total, i) * shrink;
            QVK_UNROLL for (unsigned j = 0; j < tile->keys_each; j++) {
                const float weight = qvk_weight(QVK_GRID(own->scores, i, j), now);
                tile->weights[(ty * tile->rows_each + i) * (tile->keys + 1) + tx + QVK_SIDE * j] = weight;
                part += weight;
            }
            QVK_OURS(own->best, i) = now;
            QVK_OURS(own->total, i) = part;
            QVK_UNROLL for (unsigned j = 0; j < tile->columns_each; j++) {
                QVK_GRID(own->sums, i, j) *= shrink;
            }
        }
    }
    QVK_SYNC();
}

QVK_FUNCTION void qvk_tile_values(const qvk_attention *p QVK_AT, const qvk_tile *tile, const qvk_head *head, qvk_own *own,
                                  size_t s0) {
    const size_t d = p->d;
    qvk_load_lines(tile->lines, tile->keys, p, head, QVK_VALUES, s0, tile->all_keys QVK_HERE);
    QVK_SYNC();
    QVK_THREADS(t) {
        const unsigned ty = t / QVK_SIDE, tx = t % QVK_SIDE;
        const float *weights = tile->weights + ty * tile->rows_each * (tile->keys + 1);
        for (size_t s = 0; s < tile->keys; s++) {
            QVK_UNROLL for (unsigned j = 0; j < tile->columns_each; j++) {
                const size_t c = tx + QVK_SIDE * j;
                const float value = c < d ? tile->lines[s * (d + 1) + c] : 0.0f;
                QVK_UNROLL for (unsigned i = 0; i < tile->rows_each; i++) {
                    QVK_GRID(own->sums, i, j) += weights[i * (tile->keys + 1) + s] * value;
                }
            }
        }
    }
}

QVK_FUNCTION void qvk_tile_out(const qvk_attention *p QVK_AT, const qvk_tile *tile, const qvk_head *head, qvk_own *own) {
    QVK_UNROLL for (unsigned i = 0; i < tile->rows_each; i++) {
        QVK_GROUP_SUM(own->total, i);
    }
    QVK_THREADS(t) {
        const unsigned ty = t / QVK_SIDE, tx = t % QVK_SIDE;
        QVK_UNROLL for (unsigned i = 0; i < tile->rows_each; i++) {
            const size_t query = tile->first + ty * tile->rows_each + i;
            const float inverse = QVK_OURS(own->total, i) == 0.0f ? NAN : 1.0f / QVK_OURS(own->total, i);
            QVK_OURS(own->total, i) = inverse;
            QVK_UNROLL for (unsigned j = 0; j < tile->columns_each; j++) {
                const size_t c = tx + QVK_SIDE * j;
                if (p->out.at != NULL && query < p->T && c < p->d) {
                    p->out.at[(head->b * p->T + query) * p->out.ld + head->h * p->d + c] = QVK_GRID(own->sums, i, j) * inverse;
                }
            }
        }
    }
}

/* The asked window's part of the tile: its scores, and when the sums are known what becomes of them. Each thread finds what it
 * put there itself. */
QVK_FUNCTION void qvk_tile_window(const qvk_attention *p QVK_AT, const qvk_tile *tile, const qvk_head *head, qvk_own *own,
                                  size_t s0, const bool last) {
    const size_t end = p->first_column + p->column_count;
    QVK_THREADS(t) {
        const unsigned ty = t / QVK_SIDE, tx = t % QVK_SIDE;
        QVK_UNROLL for (unsigned i = 0; i < tile->rows_each; i++) {
            const size_t query = tile->first + ty * tile->rows_each + i;
            float *window = query < p->T ? qvk_window(p, head, query) : NULL;
            QVK_UNROLL for (unsigned j = 0; j < tile->keys_each; j++) {
                const size_t key = s0 + tx + QVK_SIDE * j;
                if (window != NULL && key >= p->first_column && key < end) {
                    float *item = window + (key - p->first_column);
                    *item = last ? qvk_weight(*item, QVK_OURS(own->best, i)) * QVK_OURS(own->total, i)
                                 : QVK_GRID(own->scores, i, j);
                }
            }
        }
    }
}

QVK_FUNCTION void qvk_attention_tile(const qvk_attention *p QVK_AT, const unsigned rows_each, const unsigned keys_each,
                                     const unsigned columns_each) {
    const size_t rows = QVK_SIDE * rows_each, keys = QVK_SIDE * keys_each, d = p->d;
    const size_t tiles = (p->T + rows - 1) / rows, pair = QVK_BLOCK / tiles;
    const qvk_head head = qvk_view(p, pair / p->H, pair % p->H);
    float *shared = QVK_DYNAMIC;
    const qvk_tile tile = {
        rows_each, keys_each, columns_each, rows, keys, QVK_BLOCK % tiles * rows, p->M + p->S,
        shared, shared + rows * (d + 1), shared + (rows + keys) * (d + 1),
    };
    qvk_own own;
    qvk_load_lines(tile.q, rows, p, &head, QVK_QUERIES, tile.first, p->T QVK_HERE);
    QVK_EVERY_THREAD {
        QVK_UNROLL for (unsigned i = 0; i < rows_each; i++) {
            QVK_OURS(own.best, i) = -INFINITY;
            QVK_OURS(own.total, i) = 0.0f;
            QVK_UNROLL for (unsigned j = 0; j < columns_each; j++) {
                QVK_GRID(own.sums, i, j) = 0.0f;
            }
        }
    }
    const bool seen = qvk_asks(p, tile.first, rows);
    for (size_t s0 = 0; s0 < tile.all_keys; s0 += keys) {
        qvk_tile_scores(QVK_PASS, &tile, &head, &own, s0);
        if (seen) {
            qvk_tile_window(QVK_PASS, &tile, &head, &own, s0, false);
        }
        qvk_tile_weights(QVK_PASS, &tile, &own);
        if (p->out.at != NULL) {
            qvk_tile_values(QVK_PASS, &tile, &head, &own, s0);
        }
    }
    qvk_tile_out(QVK_PASS, &tile, &head, &own);
    for (size_t s0 = 0; seen && s0 < tile.all_keys; s0 += keys) {
        qvk_tile_window(QVK_PASS, &tile, &head, &own, s0, true);
    }
}

/* Heads up to 64, 128 and 256 wide. */
QVK_BODY(qvk_attention_tile_64, qvk_attention) {
    qvk_attention_tile(QVK_PASS, 4, 2, 4);
}

QVK_BODY(qvk_attention_tile_128, qvk_attention) {
    qvk_attention_tile(QVK_PASS, 2, 2, 8);
}

QVK_BODY(qvk_attention_tile_256, qvk_attention) {
    qvk_attention_tile(QVK_PASS, 1, 1, 16);
}

/* ---- gradients ---- */

/* Row `row` of the B H T. Shared: A [M + S], G [M + S], parts [threads]. */
QVK_FUNCTION void qvk_row_backward(const qvk_attention_backward *p QVK_AT, size_t row) {
    const qvk_attention *a = &p->forward;
    const size_t pair = row / a->T, query = row % a->T, keys = a->M + a->S;
    const qvk_head head = qvk_view(a, pair / a->H, pair % a->H);
    const float *d_out = p->d_out.at + (head.b * a->T + query) * p->d_out.ld + head.h * a->d;
    float *A = QVK_DYNAMIC, *G = A + keys, *parts = G + keys;
    QVK_PRIVATE(part);
    qvk_row_products(A, qvk_line(a, &head, QVK_QUERIES, query), a, &head, QVK_KEYS QVK_HERE);
    qvk_row_products(G, d_out, a, &head, QVK_VALUES QVK_HERE);
    QVK_THREADS(t) {
        for (size_t key = t; key < keys; key += QVK_WIDTH) {
            A[key] = qvk_score(a, &head, A[key], query, key);
        }
    }
    const float inverse = qvk_softmax(A, keys QVK_HERE);
    QVK_THREADS(t) {
        float sum = 0.0f;
        for (size_t key = t; key < keys; key += QVK_WIDTH) {
            A[key] *= inverse;
            sum += A[key] * G[key];
            if (p->probabilities != NULL) {
                p->probabilities[row * keys + key] = A[key];
            }
            if (p->d_probabilities != NULL) {
                p->d_probabilities[row * keys + key] = G[key];
            }
        }
        QVK_MINE(part) = sum;
    }
    const float shared = QVK_BLOCK_SUM(part);
    /* G becomes dS = A (G - sum_s A G). */
    QVK_THREADS(t) {
        for (size_t key = t; key < keys; key += QVK_WIDTH) {
            G[key] = A[key] * (G[key] - shared);
            if (p->kept_probabilities != NULL && key >= a->M) {
                p->kept_probabilities[row * a->S + key - a->M] = A[key];
                p->kept_d_scores[row * a->S + key - a->M] = G[key];
            }
        }
    }
    QVK_SYNC();
    if (p->d_q.at != NULL) {
        float *d_q = p->d_q.at + (head.b * a->T + query) * p->d_q.ld + head.h * a->d;
        qvk_weighted_sum(d_q, a->scale, G, a, &head, QVK_KEYS, parts QVK_HERE);
    }
}

QVK_BODY(qvk_backward_row, qvk_attention_backward) {
    qvk_row_backward(QVK_PASS, QVK_BLOCK);
}

QVK_BODY(qvk_backward_rows, qvk_attentions_backward) {
    size_t row = QVK_BLOCK, i = 0;
    for (; i + 1 < p->count && row >= p->each[i].forward.rows; i++) {
        row -= p->each[i].forward.rows;
    }
    qvk_row_backward(&p->each[i] QVK_HERE, row);
}

/* d_k = scale dS^T q and d_v = A^T d_out of one key. */
QVK_BODY(qvk_backward_key, qvk_attention_backward) {
    const qvk_attention *a = &p->forward;
    const size_t pair = QVK_BLOCK / a->S, s = QVK_BLOCK % a->S;
    const qvk_head head = qvk_view(a, pair / a->H, pair % a->H);
    const float *d_out = p->d_out.at + head.b * a->T * p->d_out.ld + head.h * a->d;
    const size_t row = head.b * a->S + s, column = head.h * a->d;
    QVK_THREADS(t) {
        for (size_t c = t; c < a->d; c += QVK_WIDTH) {
            float k_sum = 0.0f, v_sum = 0.0f;
            for (size_t query = 0; query < a->T; query++) {
                const size_t kept = (pair * a->T + query) * a->S + s;
                k_sum += p->kept_d_scores[kept] * qvk_line(a, &head, QVK_QUERIES, query)[c];
                v_sum += p->kept_probabilities[kept] * d_out[query * p->d_out.ld + c];
            }
            p->d_k.at[row * p->d_k.ld + column + c] = k_sum * a->scale;
            p->d_v.at[row * p->d_v.ld + column + c] = v_sum;
        }
    }
}

#endif
