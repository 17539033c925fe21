/* From a decoder's logits to the next token: what a caller's settings leave of them, and which one is taken. Works on the
 * host's memory; a row's result is a function of that row alone. */
#ifndef QV_OPS_SAMPLING_H
#define QV_OPS_SAMPLING_H

#include "base/error.h"
#include "ops/random.h"

/* In this order: repetition penalty, minimum length, temperature, top-k, top-p. */
typedef struct {
    float repetition_penalty; /* 1: off. A score s of each id that a row holds becomes s r where it is negative, else s / r */
    size_t min_length;        /* while rows are shorter, `eos` cannot come */
    int64_t eos;              /* below 0: none */
    float temperature;        /* 1: off */
    size_t top_k;             /* 0: off; ties at the edge all stay */
    double top_p;             /* 1: off; of ties at the edge the later ids stay; the best always stays */
} qv_sampling;

/* R rows of logits over a vocabulary of V, and what each row holds so far. */
typedef struct {
    const float *logits; /* [R, V] */
    const int64_t *ids;  /* [R, L] */
    size_t R, V, L;
} qv_logits;

/* All of these fail with QV_ERR_VALUE for a setting out of range, for an id outside the vocabulary, and for a row that holds NaN
 * or INFINITY, or of which nothing is left; with no memory; and when `poll` says to stop (QV_ERR_CANCELLED; outputs then hold
 * anything). */

/* out [R, V]: the scores, -INFINITY where one was removed */
qv_status qv_process_logits(float *out, const qv_logits *in, const qv_sampling *how, qv_poll poll, qv_error *err);

/* tokens [R]: the best (keys NULL; of equals the first), or one drawn by the row's key from the softmax of what is left.
 * log_probabilities [R]: the token's, by the softmax of the logits as they came. */
qv_status qv_next_tokens(int64_t *tokens, double *log_probabilities, const qv_logits *in, const qv_sampling *how,
                         const qv_random_key *keys, qv_poll poll, qv_error *err);

/* Beams: the settings work on the logits' log-softmax. scores, tokens, log_probabilities [R, count]: the best of each row,
 * best first (of equals the first), and their log-probabilities as above; -INFINITY and token 0 behind the last. */
qv_status qv_best_tokens(float *scores, int64_t *tokens, double *log_probabilities, size_t count, const qv_logits *in,
                         const qv_sampling *how, qv_poll poll, qv_error *err);

/* log_probabilities [R]: those of ids [R, 1] by the softmax of the logits */
qv_status qv_token_log_probabilities(double *log_probabilities, const qv_logits *in, qv_poll poll, qv_error *err);

#endif
