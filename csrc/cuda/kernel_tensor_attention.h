/* Attention whose two products are tensor cores', in bfloat16 or TF32. Sums, the running maximum and what is made of the
 * scores are float32, as in kernel_attention.h; so are masks, bias and windows of probabilities.
 *
 * A warp has 16 queries, in registers. Keys and values go through shared memory a tile at a time. A sum over k does not
 * mind the order of its terms, nor a product that of its columns: k and columns are dealt out such that a lane's words lie side
 * by side, and that a warp's weights, which the first product leaves in registers, are factors of the second as they lie. */
#ifndef QV_CUDA_KERNEL_TENSOR_ATTENTION_H
#define QV_CUDA_KERNEL_TENSOR_ATTENTION_H

#include "cuda/kernel_attention.h"
#include "cuda/kernel_mma.h"

#define QVK_LOG2_E 1.4426950408889634f

/* All but the last five are constants where the tile is called. */
typedef struct {
    bool half;             /* bfloat16, else TF32 */
    unsigned width;        /* of a line, filled up with zeros */
    unsigned steps;        /* of k over a line, 8 words each: 16 columns of bfloat16, 8 of TF32 */
    unsigned keys, groups; /* of the tile; of 8 of its keys */
    unsigned key_stride, value_stride;
    unsigned first, all, end; /* its first query; M + S; the keys that some query of it sees end there */
    bool seen;         /* all question tokens are */
    uint32_t *k;       /* shared [keys, key_stride]: a word is two columns in bfloat16, one in TF32 */
    uint32_t *v;       /* shared [32, value_stride]: a word is two keys of one column in bfloat16, one in TF32 */
} qvk_tensor_tile;

/* What a lane keeps: of rows g = lane / 4 (words and items 0 and 1 of C) and g + 8. */
typedef struct {
    QVK_PRIVATE_WORDS(queries, QVK_TENSOR_STEPS, 4);
    QVK_PRIVATE_GRID(sums, QVK_TENSOR_WIDTH / 8, 4);
    QVK_PRIVATE_GRID(scores, QVK_TENSOR_GROUPS, 4);
    QVK_PRIVATE_WORDS(left, 1, 4);
    QVK_PRIVATE_WORDS(right, QVK_TENSOR_GROUPS, 2);
    QVK_PRIVATES(best, 2);
    QVK_PRIVATES(total, 2); /* of the lane's own keys; in the end 1 / that of the row */
    QVK_PRIVATES(top, 2);
} qvk_fragments;

/* Four columns of a line, whose places in memory are multiples of 16 bytes; zero beyond its width and for no line. */
QVK_FUNCTION qvk_four qvk_four_of(const float *line, unsigned column, unsigned width) {
    const qvk_four none = {{0.0f, 0.0f, 0.0f, 0.0f}};
    return line != NULL && column < width ? *(const qvk_four *)(line + column) : none;
}

QVK_FUNCTION qvk_four_words qvk_four_in_tf32(const qvk_four *x) {
    const qvk_four_words words = {{qvk_to_tf32(x->at[0]), qvk_to_tf32(x->at[1]), qvk_to_tf32(x->at[2]), qvk_to_tf32(x->at[3])}};
    return words;
}

QVK_FUNCTION void qvk_tensor_queries(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, const qvk_head *head,
                                     qvk_fragments *own) {
    QVK_THREADS(t) {
        const unsigned i = t % 4, d = (unsigned)p->d;
        QVK_UNROLL for (unsigned row = 0; row < 2; row++) {
            const size_t query = tile->first + t / 32 * 16 + t % 32 / 4 + 8 * row;
            const float *line = query < p->T ? qvk_line(p, head, QVK_QUERIES, query) : NULL;
            QVK_UNROLL for (unsigned step = 0; step < tile->steps; step++) {
                if (tile->half) {
                    const qvk_four x = qvk_four_of(line, 16 * step + 4 * i, d);
                    QVK_WORD(own->queries, step, row) = qvk_to_bfloat16s(x.at[0], x.at[1]);
                    QVK_WORD(own->queries, step, row + 2) = qvk_to_bfloat16s(x.at[2], x.at[3]);
                } else {
                    const unsigned column = 8 * step + 2 * i;
                    const bool there = line != NULL && column < d;
                    QVK_WORD(own->queries, step, row) = there ? qvk_to_tf32(line[column]) : 0u;
                    QVK_WORD(own->queries, step, row + 2) = there ? qvk_to_tf32(line[column + 1]) : 0u;
                }
            }
            QVK_OURS(own->best, row) = -INFINITY;
            QVK_OURS(own->total, row) = 0.0f;
        }
        QVK_UNROLL for (unsigned j = 0; j < tile->width / 8; j++) {
            QVK_UNROLL for (unsigned c = 0; c < 4; c++) {
                QVK_GRID(own->sums, j, c) = 0.0f;
            }
        }
    }
}

