/* The ops interface: all arithmetic that the models call. csrc/ops implements it for the CPU (qv_cpu_ops).
 *
 * Letters, everywhere: B batch, T tokens (queries), S keys, D width, H heads, d head width (D = H d), F feed-forward
 * width, L blocks, P patches, M question tokens, Q questions, R rows (B T of them, as a matrix product sees them).
 * Activations are float32, row-major. Outputs come first, sizes last; `ld` is a row stride in floats.
 * Ops allocate nothing and cannot fail (but for preprocess): sizes were checked when the forward pass was planned.
 *
 * What the ops compute on lies in the backend's memory (`memory`); models move nothing in or out but by give and take.
 * Index arrays (ids, masks, lengths, sets) are always the host's, and an op is done with them when it returns. */
#ifndef QV_OPS_OPS_H
#define QV_OPS_OPS_H

#include "base/error.h"
#include "base/memory.h"
#include "base/tensor.h"
#include "image/preprocess.h"
#include "ops/rows.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    QV_PRECISION_FLOAT32,
    QV_PRECISION_BFLOAT16,
    QV_PRECISION_INT8,
    QV_PRECISION_INT8_MIXED, /* of a model, not of a product: see qv_layer_place of models/loading.h */
} qv_precision;

typedef enum {
    QV_IDENTITY,
    QV_GELU,       /* x Phi(x), by erf */
    QV_GELU_TANH,  /* its tanh approximation, "gelu_new" */
    QV_QUICK_GELU, /* x sigmoid(1.702 x) */
    QV_RELU,
    QV_SILU, /* x sigmoid(x) */
} qv_activation;

/* Up to this many projections of one input share a matrix (q, k and v). */
#define QV_MAX_PARTS ((size_t)3)

/* One part of a linear layer as it lies in the file: weight [N, K...] and bias [N] (NULL: none); the layer computes
 * with weight + scale * add_weight and bias + scale * add_bias where add_weight is given (same shape). */
typedef struct {
    const qv_tensor *weight;
    const qv_tensor *bias;
    const qv_tensor *add_weight;
    const qv_tensor *add_bias;
    float scale;
    const qv_tensor *row_scale; /* [N], or NULL: each row of weight and item of bias, sums included, times its own */
} qv_linear_source;

/* A float32 vector or table in the backend's memory: borrowed when the host's file holds float32, else in `owned`. */
typedef struct {
    const float *data;
    void *owned;
} qv_vector;

/* A linear layer ready for the backend's product. Its columns are those of its parts one after the other. */
typedef struct {
    size_t columns;                    /* N, all parts */
    size_t depth;                      /* K */
    size_t parts;
    size_t part_columns[QV_MAX_PARTS]; /* N of each */
    qv_precision precision;            /* what the product computes in */
    qv_vector bias;                    /* [N], or empty */
    void *packed;                      /* the backend's own: the weights in its product's layout */
} qv_linear;

typedef enum {
    QV_LAYER_NORM, /* n = (x - mean) / sqrt(variance + eps) */
    QV_RMS_NORM,   /* n = x / sqrt(mean(x^2) + eps) */
} qv_norm_kind;

/* out = n weight + bias, a row of D at a time */
typedef struct {
    qv_norm_kind kind;
    size_t D;
    qv_vector weight, bias; /* [D]; an empty bias adds nothing */
    float eps;
} qv_norm;

static inline qv_const_rows qv_as_const(qv_rows rows) {
    return (qv_const_rows){rows.at, rows.ld};
}

/* What happens to a product while it is still in cache: out = (act(x W^T + bias) * multiply) + residual. */
typedef struct {
    qv_activation activation;
    qv_const_rows multiply; /* [R, count] */
    qv_const_rows residual; /* [R, count]; may be `out` itself if there is no activation and no multiply */
    bool for_product;       /* out is x of the linear that comes next, in the same precision, and nothing else reads it: a backend
                               may leave it where that one finds it */
} qv_epilogue;

