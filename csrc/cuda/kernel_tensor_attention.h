/* Attention whose two products are tensor cores', in bfloat16 or TF32. Sums, the running maximum and what is made of the
 * scores are float32, as in kernel_attention.h; so are masks, bias and windows of probabilities, whose scores are made
 * again with the same rounding.
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
    size_t first, end; /* its first query; the keys that some query of it sees end there */
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

/* Four columns of a tile's line, of which a thread takes several at once: they are all on their way before the first is
 * needed. */
QVK_FUNCTION qvk_four qvk_tensor_item(const qvk_attention *p, const qvk_head *head, qvk_lines kind, size_t key,
                                      unsigned column, bool wanted) {
    const float *line = wanted && key < p->M + p->S ? qvk_line(p, head, kind, key) : NULL;
    return qvk_four_of(line, column, (unsigned)p->d);
}

/* Keys s0 .. of the tile into shared memory. */
QVK_FUNCTION void qvk_tensor_keys(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, const qvk_head *head, size_t s0) {
    QVK_THREADS(t) {
        const unsigned fours = tile->width / 4, items = tile->keys * fours;
        for (unsigned first = t; first < items; first += 4 * QVK_WIDTH) {
            qvk_four x[4];
            QVK_UNROLL for (unsigned i = 0; i < 4; i++) {
                const unsigned item = first + i * QVK_WIDTH;
                x[i] = qvk_tensor_item(p, head, QVK_KEYS, s0 + item / fours, item % fours * 4, item < items);
            }
            QVK_UNROLL for (unsigned i = 0; i < 4; i++) {
                const unsigned item = first + i * QVK_WIDTH, column = item % fours * 4;
                uint32_t *line = tile->k + item / fours * tile->key_stride;
                if (item < items && tile->half) {
                    const qvk_two_words words = {
                        {qvk_to_bfloat16s(x[i].at[0], x[i].at[1]), qvk_to_bfloat16s(x[i].at[2], x[i].at[3])}};
                    *(qvk_two_words *)(line + column / 2) = words;
                } else if (item < items) {
                    *(qvk_four_words *)(line + column) = qvk_four_in_tf32(&x[i]);
                }
            }
        }
    }
}

QVK_FUNCTION void qvk_tensor_values(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, const qvk_head *head,
                                    size_t s0) {
    QVK_THREADS(t) {
        const unsigned fours = tile->width / 4, items = QVK_TENSOR_VALUE_ROWS * fours, lines = tile->half ? 2 : 1;
        for (unsigned first = t; first < items; first += 2 * QVK_WIDTH) {
            qvk_four x[2][2];
            QVK_UNROLL for (unsigned i = 0; i < 2; i++) {
                const unsigned item = first + i * QVK_WIDTH;
                const size_t key = s0 + lines * (item / fours);
                QVK_UNROLL for (unsigned line = 0; line < lines; line++) {
                    x[i][line] = qvk_tensor_item(p, head, QVK_VALUES, key + line, item % fours * 4, item < items);
                }
            }
            QVK_UNROLL for (unsigned i = 0; i < 2; i++) {
                const unsigned item = first + i * QVK_WIDTH;
                if (item < items) {
                    qvk_four_words words = qvk_four_in_tf32(&x[i][0]);
                    QVK_UNROLL for (unsigned c = 0; c < 4 && tile->half; c++) {
                        words.at[c] = qvk_to_bfloat16s(x[i][0].at[c], x[i][1].at[c]);
                    }
                    *(qvk_four_words *)(tile->v + item / fours * tile->value_stride + item % fours * 4) = words;
                }
            }
        }
    }
}

/* Whether the half of the tile's keys that a group of 8 lies in has any that is seen. */
QVK_FUNCTION bool qvk_tensor_reaches(const qvk_tensor_tile *tile, size_t s0, unsigned group) {
    return group < tile->groups / 2 || s0 + tile->keys / 2 < tile->end;
}

