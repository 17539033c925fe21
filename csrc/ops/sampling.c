/* For each row, on a lane's scratch of 3 V:
 *
 * 1. scores = logits; log sum exp(logits)
 * 2. penalty, minimum length, temperature
 * 3. candidates = (score, id) of what is finite, of the k largest where top-k is on; then what top-p leaves of them
 * 4. the best candidate, one drawn, the best few, or all of them written out */
#include "ops/sampling.h"

#include "base/memory.h"
#include "base/threads.h"
#include "ops/kernels.h"

#include <math.h>
#include <string.h>

/* Rows between two questions whether to stop. */
#define ROWS_AT_ONCE ((size_t)64)
/* Side by side where the largest is looked for. */
#define LANES ((size_t)16)
/* Up to so many, the largest are kept in a heap. */
#define HEAP_MOST ((size_t)256)

/* ---- one row ---- */

typedef struct {
    float *scores;    /* [V]; while there are candidates, their scores [n] */
    int32_t *ids;     /* [V]: the candidates' [n], ascending */
    float *weights;   /* [V]: scratch, exp(score - max) */
    double *masses;   /* [BUCKETS]: scratch */
    size_t n;
    double log_sum;   /* log sum exp of the logits */
} candidate_row;

/* Whether a comes before b: the better one, of equals the smaller id. */
static bool precedes(float a, int32_t a_id, float b, int32_t b_id) {
    return a > b || (a == b && a_id < b_id);
}

/* Let what stands at `at` of the heap (its root the one that all others precede) sink to where it belongs. */
static void sink(float *scores, int32_t *ids, size_t n, size_t at) {
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= n) {
            return;
        }
        if (child + 1 < n && precedes(scores[child], ids[child], scores[child + 1], ids[child + 1])) {
            child++;
        }
        if (!precedes(scores[at], ids[at], scores[child], ids[child])) {
            return;
        }
        float score = scores[at];
        int32_t id = ids[at];
        scores[at] = scores[child], ids[at] = ids[child];
        scores[child] = score, ids[child] = id;
        at = child;
    }
}

/* heap, heap_ids [count] = the best of scores [n], as a heap; ids NULL: those are 0 .. n. count <= n, at least 1. */
static void take_best(float *heap, int32_t *heap_ids, size_t count, const float *scores, const int32_t *ids, size_t n) {
    for (size_t i = 0; i < count; i++) {
        heap[i] = scores[i];
        heap_ids[i] = ids != NULL ? ids[i] : (int32_t)i;
    }
    for (size_t at = count / 2; at-- > 0;) {
        sink(heap, heap_ids, count, at);
    }
    for (size_t i = count; i < n; i++) {
        if (scores[i] > heap[0]) {
            heap[0] = scores[i];
            heap_ids[0] = ids != NULL ? ids[i] : (int32_t)i;
            sink(heap, heap_ids, count, 0);
        }
    }
}

/* Best first. */
static void sort_heap(float *heap, int32_t *ids, size_t count) {
    for (size_t n = count; n-- > 1;) {
        float score = heap[0];
        int32_t id = ids[0];
        heap[0] = heap[n], ids[0] = ids[n];
        heap[n] = score, ids[n] = id;
        sink(heap, ids, n, 0);
    }
}

static float find_largest(const float *x, size_t n) {
    float best[LANES], all = x[0];
    size_t i = 0;
    for (size_t lane = 0; lane < LANES; lane++) {
        best[lane] = x[0];
    }
    for (; i + LANES <= n; i += LANES) {
        for (size_t lane = 0; lane < LANES; lane++) {
            best[lane] = x[i + lane] > best[lane] ? x[i + lane] : best[lane];
        }
    }
    for (; i < n; i++) {
        all = x[i] > all ? x[i] : all;
    }
    for (size_t lane = 0; lane < LANES; lane++) {
        all = best[lane] > all ? best[lane] : all;
    }
    return all;
}

/* row->scores and row->log_sum; false for a row with NaN or INFINITY, or without anything finite. */
static bool read_row(candidate_row *row, const float *logits, size_t V) {
    memcpy(row->weights, logits, V * sizeof *logits);
    memcpy(row->scores, logits, V * sizeof *logits);
    float factor = qv_product_here(QV_PRECISION_FLOAT32)->exponentiate(row->weights, 1.0f, V);
    row->log_sum = (double)find_largest(logits, V) - log((double)factor);
    return isfinite(row->log_sum);
}

/* Penalty, minimum length and temperature. A penalty reads the logits, so that an id counts once however often it stands. */
static void change_scores(float *scores, const float *before, const int64_t *ids, const qv_logits *in,
                          const qv_sampling *how) {
    const float penalty = how->repetition_penalty, temperature = how->temperature;
    for (size_t i = 0; penalty != 1.0f && i < in->L; i++) {
        float score = before[ids[i]];
        scores[ids[i]] = score < 0.0f ? score * penalty : score / penalty;
    }
    if (how->eos >= 0 && in->L < how->min_length) {
        scores[how->eos] = -INFINITY;
    }
    for (size_t i = 0; temperature != 1.0f && i < in->V; i++) {
        scores[i] /= temperature;
    }
}

