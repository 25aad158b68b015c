/* SPDX-License-Identifier: MIT
 * A Qwen3-MoE language model over bytes whose MoE layers are cmoe plans: load.c reads the checkpoint,
 * experts.c is all that a host needs of cmoe, forward.c is one pass, main.c the program. */
#ifndef LM_H
#define LM_H

#include <cmoe/io.h>

enum { LM_CONTEXT = 512 }; /* bytes that attention can look back on */

/* A layer's tensors besides its experts, f32; projections are transposed to [inputs, outputs]. */
enum { NORM1, NORM2, Q_NORM, K_NORM, Q_PROJ, K_PROJ, V_PROJ, OUT_PROJ, ROUTER, LAYER_TENSORS };

struct lm {
    const char *dir;
    cmoe_model_config config;
    cmoe_checkpoint *checkpoint;
    float *(*layers)[LAYER_TENSORS];
    float *embed, *norm, *head; /* [vocab, H], [H], [H, vocab] */
};

struct lm_moe {
    cmoe_quantized *quantized;
    cmoe_weights *weights;
    int64_t *load; /* [E]: tokens each expert has computed */
    /* In the device's memory: */
    float *router, *scales; /* [E, H]; of x and mid, for schemes where they are static */
    int64_t *device_load;
};

struct lm_experts {
    const struct lm *lm;
    cmoe_context *context;
    cmoe_device *device;
    cmoe_device_info info;
    cmoe_problem problem; /* the same for every layer, and so is the plan */
    cmoe_plan *plan;
    struct lm_moe *layers;
    void *x; /* in the type that the scheme wants */
    void *device_x, *device_y, *workspace;
    cmoe_observation *amax; /* [layers]: collects magnitudes while running; NULL: does not */
};

struct lm_state {
    int n;            /* tokens in the cache */
    float *k, *v;     /* [layers, kv, LM_CONTEXT], [layers, LM_CONTEXT, kv heads * head_dim] */
    float *x, *h, *y; /* [LM_CONTEXT, H] */
    float *q;         /* [heads * head_dim] */
    float *logits;    /* [LM_CONTEXT, vocab] of the last lm_forward */
};

/* On failure every function prints the last error and ends the program; so does ok(). */
void ok(cmoe_status status);
void *zeroed(int64_t n, size_t size);
void lm_load(struct lm *lm, const char *dir);
void lm_unload(struct lm *lm);
/* device: a name, or NULL for the GPU where there is one, unless CMOE_DEVICE says otherwise. */
void experts_open(struct lm_experts *e, const struct lm *lm, const char *scheme,
                  const char *device);
void experts_close(struct lm_experts *e);
/* y = MoE layer of x, both f32 [n, H]. */
void experts_run(struct lm_experts *e, int layer, const float *x, int n, float *y);
void state_open(struct lm_state *s, const struct lm *lm);
void state_close(struct lm_state *s);
/* Append n tokens to the cache and fill s->logits [n, vocab]. */
void lm_forward(struct lm_experts *e, struct lm_state *s, const unsigned char *tokens, int n);
/* x = softmax(x * scale) over n. */
void softmax(float *x, int n, float scale);

#endif
