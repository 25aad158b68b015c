/* SPDX-License-Identifier: MIT
 * The MoE layers on libcmoe: one problem, one plan, and for each layer its weights, quantised on
 * the fly to what the scheme says. */
#include "lm.h"

#include <stdio.h>
#include <stdlib.h>

/* Largest magnitudes of every layer's input and intermediate on text; the caller's to free. */
static cmoe_observation *calibrate(const struct lm *lm, const char *device)
{
    unsigned char text[4 * LM_CONTEXT];
    char path[4096];
    snprintf(path, sizeof path, "%s/calibration.txt", lm->dir);
    FILE *const file = fopen(path, "rb");
    const size_t n = file ? fread(text, 1, sizeof text, file) : 0;
    if (n < sizeof text) ok(cmoe_set_error(CMOE_ERR_IO, "%s: no text to calibrate with.", path));
    if (file) fclose(file);
    struct lm_experts e;
    struct lm_state s;
    experts_open(&e, lm, "f32", device);
    state_open(&s, lm);
    cmoe_observation *const amax = e.amax = zeroed(lm->config.layers, sizeof *amax);
    for (size_t from = 0; from < n; from += LM_CONTEXT, s.n = 0)
        lm_forward(&e, &s, text + from, LM_CONTEXT);
    state_close(&s);
    experts_close(&e);
    return amax;
}

void experts_open(struct lm_experts *e, const struct lm *lm, const char *scheme, const char *device)
{
    *e = (struct lm_experts){.lm = lm, .problem = lm->config.problem}; /* from config.json */
    cmoe_problem *const p = &e->problem;
    p->max_tokens = LM_CONTEXT;
    p->flags |= CMOE_ROUTE_FROM_X; /* the router is part of the plan */
    ok(cmoe_problem_scheme(p, scheme));
    p->y = CMOE_F32;
    ok(cmoe_context_create(NULL, &e->context));
    ok(cmoe_device_open(e->context, device, &e->device));
    ok(cmoe_plan_create(e->device, p, NULL, NULL, &e->plan));
    e->workspace = aligned_alloc(256, cmoe_plan_workspace_size(e->plan) / 256 * 256 + 256);
    if (!e->workspace) ok(cmoe_set_error(CMOE_ERR_NO_MEMORY, "There is no memory to work in."));
    e->x = zeroed((int64_t)LM_CONTEXT * p->hidden, sizeof(float)); /* the widest type there is */
    e->layers = zeroed(lm->config.layers, sizeof *e->layers);
    cmoe_observation *const amax = p->x.fixed || p->mid.fixed ? calibrate(lm, device) : NULL;
    for (int l = 0; l < lm->config.layers; l++) {
        struct lm_moe *const layer = &e->layers[l];
        cmoe_layer source;
        ok(cmoe_layer_open(lm->checkpoint, &lm->config, l, &source));
        ok(cmoe_layer_quantize(&source, p, &layer->quantized));
        cmoe_layer_free(&source);
        cmoe_weights_desc desc = *cmoe_quantized_desc(layer->quantized);
        desc.format1 = cmoe_plan_weight_format(e->plan, 1); /* packed as the kernels read them */
        desc.format2 = cmoe_plan_weight_format(e->plan, 2);
        ok(cmoe_weights_create(e->device, p, &desc, &layer->weights));
        layer->load = zeroed(p->experts, sizeof *layer->load);
        if (amax) layer->x_scale = cmoe_static_scale(p->x, amax[l].x_amax);
        if (amax) layer->mid_scale = cmoe_static_scale(p->mid, amax[l].mid_amax);
    }
    free(amax);
}

void experts_close(struct lm_experts *e)
{
    for (int l = 0; l < e->lm->config.layers; l++) {
        cmoe_weights_destroy(e->layers[l].weights);
        cmoe_quantized_free(e->layers[l].quantized);
        free(e->layers[l].load);
    }
    cmoe_plan_destroy(e->plan);
    cmoe_device_close(e->device);
    cmoe_context_destroy(e->context);
    free(e->layers);
    free(e->x);
    free(e->workspace);
}

void experts_run(struct lm_experts *e, int l, const float *x, int n, float *y)
{
    const struct lm_moe *const layer = &e->layers[l];
    const cmoe_tensors tensors = {
        .struct_size = sizeof tensors,
        .n_tokens = n,
        .weights = layer->weights,
        .router_w = e->lm->layers[l][ROUTER],
        .x = e->x,
        .x_scale = &layer->x_scale,
        .mid_scale = &layer->mid_scale,
        .y = y,
        .expert_load = layer->load,
    };
    ok(cmoe_convert(e->problem.in, e->x, CMOE_F32, x, (int64_t)n * e->problem.hidden));
    if (e->amax) ok(cmoe_observe(e->device, &e->problem, layer->weights, &tensors, &e->amax[l]));
    ok(cmoe_execute(e->plan, &tensors, e->workspace, cmoe_plan_workspace_size(e->plan), NULL));
}
