/* Whole models on the CPU's ops against the public codes' own numbers, on whatever CPU this was compiled for:
 * models_check CASES, a file that tests/core/write_cases.py wrote. scripts/cross.sh runs it under emulators. */
#include "base/blas.h"
#include "base/cpu.h"
#include "base/threads.h"
#include "check.h"
#include "models/blip_gradcam.h"
#include "models/t5.h"
#include "models/vit.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of the largest value. Observed: float32 3.4e-6 (QA-ViT, T5), 2.4e-6 (BLIP's embeddings and logits), 5.8e-6 (GradCAM); in
 * bfloat16, where the CPU has its products, 3.0e-2. */
#define FLOAT32 2e-5
#define BFLOAT16 1e-1

enum { BLOCKS = 6, QUESTIONS = 3, LANES = 2, MAX_TOKENS = 64, GRADCAM_BLOCK = 7 };

/* A tensor in the file: float32, little-endian, row-major. Ids are floats too. */
typedef struct {
    char name[128];
    uint64_t shape[QV_MAX_DIMS]; /* 0 behind the last size */
    uint64_t offset;             /* bytes from the start of the file */
} record;

static void check_status(qv_status status, const qv_error *err) {
    if (status != QV_OK) {
        puts(err->message);
        exit(2);
    }
}

static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    long size = file != NULL && fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    if (size <= 0) {
        puts("the file of cases cannot be read");
        exit(2);
    }
    rewind(file);
    char *bytes = take((size_t)size, 1);
    if (fread(bytes, 1, (size_t)size, file) != (size_t)size) {
        puts("the file of cases cannot be read");
        exit(2);
    }
    fclose(file);
    return bytes;
}

/* The file's tensors, which lie there sorted by name: their count, then a record each, then their items. */
static qv_tensor *list_tensors(const char *bytes, size_t *count) {
    uint64_t records;
    memcpy(&records, bytes, sizeof records);
    const record *entries = (const record *)(const void *)(bytes + sizeof records);
    qv_tensor *tensors = take(records, sizeof *tensors);
    for (size_t i = 0; i < records; i++) {
        tensors[i] = (qv_tensor){.name = entries[i].name, .dtype = QV_FLOAT32, .data = bytes + entries[i].offset};
        for (size_t dim = 0; dim < QV_MAX_DIMS && entries[i].shape[dim] != 0; dim++) {
            tensors[i].shape[tensors[i].dims++] = entries[i].shape[dim];
        }
    }
    *count = records;
    return tensors;
}