/* Four columns of line s0 + row. `plain`: the tile's lines lie at one distance, and what is read beyond the last of them, or of
 * its columns, does not count: it is not seen, or its factor is 0. */
QVK_FUNCTION qvk_four qvk_tensor_item(const qvk_attention *p, const qvk_tensor_tile *tile, const qvk_head *head,
                                      qvk_lines kind, unsigned s0, unsigned row, unsigned column, const bool plain) {
    const unsigned d = (unsigned)p->d;
    if (!plain) {
        return qvk_four_of(s0 + row < tile->all ? qvk_line(p, head, kind, s0 + row) : NULL, column, d);
    }
    const unsigned ld = (unsigned)(kind == QVK_KEYS ? p->k.ld : p->v.ld), left = tile->all - s0 - 1;
    const float *first = (kind == QVK_KEYS ? head->k : head->v) + (s0 - p->M) * ld;
    const bool inside = column < d;
    qvk_four x = *(const qvk_four *)(first + (row < left ? row : left) * ld + (inside ? column : 0));
    QVK_UNROLL for (unsigned c = 0; c < 4; c++) {
        x.at[c] = inside ? x.at[c] : 0.0f;
    }
    return x;
}

QVK_FUNCTION void qvk_tensor_put_keys(const qvk_tensor_tile *tile, const qvk_four *x, unsigned row, unsigned column) {
    uint32_t *line = tile->k + row * tile->key_stride;
    if (tile->half) {
        const qvk_two_words words = {{qvk_to_bfloat16s(x->at[0], x->at[1]), qvk_to_bfloat16s(x->at[2], x->at[3])}};
        *(qvk_two_words *)(line + column / 2) = words;
    } else {
        *(qvk_four_words *)(line + column) = qvk_four_in_tf32(x);
    }
}

/* Of bfloat16 two lines, which go together. */
QVK_FUNCTION void qvk_tensor_put_values(const qvk_tensor_tile *tile, const qvk_four *x, unsigned row, unsigned column) {
    qvk_four_words words = qvk_four_in_tf32(x);
    QVK_UNROLL for (unsigned c = 0; c < 4 && tile->half; c++) {
        words.at[c] = qvk_to_bfloat16s(x[0].at[c], x[1].at[c]);
    }
    *(qvk_four_words *)(tile->v + row * tile->value_stride + column) = words;
}

/* Keys and values s0 .. of the tile into shared memory: a thread takes the same columns of every 16th line, all of which are
 * on their way before the first is needed. */
QVK_FUNCTION void qvk_tensor_load(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, const qvk_head *head, unsigned s0,
                                  const bool plain) {
    QVK_THREADS(t) {
        const unsigned fours = tile->width / 4, lines = tile->half ? 2 : 1;
        for (unsigned item = t; item < QVK_SIDE * fours; item += QVK_WIDTH) {
            const unsigned row = item / fours, column = item % fours * 4;
            qvk_four k[4], v[2][2];
            QVK_UNROLL for (unsigned i = 0; i < 2 * lines; i++) {
                k[i] = qvk_tensor_item(p, tile, head, QVK_KEYS, s0, row + QVK_SIDE * i, column, plain);
            }
            QVK_UNROLL for (unsigned i = 0; i < 2 && p->out.at != NULL; i++) {
                QVK_UNROLL for (unsigned line = 0; line < lines; line++) {
                    const unsigned key = lines * (row + QVK_SIDE * i) + line;
                    v[i][line] = qvk_tensor_item(p, tile, head, QVK_VALUES, s0, key, column, plain);
                }
            }
            QVK_UNROLL for (unsigned i = 0; i < 2 * lines; i++) {
                qvk_tensor_put_keys(tile, &k[i], row + QVK_SIDE * i, column);
            }
            QVK_UNROLL for (unsigned i = 0; i < 2 && p->out.at != NULL; i++) {
                qvk_tensor_put_values(tile, v[i], row + QVK_SIDE * i, column);
            }
        }
    }
}

