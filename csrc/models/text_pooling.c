/* A text's embedding: the state of one of its tokens (CLIP: the end of text; SigLIP and CLIPA: the last position; BERT: the
 * first), through a linear layer. */
#include "models/text_pooling.h"

#define OLD_END_ID ((size_t)2)

typedef struct {
    const qv_text_encoder *encoder;
    float *out; /* [B, E] or [B, D] */
    bool projected;
} pooled_output;

/* The row of the pass that is the end of row b; the row behind its last where there is none. The largest id, where the
 * config's own end id is not to be trusted: in CLIP's vocabulary the end of text comes last. */
static size_t find_end(const qv_text_encoder *encoder, const qv_text_pass *pass, size_t b) {
    size_t end = pass->start[b + 1], found = end;
    for (size_t r = pass->start[b]; r < end; r++) {
        if (pass->key_mask[r] == 0) {
            continue;
        }
        if (encoder->end_id == OLD_END_ID) {
            found = found == end || pass->ids[r] > pass->ids[found] ? r : found;
        } else if ((size_t)pass->ids[r] == encoder->end_id) {
            return r;
        }
    }
    return found;
}

static size_t find_token(const qv_text_encoder *encoder, const qv_text_pass *pass, size_t b) {
    switch (encoder->pooling) {
    case QV_TEXT_POOL_LAST:
        return pass->start[b + 1] - 1;
    case QV_TEXT_POOL_FIRST:
        return pass->start[b];
    default:
        return find_end(encoder, pass, b);
    }
}

static qv_status hand_out_pooled(void *context, qv_call *call, const float *states, const qv_text_pass *pass,
                                 qv_error *err) {
    const pooled_output *output = context;
    const qv_text_encoder *encoder = output->encoder;
    const qv_linear *projection = &encoder->projection;
    size_t D = encoder->width, E = projection->columns;
    float *out = output->out + pass->first * (output->projected ? E : D);
    for (size_t b = 0; b < pass->B; b++) {
        size_t token = find_token(encoder, pass, b);
        if (token == pass->start[b + 1]) {
            return qv_fail(err, QV_ERR_VALUE, "ids: row %zu holds no end-of-text token (%zu)", pass->first + b,
                           encoder->end_id);
        }
        const float *state = states + token * D;
        if (output->projected) {
            qv_output row = qv_output_at(encoder->ops, pass->output + b * E, out + b * E, E);
            call->ops->linear(call, (qv_rows){row.at, E}, (qv_const_rows){state, D}, projection, 0, E, NULL, 1);
            qv_output_take(call, &row);
        } else {
            qv_take_floats(call, out + b * D, state, D);
        }
    }
    return QV_OK;
}

qv_status qv_text_pooled(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids, const int64_t *mask,
                         size_t B, size_t M, qv_error *err) {
    pooled_output output = {encoder, out, false};
    return qv_text_run(encoder, call, ids, mask, B, M, 0, hand_out_pooled, &output, err);
}

qv_status qv_text_projected(qv_text_encoder *encoder, qv_call *call, float *out, const int64_t *ids,
                            const int64_t *mask, size_t B, size_t M, qv_error *err) {
    pooled_output output = {encoder, out, true};
    size_t E = encoder->projection.columns;
    if (E == 0) {
        return qv_fail(err, QV_ERR_VALUE, "%s: the weights have no text_projection.weight", encoder->name);
    }
    return qv_text_run(encoder, call, ids, mask, B, M, E, hand_out_pooled, &output, err);
}