/* softmax(scale q k^T + bias, masked) v for B queries' sets over two runs of keys: `extra` question tokens in front
 * (QA-ViT; M = 0 for everybody else), then S keys. Head h occupies columns [h d, (h + 1) d) of each row. */
typedef struct {
    qv_rows out;                    /* [B, T] rows; none when only probabilities are wanted */
    qv_const_rows q;                /* [., T] */
    qv_const_rows k, v;             /* [., S]; no v when there is no out */
    qv_const_rows extra_k, extra_v; /* [B, M] */
    const size_t *extra_length;     /* [B]: how many of the M count; NULL: all */
    const uint8_t *key_mask;        /* [B, S], 0: not seen; NULL: all seen */
    qv_const_rows bias;             /* of S, added to the scores after scale, or none: row h bias_rows + t of query t */
    size_t bias_rows;               /* of a head: at least T; 0: all heads share T rows */
    const size_t *q_index;          /* [B]: which set of q belongs to b; NULL: b itself */
    const size_t *kv_index;         /* [B]: which set of k and v; NULL: b itself */
    size_t kv_stride;               /* rows from a set of k and v to the next; 0: S */
    const int32_t *key_index;       /* [B, S]: which rows of their set the keys are, and the values; NULL: the first S */
    bool causal;                    /* query t is key past + t, and sees those up to itself, itself though it is padding */
    size_t past;
    float scale;
    float *probabilities;              /* [B, H, row_count, column_count] or NULL */
    size_t first_row, row_count;       /* of the T */
    size_t first_column, column_count; /* of the M + S */
    qv_precision precision;            /* of the two products */
    size_t B, H, T, S, M, d;
} qv_attention;

/* Models give so many at a time to the ops where there are many. */
#define QV_ATTENTIONS_TOGETHER ((size_t)8)

/* The gradients of attention. With A the probabilities of `forward`: G = d_out v^T is the gradient of A, and
 * dS = A * (G - sum_s A G) that of the scores. Of `forward`, q, k, v, the masks and the sizes are read; its outputs
 * and its choice of rows and columns are not; it has neither kv_stride, key_index nor past. Question tokens in front (M)
 * count in A and d_q; none of their own gradients are given. Where d_k is wanted, kv_index must be NULL: sets of keys that
 * are shared would collide. */
typedef struct {
    qv_attention forward;
    qv_const_rows d_out;                    /* [B, T] */
    qv_rows d_q;                            /* [B, T] = scale dS k, or none */
    qv_rows d_k, d_v;                       /* [B, S] = scale dS^T q and A^T d_out; both or neither */
    float *probabilities, *d_probabilities; /* [B, H, T, M + S] A and G, each or NULL */
    float *relevance;           /* [B, H, M + S] = sum over t of weights[t] A max(G, 0), or NULL */
    const float *query_weights; /* [B, T]; NULL: all 1 */
    bool gradient_alone;        /* relevance without A */
} qv_attention_backward;

/* How well y [E] fits each of Q texts, and the gradient of that. */
typedef struct {
    float *scores;      /* [Q], cosines; without texts [1], the answer's log-probability; always given */
    float *d_y;         /* [count, E], of texts `first` .. */
    const float *y;     /* [E] */
    const float *texts; /* [Q, E], of unit length; NULL: y is the logits of answers, of which one counts */
    size_t Q, E, first, count;
    bool softmax;  /* the gradient is of a text's share among all, not of its cosine */
    float scale;   /* of the cosines */
    float factor;  /* of d_y */
    size_t answer; /* without texts; SIZE_MAX: the likeliest */
} qv_text_scores;

typedef struct qv_ops qv_ops;

/* One running call: the backend, its lanes, its scratch, and how it learns that it should stop. */
typedef struct {
    const qv_ops *ops;
    size_t lanes;         /* thread pool width, fixed for the call */
    void *scratch;        /* ops->scratch_bytes(...) bytes, from the call's arena */
    bool (*poll)(void *); /* true: stop; called before ops on the thread that made the call; may be NULL */
    void *poll_context;
    bool polls_in_ops; /* between an op's tasks, too, while other lanes are in theirs: poll does not end the thread */
    bool stopped;      /* every op returns at once, and qv_call_end says that the call was interrupted */
    int64_t last_poll; /* monotonic nanoseconds */
} qv_call;

