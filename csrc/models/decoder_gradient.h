/* What a decoder's cross-attention reads, differentiated. */
#ifndef QV_MODELS_DECODER_GRADIENT_H
#define QV_MODELS_DECODER_GRADIENT_H

#include "models/decoder.h"

/* `count` texts, the first lengths[t] of ids [count, n] each, the start token first: at least 2. Text t reads its own
 * states_lengths[t] of the states [S, W], which lie one text's behind the other's. */
typedef struct {
    size_t count, n;
    const int64_t *ids;
    const size_t *lengths;
    const float *states;
    const size_t *states_lengths;
} qv_decoder_texts;

/* log_probabilities [sum of lengths[t] - 1]: of each token behind the first, given those before it. d_states [S, W]: the
 * gradient of each text's sum of them with respect to the states that it reads. QV_ERR_VALUE for an id out of range, a text
 * of another length than the decoder takes, and a decoder whose norms come first. */
qv_status qv_decoder_differentiate(qv_decoder *decoder, qv_call *call, float *log_probabilities, float *d_states,
                                   const qv_decoder_texts *texts, qv_error *err);

#endif