/* Whether the half of the tile's keys that a group of 8 lies in has any that is seen. */
QVK_FUNCTION bool qvk_tensor_reaches(const qvk_tensor_tile *tile, unsigned s0, unsigned group) {
    return group < tile->groups / 2 || s0 + tile->keys / 2 < tile->end;
}

/* The products of queries and keys: k 2i and 2i + 1 of a step's 8 words are lane i's. */
QVK_FUNCTION void qvk_tensor_products(const qvk_tensor_tile *tile QVK_AT, qvk_fragments *own, unsigned s0) {
    QVK_EVERY_THREAD {
        QVK_UNROLL for (unsigned j = 0; j < tile->groups; j++) {
            QVK_UNROLL for (unsigned c = 0; c < 4; c++) {
                QVK_GRID(own->scores, j, c) = 0.0f;
            }
        }
    }
    QVK_UNROLL for (unsigned part = 0; part < tile->groups; part += tile->groups / 2) {
        if (!qvk_tensor_reaches(tile, s0, part)) {
            continue;
        }
        QVK_UNROLL for (unsigned step = 0; step < tile->steps; step++) {
            QVK_THREADS(t) {
                QVK_UNROLL for (unsigned j = part; j < part + tile->groups / 2; j++) {
                    const uint32_t *line = tile->k + (8 * j + t % 32 / 4) * tile->key_stride;
                    const qvk_two_words words = *(const qvk_two_words *)(line + 8 * step + 2 * (t % 4));
                    QVK_WORD(own->right, j, 0) = words.at[0];
                    QVK_WORD(own->right, j, 1) = words.at[1];
                }
            }
            QVK_UNROLL for (unsigned j = part; j < part + tile->groups / 2; j++) {
                QVK_MMA(tile->half, own->scores[j], own->queries[step], own->right[j]);
            }
        }
    }
}

/* The scores where not every query sees every key, or there is a bias. The groups pass the first place in turn: this is rare, and
 * written out for each of them it would be most of the kernel and of its registers. */
QVK_FUNCTION void qvk_tensor_masked(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, const qvk_head *head,
                                    qvk_fragments *own, unsigned s0) {
    QVK_THREADS(t) {
        const size_t query = tile->first + t / 32 * 16 + t % 32 / 4;
        QVK_IN_TURN for (unsigned j = 0; j < tile->groups; j++) {
            const size_t key = s0 + 8 * j + 2 * (t % 4);
            QVK_UNROLL for (unsigned c = 0; c < 4; c++) {
                const size_t row = query + c / 2 * 8;
                const float product = QVK_GRID(own->scores, 0, c);
                const float score = row < p->T ? qvk_score(p, head, product, row, key + c % 2) : -INFINITY;
                QVK_UNROLL for (unsigned next = 1; next < tile->groups; next++) {
                    QVK_GRID(own->scores, next - 1, c) = QVK_GRID(own->scores, next, c);
                }
                QVK_GRID(own->scores, tile->groups - 1, c) = score;
            }
        }
    }
}

/* The scores of the last tile where every query sees every key that there is. */
QVK_FUNCTION void qvk_tensor_cut(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, qvk_fragments *own, unsigned s0) {
    QVK_THREADS(t) {
        const unsigned left = tile->all - s0, first = 2 * (t % 4);
        QVK_UNROLL for (unsigned j = 0; j < tile->groups; j++) {
            QVK_UNROLL for (unsigned c = 0; c < 4; c++) {
                const float score = QVK_GRID(own->scores, j, c) * p->scale;
                QVK_GRID(own->scores, j, c) = 8 * j + first + c % 2 < left ? score : -INFINITY;
            }
        }
    }
}