struct qv_ops {
    const char *name;
    const qv_memory *memory; /* what the ops work on; NULL: any memory of the host */
    size_t chunk_rows;       /* rows to send through a layer together: enough for the product's full speed */

    /* Around the ops of a call, where the backend needs it (else NULL). `end` waits until all is done and all that was
     * taken is there; it returns `status`, or what went wrong in the ops. */
    qv_status (*begin)(qv_call *call, qv_error *err);
    qv_status (*end)(qv_call *call, qv_status status, qv_error *err);
    /* Host memory into the backend's, and back. What was taken is there after `end`. */
    void (*give)(qv_call *call, void *to, const void *host, size_t bytes);
    void (*take)(qv_call *call, void *host, const void *from, size_t bytes);

    /* Host memory into the backend's outside of calls; NULL where `memory` is. */
    qv_status (*upload)(const qv_ops *ops, void *to, const void *host, size_t bytes, qv_error *err);
    /* The layers prepared from here on are used together, after those before them; may be NULL. */
    qv_status (*next_block)(const qv_ops *ops, qv_error *err);
    /* What a product that is wanted in a precision computes in here. */
    qv_precision (*computes_in)(const qv_ops *ops, qv_precision wanted);
    /* layer->packed from the sources of its parts, and letting go of it: see qv_linear_prepare. */
    qv_status (*linear_pack)(const qv_ops *ops, qv_pool *pool, qv_linear *layer, const qv_linear_source *sources,
                             qv_error *err);
    void (*linear_drop)(const qv_ops *ops, qv_linear *layer);

    /* Scratch for products of up to `rows` rows and `depth` deep (their gradients: of up to `depth` columns), and for
     * attention over up to `keys` keys. */
    size_t (*scratch_bytes)(size_t lanes, size_t rows, size_t depth, size_t keys, size_t head_width);

    /* out [R, count] = epilogue(x [R, K] W[first : first + count]^T), epilogue NULL: the product alone; first and
     * first + count are part boundaries. */
    void (*linear)(qv_call *call, qv_rows out, qv_const_rows x, const qv_linear *layer, size_t first, size_t count,
                   const qv_epilogue *epilogue, size_t R);
    /* out [R, D] = norm(x [R, D]); out may be x */
    void (*norm)(qv_call *call, qv_rows out, qv_const_rows x, const qv_norm *norm, size_t R);
    /* Each of `count`, none of which reads what another writes: a backend may run them at once. */
    void (*attention)(qv_call *call, const qv_attention *each, size_t count);

