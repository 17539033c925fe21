/* The core among threads, without Python: what scripts/tsan.sh builds with ThreadSanitizer and runs.
 *
 * 1. qv_parallel from several threads at once: each task once, no two tasks on one lane at a time
 * 2. QA-ViT, T5 and BLIP's GradCAM from several threads on one model each, while
 * 3. one thread changes the pool's width and another makes, runs and frees models over the same weights
 * Every result must be what one thread got before. Exit status 0: all was well. */
#include "base/blas.h"
#include "base/threads.h"
#include "models/blip_gradcam.h"
#include "models/t5.h"
#include "models/vit.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { D = 64, HEADS = 4, F = 128, IMAGE = 28, PATCH = 7, T = 17, WORDS = 50, DT = 48, IMAGES = 3, PAIRS = 5, M = 6 };
enum { ROWS = 8, LENGTH = 20, BLOCKS = 3, MAX_TENSORS = 256, CALLERS = 4 };

static atomic_int failures;

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    atomic_fetch_add(&failures, 1);
}

static void check(qv_status status, const qv_error *err) {
    if (status != QV_OK) {
        fail(err->message);
        exit(1);
    }
}

/* ---- weights ---- */

typedef struct {
    qv_tensor tensors[MAX_TENSORS];
    char names[MAX_TENSORS][128];
    size_t count;
    unsigned state;
} weight_set;

static float next_random(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (float)(1 << 24) - 0.5f;
}

/* A tensor of random items: norms' weights near one, the rest small. */
__attribute__((format(printf, 4, 5)))
static void add(weight_set *set, size_t dims, const size_t *shape, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(set->names[set->count], sizeof set->names[0], format, arguments);
    va_end(arguments);
    size_t count = 1;
    qv_tensor *tensor = &set->tensors[set->count];
    *tensor = (qv_tensor){.name = set->names[set->count], .dtype = QV_FLOAT32, .dims = dims};
    for (size_t i = 0; i < dims; i++) {
        tensor->shape[i] = shape[i];
        count *= shape[i];
    }
    float *data = malloc(count * sizeof *data);
    if (data == NULL) {
        exit(1);
    }
    for (size_t i = 0; i < count; i++) {
        data[i] = 0.3f * next_random(&set->state);
    }
    tensor->data = data;
    set->count++;
}

static void add_vector(weight_set *set, const char *prefix, const char *name, size_t n) {
    add(set, 1, &n, "%s%s", prefix, name);
}

static void add_matrix(weight_set *set, const char *prefix, const char *name, size_t rows, size_t columns) {
    add(set, 2, (size_t[]){rows, columns}, "%s%s", prefix, name);
}

/* name.weight [rows, columns] and name.bias [rows]; columns 0: a norm */
static void add_layer(weight_set *set, const char *prefix, const char *name, size_t rows, size_t columns) {
    add(set, columns == 0 ? 1 : 2, (size_t[]){rows, columns}, "%s%s.weight", prefix, name);
    add(set, 1, &rows, "%s%s.bias", prefix, name);
}

