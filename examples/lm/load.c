/* SPDX-License-Identifier: MIT
 * Checkpoint to memory: attention, norms, router and embeddings become f32, matrices transposed so
 * that forward.c's inner loops run over outputs; the experts stay where they are mapped. */
#include "lm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ok(cmoe_status status)
{
    if (status == CMOE_OK) return;
    fprintf(stderr, "cmoe-lm-demo: %s\n", cmoe_last_error());
    exit(1);
}

void *zeroed(int64_t n, size_t size)
{
    void *const memory = calloc((size_t)n, size);
    if (!memory) ok(cmoe_set_error(CMOE_ERR_NO_MEMORY, "There is no memory for the model."));
    return memory;
}

/* Tensor [rows, cols] (cols 1: a vector) as f32, transposed if asked. */
static float *read_tensor(const struct lm *lm, const char *name, int rows, int cols, int transpose)
{
    const cmoe_tensor_info *const info = cmoe_checkpoint_find(lm->checkpoint, name);
    float *const tensor = zeroed((int64_t)rows * cols, sizeof *tensor);
    if (!info || strcmp(info->dtype, "BF16") != 0 || info->shape[0] != rows ||
        info->bytes != 2 * (size_t)rows * (size_t)cols) {
        ok(cmoe_set_error(CMOE_ERR_CORRUPT, "%s has no BF16 tensor %s [%d, %d].", lm->dir, name,
                          rows, cols));
    }
    for (int64_t i = 0; i < (int64_t)rows * cols; i++) {
        uint16_t code; /* a file may hold tensors at odd addresses */
        memcpy(&code, (const char *)info->data + 2 * i, sizeof code);
        tensor[transpose ? i % cols * rows + i / cols : i] = cmoe_decode(CMOE_BF16, code);
    }
    return tensor;
}

void lm_load(struct lm *lm, const char *dir)
{
    cmoe_model_config *const c = &lm->config;
    *lm = (struct lm){.dir = dir};
    ok(cmoe_config_read(dir, c));
    ok(cmoe_checkpoint_open(dir, &lm->checkpoint));
    const int h = c->problem.hidden, d = c->head_dim, q = c->heads * d, kv = c->kv_heads * d;
    if (strcmp(c->model_type, "qwen3_moe") != 0 || c->vocab != 256 || h % 16 || d % 16) {
        ok(cmoe_set_error(CMOE_ERR_UNSUPPORTED, "%s: %s with %d tokens, not qwen3_moe over bytes.",
                          dir, c->model_type, c->vocab));
    }
    const struct {
        const char *name;
        int rows, cols, transpose;
    } tensors[LAYER_TENSORS] = {
        [NORM1] = {"input_layernorm", h, 1, 0},
        [NORM2] = {"post_attention_layernorm", h, 1, 0},
        [Q_NORM] = {"self_attn.q_norm", d, 1, 0},
        [K_NORM] = {"self_attn.k_norm", d, 1, 0},
        [Q_PROJ] = {"self_attn.q_proj", q, h, 1},
        [K_PROJ] = {"self_attn.k_proj", kv, h, 1},
        [V_PROJ] = {"self_attn.v_proj", kv, h, 1},
        [OUT_PROJ] = {"self_attn.o_proj", h, q, 1},
        [ROUTER] = {"mlp.gate", c->problem.experts, h, 0}, /* [E, H], as the plan wants it */
    };
    lm->layers = zeroed(c->layers, sizeof *lm->layers);
    for (int i = 0; i < c->layers * LAYER_TENSORS; i++) {
        const int l = i / LAYER_TENSORS, t = i % LAYER_TENSORS;
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, tensors[t].name);
        lm->layers[l][t] =
            read_tensor(lm, name, tensors[t].rows, tensors[t].cols, tensors[t].transpose);
    }
    lm->embed = read_tensor(lm, "model.embed_tokens.weight", c->vocab, h, 0);
    lm->head = read_tensor(lm, "lm_head.weight", c->vocab, h, 1);
    lm->norm = read_tensor(lm, "model.norm.weight", h, 1, 0);
}

void lm_unload(struct lm *lm)
{
    for (int i = 0; i < lm->config.layers * LAYER_TENSORS; i++) {
        free(lm->layers[i / LAYER_TENSORS][i % LAYER_TENSORS]);
    }
    free(lm->layers);
    free(lm->embed);
    free(lm->norm);
    free(lm->head);
    cmoe_checkpoint_close(lm->checkpoint);
}