    /* out [3, height, width] = the picture resized, cut and normalised. The picture is the host's wherever the ops work,
     * and of any size: this op may ask for memory, and so it can fail. */
    qv_status (*preprocess)(qv_call *call, float *out, const qv_picture_view *picture, const qv_preprocessing *how,
                            qv_error *err);
    /* out [P, 3 p p] = the p x p patches of image [3, H, W], channels outermost, row by row */
    void (*patches)(qv_call *call, float *out, const float *image, size_t height, size_t width, size_t p);
    /* out [n, D] = table[ids[i]] (+ positions[i], [n, D], when given); ids were checked against the table's rows. The
     * table is the host's wherever the ops work: of a vocabulary, a call needs a few rows. */
    void (*embedding)(qv_call *call, float *out, const qv_tensor *table, const int32_t *ids, const float *positions,
                      size_t n, size_t D);
    /* out [H, T, S]: the bias of query first + t for key s is offsets[h][reach + s - first - t], the offset kept within
     * -reach .. reach; offsets [H, 2 reach + 1] */
    void (*relative_bias)(qv_call *call, float *out, const float *offsets, size_t reach, size_t first, size_t H, size_t T,
                          size_t S);
    /* out [R, D] += x [R, D] */
    void (*add)(qv_call *call, float *out, const float *x, size_t R, size_t D);
    /* Rotary positions (Su et al., arXiv 2104.09864): rows `first` to T of each of B sequences, heads of width d beside each
     * other; the pair (x[j], x[j + d / 2]) of a head turns by an angle, whose cosine and sine are items j and j + d / 2 of
     * the row's angles [T - first, d]; `back`: by its negative */
    void (*rotate)(qv_call *call, qv_rows x, const float *angles, bool back, size_t B, size_t T, size_t first, size_t H,
                   size_t d);
    /* out [R, D] = x * y, item by item; a stride of 0 repeats a row; out may be x or y */
    void (*multiply_items)(qv_call *call, qv_rows out, qv_const_rows x, qv_const_rows y, size_t R, size_t D);
    /* out [R, D] = x [R, D]; ld_x 0 repeats one row */
    void (*copy)(qv_call *call, qv_rows out, qv_const_rows x, size_t R, size_t D);
    /* each row of x [R, S] = softmax(scale x) */
    void (*softmax)(qv_call *call, float *x, float scale, size_t R, size_t S);
    /* out [n] = act(x [n]): where the product's own epilogue would lose the x that a gradient needs */
    void (*activation)(qv_call *call, float *out, const float *x, qv_activation activation, size_t n);

    /* Gradients of what goes in, from the gradients of what comes out; weights are constants, theirs are not computed.
     * Their scratch, which a call needs in addition to scratch_bytes (the sum of both): for attention over up to `keys` keys,
     * with d_k over up to `rows` queries and keys of H heads; for relevance of that many, as for 2 H. */
    size_t (*backward_scratch_bytes)(size_t lanes, size_t keys, size_t head_width, size_t H, size_t rows);
    /* dx [R, K] = dy [R, count] W[first : first + count], added to what is in dx where `accumulate`: by the weights that
     * `linear` multiplies with, and in bfloat16 where it does; of int8 layers in bfloat16. */
    void (*linear_backward)(qv_call *call, qv_rows dx, qv_const_rows dy, const qv_linear *layer, size_t first,
                            size_t count, bool accumulate, size_t R);
    /* With g = dy * weight: dx = (g - mean(g) - n mean(g n)) / sqrt(variance + eps); an RMS norm's without mean(g).
     * dx may be dy. */
    void (*norm_backward)(qv_call *call, qv_rows dx, qv_const_rows dy, qv_const_rows x, const qv_norm *norm, size_t R);
    /* dx [n] = dy act'(x); dx may be dy, or x; dy NULL: 1 */
    void (*activation_backward)(qv_call *call, float *dx, const float *dy, const float *x, qv_activation activation,
                                size_t n);
    void (*attention_backward)(qv_call *call, const qv_attention_backward *each, size_t count);
    /* log_probability [R] = that of each row's target under softmax(logits [R, V]), and logits become its gradient with
     * respect to them: 1 at the target less the probabilities */
    void (*likelihood)(qv_call *call, float *log_probability, float *logits, const int32_t *targets, size_t R, size_t V);
    /* out [T, S - first] = mean over h of A max(G, 0), from column `first` on; A, G [H, T, S] */
    void (*gradcam)(qv_call *call, float *out, const float *probabilities, const float *d_probabilities, size_t first,
                    size_t H, size_t T, size_t S);
    void (*text_scores)(qv_call *call, const qv_text_scores *scores);
    /* out [Q, R] = w [Q, D] x [R, D]^T */
    void (*dots)(qv_call *call, float *out, qv_const_rows x, qv_const_rows w, size_t Q, size_t R, size_t D);
    /* each row of x [R, D] divided by its length, or by 1e-12 if that is larger */
    void (*unit_length)(qv_call *call, float *x, size_t R, size_t D);
    /* out [R] = the length of each row of x [R, D] */
    void (*row_lengths)(qv_call *call, float *out, qv_const_rows x, size_t R, size_t D);
    /* out [B T, H d] = x, each head of a row made as long as the square root of factor times the mean of its b's
     * lengths [B, T]; what is shorter than 1e-12 grows as if it were that long. out may be x. */
    void (*head_lengths)(qv_call *call, qv_rows out, qv_const_rows x, const float *lengths, float factor, size_t B, size_t T,
                         size_t H, size_t d);
    /* out [D] = mean of the rows of x [R, D]; R is at least 1 */
    void (*mean_rows)(qv_call *call, float *out, const float *x, size_t R, size_t D);
};