/* The scores of keys s0 .. of the tile from the products, times log2(e), and each row's largest among the lane's own. */
QVK_FUNCTION void qvk_tensor_scores(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, const qvk_head *head,
                                    qvk_fragments *own, unsigned s0) {
    const bool all_seen = p->key_mask == NULL && p->bias == NULL && !p->causal && (tile->seen || s0 >= p->M);
    const bool plain = all_seen && s0 + tile->keys <= tile->all;
    if (!all_seen) {
        qvk_tensor_masked(QVK_PASS, tile, head, own, s0);
    } else if (!plain) {
        qvk_tensor_cut(QVK_PASS, tile, own, s0);
    }
    QVK_EVERY_THREAD {
        const float scale = plain ? p->scale * QVK_LOG2_E : QVK_LOG2_E;
        QVK_UNROLL for (unsigned row = 0; row < 2; row++) {
            float top = -INFINITY;
            QVK_UNROLL for (unsigned j = 0; j < tile->groups; j++) {
                QVK_UNROLL for (unsigned c = 2 * row; c < 2 * row + 2; c++) {
                    const float score = qvk_product_alone(QVK_GRID(own->scores, j, c), scale);
                    QVK_GRID(own->scores, j, c) = score;
                    top = fmaxf(top, score);
                }
            }
            QVK_OURS(own->top, row) = top;
        }
    }
}

/* As qvk_weight, of scores times log2(e): 0 also while nothing has been seen. */
QVK_FUNCTION float qvk_tensor_weight(float score, float top) {
    return qvk_power_of_two(score - (top == -INFINITY ? 0.0f : top));
}

/* The scores become weights; what was summed so far shrinks where a row's maximum has grown. */
QVK_FUNCTION void qvk_tensor_weights(const qvk_tensor_tile *tile QVK_AT, qvk_fragments *own) {
    QVK_QUAD_MAX(own->top, 0);
    QVK_QUAD_MAX(own->top, 1);
    QVK_EVERY_THREAD {
        QVK_UNROLL for (unsigned row = 0; row < 2; row++) {
            const float before = QVK_OURS(own->best, row), now = fmaxf(before, QVK_OURS(own->top, row));
            const float shrink = before == now ? 1.0f : qvk_power_of_two(before - now);
            float part = QVK_OURS(own->total, row) * shrink;
            QVK_UNROLL for (unsigned j = 0; j < tile->groups; j++) {
                QVK_UNROLL for (unsigned c = 2 * row; c < 2 * row + 2; c++) {
                    const float weight = qvk_tensor_weight(QVK_GRID(own->scores, j, c), now);
                    QVK_GRID(own->scores, j, c) = weight;
                    part += weight;
                }
            }
            QVK_OURS(own->best, row) = now;
            QVK_OURS(own->total, row) = part;
            QVK_UNROLL for (unsigned j = 0; j < tile->width / 8; j++) {
                QVK_GRID(own->sums, j, 2 * row) *= shrink;
                QVK_GRID(own->sums, j, 2 * row + 1) *= shrink;
            }
        }
    }
}

/* The weights of a step of k as factors: as they lie, two groups of keys in bfloat16; in TF32 one, whose even keys are the
 * first half of k. */
QVK_FUNCTION void qvk_tensor_left(const qvk_tensor_tile *tile QVK_AT, qvk_fragments *own, unsigned step) {
    QVK_EVERY_THREAD {
        QVK_UNROLL for (unsigned word = 0; word < 4; word++) {
            if (tile->half) {
                const unsigned j = 2 * step + word / 2, c = word % 2 * 2;
                QVK_WORD(own->left, 0, word) = qvk_to_bfloat16s(QVK_GRID(own->scores, j, c), QVK_GRID(own->scores, j, c + 1));
            } else {
                QVK_WORD(own->left, 0, word) = qvk_to_tf32(QVK_GRID(own->scores, step, word / 2 + word % 2 * 2));
            }
        }
    }
}

