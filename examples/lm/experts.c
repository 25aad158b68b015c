/* SPDX-License-Identifier: MIT
 * The MoE layers on libcmoe: one problem, one plan, and for each layer its weights, quantised on
 * the fly to what the scheme says. All that a call reads or writes lies in the device's memory, a
 * GPU's or plain memory, so that both are one path. */
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
    experts_open(&e, lm, "f32", device); /* cmoe_observe needs host memory */
    state_open(&s, lm);
    cmoe_observation *const amax = e.amax = zeroed(lm->config.layers, sizeof *amax);
    for (size_t from = 0; from < n; from += LM_CONTEXT, s.n = 0)
        lm_forward(&e, &s, text + from, LM_CONTEXT);
    state_close(&s);
    experts_close(&e);
    return amax;
}

/* Memory of the device with a copy of `bytes` from `data`, or zeroed. */
static void *on_device(const struct lm_experts *e, const void *data, size_t bytes)
{
    void *memory;
    ok(cmoe_device_alloc(e->device, bytes, &memory));
    if (data)
        ok(cmoe_device_copy(e->device, memory, data, bytes, CMOE_COPY_TO_DEVICE, NULL));
    else
        ok(cmoe_device_fill(e->device, memory, 0, bytes, NULL));
    ok(cmoe_device_sync(e->device, NULL));
    return memory;
}

/* A GPU if there is one and nobody said otherwise. */
static void open_device(struct lm_experts *e, const char *device)
{
    const int any = !device && !getenv("CMOE_DEVICE");
    ok(cmoe_context_create(NULL, &e->context));
    if (!any || cmoe_device_open(e->context, "cuda:0", &e->device) != CMOE_OK)
        ok(cmoe_device_open(e->context, device, &e->device));
    e->info.struct_size = sizeof e->info;
    cmoe_device_describe(e->device, &e->info);
}

/* Layer l's experts, router and scales as the plan wants them. */
static void open_layer(struct lm_experts *e, int l, const cmoe_observation *amax)
{
    const cmoe_problem *const p = &e->problem;
    struct lm_moe *const layer = &e->layers[l];
    cmoe_layer source;
    ok(cmoe_layer_open(e->lm->checkpoint, &e->lm->config, l, &source));
    ok(cmoe_layer_quantize(&source, p, &layer->quantized));
    cmoe_layer_free(&source);
    cmoe_weights_desc desc = *cmoe_quantized_desc(layer->quantized);
    desc.format1 = cmoe_plan_weight_format(e->plan, 1); /* packed as the kernels read them */
    desc.format2 = cmoe_plan_weight_format(e->plan, 2);
    ok(cmoe_weights_upload(e->device, p, &desc, &layer->weights));
    float scales[2] = {1, 1};
    if (amax) scales[0] = cmoe_static_scale(p->x, amax->x_amax);
    if (amax) scales[1] = cmoe_static_scale(p->mid, amax->mid_amax);
    const size_t experts = (size_t)p->experts;
    layer->load = zeroed(p->experts, sizeof *layer->load);
    layer->device_load = on_device(e, NULL, experts * sizeof *layer->load);
    layer->scales = on_device(e, scales, sizeof scales);
    layer->router =
        on_device(e, e->lm->layers[l][ROUTER], experts * (size_t)p->hidden * sizeof *layer->router);
}

void experts_open(struct lm_experts *e, const struct lm *lm, const char *scheme, const char *device)
{
    *e = (struct lm_experts){.lm = lm, .problem = lm->config.problem}; /* from config.json */
    cmoe_problem *const p = &e->problem;
    p->max_tokens = LM_CONTEXT;
    p->flags |= CMOE_ROUTE_FROM_X; /* the router is part of the plan */
    ok(cmoe_problem_scheme(p, scheme));
    p->y = CMOE_F32;
    open_device(e, device);
    ok(cmoe_plan_create(e->device, p, NULL, NULL, &e->plan));
    const size_t most = (size_t)(LM_CONTEXT * p->hidden) * sizeof(float); /* the widest type */
    e->workspace = on_device(e, NULL, cmoe_plan_workspace_size(e->plan));
    e->device_x = on_device(e, NULL, most);
    e->device_y = on_device(e, NULL, most);
    e->x = zeroed((int64_t)most, 1);
    e->layers = zeroed(lm->config.layers, sizeof *e->layers);
    cmoe_observation *const amax =
        p->x.fixed || p->mid.fixed ? calibrate(lm, e->info.host ? device : "cpu") : NULL;
    for (int l = 0; l < lm->config.layers; l++)
        open_layer(e, l, amax ? &amax[l] : NULL);
    free(amax);
}

void experts_close(struct lm_experts *e)
{
    for (int l = 0; l < e->lm->config.layers; l++) {
        struct lm_moe *const layer = &e->layers[l];
        cmoe_weights_destroy(layer->weights);
        cmoe_quantized_free(layer->quantized);
        cmoe_device_free(e->device, layer->device_load);
        cmoe_device_free(e->device, layer->scales);
        cmoe_device_free(e->device, layer->router);
        free(layer->load);
    }
    cmoe_plan_destroy(e->plan);
    cmoe_device_free(e->device, e->device_x);
    cmoe_device_free(e->device, e->device_y);
    cmoe_device_free(e->device, e->workspace);
    cmoe_device_close(e->device);
    cmoe_context_destroy(e->context);
    free(e->layers);
    free(e->x);
}

void experts_run(struct lm_experts *e, int l, const float *x, int n, float *y)
{
    cmoe_device *const dev = e->device;
    const cmoe_problem *const p = &e->problem;
    struct lm_moe *const layer = &e->layers[l];
    const int64_t count = (int64_t)n * p->hidden;
    const cmoe_tensors tensors = {
        .struct_size = sizeof tensors,
        .n_tokens = n,
        .weights = layer->weights,
        .router_w = layer->router,
        .x = e->device_x,
        .x_scale = &layer->scales[0],
        .mid_scale = &layer->scales[1],
        .y = e->device_y,
        .expert_load = layer->device_load,
    };
    ok(cmoe_convert(p->in, e->x, CMOE_F32, x, count));
    ok(cmoe_device_copy(dev, e->device_x, e->x, cmoe_dtype_bytes(p->in, count), CMOE_COPY_TO_DEVICE,
                        NULL));
    if (e->amax) ok(cmoe_observe(dev, p, layer->weights, &tensors, &e->amax[l]));
    ok(cmoe_execute(e->plan, &tensors, e->workspace, cmoe_plan_workspace_size(e->plan), NULL));
    ok(cmoe_device_copy(dev, y, e->device_y, (size_t)count * sizeof *y, CMOE_COPY_FROM_DEVICE,
                        NULL));
    ok(cmoe_device_copy(dev, layer->load, layer->device_load,
                        (size_t)p->experts * sizeof *layer->load, CMOE_COPY_FROM_DEVICE, NULL));
    ok(cmoe_device_sync(dev, NULL));
}