extern const qv_ops qv_cpu_ops;

/* Which packed kernels this CPU uses, for each precision: "avx512", "avx512_bf16", "avx512_vnni", "amx", "avx2",
 * "avx_vnni", "neon", "neon_dotprod", "neon_bf16", "openblas", "portable". */
const char *qv_cpu_kernels(qv_precision precision);
/* The width of the panels that weights are packed in here; 0 where they are not. */
size_t qv_cpu_panel_columns(void);

/* ---- weights (weights.c) ---- */

/* A vector of the weights as float32. A NULL tensor (a problem that qv_weights_check will report) gives NULL data. */
qv_status qv_vector_prepare(const qv_ops *ops, qv_vector *vector, const qv_tensor *tensor, qv_error *err);
/* A vector of its own from data [count]; `name` says in an error what it is. */
qv_status qv_vector_copy(const qv_ops *ops, qv_vector *vector, const float *data, size_t count, const char *name,
                         qv_error *err);
void qv_vector_free(const qv_ops *ops, qv_vector *vector);
void qv_norm_free(const qv_ops *ops, qv_norm *norm);

/* Make a layer of `parts` sources that share K; where a weight is NULL (a problem that qv_weights_check will report), one of
 * no columns. What it does not borrow, it takes from the pool, where it is one of many. Borrowed memory must outlive it. On
 * failure nothing is held. */
qv_status qv_linear_prepare(const qv_ops *ops, qv_pool *pool, qv_linear *layer, const qv_linear_source *sources,
                            size_t parts, qv_precision precision, qv_error *err);
void qv_linear_free(const qv_ops *ops, qv_linear *layer);

static inline qv_status qv_next_block(const qv_ops *ops, qv_error *err) {
    return ops->next_block != NULL ? ops->next_block(ops, err) : QV_OK;
}

/* ---- calls (call.c) ---- */

/* Before a call's first op and after its last; the end of a call that was stopped is QV_ERR_CANCELLED. */
qv_status qv_call_begin(qv_call *call, qv_error *err);
qv_status qv_call_end(qv_call *call, qv_status status, qv_error *err);

/* `count` where the ops cannot work on the caller's memory, else 0: the size of a place for it. */
size_t qv_place_size(const qv_ops *ops, size_t count);
/* host [count] where the ops can read it: itself, or copied to `place`. */
const float *qv_give_floats(qv_call *call, float *place, const float *host, size_t count);
void qv_take_floats(qv_call *call, float *host, const float *from, size_t count);

/* An array that the caller will have at `host` (NULL: it does not want it): ops write it at `at`. */
typedef struct {
    float *host, *at;
    size_t count;
} qv_output;

/* `count` floats at `place` (qv_place_size), where the ops cannot write to the caller's memory. */
qv_output qv_output_at(const qv_ops *ops, float *place, float *host, size_t count);
/* The same with a place of its own; `count` may be that of the largest part of an array that comes in parts. */
qv_output qv_output_lay_out(qv_arena *arena, const qv_ops *ops, float *host, size_t count);
/* The caller's items from `first` on; a next part may be written at the same place. */
qv_output qv_output_part(const qv_output *output, size_t first, size_t count);
/* What lies at `at` is the caller's, at the latest after qv_call_end. */
void qv_output_take(qv_call *call, const qv_output *output);

#endif
