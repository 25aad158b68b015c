/* SPDX-License-Identifier: MIT
 * What a quantised checkpoint keeps of its input beside experts. Where the input was quantised, its
 * other 8-bit matrices become bf16: the new configuration no longer says how to read them. */
#include "fail.h"
#include "layer.h"
#include "linear.h"
#include "memory.h"
#include "quantize_job.h"

#include <cmoe/convert.h>
#include <stdio.h>
#include <string.h>

/* Whether a tensor belongs to the routed experts of a layer that is quantised. */
static bool is_expert(const struct cmoe_quantize_job *job, const char *name)
{
    char block[160];
    if (!strstr(name, ".experts.")) return false;
    for (int l = 0; l < job->config.layers; l++) {
        if (!cmoe__layer_has_experts(&job->config, l)) continue;
        cmoe__layer_block(job->checkpoint, job->family, l, block, sizeof block);
        const size_t n = strlen(block);
        if (strncmp(name, block, n) == 0 && strncmp(name + n, ".experts.", 9) == 0) return true;
    }
    return false;
}

static bool ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return n > m && strcmp(name + n - m, end) == 0;
}

static bool is_coded(const cmoe_tensor_info *t)
{
    return cmoe__tensor_is(t, "F8_E4M3") || cmoe__tensor_is(t, "F8_E5M2") ||
           cmoe__tensor_is(t, "I8");
}

/* Whether t is a scale of a matrix that becomes bf16. */
static bool is_scale(const struct cmoe_quantize_job *job, const cmoe_tensor_info *t)
{
    static const char *const ends[] = {".weight_scale", ".weight_scale_inv", ".input_scale"};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        char name[256];
        const size_t n = strlen(t->name) - strlen(ends[i]);
        if (!ends_with(t->name, ends[i]) || n >= sizeof name - sizeof ".weight") continue;
        snprintf(name, sizeof name, "%.*s.weight", (int)n, t->name);
        const cmoe_tensor_info *const weight = cmoe_checkpoint_find(job->checkpoint, name);
        return weight && is_coded(weight);
    }
    return false;
}

/* The matrix MODULE [rows, cols] as f32, then as bf16. */
static cmoe_status decode(const struct cmoe_quantize_job *job, const char *module, int64_t rows,
                          int64_t cols, float *values, uint16_t *half)
{
    cmoe_layer memory = {0};
    cmoe_matrix m;
    struct cmoe_reading r = {
        .checkpoint = job->checkpoint, .quantization = job->config.quantization, .layer = &memory};
    cmoe_status status = cmoe__linear_read(&r, module, rows, cols, &m);
    if (status == CMOE_OK) status = cmoe_dequantize_weight(r.format, &m, rows, cols, values);
    if (status == CMOE_OK) status = cmoe_convert(CMOE_BF16, half, CMOE_F32, values, rows * cols);
    cmoe__layer_release(&memory);
    return status;
}

static cmoe_status emit_decoded(struct cmoe_quantize_job *job, const cmoe_tensor_info *t,
                                struct cmoe_shard *s)
{
    char module[256];
    const size_t n = (size_t)t->shape[0] * (size_t)t->shape[1];
    const size_t bytes = n * (sizeof(float) + sizeof(uint16_t));
    if (n > SIZE_MAX / 8 || (size_t)t->shape[1] > SIZE_MAX / 8)
        return CMOE_FAIL(CMOE_ERR_OVERFLOW, "tensor %s does not fit", cmoe__quote(t->name).text);
    if ((int64_t)bytes > job->extra) job->extra = (int64_t)bytes;
    if (!s->file) return cmoe__shard_tensor(s, t->name, "BF16", 2, t->shape, NULL, n * 2);
    float *const values = cmoe__io_alloc(bytes);
    if (!values) return cmoe__fail_memory(bytes, "a matrix");
    uint16_t *const half = (uint16_t *)(values + n);
    snprintf(module, sizeof module, "%.*s", (int)(strlen(t->name) - strlen(".weight")), t->name);
    cmoe_status status = decode(job, module, t->shape[0], t->shape[1], values, half);
    if (status == CMOE_OK)
        status = cmoe__shard_tensor(s, t->name, "BF16", 2, t->shape, half, n * 2);
    cmoe__io_free(values);
    return status;
}

static cmoe_status emit(struct cmoe_quantize_job *job, const cmoe_tensor_info *t,
                        struct cmoe_shard *s)
{
    if (job->config.quantization[0]) {
        if (is_scale(job, t)) return CMOE_OK;
        if (ends_with(t->name, ".weight") && is_coded(t) && t->ndim == 2)
            return emit_decoded(job, t, s);
    }
    return cmoe__shard_tensor(s, t->name, t->dtype, t->ndim, t->shape, t->data, t->bytes);
}

cmoe_status cmoe__quantize_rest(struct cmoe_quantize_job *job, const char *file,
                                struct cmoe_shard *s)
{
    for (int64_t i = 0; i < cmoe_checkpoint_count(job->checkpoint); i++) {
        const cmoe_tensor_info *const t = cmoe_checkpoint_at(job->checkpoint, i);
        if (strcmp(t->file, file) != 0 || is_expert(job, t->name)) continue;
        CMOE_TRY(emit(job, t, s));
    }
    return CMOE_OK;
}

cmoe_status cmoe__quantize_rest_check(const struct cmoe_quantize_job *job)
{
    for (int64_t i = 0; i < cmoe_checkpoint_count(job->checkpoint) && !job->gguf; i++) {
        const char *const name = cmoe_checkpoint_at(job->checkpoint, i)->name;
        if (!ends_with(name, ".weight_packed") && !ends_with(name, ".qweight")) continue;
        if (is_expert(job, name)) continue;
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s is packed and no routed expert's; beside experts only "
                         "matrices of fp8 and int8 are decoded",
                         cmoe__quote(name).text);
    }
    return CMOE_OK;
}