/* Weights times values: of 16 columns the even ones are one product's, the odd ones the next one's. */
QVK_FUNCTION void qvk_tensor_sums(const qvk_tensor_tile *tile QVK_AT, qvk_fragments *own, unsigned s0) {
    QVK_UNROLL for (unsigned step = 0; step < QVK_TENSOR_VALUE_ROWS / 8; step++) {
        if (!qvk_tensor_reaches(tile, s0, tile->half ? 2 * step : step)) {
            continue;
        }
        qvk_tensor_left(tile QVK_HERE, own, step);
        QVK_UNROLL for (unsigned j = 0; j < tile->width / 8; j += 2) {
            QVK_THREADS(t) {
                const unsigned i = t % 4, column = 8 * j + 2 * (t % 32 / 4);
                const unsigned lower = 8 * step + (tile->half ? i : 2 * i), upper = lower + (tile->half ? 4 : 1);
                const qvk_two_words x = *(const qvk_two_words *)(tile->v + lower * tile->value_stride + column);
                const qvk_two_words y = *(const qvk_two_words *)(tile->v + upper * tile->value_stride + column);
                QVK_UNROLL for (unsigned odd = 0; odd < 2; odd++) {
                    QVK_WORD(own->right, odd, 0) = x.at[odd];
                    QVK_WORD(own->right, odd, 1) = y.at[odd];
                }
            }
            QVK_MMA(tile->half, own->sums[j], own->left[0], own->right[0]);
            QVK_MMA(tile->half, own->sums[j + 1], own->left[0], own->right[1]);
        }
    }
}

QVK_FUNCTION void qvk_tensor_out(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, const qvk_head *head,
                                 qvk_fragments *own) {
    QVK_QUAD_SUM(own->total, 0);
    QVK_QUAD_SUM(own->total, 1);
    QVK_THREADS(t) {
        QVK_UNROLL for (unsigned row = 0; row < 2; row++) {
            const size_t query = tile->first + t / 32 * 16 + t % 32 / 4 + 8 * row;
            const float inverse = QVK_OURS(own->total, row) == 0.0f ? NAN : 1.0f / QVK_OURS(own->total, row);
            float *out = p->out.at != NULL ? p->out.at + (head->b * p->T + query) * p->out.ld + head->h * p->d : NULL;
            QVK_OURS(own->total, row) = inverse;
            QVK_UNROLL for (unsigned j = 0; j < tile->width / 8; j += 2) {
                const unsigned column = 8 * j + 4 * (t % 4);
                if (out != NULL && query < p->T && column < p->d) {
                    const qvk_four items = {{
                        QVK_GRID(own->sums, j, 2 * row) * inverse,
                        QVK_GRID(own->sums, j + 1, 2 * row) * inverse,
                        QVK_GRID(own->sums, j, 2 * row + 1) * inverse,
                        QVK_GRID(own->sums, j + 1, 2 * row + 1) * inverse,
                    }};
                    *(qvk_four *)(out + column) = items;
                    if (tile->half && p->rounded != NULL) {
                        const qvk_two_words words = {{qvk_to_bfloat16s(items.at[0], items.at[1]),
                                                      qvk_to_bfloat16s(items.at[2], items.at[3])}};
                        const size_t place = (head->b * p->T + query) * p->H + head->h;
                        *(qvk_two_words *)(void *)(p->rounded + place * p->d + column) = words;
                    }
                }
            }
        }
    }
}

/* As qvk_tile_window. */
QVK_FUNCTION void qvk_tensor_window(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, const qvk_head *head,
                                    qvk_fragments *own, unsigned s0, const bool last) {
    const size_t end = p->first_column + p->column_count;
    QVK_THREADS(t) {
        QVK_UNROLL for (unsigned row = 0; row < 2; row++) {
            const size_t query = tile->first + t / 32 * 16 + t % 32 / 4 + 8 * row;
            float *window = query < p->T ? qvk_window(p, head, query) : NULL;
            if (window == NULL) {
                continue;
            }
            QVK_UNROLL for (unsigned j = 0; j < tile->groups; j++) {
                QVK_UNROLL for (unsigned c = 0; c < 2; c++) {
                    const size_t key = s0 + 8 * j + 2 * (t % 4) + c;
                    if (key >= p->first_column && key < end) {
                        float *item = window + (key - p->first_column);
                        const float score = !last ? QVK_GRID(own->scores, j, 2 * row + c) : s0 < tile->end ? *item : -INFINITY;
                        *item = !last ? score : qvk_tensor_weight(score, QVK_OURS(own->best, row)) * QVK_OURS(own->total, row);
                    }
                }
            }
        }
    }
}

