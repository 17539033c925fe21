/* From named weights to what a model computes with, one way for every model: names are joined, sizes are read off the
 * weights, what is missing gathers in one error, and nothing more is prepared after the first failure. */
#ifndef QV_MODELS_LOADING_H
#define QV_MODELS_LOADING_H

#include "base/error.h"
#include "base/tensor.h"
#include "ops/ops.h"

/* Where a layer stands: in a model of int8, what is not in a block computes in bfloat16, and so does a block's last layer, whose
 * input has the widest range, in one of int8_mixed. */
typedef enum { QV_OUTSIDE_BLOCKS, QV_IN_BLOCK, QV_LAST_OF_BLOCK } qv_layer_place;

typedef struct {
    qv_weights *weights; /* borrowed: they must outlive what is loaded */
    const char *prefix;  /* in front of every name */
    const qv_ops *ops;
    qv_precision precision;
    qv_pool pool;         /* of the layers' weights; who makes the loader closes it */
    qv_layer_place place; /* of the layers that are loaded next */
    qv_poll poll; /* asked before each layer */
    qv_error *err;
    qv_status status; /* the first failure, as in err */
} qv_loader;

/* A tensor's name is prefix + stem + name; linear layers and norms have a ".weight" and may have a ".bias" behind it. */
bool qv_load_has(const qv_loader *loader, const char *stem, const char *name);
/* Its size in dimension `dim`; 0 where it is missing or has no such dimension. */
size_t qv_load_size(const qv_loader *loader, const char *stem, const char *name, size_t dim);
/* How many blocks 0, 1, .. there are: those that have a tensor stem + "<n>." + name. */
size_t qv_load_count(const qv_loader *loader, const char *stem, const char *name);

/* A size that the weights tell, where the config leaves it open (0). */
typedef struct {
    const char *key; /* the config's */
    size_t *size;
    size_t found; /* in the weights; 0: nothing */
} qv_found_size;
/* QV_ERR_VALUE where neither says it, or the two differ. `what` names the model. */
qv_status qv_load_sizes(qv_loader *loader, const char *what, const qv_found_size *sizes, size_t count);

/* The tensor, of exactly this shape: [rows, columns], or [rows] with columns 0. NULL, and noted as missing, where there
 * is none. */
const qv_tensor *qv_load_tensor(qv_loader *loader, const char *stem, const char *name, size_t rows, size_t columns);
/* A vector, or a table [rows, columns], in the ops' memory. */
void qv_load_vector(qv_loader *loader, qv_vector *vector, const char *stem, const char *name, size_t rows,
                    size_t columns);
/* A table that is looked up by id: the view itself. */
void qv_load_table(qv_loader *loader, qv_tensor *table, const char *name, size_t rows, size_t columns);
/* An RMS norm has no bias. */
void qv_load_norm(qv_loader *loader, qv_norm *norm, const char *stem, const char *name, qv_norm_kind kind, size_t D,
                  float eps);

typedef enum { QV_BIAS, QV_NO_BIAS, QV_BIAS_IF_THERE } qv_bias_rule;
/* Where a layer [columns, depth] comes from. */
qv_linear_source qv_load_source(qv_loader *loader, const char *stem, const char *name, size_t columns, size_t depth,
                                qv_bias_rule bias);
void qv_load_layer(qv_loader *loader, qv_linear *layer, const qv_linear_source *sources, size_t parts);
/* Up to QV_MAX_PARTS layers of [columns, depth] each, one after the other. */
void qv_load_linear(qv_loader *loader, qv_linear *layer, const char *stem, const char *const *names, size_t parts,
                    size_t columns, size_t depth, qv_bias_rule bias);

/* A layer [., depth], with or without a bias, that lies beside the model's own tensors: its name has the prefix without a last
 * `inner` ("text_model."). Where the weights have none, nothing happens. */
void qv_load_beside(qv_loader *loader, qv_linear *layer, const char *inner, const char *name, size_t depth);

/* What a layer of this place is to compute in. */
qv_precision qv_load_precision(const qv_loader *loader, qv_layer_place place);

/* The layers from here on are used together, after those before them. */
void qv_load_next_block(qv_loader *loader);

/* `count` items of `size` bytes, all zero; NULL after a failure. */
void *qv_load_allocate(qv_loader *loader, size_t count, size_t size, const char *what);

/* The end of every load: the first failure, or the list of missing tensors. */
qv_status qv_load_finish(qv_loader *loader, const char *what);

#endif