/* The products of queries and keys: k 2i and 2i + 1 of a step's 8 words are lane i's. */
QVK_FUNCTION void qvk_tensor_products(const qvk_tensor_tile *tile QVK_AT, qvk_fragments *own, size_t s0) {
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
                                    qvk_fragments *own, size_t s0) {
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

/* The scores of keys s0 .. of the tile from the products, times log2(e), and each row's largest among the lane's own. */
QVK_FUNCTION void qvk_tensor_scores(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, const qvk_head *head,
                                    qvk_fragments *own, size_t s0) {
    const bool inside = s0 + tile->keys <= p->M + p->S && (tile->seen || s0 >= p->M);
    const bool plain = inside && p->key_mask == NULL && p->bias == NULL && !p->causal;
    if (!plain) {
        qvk_tensor_masked(QVK_PASS, tile, head, own, s0);
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
QVK_FUNCTION void qvk_tensor_sums(const qvk_tensor_tile *tile QVK_AT, qvk_fragments *own, size_t s0) {
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
                }
            }
        }
    }
}

/* The asked window's part of the tile, whose scores have been made again. */
QVK_FUNCTION void qvk_tensor_window(const qvk_attention *p QVK_AT, const qvk_tensor_tile *tile, const qvk_head *head,
                                    qvk_fragments *own, size_t s0) {
    const size_t end = p->first_column + p->column_count;
    QVK_THREADS(t) {
        QVK_UNROLL for (unsigned row = 0; row < 2; row++) {
            const size_t query = tile->first + t / 32 * 16 + t % 32 / 4 + 8 * row;
            float *window = query < p->T ? qvk_window(p, head, query) : NULL;
            QVK_UNROLL for (unsigned j = 0; j < tile->groups; j++) {
                QVK_UNROLL for (unsigned c = 0; c < 2; c++) {
                    const size_t key = s0 + 8 * j + 2 * (t % 4) + c;
                    if (window != NULL && key >= p->first_column && key < end) {
                        window[key - p->first_column] =
                            qvk_tensor_weight(QVK_GRID(own->scores, j, 2 * row + c), QVK_OURS(own->best, row)) *
                            QVK_OURS(own->total, row);
                    }
                }
            }
        }
    }
}

QVK_FUNCTION void qvk_tensor_attention(const qvk_attention *p QVK_AT, const bool half, const unsigned width) {
    const size_t rows = QVK_WIDTH / 2, tiles = (p->T + rows - 1) / rows, pair = QVK_BLOCK / tiles;
    const qvk_head head = qvk_view(p, pair / p->H, pair % p->H);
    const size_t first = QVK_BLOCK % tiles * rows, all = p->M + p->S, past_rows = p->M + p->past + first + rows;
    const unsigned keys = QVK_TENSOR_KEYS(half), stride = QVK_TENSOR_KEY_STRIDE(half, width);
    uint32_t *shared = (uint32_t *)(void *)QVK_DYNAMIC;
    const qvk_tensor_tile tile = {
        half, width, width / (half ? 16 : 8), keys, keys / 8, stride, QVK_TENSOR_VALUE_STRIDE(half, width),
        first, p->causal && past_rows < all ? past_rows : all, p->extra_length == NULL || p->extra_length[head.b] >= p->M,
        shared, shared + keys * stride,
    };
    qvk_fragments own;
    qvk_tensor_queries(QVK_PASS, &tile, &head, &own);
    for (size_t s0 = 0; s0 < tile.end; s0 += keys) {
        QVK_SYNC();
        qvk_tensor_keys(QVK_PASS, &tile, &head, s0);
        if (p->out.at != NULL) {
            qvk_tensor_values(QVK_PASS, &tile, &head, s0);
        }
        QVK_SYNC();
        QVK_WARPS(first + 16 * QVK_WARP < p->T) {
            qvk_tensor_products(&tile QVK_HERE, &own, s0);
            qvk_tensor_scores(QVK_PASS, &tile, &head, &own, s0);
            qvk_tensor_weights(&tile QVK_HERE, &own);
            if (p->out.at != NULL) {
                qvk_tensor_sums(&tile QVK_HERE, &own, s0);
            }
        }
    }
    qvk_tensor_out(QVK_PASS, &tile, &head, &own);
    if (p->probabilities == NULL || first >= p->first_row + p->row_count || first + rows <= p->first_row) {
        return;
    }
    for (size_t s0 = p->first_column / keys * keys; s0 < p->first_column + p->column_count; s0 += keys) {
        QVK_SYNC();
        qvk_tensor_keys(QVK_PASS, &tile, &head, s0);
        QVK_SYNC();
        QVK_WARPS(first + 16 * QVK_WARP < p->T) {
            qvk_tensor_products(&tile QVK_HERE, &own, s0);
            qvk_tensor_scores(QVK_PASS, &tile, &head, &own, s0);
            qvk_tensor_window(QVK_PASS, &tile, &head, &own, s0);
        }
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