QVK_FUNCTION void qvk_tensor_attention(const qvk_attention *p QVK_AT, const bool half, const unsigned width) {
    const unsigned T = (unsigned)p->T, rows = QVK_WIDTH / 2, tiles = (T + rows - 1) / rows, pair = (unsigned)QVK_BLOCK / tiles;
    const qvk_head head = qvk_view(p, pair / (unsigned)p->H, pair % (unsigned)p->H);
    const unsigned first = (unsigned)QVK_BLOCK % tiles * rows, all = (unsigned)(p->M + p->S);
    const size_t past_rows = p->M + p->past + first + rows;
    const unsigned end = p->causal && past_rows < all ? (unsigned)past_rows : all;
    const unsigned keys = QVK_TENSOR_KEYS(half), stride = QVK_TENSOR_KEY_STRIDE(half, width);
    uint32_t *shared = (uint32_t *)(void *)QVK_DYNAMIC;
    const qvk_tensor_tile tile = {
        half, width, width / (half ? 16 : 8), keys, keys / 8, stride, QVK_TENSOR_VALUE_STRIDE(half, width),
        first, all, end, p->extra_length == NULL || p->extra_length[head.b] >= p->M,
        shared, shared + keys * stride,
    };
    const bool seen = qvk_asks(p, first, rows);
    qvk_fragments own;
    qvk_tensor_queries(QVK_PASS, &tile, &head, &own);
    for (unsigned s0 = 0; s0 < end; s0 += keys) {
        QVK_SYNC();
        if (s0 >= p->M && p->key_index == NULL) {
            qvk_tensor_load(QVK_PASS, &tile, &head, s0, true);
        } else {
            qvk_tensor_load(QVK_PASS, &tile, &head, s0, false);
        }
        QVK_SYNC();
        QVK_WARPS(first + 16 * QVK_WARP < T) {
            qvk_tensor_products(&tile QVK_HERE, &own, s0);
            qvk_tensor_scores(QVK_PASS, &tile, &head, &own, s0);
            if (seen) {
                qvk_tensor_window(QVK_PASS, &tile, &head, &own, s0, false);
            }
            qvk_tensor_weights(&tile QVK_HERE, &own);
            if (p->out.at != NULL) {
                qvk_tensor_sums(&tile QVK_HERE, &own, s0);
            }
        }
    }
    qvk_tensor_out(QVK_PASS, &tile, &head, &own);
    for (unsigned s0 = 0; seen && s0 < p->first_column + p->column_count; s0 += keys) {
        qvk_tensor_window(QVK_PASS, &tile, &head, &own, s0, true);
    }
}

/* Heads up to 64, 80, 96 and 128 wide. */
QVK_BODY(qvk_bfloat16_attention_64, qvk_attention) {
    qvk_tensor_attention(QVK_PASS, true, 64);
}

QVK_BODY(qvk_bfloat16_attention_80, qvk_attention) {
    qvk_tensor_attention(QVK_PASS, true, 80);
}

QVK_BODY(qvk_bfloat16_attention_96, qvk_attention) {
    qvk_tensor_attention(QVK_PASS, true, 96);
}

QVK_BODY(qvk_bfloat16_attention_128, qvk_attention) {
    qvk_tensor_attention(QVK_PASS, true, 128);
}

QVK_BODY(qvk_tf32_attention_64, qvk_attention) {
    qvk_tensor_attention(QVK_PASS, false, 64);
}

QVK_BODY(qvk_tf32_attention_80, qvk_attention) {
    qvk_tensor_attention(QVK_PASS, false, 80);
}

QVK_BODY(qvk_tf32_attention_96, qvk_attention) {
    qvk_tensor_attention(QVK_PASS, false, 96);
}

QVK_BODY(qvk_tf32_attention_128, qvk_attention) {
    qvk_tensor_attention(QVK_PASS, false, 128);
}

#endif
