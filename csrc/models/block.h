/* One transformer block, of the vision tower and of every text encoder. Theirs differ in a few facts, the block's kind.
 *
 *  1. self-attention    x += out(attention(q, k, v of x)); Vaswani et al., arXiv 1706.03762
 *  2. cross-attention   x += cross_out(attention(cross_q of x, keys and values of something else)), where there is one
 *  3. feed-forward      x += output(act(hidden x)); gated (Shazeer, arXiv 2002.05202): output(act(hidden_0 x) * hidden_1 x)
 *
 * Norm first: each of the three reads norm(x) in place of x. Norm last: x = norm(its sum). */
#ifndef QV_MODELS_BLOCK_H
#define QV_MODELS_BLOCK_H

#include "models/loading.h"
#include "ops/ops.h"

typedef struct {
    size_t D, H, d, F; /* H d need not be D */
    bool norm_first, gated, causal;
    qv_norm_kind norm;
    float eps;
    float scale; /* of attention's scores */
    qv_activation activation;
    size_t cross_width; /* of the states that cross-attention reads; 0: there is none */
} qv_block_kind;

typedef struct {
    qv_norm norm1, cross_norm, norm2; /* of the three parts */
    qv_linear qkv;                    /* [3 H d, D], parts q, k, v */
    qv_linear out;                    /* [D, H d] */
    qv_linear cross_q;                /* [H d, D] */
    qv_linear cross_kv;               /* [2 H d, cross_width], parts k, v */
    qv_linear cross_out;              /* [D, H d] */
    qv_linear hidden;                 /* [F, D], or gated [2 F, D]: what is activated, what it is multiplied by */
    qv_linear output;                 /* [D, F] */
} qv_block;

/* ---- loading ---- */

typedef struct {
    const char *norm1, *qkv[3];
    const char *out;                                          /* NULL: the caller loads it */
    const char *cross_norm, *cross_q, *cross_kv[2], *cross_out; /* where the kind has cross-attention */
    const char *hidden[2], *output, *norm2;                   /* hidden[1] where the kind is gated */
    qv_bias_rule qkv_bias, bias;
    const char *scale1, *scale2; /* vectors [D] that out and output are multiplied by, where they are there (NULL: never) */
} qv_block_names;

/* `stem` is in front of the block's names. */
void qv_block_load(qv_loader *loader, qv_block *block, const qv_block_kind *kind, const qv_block_names *names,
                   const char *stem);
void qv_block_free(const qv_ops *ops, qv_block *block);
/* `count` blank blocks of the model `name`; NULL after a failure. */
qv_block *qv_blocks_create(qv_loader *loader, size_t count, const char *name);
/* All of one kind, whose names begin with `stem` "<n>." */
void qv_blocks_load(qv_loader *loader, qv_block *blocks, size_t count, const qv_block_kind *kind, const qv_block_names *names,
                    const char *stem);
/* They and their memory; NULL: nothing */
void qv_blocks_free(const qv_ops *ops, qv_block *blocks, size_t count);
/* The tensor stem + name [D] if names has it and it is there, else NULL. */
const qv_tensor *qv_block_row_scale(qv_loader *loader, const char *stem, const char *name, size_t D);

/* ---- running ---- */

/* What a block works on. Blocks take turns with it, but for what a backward pass is to read of one of them. */
typedef struct {
    qv_rows q;       /* [queries, H d] */
    qv_rows kv;      /* [R, 2 H d]: keys, then values */
    float *normed;   /* [R, D]; norm last: a sum, before its norm */
    float *attended; /* [R, H d] */
    float *hidden;   /* [R, F] */
    float *gate;     /* [R, F], gated */
    float *cross_q;  /* [R, H d] */
    /* Kept for the backward pass, else NULL. */
    float *sum1, *cross_sum, *sum2; /* [queries, D]: the sum of each part */
    float *before;                  /* [queries, F]: what is activated; norm first, then what its gradient is times */
    float *activated;               /* [queries, F], gated and norm first: act(before) */
} qv_block_activations;

/* For up to R rows; `columns` of a row are there for the caller, too, as long as no block runs: activations.q.at. */
qv_block_activations qv_block_plan(qv_arena *arena, const qv_block_kind *kind, size_t R, size_t columns);
/* The same, but with memory of its own for what the backward pass reads of a block with so many queries; norm first, that is
 * `sum1`, `before` and the rest of qkv, without cross-attention. */
qv_block_activations qv_block_plan_kept(qv_arena *arena, const qv_block_kind *kind, const qv_block_activations *shared,
                                        size_t R, size_t queries);
/* The deepest of a block's products. */
size_t qv_block_depth(const qv_block_kind *kind);

/* The rows that a block works on: x [R, D], all tokens, and those of them that go through it, the queries. */
typedef struct {
    qv_rows x;
    size_t R;
    qv_rows queries; /* x itself, or fewer: norm first, rows of x; norm last, of anything */
    size_t count;
} qv_block_rows;

/* a->q of the queries; a->kv of x, or its keys alone. */
void qv_block_project(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                      const qv_block_rows *rows, bool values);
/* Attention from a->q over a->kv into a->attended, but for how many of what (B, T, S). */
qv_attention qv_block_attention(const qv_block_kind *kind, const qv_block_activations *a);

/* Sequences that lie one after another without padding: b is rows start[b] - start[0] .. of x, at least one. */
typedef struct {
    size_t B;
    const size_t *start;     /* [B + 1] */
    const uint8_t *key_mask; /* of all rows, 0: not seen; NULL: all seen */
    size_t queries;          /* so many of each sequence, its first, are queries; 0: all rows */
    qv_const_rows bias;      /* of the scores: row h bias_rows + t is head h's of query t, or none */
    size_t bias_rows;
} qv_sequences;