static void add_vit(weight_set *set) {
    const char *parts[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"};
    add_vector(set, "vision_model.", "embeddings.class_embedding", D);
    add(set, 4, (size_t[]){D, 3, PATCH, PATCH}, "vision_model.embeddings.patch_embedding.weight");
    add_matrix(set, "vision_model.", "embeddings.position_embedding.weight", T, D);
    add_layer(set, "vision_model.", "pre_layrnorm", D, 0);
    add_layer(set, "vision_model.", "post_layernorm", D, 0);
    for (size_t i = 0; i < BLOCKS; i++) {
        char block[64];
        snprintf(block, sizeof block, "vision_model.encoder.layers.%zu.", i);
        for (size_t part = 0; part < 4; part++) {
            add_layer(set, block, parts[part], D, D);
        }
        add_layer(set, block, "layer_norm1", D, 0);
        add_layer(set, block, "layer_norm2", D, 0);
        add_layer(set, block, "mlp.fc1", F, D);
        add_layer(set, block, "mlp.fc2", D, F);
        if (i > 0) {
            add_layer(set, block, "self_attn.instruction_out_proj", D, D);
            add_vector(set, block, "self_attn.instruction_proj_gate", 1);
            add_layer(set, block, "instruct_dim_reduce.0", DT, 0);
            add_matrix(set, block, "instruct_dim_reduce.1.weight", D, DT);
            add_matrix(set, block, "instruct_dim_reduce.3.weight", D, D);
        }
    }
}

static void add_t5(weight_set *set) {
    const char *prefix = "text_model.";
    add_matrix(set, prefix, "shared.weight", WORDS, D);
    add_vector(set, prefix, "encoder.final_layer_norm.weight", D);
    add_matrix(set, prefix, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 32, HEADS);
    for (size_t i = 0; i < BLOCKS; i++) {
        char block[64];
        snprintf(block, sizeof block, "text_model.encoder.block.%zu.layer.", i);
        add_vector(set, block, "0.layer_norm.weight", D);
        add_vector(set, block, "1.layer_norm.weight", D);
        add_matrix(set, block, "0.SelfAttention.q.weight", D, D);
        add_matrix(set, block, "0.SelfAttention.k.weight", D, D);
        add_matrix(set, block, "0.SelfAttention.v.weight", D, D);
        add_matrix(set, block, "0.SelfAttention.o.weight", D, D);
        add_matrix(set, block, "1.DenseReluDense.wi.weight", F, D);
        add_matrix(set, block, "1.DenseReluDense.wo.weight", D, F);
    }
}

/* The text half: the vision half is that of the other model, without its questions. */
static void add_blip(weight_set *set) {
    const char *parts[] = {"query", "key", "value"}, *text = "text_encoder.embeddings.";
    for (size_t i = 0; i < BLOCKS; i++) {
        char block[64];
        snprintf(block, sizeof block, "text_encoder.encoder.layer.%zu.", i);
        for (size_t part = 0; part < 3; part++) {
            char name[64];
            snprintf(name, sizeof name, "attention.self.%s", parts[part]);
            add_layer(set, block, name, D, D);
            snprintf(name, sizeof name, "crossattention.self.%s", parts[part]);
            add_layer(set, block, name, D, D);
        }
        const char *outs[] = {"attention.output", "crossattention.output"};
        for (size_t part = 0; part < 2; part++) {
            char name[64];
            snprintf(name, sizeof name, "%s.dense", outs[part]);
            add_layer(set, block, name, D, D);
            snprintf(name, sizeof name, "%s.LayerNorm", outs[part]);
            add_layer(set, block, name, D, 0);
        }
        add_layer(set, block, "intermediate.dense", F, D);
        add_layer(set, block, "output.dense", D, F);
        add_layer(set, block, "output.LayerNorm", D, 0);
    }
    add_matrix(set, text, "word_embeddings.weight", WORDS, D);
    add_matrix(set, text, "position_embeddings.weight", LENGTH, D);
    add_layer(set, text, "LayerNorm", D, 0);
    add_layer(set, "", "itm_head", 2, D);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(((const qv_tensor *)a)->name, ((const qv_tensor *)b)->name);
}

/* ---- models and what they are asked ---- */

typedef struct {
    qv_vit vit;
    qv_text_encoder *t5;
    qv_blip blip;
} models;

static void make_models(models *made, const weight_set *set) {
    const bool integrated[BLOCKS] = {false, true, true};
    const qv_vit_config vision = {.height = IMAGE, .width = IMAGE, .patch_size = PATCH, .D = D, .H = HEADS,
                                  .L = BLOCKS, .F = F, .eps = 1e-5f, .pre_norm_eps = 1e-5f, .post_norm_eps = 1e-5f,
                                  .activation = QV_QUICK_GELU,
                                  .instruction_dim = DT, .integrated = integrated};
    const qv_t5_config text = {.num_heads = HEADS, .max_distance = 128, .activation = QV_RELU, .eps = 1e-6f};
    qv_blip_config blip = {
        .vision = vision, .H = HEADS, .text_blocks = BLOCKS, .closing = 1, .eps = 1e-12f, .activation = QV_GELU,
    };
    blip.vision.instruction_dim = 0;
    blip.vision.integrated = NULL;
    qv_weights weights = {.tensors = set->tensors, .count = set->count};
    qv_error err;
    qv_loader loader = {.weights = &weights, .prefix = "vision_model.", .ops = &qv_cpu_ops, .err = &err};
    check(qv_vit_load(&made->vit, &vision, &loader), &err);
    loader.prefix = "text_model.";
    check(qv_t5_load(&made->t5, &text, &loader), &err);
    loader.prefix = "";
    loader.precision = QV_PRECISION_BFLOAT16;
    check(qv_blip_load(&made->blip, &blip, &loader), &err);
    qv_pool_close(&loader.pool);
}

static void free_models(models *made) {
    qv_vit_free(&made->vit);
    qv_text_free(made->t5);
    qv_blip_free(&made->blip);
}

typedef struct {
    float attention[PAIRS * HEADS * T * (M + T)];
    float pooled[PAIRS * D];
    float states[ROWS * LENGTH * D];
    float maps[2 * (T - 1)];
    float logits[4];
} results;

/* What is asked of the models: shared by all threads, only read. */
typedef struct {
    float images[IMAGES * 3 * IMAGE * IMAGE];
    float instruct[PAIRS * M * DT];
    int64_t ids[ROWS * LENGTH];
    int32_t tokens[11];
} questions;

static bool keep_going(void *context) {
    (void)context;
    return false;
}

static void ask(const models *made, const questions *asked, results *out) {
    static const size_t pair_image[PAIRS] = {0, 0, 1, 2, 2}, lengths[PAIRS] = {6, 2, 6, 1, 4}, starts[] = {0, 4, 11};
    qv_vit_tap taps[BLOCKS] = {{0}};
    taps[2] = (qv_vit_tap){.attention = out->attention, .row_count = T, .column_count = M + T};
    const qv_vit_request request = {.images = {.pixels = asked->images, .count = IMAGES}, .pair_image = pair_image,
                                    .pair_count = PAIRS, .instruct = asked->instruct, .instruct_length = lengths,
                                    .M = M, .taps = taps, .pooled = out->pooled};
    qv_error err;
    qv_call call = {.ops = &qv_cpu_ops, .lanes = qv_thread_count(), .poll = keep_going, .polls_in_ops = true};
    check(qv_vit_forward(&made->vit, &call, &request, &err), &err);
    call = (qv_call){.lanes = qv_thread_count(), .poll = keep_going, .polls_in_ops = true};
    check(qv_text_encode(made->t5, &call, out->states, asked->ids, NULL, ROWS, LENGTH, &err), &err);
    qv_blip_image image, *const images[] = {&image};
    check(qv_blip_image_allocate(&image, &made->blip, &err), &err);
    call = (qv_call){.ops = &qv_cpu_ops, .lanes = qv_thread_count(), .poll = keep_going, .polls_in_ops = true};
    const qv_vit_images from = {.pixels = asked->images, .count = 1};
    check(qv_blip_embed_images(&made->blip, &call, images, &from, &err), &err);
    check(qv_blip_cross_attend(&made->blip, &call, images, 1, &err), &err);
    const qv_blip_image *const seen[] = {&image, &image};
    const qv_blip_questions texts = {2, asked->tokens, starts, seen};
    const qv_gradcam_maps maps = {out->maps, NULL, out->logits};
    check(qv_blip_gradcam(&made->blip, &call, &maps, &texts, 0, NULL, &err), &err);
    qv_blip_image_free(&image, &made->blip);
}

/* A kernel may cut a product elsewhere at another width: equal to 1e-4 of the largest value. */
static void compare(const float *found, const float *expected, size_t n, const char *what) {
    float largest = 0.0f, difference = 0.0f;
    for (size_t i = 0; i < n; i++) {
        largest = fmaxf(largest, fabsf(expected[i]));
        difference = fmaxf(difference, fabsf(found[i] - expected[i]));
    }
    if (!(difference <= 1e-4f * largest) || largest <= 0.0f) {
        fail(what);
    }
}

static void compare_all(const results *found, const results *expected) {
    compare(found->attention, expected->attention, sizeof found->attention / 4, "attention differs");
    compare(found->pooled, expected->pooled, sizeof found->pooled / 4, "pooled differs");
    compare(found->states, expected->states, sizeof found->states / 4, "states differ");
    compare(found->maps, expected->maps, sizeof found->maps / 4, "GradCAM differs");
    compare(found->logits, expected->logits, sizeof found->logits / 4, "logits differ");
}

/* ---- threads ---- */

typedef struct {
    const weight_set *set;
    const models *shared;
    const questions *asked;
    const results *expected;
    size_t rounds;
    atomic_bool done;
} work;

static void *call_models(void *context) {
    const work *w = context;
    results *out = malloc(sizeof *out);
    for (size_t i = 0; out != NULL && i < w->rounds; i++) {
        memset(out, 0, sizeof *out);
        ask(w->shared, w->asked, out);
        compare_all(out, w->expected);
    }
    free(out);
    return NULL;
}

static void *make_and_free(void *context) {
    work *w = context;
    results *out = malloc(sizeof *out);
    models *own = malloc(sizeof *own);
    while (out != NULL && own != NULL && !atomic_load(&w->done)) {
        make_models(own, w->set);
        ask(own, w->asked, out);
        compare_all(out, w->expected);
        free_models(own);
    }
    free(own);
    free(out);
    return NULL;
}

static void *change_width(void *context) {
    work *w = context;
    for (size_t i = 0; !atomic_load(&w->done); i++) {
        qv_set_thread_count(1 + i % 5);
        const struct timespec pause = {0, 200000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

enum { TASKS = 97, LANES = 4 };

/* Not atomic, on purpose: two tasks on one lane, or a task run twice, are a race. */
typedef struct {
    int runs[TASKS], on_lane[LANES];
} tally;

static void count_task(void *context, size_t task, size_t lane) {
    tally *counted = context;
    counted->runs[task]++;
    counted->on_lane[lane]++;
}

static void *call_pool(void *context) {
    const work *w = context;
    for (size_t i = 0; i < 200 * w->rounds; i++) {
        tally counted = {{0}, {0}};
        size_t width = 1 + i % LANES, tasks = i % (TASKS + 1);
        qv_parallel(width, tasks, count_task, &counted);
        int sum = 0;
        for (size_t lane = 0; lane < LANES; lane++) {
            sum += counted.on_lane[lane];
        }
        for (size_t task = 0; task < TASKS; task++) {
            if (counted.runs[task] != (task < tasks)) {
                fail("a task ran twice, or not at all");
            }
        }
        if (sum != (int)tasks) {
            fail("lanes and tasks do not add up");
        }
    }
    return NULL;
}

static void run_threads(work *w, void *(*const body[])(void *), size_t callers, size_t others) {
    pthread_t threads[2 * CALLERS];
    atomic_store(&w->done, false);
    for (size_t i = 0; i < callers + others; i++) {
        if (pthread_create(&threads[i], NULL, body[i < callers ? 0 : i - callers + 1], w) != 0) {
            fail("no thread could be started");
            exit(1);
        }
    }
    for (size_t i = 0; i < callers + others; i++) {
        if (i == callers) {
            atomic_store(&w->done, true);
        }
        pthread_join(threads[i], NULL);
    }
}

int main(int count, char **arguments) {
    static weight_set set = {.state = 1};
    static questions asked;
    static models shared;
    static results expected;
    qv_error err;
    work w = {&set, &shared, &asked, &expected, count > 1 ? (size_t)strtoul(arguments[1], NULL, 10) : 40, false};
    check(qv_blas_start(&err), &err);
    add_vit(&set);
    add_t5(&set);
    add_blip(&set);
    qsort(set.tensors, set.count, sizeof set.tensors[0], compare_names);
    unsigned state = 7;
    for (size_t i = 0; i < sizeof asked.images / sizeof asked.images[0]; i++) {
        asked.images[i] = next_random(&state);
    }
    for (size_t i = 0; i < sizeof asked.instruct / sizeof asked.instruct[0]; i++) {
        asked.instruct[i] = next_random(&state);
    }
    for (size_t i = 0; i < ROWS * LENGTH; i++) {
        asked.ids[i] = (int64_t)(i * 7 % WORDS);
        asked.tokens[i % 11] = (int32_t)(i * 5 % WORDS);
    }
    qv_set_thread_count(1);
    make_models(&shared, &set);
    ask(&shared, &asked, &expected);
    qv_set_thread_count(3);
    run_threads(&w, (void *(*const[])(void *)){call_pool}, CALLERS, 0);
    run_threads(&w, (void *(*const[])(void *)){call_models, make_and_free, change_width}, CALLERS, 2);
    free_models(&shared);
    for (size_t i = 0; i < set.count; i++) {
        free((void *)(uintptr_t)set.tensors[i].data);
    }
    printf("%zu rounds in %d threads: %d failures\n", w.rounds, CALLERS, atomic_load(&failures));
    return atomic_load(&failures) == 0 ? 0 : 1;
}