/* The candidates: whatever is finite and not below `least`; none where a penalty or a temperature made one infinite. */
static void keep_from(candidate_row *row, float least, size_t V) {
    size_t kept = 0;
    bool overflow = false;
    for (size_t i = 0; i < V; i++) {
        float score = row->scores[i];
        overflow = overflow || score == INFINITY;
        if (score >= least && score > -INFINITY) {
            row->scores[kept] = score;
            row->ids[kept++] = (int32_t)i;
        }
    }
    row->n = overflow ? 0 : kept;
}

/* ---- the edge of what stays ---- */

#define BUCKETS ((size_t)2048)

/* The float's bits in an order that is that of the floats. */
static uint32_t ordered_bits(float x) {
    uint32_t bits;
    x += 0.0f; /* one zero */
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static float float_of(uint32_t ordered) {
    uint32_t bits = ordered & 0x80000000u ? ordered & 0x7FFFFFFFu : ~ordered;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Scores [n] sorted from the smallest up: the one, by its ordered bits, at which the sum of weights (NULL: all 1) up to and with
 * it passes `limit`; the largest if none does. *below = the sum before it. It is found by its bits, 11, 11 and 10 of them at a
 * time, so that nothing has to be sorted. masses [BUCKETS] is scratch. */
static uint32_t find_edge(double *below, double *masses, const float *scores, const float *weights, size_t n, double limit) {
    static const int shifts[] = {21, 10, 0}, known[] = {32, 21, 10};
    uint32_t prefix = 0;
    *below = 0.0;
    for (size_t level = 0; level < 3; level++) {
        const size_t buckets = level == 2 ? BUCKETS / 2 : BUCKETS;
        size_t last = 0, bucket = 0;
        memset(masses, 0, BUCKETS * sizeof *masses);
        for (size_t i = 0; i < n; i++) {
            uint32_t bits = ordered_bits(scores[i]);
            if (level == 0 || bits >> known[level] == prefix) {
                size_t own = (bits >> shifts[level]) & (buckets - 1);
                masses[own] += weights != NULL ? (double)weights[i] : 1.0;
                last = own > last ? own : last;
            }
        }
        for (; bucket < last && *below + masses[bucket] <= limit; bucket++) {
            *below += masses[bucket];
        }
        prefix = (level == 0 ? 0 : prefix << (known[level] - shifts[level])) | (uint32_t)bucket;
    }
    return prefix;
}

/* What is above the edge, and of what lies on it those behind a mass of `left`; at least the last. */
static void keep_above(candidate_row *row, uint32_t edge, double left) {
    size_t kept = 0, on_edge = 0;
    uint32_t top = 0;
    double mass = 0.0;
    for (size_t i = 0; i < row->n; i++) {
        uint32_t bits = ordered_bits(row->scores[i]);
        on_edge += bits == edge;
        top = bits > top ? bits : top;
    }
    for (size_t i = 0; i < row->n; i++) {
        uint32_t bits = ordered_bits(row->scores[i]);
        bool stays = bits > edge;
        if (bits == edge) {
            mass += (double)row->weights[i];
            on_edge--;
            stays = mass > left || (on_edge == 0 && edge == top);
        }
        if (stays) {
            row->scores[kept] = row->scores[i];
            row->ids[kept++] = row->ids[i];
        }
    }
    row->n = kept;
}

/* Sorted from the smallest up, candidates go as long as the mass up to and with them is at most (1 - p) of all. */
static void keep_top_p(candidate_row *row, double p) {
    double below, total = 0.0;
    memcpy(row->weights, row->scores, row->n * sizeof *row->scores);
    qv_product_here(QV_PRECISION_FLOAT32)->exponentiate(row->weights, 1.0f, row->n);
    for (size_t i = 0; i < row->n; i++) {
        total += (double)row->weights[i];
    }
    const double limit = total * (1.0 - p);
    uint32_t edge = find_edge(&below, row->masses, row->scores, row->weights, row->n, limit);
    keep_above(row, edge, limit - below);
}

/* The k-th largest of scores [V], k < V. */
static float find_least(candidate_row *row, size_t k, size_t V) {
    if (k <= HEAP_MOST) {
        take_best(row->weights, row->ids, k, row->scores, NULL, V);
        return row->weights[0];
    }
    double below;
    return float_of(find_edge(&below, row->masses, row->scores, NULL, V, (double)(V - k)));
}

/* Everything up to the candidates. `before` are the scores that the penalty reads. */
static void find_candidates(candidate_row *row, const float *before, const int64_t *ids, const qv_logits *in,
                            const qv_sampling *how) {
    change_scores(row->scores, before, ids, in, how);
    float least = -INFINITY;
    if (how->top_k != 0 && how->top_k < in->V) {
        least = find_least(row, how->top_k, in->V);
    }
    keep_from(row, least, in->V);
    if (how->top_p < 1.0 && row->n > 1) {
        keep_top_p(row, how->top_p);
    }
}

/* The place of the best candidate, of equals the first. */
static size_t best_of(const candidate_row *row) {
    const float best = find_largest(row->scores, row->n);
    size_t place = 0;
    while (row->scores[place] < best) {
        place++;
    }
    return place;
}

/* A candidate's place by its share of the softmax: where the sum of weights passes a random part of all of it. */
static size_t draw(candidate_row *row, const qv_random_key *key) {
    double uniform, total = 0.0, sum = 0.0;
    qv_random_uniforms(&uniform, key, 1);
    qv_product_here(QV_PRECISION_FLOAT32)->exponentiate(row->scores, 1.0f, row->n);
    for (size_t i = 0; i < row->n; i++) {
        total += (double)row->scores[i];
    }
    size_t last = 0;
    for (size_t i = 0; i < row->n; i++) {
        sum += (double)row->scores[i];
        if (sum > uniform * total) {
            return i;
        }
        last = row->scores[i] > 0.0f ? i : last;
    }
    return last;
}

/* ---- rows by rows ---- */

typedef struct {
    const qv_logits *in;
    const qv_sampling *how; /* NULL: the tokens are given */
    const qv_random_key *keys;
    candidate_row *lanes;
    size_t first;
    size_t count; /* of the best of each row; 0: one token a row */
    float *scores;
    int64_t *tokens;
    double *log_probabilities;
    bool *bad; /* [rows at once] */
} row_task;

static void write_best(const row_task *task, candidate_row *row, size_t r, const float *logits) {
    float *scores = task->scores + r * task->count;
    size_t count = task->count < row->n ? task->count : row->n;
    int32_t *ids = (int32_t *)row->weights; /* done with, and as large */
    take_best(scores, ids, count, row->scores, row->ids, row->n);
    sort_heap(scores, ids, count);
    for (size_t i = 0; i < task->count; i++) {
        size_t at = r * task->count + i;
        task->tokens[at] = i < count ? ids[i] : 0;
        task->log_probabilities[at] = i < count ? (double)logits[ids[i]] - row->log_sum : -(double)INFINITY;
        scores[i] = i < count ? scores[i] : -INFINITY;
    }
}

static void run_row(void *context, size_t number, size_t lane) {
    const row_task *task = context;
    const qv_logits *in = task->in;
    candidate_row *row = &task->lanes[lane];
    const size_t r = task->first + number, V = in->V;
    const float *logits = in->logits + r * V;
    if (!read_row(row, logits, V)) {
        task->bad[number] = true;
        return;
    }
    if (task->how == NULL) {
        task->log_probabilities[r] = (double)logits[in->ids[r]] - row->log_sum;
        return;
    }
    const float *before = logits;
    if (task->count != 0) {
        for (size_t i = 0; i < V; i++) {
            row->scores[i] = (float)((double)logits[i] - row->log_sum);
        }
        memcpy(row->weights, row->scores, V * sizeof *row->scores);
        before = row->weights;
    }
    find_candidates(row, before, in->ids + r * in->L, in, task->how);
    task->bad[number] = row->n == 0;
    if (row->n == 0) {
        return;
    }
    if (task->count != 0) {
        write_best(task, row, r, logits);
    } else if (task->tokens != NULL) {
        int32_t id = row->ids[task->keys != NULL ? draw(row, &task->keys[r]) : best_of(row)];
        task->tokens[r] = id;
        task->log_probabilities[r] = (double)logits[id] - row->log_sum;
    } else {
        float *out = task->scores + r * V;
        for (size_t i = 0; i < V; i++) {
            out[i] = -INFINITY;
        }
        for (size_t i = 0; i < row->n; i++) {
            out[row->ids[i]] = row->scores[i];
        }
    }
}

static qv_status check_rows(const qv_logits *in, qv_error *err) {
    if (in->V == 0 || in->V > INT32_MAX) {
        return qv_fail(err, QV_ERR_VALUE, "logits: %zu of them a row, expected 1 to 2^31 - 1", in->V);
    }
    for (size_t i = 0; i < in->R * in->L; i++) {
        if (in->ids[i] < 0 || in->ids[i] >= (int64_t)in->V) {
            return qv_fail(err, QV_ERR_VALUE, "ids: %lld is outside the vocabulary of %zu", (long long)in->ids[i], in->V);
        }
    }
    return QV_OK;
}

static qv_status check_settings(const qv_sampling *how, const qv_logits *in, qv_error *err) {
    if (!(how->repetition_penalty > 0.0f) || !isfinite(how->repetition_penalty)) {
        return qv_fail(err, QV_ERR_VALUE, "repetition_penalty: %g, expected a number above 0",
                       (double)how->repetition_penalty);
    }
    if (!(how->temperature > 0.0f) || !isfinite(how->temperature)) {
        return qv_fail(err, QV_ERR_VALUE, "temperature: %g, expected a number above 0", (double)how->temperature);
    }
    if (!(how->top_p > 0.0 && how->top_p <= 1.0)) {
        return qv_fail(err, QV_ERR_VALUE, "top_p: %g, expected a number above 0, to 1", how->top_p);
    }
    if (how->eos >= (int64_t)in->V) {
        return qv_fail(err, QV_ERR_VALUE, "eos: %lld, expected an id below %zu", (long long)how->eos, in->V);
    }
    return QV_OK;
}

/* `width` lanes, whose scratch the first one owns; NULL where there is no memory. */
static candidate_row *make_lanes(size_t width, size_t V) {
    size_t bytes;
    candidate_row *lanes = qv_allocate(width, sizeof *lanes);
    char *scratch = NULL;
    if (qv_multiply_size(V, 3 * sizeof(float), &bytes) &&
        qv_add_size(bytes, BUCKETS * sizeof(double) + QV_ALIGNMENT, &bytes)) {
        bytes = bytes / QV_ALIGNMENT * QV_ALIGNMENT;
        scratch = qv_allocate(width, bytes);
    }
    if (lanes == NULL || scratch == NULL) {
        qv_free(lanes);
        qv_free(scratch);
        return NULL;
    }
    for (size_t lane = 0; lane < width; lane++) {
        double *masses = (double *)(void *)(scratch + lane * bytes);
        float *scores = (float *)(masses + BUCKETS);
        lanes[lane] = (candidate_row){.masses = masses, .scores = scores, .weights = scores + V,
                                      .ids = (int32_t *)(scores + 2 * V)};
    }
    return lanes;
}

static qv_status run_rows(row_task *task, qv_poll poll, qv_error *err) {
    bool bad[ROWS_AT_ONCE] = {false};
    size_t width = qv_thread_count(), R = task->in->R;
    qv_status status = check_rows(task->in, err);
    if (status == QV_OK && task->how != NULL) {
        status = check_settings(task->how, task->in, err);
    }
    if (status != QV_OK) {
        return status;
    }
    task->lanes = make_lanes(width, task->in->V);
    if (task->lanes == NULL) {
        return qv_fail_memory(err, "the rows of a vocabulary");
    }
    task->bad = bad;
    for (task->first = 0; status == QV_OK && task->first < R; task->first += ROWS_AT_ONCE) {
        size_t rows = R - task->first < ROWS_AT_ONCE ? R - task->first : ROWS_AT_ONCE;
        qv_parallel(width, rows, run_row, task);
        for (size_t i = 0; status == QV_OK && i < rows; i++) {
            if (bad[i]) {
                status = qv_fail(err, QV_ERR_VALUE,
                                 "logits: row %zu holds NaN or infinity, or what the settings leave of it does, or they leave "
                                 "nothing", task->first + i);
            }
        }
        if (status == QV_OK && poll.stop != NULL && poll.stop(poll.context)) {
            status = qv_fail(err, QV_ERR_CANCELLED, "interrupted");
        }
    }
    qv_free(task->lanes[0].masses);
    qv_free(task->lanes);
    return status;
}

qv_status qv_process_logits(float *out, const qv_logits *in, const qv_sampling *how, qv_poll poll, qv_error *err) {
    row_task task = {.in = in, .how = how, .scores = out};
    return run_rows(&task, poll, err);
}

qv_status qv_next_tokens(int64_t *tokens, double *log_probabilities, const qv_logits *in, const qv_sampling *how,
                         const qv_random_key *keys, qv_poll poll, qv_error *err) {
    row_task task = {.in = in, .how = how, .keys = keys, .tokens = tokens, .log_probabilities = log_probabilities};
    return run_rows(&task, poll, err);
}

qv_status qv_best_tokens(float *scores, int64_t *tokens, double *log_probabilities, size_t count, const qv_logits *in,
                         const qv_sampling *how, qv_poll poll, qv_error *err) {
    row_task task = {.in = in, .how = how, .count = count, .scores = scores, .tokens = tokens,
                     .log_probabilities = log_probabilities};
    return run_rows(&task, poll, err);
}

qv_status qv_token_log_probabilities(double *log_probabilities, const qv_logits *in, qv_poll poll, qv_error *err) {
    row_task task = {.in = in, .log_probabilities = log_probabilities};
    return run_rows(&task, poll, err);
}
