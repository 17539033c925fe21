/* Every patch in the space of texts, where its cosine with a text's vector is the text's map. Forward passes alone: in some
 * last blocks a second path has its own attention, in place of the one that the class token was trained with. */
#ifndef QV_MODELS_VIT_DENSE_H
#define QV_MODELS_VIT_DENSE_H

#include "models/vit.h"

typedef enum {
    QV_DENSE_MASKCLIP,
    QV_DENSE_SCLIP,
    QV_DENSE_CLEARCLIP,
    QV_DENSE_NACLIP,
    QV_DENSE_SURGERY,
    QV_DENSE_GEM,
} qv_dense_method;

typedef struct {
    qv_vit_images images;
    qv_dense_method method;
    size_t first;   /* block, from which surgery's and gem's second path runs; the others': the last */
    float *patches; /* [images.count, P, E], of length 1 */
    float *pooled;  /* [images.count, E], likewise: the tower's own */
} qv_dense_request;

/* E: of the projection, or D where there is none. */
size_t qv_vit_text_width(const qv_vit *vit);
/* QV_ERR_MEMORY, QV_ERR_CANCELLED (outputs then hold anything), or QV_ERR_VALUE: there is no such block, blocks take
 * questions, or the tower pools by an attention head, so that its tokens are not of the space of texts. */
qv_status qv_vit_dense(const qv_vit *vit, qv_call *call, const qv_dense_request *request, qv_error *err);

#endif