/* a->attended: each sequence over itself. */
void qv_block_attend(qv_call *call, const qv_block_kind *kind, const qv_block_activations *a,
                     const qv_sequences *sequences);

/* What cross-attention reads: keys and values [S, 2 H d] that `count` queries from `first` on share. */
typedef struct {
    const float *kv;
    size_t S;
    size_t first, count;
} qv_cross_run;

/* Runs one after another, of all queries; none: the part is left out. */
typedef struct {
    const qv_cross_run *runs;
    size_t count;
} qv_cross_states;
qv_attention qv_block_cross_attention(const qv_block_kind *kind, const qv_block_activations *a, const qv_cross_run *run);

/* The parts of qv_block_finish, for a caller with a cross-attention of its own: rows [count, D] of the residual stream go on
 * from what was attended to, to the h that is returned; a->cross_q of h; h and a->attended, to the h that the feed-forward
 * goes on from. */
qv_rows qv_block_add_attended(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                              const qv_block_activations *a, qv_const_rows attended, qv_rows rows, size_t count);
void qv_block_cross_query(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                          qv_rows h, size_t count);
qv_rows qv_block_add_cross(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                           qv_rows h, qv_rows rows, size_t count);
/* rows [count, D] of the residual stream go on from what was attended to, through the rest of the block. */
void qv_block_finish(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                     qv_const_rows attended, qv_rows rows, size_t count, const qv_cross_states *cross);
/* As far as the backward pass reads of it, norm first and without cross-attention: rows stay as they are. */
void qv_block_keep(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                   qv_const_rows attended, qv_rows rows, size_t count);
/* The feed-forward alone: `out` [count, D] from h; norm first, out = h + .. */
void qv_block_feed_forward(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                           const qv_block_activations *a, qv_rows h, qv_rows out, size_t count);
/* All of it, over sequences. */
void qv_block_run(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                  const qv_block_rows *rows, const qv_sequences *sequences, const qv_cross_states *cross);

/* ---- the backward pass: gradients of what goes in; norm last block_backward.c, norm first block_gradients.c ---- */

/* Shared by all blocks. */
typedef struct {
    float *d_x;        /* [R, D]: of a block's output (its queries), then of its input x */
    float *d_rows;     /* [R, D]: the running gradient of the queries */
    float *d_hidden;   /* [R, F], gated [R, 2 F] */
    float *d_attended; /* [R, H d] */
    float *d_q;        /* [R, H d] */
    float *d_kv;       /* [R, 2 H d] */
} qv_block_gradients;

qv_block_gradients qv_block_plan_gradients(qv_arena *arena, const qv_block_kind *kind, size_t R);

/* From d_x, that of the block's output, down to what the cross-attention gave; */
void qv_block_backward_to_cross(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                                const qv_block_gradients *g, size_t count);
/* from there, a run of it to differentiate into d_q; the caller adds what else it wants, and runs it. */
qv_attention_backward qv_block_cross_backward(const qv_block_kind *kind, const qv_block_activations *a,
                                              const qv_block_gradients *g, const qv_cross_run *run);
/* The whole block: d_x of its output becomes that of its input. */
void qv_block_backward(qv_call *call, const qv_block_kind *kind, const qv_block *block, const qv_block_activations *a,
                       const qv_block_gradients *g, const qv_sequences *sequences, const qv_cross_states *cross);
/* Its steps. From d_x of the queries down to self-attention: d_attended, and in d_rows what goes past it; */
void qv_block_backward_to_attended(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                                   const qv_block_activations *a, const qv_block_gradients *g,
                                   const qv_cross_states *cross, size_t count);
/* the second half of that, for a caller with a cross-attention of its own: from d_q of its queries on; */
void qv_block_backward_from_cross(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                                  const qv_block_activations *a, const qv_block_gradients *g, size_t count);
/* d_q and d_kv of all sequences, from d_attended; */
void qv_block_attend_backward(qv_call *call, const qv_block_kind *kind, const qv_block_activations *a,
                              const qv_block_gradients *g, const qv_sequences *sequences);
/* d_rows [count, D] += d_q Wq; d_x [R, D] = d_k Wk + d_v Wv. */
void qv_block_project_backward(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                               const qv_block_gradients *g, size_t count, size_t R);

/* Norm first, of one sequence of T rows that has been run, `count` of them, the first ones, as queries: any number of items,
 * gradients of different things, go back together. */

/* Once behind the run: before and gate become what the gradient of the hidden layer is multiplied by. */
void qv_block_keep_slopes(qv_call *call, const qv_block_kind *kind, const qv_block_activations *a, size_t count);
/* From d_rows [items, count, D], gradients of what leaves the block, to those of its first sum, in d_rows, and to d_attended;
 * `row` [items, D], where it is given, is what all the rows of an item begin as, in place of d_rows. `once` [items, F] is
 * room for that. */
void qv_block_backward_to_attention(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                                    const qv_block_activations *a, const qv_block_gradients *g, const float *row, float *once,
                                    size_t items, size_t count);
/* From d_q [items, count, H d], d_kv [items, T, 2 H d] and d_rows to out [items, T, D], the gradients of the block's input x;
 * with count T, out may be d_rows, and without it d_rows is to be another. */
void qv_block_backward_from_attention(qv_call *call, const qv_block_kind *kind, const qv_block *block,
                                      const qv_block_gradients *g, qv_const_rows x, float *out, size_t items, size_t count,
                                      size_t T);

#endif
