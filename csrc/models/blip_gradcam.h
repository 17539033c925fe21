/* GradCAM of image-text matching: where in the image it finds a question's words. */
#ifndef QV_MODELS_BLIP_GRADCAM_H
#define QV_MODELS_BLIP_GRADCAM_H

#include "models/blip_text.h"

typedef struct {
    float *maps;   /* [Q, P]: the mean over a question's words, or queries */
    float *tokens; /* [R, P]: each token's own, or [Q queries, P]: each query's; or NULL */
    float *logits; /* [Q, 2], or NULL: a question encoder has none */
} qv_gradcam_maps;

/* With A the cross-attention probabilities of `block` [H, R, S] and G the gradient of logits[:, 1] with respect to them:
 * a token's map is the mean over heads of A max(G, 0) over the patches; a question's is the mean over its words, the
 * tokens behind the first and in front of the closing one, or over the queries in their place. A question without words has
 * its first token's map.
 * Of a question encoder G is what follows from d_states [R, D], the gradient of the states that leave the last block.
 * QV_ERR_VALUE where there is no such block or no cross-attention in it, and for the last one of a matcher without queries:
 * only token 0 reaches the head from there. */
qv_status qv_blip_gradcam(const qv_blip *model, qv_call *call, const qv_gradcam_maps *out,
                          const qv_blip_questions *questions, size_t block, const float *d_states, qv_error *err);

#endif
