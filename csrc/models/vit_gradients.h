/* Gradients of how well a picture fits a text, and what maps are made of them (docs/MODEL.md), of a vision tower. */
#ifndef QV_MODELS_VIT_GRADIENTS_H
#define QV_MODELS_VIT_GRADIENTS_H

#include "models/vit.h"

/* What is wanted of one block, each NULL or not. I items: the scores that are differentiated. H is 1 in a block of one head. */
typedef struct {
    float *legrad;             /* [I, H, M + T], the sum over queries of max(G, 0): G, the gradient of the score that the mean
                                  of the block's own output has, to its attention; of the head's attention where that pools */
    float *class_attention;    /* [N, H, M + T], where the class token looks; */
    float *class_gradient;     /* [I, H, M + T], the gradient of that */
    float *key_cosine;         /* [N, T], of the class token's query and all keys, heads side by side */
    float *gradcam;            /* [I, P], norm1's output at each patch times the mean over patches of its gradient */
    float *attention_gradient; /* [I, H, T, M + T], filled where it is not 0 */
    float *hidden_gradient;    /* [I, T, D], of what enters the block */
} qv_vit_gradient_tap;

typedef struct {
    const float *states; /* [N, T, D], what enters block `first` */
    size_t N, first;
    const float *instruct;         /* [N, M, Dt], or NULL */
    const size_t *instruct_length; /* [N] */
    size_t M;
    const float *texts; /* [Q, E], of unit length; NULL: the score is the log-probability of an answer */
    size_t Q, E;
    bool paired;   /* sequence n is scored by text n alone: I = N; else by every text: item n Q + q. An answer: I = N */
    bool softmax;  /* see qv_text_scores */
    float scale;
    size_t answer;
    size_t single_head; /* the blocks from here on run with one head, whatever they have; L: none */
    const qv_vit_gradient_tap *taps; /* [L + 1]; the last is of the head's attention, whose query stands for the class token */
    float *relevance; /* [I, T] or NULL: the class token's row of R = (1 + M_L-1) .. (1 + M_l), l = relevance_from, M = mean over
                         heads of A max(G, 0), question tokens left out */
    size_t relevance_from;
    float *keep;       /* [N, floats of qv_vit_gradients_keep], what LeGrad reads of the pictures, or NULL */
    const float *kept; /* the same, of a request with as much of LeGrad: no block runs, and states may be NULL; or NULL */
    float *scores; /* [N, Q] cosines; of an answer [N] */
    float *image;  /* [N, E], what is compared with the texts, of any length, or the answers' logits; or NULL */
} qv_vit_gradient_request;

/* E: of the projection, the answers (texts NULL), or D where there is none. */
size_t qv_vit_gradient_width(const qv_vit *vit, bool answers);
/* Whether what the request reads of a picture can be kept, whatever the texts, and the floats that it takes. */
bool qv_vit_gradients_keep(const qv_vit *vit, const qv_vit_gradient_request *request, size_t *floats);
/* QV_ERR_VALUE where the tower has no class token, head, answers or question that is asked for; QV_ERR_MEMORY,
 * QV_ERR_CANCELLED (outputs then hold anything). Memory is for one sequence, and for a bounded number of items at a time. */
qv_status qv_vit_gradients(const qv_vit *vit, qv_call *call, const qv_vit_gradient_request *request, qv_error *err);

#endif
