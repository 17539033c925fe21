/* Decoders of text: BERT's with cross-attention (BLIP's captioner and answerer) and T5's are one model, whose parts may be
 * there or not; bert_decoder.c and t5_decoder.c say which, and how each is loaded. What is read once (a memory) and what
 * grows by a step (a cache) outlive a call. */
#ifndef QV_MODELS_DECODER_H
#define QV_MODELS_DECODER_H

#include "models/block.h"
#include "models/t5.h"
#include "models/text_encoder.h"

/* Immutable once loaded, but for the caches of arenas. */
typedef struct {
    const char *name;
    const qv_ops *ops;
    qv_precision precision;
    qv_block_kind kind; /* causal, with cross-attention */
    size_t width;       /* D */
    size_t vocab_size;  /* V; ids are below it */
    size_t max_tokens;  /* of a row; 0: the architecture has no limit */
    qv_tensor words;     /* [V, D] */
    qv_tensor positions; /* [max_tokens, D]; data NULL: none */
    qv_norm embedding_norm, final_norm; /* each may be empty */
    qv_vector offset_bias; /* [H, 2 reach + 1], as a text encoder's, or empty */
    size_t reach;
    qv_linear transform;    /* [D, D] in front of the head, activated, then normed; columns 0: none */
    qv_activation activation;
    qv_norm transform_norm;
    qv_linear head; /* [V, D] */
    qv_block *blocks; /* [L] */
    size_t L;
    qv_arena_cache arenas, kept; /* of calls; of memories and caches */
} qv_decoder;

void qv_decoder_free(qv_decoder *decoder);

/* ---- a memory: what cross-attention reads ---- */

/* Sequences of states one after another, as keys and values of every block; or, where so few tokens will read them that making
 * those costs more than it saves, as the states alone, which the blocks' weights then come to (absorbed attention). */
typedef struct {
    size_t count;  /* of sequences */
    size_t *start; /* [count + 1], in states */
    float *kv;     /* [L, S, 2 H d], or NULL: */
    qv_linear *states, *turned; /* [count] each: sequence b as a layer [S_b, W], and transposed, [W, S_b] */
    float *plain; /* [2, S, W]: what those may borrow */
    qv_kept kept;
} qv_decoder_memory;

/* Read states [S, W] of `count` sequences of lengths[b] states each. `tokens` is how many tokens are expected to read a
 * sequence, of all rows together; 0: any number. QV_ERR_VALUE for an empty sequence and for a state that is not finite.
 * On failure nothing is held. */
qv_status qv_decoder_read(qv_decoder *decoder, qv_call *call, qv_decoder_memory *memory, const float *states,
                          const size_t *lengths, size_t count, size_t tokens, qv_error *err);
void qv_decoder_memory_free(qv_decoder_memory *memory, qv_decoder *decoder);

/* ---- a cache: the rows that are being written ---- */

/* A sequence of a memory, which must outlive the cache. */
typedef struct {
    const qv_decoder_memory *memory;
    size_t sequence;
} qv_decoder_source;

/* Keys and values of the tokens so far. A row has a place of its own for them, which it keeps when others end. */
typedef struct {
    size_t rows, places, capacity; /* capacity: tokens of a row */
    size_t *place, *length;        /* [places], of a row */
    qv_decoder_source *source;     /* [places], of a row */
    int32_t *tokens;               /* [places, picked]: which states of its sequence a row sees; NULL: all */
    size_t picked;
    uint8_t *taken; /* [places]: for who shares them out */
    float *kv;      /* [L, places, capacity, 2 H d] */
    qv_kept kept;
} qv_decoder_cache;

/* `rows` empty rows; source [rows], tokens [rows, picked] or NULL. QV_ERR_VALUE for a capacity beyond max_tokens, for tokens
 * that a sequence does not have or of a memory without keys. On failure nothing is held. */
qv_status qv_decoder_begin(qv_decoder *decoder, qv_decoder_cache *cache, size_t rows, size_t capacity,
                           const qv_decoder_source *source, const int32_t *tokens, size_t picked, qv_error *err);
/* Row r becomes what row parents[r] was: beams, or rows that go on when others have ended. At least one row. */
qv_status qv_decoder_reorder(qv_decoder *decoder, qv_call *call, qv_decoder_cache *cache, const int32_t *parents,
                             size_t rows, qv_error *err);
void qv_decoder_cache_free(qv_decoder_cache *cache, qv_decoder *decoder);

/* ---- steps (decoder_step.c) ---- */

/* Tokens that every row of a cache goes on by: the first lengths[r] of ids [rows, n], at least one. */
typedef struct {
    const int64_t *ids;
    const size_t *lengths; /* NULL: n */
    size_t n;
} qv_decoder_tokens;

/* logits [rows, V] behind each row's last token; with `all` [rows, n, V] behind every token, zeros where a row has none.
 * QV_ERR_VALUE for an id out of range and for more tokens than a row has room for. What fails leaves the cache as it was. */
qv_status qv_decoder_step(qv_decoder *decoder, qv_call *call, float *logits, qv_decoder_cache *cache,
                          const qv_decoder_tokens *tokens, bool all, qv_error *err);
/* weights [rows, n, S]: how much each token attends to each state of its row's sequence (of the states picked, where there
 * are such), the mean over blocks and heads; zeros behind what a row has. The head is left out. */
qv_status qv_decoder_attend(qv_decoder *decoder, qv_call *call, float *weights, size_t S, qv_decoder_cache *cache,
                            const qv_decoder_tokens *tokens, qv_error *err);
/* The states that a row sees. */
size_t qv_decoder_states_seen(const qv_decoder_cache *cache, size_t row);

/* ---- loading ---- */

/* Sizes may be 0: then the weights say. */
typedef struct {
    qv_text_config sizes;
    size_t cross_width; /* W */
} qv_bert_decoder_config;
typedef struct {
    qv_t5_config sizes; /* num_layers: the decoder's */
    bool tied;          /* the head is the word table, on states times d_model^-1/2; else one of its own, where there is one */
} qv_t5_decoder_config;

/* Weights are named as in Hugging Face's BertLMHeadModel and T5ForConditionalGeneration, behind the loader's prefix. */
qv_status qv_bert_decoder_load(qv_decoder **decoder, const qv_bert_decoder_config *config, qv_loader *loader);
qv_status qv_t5_decoder_load(qv_decoder **decoder, const qv_t5_decoder_config *config, qv_loader *loader);

/* A new decoder with L blank blocks, loaded as `names` behind `blocks` "<n>."; NULL after a failure. */
qv_decoder *qv_decoder_create(qv_loader *loader, const char *name, const qv_block_kind *kind, size_t L, size_t vocab_size,
                              const qv_block_names *names, const char *blocks);
/* The end of every load: *out = decoder, or it is freed and what went wrong returned. */
qv_status qv_decoder_finish_load(qv_decoder **out, qv_decoder *decoder, qv_loader *loader);

#endif
