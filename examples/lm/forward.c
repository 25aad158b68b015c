/* SPDX-License-Identifier: MIT
 * One forward pass: embedding, then for each layer attention with a KV cache and the experts, then
 * logits. Everything but the experts is f32. */
#include "lm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDE = 16 }; /* outputs at a time; every width is a multiple */

/* y[cols] = x[rows] * w[rows, cols]. Vectorises over outputs, so no sum is reordered. */
static void multiply(float *restrict y, const float *restrict x, int rows, const float *restrict w,
                     int stride, int cols)
{
    for (int j = 0; j < cols; j += WIDE) {
        float sum[WIDE] = {0};
        for (int i = 0; i < rows; i++) {
            for (int c = 0; c < WIDE; c++)
                sum[c] += x[i] * w[(int64_t)i * stride + j + c];
        }
        memcpy(y + j, sum, sizeof sum);
    }
}

/* y = x / rms(x) * weight; y may be x. */
static void normalize(float *y, const float *x, const float *weight, int n, float eps)
{
    float sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    const float scale = 1.0F / sqrtf(sum / (float)n + eps);
    for (int i = 0; i < n; i++)
        y[i] = x[i] * scale * weight[i];
}

void softmax(float *x, int n, float scale)
{
    float top = x[0], sum = 0;
    for (int i = 1; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int i = 0; i < n; i++)
        sum += x[i] = expf((x[i] - top) * scale);
    for (int i = 0; i < n; i++)
        x[i] /= sum;
}

/* Normalise the heads of q or k and rotate each by its position: element i with i + d/2. */
static void prepare(float *head, int heads, const float *weight, const cmoe_model_config *c, int at)
{
    const int d = c->head_dim;
    for (int n = 0; n < heads; n++, head += d) {
        normalize(head, head, weight, d, c->rms_eps);
        for (int i = 0; i < d / 2; i++) {
            const float angle = (float)at / powf(c->rope_theta, 2.0F * (float)i / (float)d);
            const float cosine = cosf(angle), sine = sinf(angle);
            const float a = head[i], b = head[i + d / 2];
            head[i] = a * cosine - b * sine;
            head[i + d / 2] = b * cosine + a * sine;
        }
    }
}

/* x += attention(norm(x)) for one token at `position`, which joins the cache of layer l. */
static void attend(const struct lm *lm, struct lm_state *s, int l, int position, float *x)
{
    const cmoe_model_config *const c = &lm->config;
    float *const *const w = lm->layers[l];
    const int h = c->problem.hidden, d = c->head_dim, kv = c->kv_heads * d, q = c->heads * d;
    float *const k_cache = s->k + (int64_t)l * kv * LM_CONTEXT;
    float *const v_cache = s->v + (int64_t)l * kv * LM_CONTEXT;
    float score[LM_CONTEXT];
    normalize(s->y, x, w[NORM1], h, c->rms_eps);
    multiply(v_cache + position * kv, s->y, h, w[V_PROJ], kv, kv);
    multiply(s->q, s->y, h, w[K_PROJ], kv, kv);
    prepare(s->q, c->kv_heads, w[K_NORM], c, position);
    for (int i = 0; i < kv; i++)
        k_cache[i * LM_CONTEXT + position] = s->q[i];
    multiply(s->q, s->y, h, w[Q_PROJ], q, q);
    prepare(s->q, c->heads, w[Q_NORM], c, position);
    for (int i = 0; i < c->heads; i++) {
        const int from = i / (c->heads / c->kv_heads) * d;
        const int padded = (position + WIDE) / WIDE * WIDE; /* scores past position are not used */
        multiply(score, s->q + i * d, d, k_cache + from * LM_CONTEXT, LM_CONTEXT, padded);
        softmax(score, position + 1, 1.0F / sqrtf((float)d));
        multiply(s->q + i * d, score, position + 1, v_cache + from, kv, d); /* replaces its query */
    }
    multiply(s->y, s->q, q, w[OUT_PROJ], h, h);
    for (int i = 0; i < h; i++)
        x[i] += s->y[i];
}

void lm_forward(struct lm_experts *e, struct lm_state *s, const unsigned char *tokens, int n)
{
    const cmoe_model_config *const c = &e->lm->config;
    const int h = c->problem.hidden, v = c->vocab;
    if (n < 1 || s->n + n > LM_CONTEXT)
        ok(cmoe_set_error(CMOE_ERR_INVALID, "A text has 1 to %d bytes.", LM_CONTEXT));
    for (int t = 0; t < n; t++)
        memcpy(s->x + t * h, e->lm->embed + tokens[t] * h, (size_t)h * sizeof *s->x);
    for (int l = 0; l < c->layers; l++) {
        for (int t = 0; t < n; t++) {
            attend(e->lm, s, l, s->n + t, s->x + t * h);
            normalize(s->h + t * h, s->x + t * h, e->lm->layers[l][NORM2], h, c->rms_eps);
        }
        experts_run(e, l, s->h, n, s->y);
        for (int i = 0; i < n * h; i++)
            s->x[i] += s->y[i];
    }
    for (int t = 0; t < n; t++) {
        normalize(s->h, s->x + t * h, e->lm->norm, h, c->rms_eps);
        multiply(s->logits + t * v, s->h, h, e->lm->head, v, v);
    }
    s->n += n;
}

void state_open(struct lm_state *s, const struct lm *lm)
{
    const cmoe_model_config *const c = &lm->config;
    const int64_t kv = (int64_t)c->layers * c->kv_heads * c->head_dim * LM_CONTEXT;
    const int64_t x = (int64_t)c->problem.hidden * LM_CONTEXT, q = (int64_t)c->heads * c->head_dim;
    *s = (struct lm_state){.k = zeroed(2 * kv + 3 * x + q + c->vocab * LM_CONTEXT, sizeof(float))};
    s->v = s->k + kv; /* one block, cut into its parts */
    s->x = s->v + kv;
    s->h = s->x + x;
    s->y = s->h + x;
    s->q = s->y + x;
    s->logits = s->q + q;
}

void state_close(struct lm_state *s)
{
    free(s->k);
}
