/* GradCAM of BLIP's cross-attention: where the image speaks for the match, a map for each token of a question. */
#ifndef QV_MODELS_GRADCAM_H
#define QV_MODELS_GRADCAM_H

#include "models/blip_itm.h"

typedef struct {
    float *maps;   /* [Q, P]: the mean over a question's words */
    float *tokens; /* [R, P]: each token's own, or NULL */
    float *logits; /* [Q, 2] */
} qv_gradcam_maps;

/* With A the cross-attention probabilities of `block` [H, R, S] and G the gradient of logits[:, 1] with respect to them:
 * a token's map is the mean over heads of A max(G, 0) over the patches; a question's is the mean over its words, the
 * tokens between the first and the last. A question without words has its first token's map.
 * QV_ERR_VALUE where there is no such block, and for the last one: only token 0 reaches the head from there. */
qv_status qv_blip_gradcam(const qv_blip *model, qv_call *call, const qv_gradcam_maps *out, const qv_blip_image *image,
                          const qv_blip_questions *questions, size_t block, qv_error *err);

#endif