/* The tensor of a formatted name, which has to be there. */
__attribute__((format(printf, 2, 3)))
static const qv_tensor *get(const qv_weights *cases, const char *format, ...) {
    char name[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    const qv_tensor *tensor = qv_weights_peek(cases, name);
    if (tensor == NULL) {
        printf("%s is missing\n", name);
        exit(2);
    }
    return tensor;
}

/* `found` against `count` items of the tensor from `first` on. */
static void compare_part(const char *what, size_t number, const float *found, const qv_tensor *tensor, size_t first,
                         size_t count, double tolerance) {
    const float *items = tensor->data;
    double *expected = take(count, sizeof *expected);
    for (size_t i = 0; i < count; i++) {
        expected[i] = (double)items[first + i];
    }
    char line[96];
    snprintf(line, sizeof line, "%s %zu", what, number);
    compare(line, found, expected, count, tolerance);
    qv_free(expected);
}

static void compare_tensor(const char *what, size_t number, const float *found, const qv_tensor *tensor,
                           double tolerance) {
    compare_part(what, number, found, tensor, 0, qv_tensor_count(tensor), tolerance);
}

/* ---- QA-ViT: from a question's ids through T5 and every block ---- */

typedef struct {
    qv_text_encoder *text;
    qv_vit vision;
} qavit_model;

static void load_qavit(qavit_model *model, qv_weights *cases, qv_precision precision) {
    const bool integrated[BLOCKS] = {false, false, false, true, true, true};
    const qv_t5_config text = {.max_distance = 16, .activation = QV_GELU_TANH, .gated = true, .eps = 1e-6f};
    const qv_vit_config vision = {.height = 70, .width = 70, .patch_size = 14, .D = 64, .H = 4, .L = BLOCKS, .F = 160,
                                  .eps = 1e-5f, .pre_norm_eps = 1e-5f, .post_norm_eps = 1e-5f,
                                  .activation = QV_QUICK_GELU,
                                  .instruction_dim = 48, .integrated = integrated};
    qv_error err;
    qv_loader loader = {.weights = cases, .prefix = "text_model.", .ops = &qv_cpu_ops, .precision = precision, .err = &err};
    check_status(qv_t5_load(&model->text, &text, &loader), &err);
    loader.prefix = "vision_model.";
    check_status(qv_vit_load(&model->vision, &vision, &loader), &err);
    qv_pool_close(&loader.pool);
}

static void ask_qavit(const qavit_model *model, const qv_weights *cases, size_t q, double tolerance) {
    const qv_tensor *ids = get(cases, "late.q%zu_ids", q), *image = get(cases, "late.image");
    size_t M = ids->shape[1], T = model->vision.T, D = model->vision.config.D;
    int64_t tokens[MAX_TOKENS];
    for (size_t m = 0; m < M && m < MAX_TOKENS; m++) {
        tokens[m] = (int64_t)((const float *)ids->data)[m];
    }
    float *states = take(M * model->text->width, sizeof *states), *pooled = take(D, sizeof *pooled);
    qv_error err;
    qv_call call = {.ops = &qv_cpu_ops, .lanes = LANES};
    check_status(qv_text_encode(model->text, &call, states, tokens, NULL, 1, M, &err), &err);
    compare_tensor("T5, states of question", q, states, get(cases, "late.q%zu_instruct", q), tolerance);

    qv_vit_tap taps[BLOCKS];
    for (size_t l = 0; l < BLOCKS; l++) {
        size_t keys = get(cases, "late.q%zu_attn%zu", q, l)->shape[3];
        taps[l] = (qv_vit_tap){.attention = take(model->vision.config.H * T * keys, sizeof(float)), .row_count = T,
                               .column_count = keys, .hidden = take(T * D, sizeof(float))};
    }
    const size_t pair_image[] = {0}, lengths[] = {M};
    const qv_vit_request request = {.images = {.pixels = (const float *)image->data + q * qv_tensor_count(image) / QUESTIONS,
                                               .count = 1},
                                    .pair_image = pair_image, .pair_count = 1, .instruct = states,
                                    .instruct_length = lengths, .M = M, .taps = taps, .pooled = pooled};
    call = (qv_call){.ops = &qv_cpu_ops, .lanes = LANES};
    check_status(qv_vit_forward(&model->vision, &call, &request, &err), &err);
    for (size_t l = 0; l < BLOCKS; l++) {
        compare_tensor("QA-ViT, attention of block", l, taps[l].attention, get(cases, "late.q%zu_attn%zu", q, l),
                       tolerance);
        compare_tensor("QA-ViT, hidden states of block", l, taps[l].hidden,
                       get(cases, "late.q%zu_hidden%zu", q, l + 1), tolerance);
        qv_free(taps[l].attention);
        qv_free(taps[l].hidden);
    }
    compare_tensor("QA-ViT, pooled output of question", q, pooled, get(cases, "late.q%zu_pooled", q), tolerance);
    qv_free(states);
    qv_free(pooled);
}

static void check_qavit(qv_weights *cases, qv_precision precision, double tolerance) {
    qavit_model model;
    load_qavit(&model, cases, precision);
    for (size_t q = 0; q < QUESTIONS; q++) {
        ask_qavit(&model, cases, q, tolerance);
    }
    qv_text_free(model.text);
    qv_vit_free(&model.vision);
}

/* ---- BLIP: from pixels to GradCAM ---- */

static void ask_blip(const qv_blip *model, const qv_weights *cases, size_t q, double tolerance) {
    const qv_tensor *pixels = get(cases, "blip.pixels"), *ids = get(cases, "blip.ids"), *mask = get(cases, "blip.mask");
    const qv_tensor *embeddings = get(cases, "blip.image_embeds"), *expected = get(cases, "blip.gradcams_block7");
    size_t M = ids->shape[1], P = model->vision.P, start[] = {0, 0};
    int32_t tokens[MAX_TOKENS];
    for (size_t m = 0; m < M && m < MAX_TOKENS; m++) {
        if (((const float *)mask->data)[q * M + m] > 0.0f) {
            tokens[start[1]++] = (int32_t)((const float *)ids->data)[q * M + m];
        }
    }
    size_t embedded = qv_tensor_count(embeddings) / QUESTIONS;
    float *found = take(embedded, sizeof *found), *map = take(P, sizeof *map), logits[2];
    qv_blip_image image, *const images[] = {&image};
    qv_error err;
    qv_call call = {.ops = &qv_cpu_ops, .lanes = LANES};
    check_status(qv_blip_image_allocate(&image, model, &err), &err);
    const float *image_pixels = (const float *)pixels->data + q * qv_tensor_count(pixels) / QUESTIONS;
    const qv_vit_images from = {.pixels = image_pixels, .count = 1};
    check_status(qv_blip_embed_images(model, &call, images, &from, &err), &err);
    check_status(qv_blip_get_embeddings(model, &call, found, &image, &err), &err);
    check_status(qv_blip_cross_attend(model, &call, images, 1, &err), &err);
    const qv_blip_image *const seen[] = {&image};
    const qv_blip_questions question = {1, tokens, start, seen};
    const qv_gradcam_maps out = {map, NULL, logits};
    check_status(qv_blip_gradcam(model, &call, &out, &question, GRADCAM_BLOCK, NULL, &err), &err);
    compare_part("BLIP, embeddings of image", q, found, embeddings, q * embedded, embedded, tolerance);
    compare_part("BLIP, logits of question", q, logits, get(cases, "blip.itm_logits"), 2 * q, 2, tolerance);
    compare_part("BLIP, GradCAM of question", q, map, expected, q * P, P, tolerance);
    qv_blip_image_free(&image, model);
    qv_free(found);
    qv_free(map);
}

static void check_blip(qv_weights *cases, qv_precision precision, size_t questions, double tolerance) {
    qv_blip_config config = {.H = 12, .text_blocks = 0, .closing = 1, .eps = 1e-12f, .activation = QV_GELU};
    config.vision = (qv_vit_config){.height = 384, .width = 384, .patch_size = 16, .D = 32, .H = 4, .L = 3, .F = 128,
                                    .eps = 1e-6f, .post_norm_eps = 1e-6f, .activation = QV_GELU};
    qv_blip model;
    qv_error err;
    qv_loader loader = {.weights = cases, .prefix = "blip.", .ops = &qv_cpu_ops, .precision = precision, .err = &err};
    check_status(qv_blip_load(&model, &config, &loader), &err);
    qv_pool_close(&loader.pool);
    for (size_t q = 0; q < questions; q++) {
        ask_blip(&model, cases, q, tolerance);
    }
    qv_blip_free(&model);
}

int main(int count, char **arguments) {
    qv_error err;
    check_status(qv_cpu_check(&err), &err);
    check_status(qv_blas_start(&err), &err);
    if (count != 2) {
        puts("usage: models_check CASES");
        return 2;
    }
    qv_set_thread_count(LANES);
    printf("kernels %s, bfloat16 %s, int8 %s, %s\n", qv_cpu_kernels(QV_PRECISION_FLOAT32),
           qv_cpu_kernels(QV_PRECISION_BFLOAT16), qv_cpu_kernels(QV_PRECISION_INT8), qv_blas_kernels());
    char *bytes = read_file(arguments[1]);
    qv_weights cases = {0};
    qv_tensor *tensors = list_tensors(bytes, &cases.count);
    cases.tensors = tensors;
    bool rounds = qv_cpu_ops.computes_in(&qv_cpu_ops, QV_PRECISION_BFLOAT16) == QV_PRECISION_BFLOAT16;
    double low = rounds ? BFLOAT16 : FLOAT32;
    check_qavit(&cases, QV_PRECISION_FLOAT32, FLOAT32);
    check_qavit(&cases, QV_PRECISION_BFLOAT16, low);
    check_blip(&cases, QV_PRECISION_FLOAT32, QUESTIONS, FLOAT32);
    check_blip(&cases, QV_PRECISION_BFLOAT16, 1, low);
    qv_free(tensors);
    qv_free(bytes);
    return report_failures();
}
