/* SPDX-License-Identifier: MIT
 * Generated calls on devices with memory of their own. */
#include "cli/mirror.h"

#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 256, GUARD = 0xa5 };

/* Offset of a block's data in its device memory: as far from 16-byte alignment as on the host. */
static size_t offset_of(const struct gen_span *span)
{
    return GUARD_BYTES + (uintptr_t)span->data % 16;
}

static size_t size_of(const struct gen_span *span)
{
    return offset_of(span) + span->size + GUARD_BYTES;
}

/* Device address of a host pointer into one of the blocks; other pointers stay as they are. */
static void *translate(const struct cli_mirror *m, const void *pointer)
{
    struct gen_span span;
    const unsigned char *at = pointer;
    for (int i = 0; gen_span_at(m->call, i, &span); i++)
        if (at >= span.data && at < span.data + span.size)
            return (unsigned char *)m->base[i] + offset_of(&span) + (at - span.data);
    return (void *)(uintptr_t)pointer;
}

static cmoe_matrix *translate_table(const struct cli_mirror *m, const cmoe_matrix *table, int n)
{
    if (table == NULL) return NULL;
    cmoe_matrix *out = malloc((size_t)(n > 0 ? n : 1) * sizeof *out);
    for (int i = 0; out != NULL && i < n; i++) {
        out[i] = table[i];
        out[i].data = translate(m, table[i].data);
        out[i].scale = translate(m, table[i].scale);
        out[i].zero = translate(m, table[i].zero);
        out[i].global = translate(m, table[i].global);
        out[i].bias = translate(m, table[i].bias);
        out[i].smooth = translate(m, table[i].smooth);
    }
    return out;
}

static void translate_tensors(struct cli_mirror *m)
{
    cmoe_tensors *t = &m->tensors;
    *t = m->call->tensors;
    const void **pointers[] = {
        (const void **)&t->n_tokens_dev,
        (const void **)&t->logits,
        (const void **)&t->router_w,
        (const void **)&t->router_b,
        (const void **)&t->route_bias,
        (const void **)&t->hash_table,
        (const void **)&t->token_ids,
        (const void **)&t->topk_ids,
        (const void **)&t->topk_weights,
        (const void **)&t->topk_ids64,
        (const void **)&t->expert_map,
        (const void **)&t->x,
        (const void **)&t->x_scale,
        (const void **)&t->x_global,
        (const void **)&t->mid_scale,
        (const void **)&t->sorted_ids,
        (const void **)&t->expert_offsets,
        (const void **)&t->block_experts,
        (const void **)&t->num_valid,
        (const void **)&t->sorted_weights,
        (const void **)&t->xq,
        (const void **)&t->xq_scale,
        (const void **)&t->gate_up,
        (const void **)&t->mid,
        (const void **)&t->mid_q,
        (const void **)&t->mid_q_scale,
        (const void **)&t->z,
        (const void **)&t->y,
        (const void **)&t->expert_load,
    };
    for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++)
        if (*pointers[i] != NULL) *pointers[i] = translate(m, *pointers[i]);
}

/* Every other call's blocks from the last on, so that tables lie in either order. */
static cmoe_status open_blocks(struct cli_mirror *m, int n)
{
    struct gen_span span;
    m->base = calloc((size_t)n + 1, sizeof *m->base);
    if (m->base == NULL) return CMOE_ERR_NO_MEMORY;
    for (int k = 0; k < n; k++) {
        const int i = n % 2 == 0 ? k : n - 1 - k;
        if (!gen_span_at(m->call, i, &span)) continue;
        const cmoe_status status = cmoe_device_alloc(m->dev, size_of(&span), &m->base[i]);
        if (status != CMOE_OK) return status;
    }
    return CMOE_OK;
}

cmoe_status cli_mirror_open(cmoe_device *dev, const struct gen_call *call, struct cli_mirror *out)
{
    *out = (struct cli_mirror){.dev = dev, .call = call};
    const int experts = cmoe_problem_local_experts(&call->problem);
    cmoe_status status = open_blocks(out, call->n_blocks);
    if (status == CMOE_OK) status = cli_mirror_send(out);
    if (status == CMOE_OK) {
        out->weights = call->weights;
        out->weights.gate_up = translate_table(out, call->weights.gate_up, experts);
        out->weights.up = translate_table(out, call->weights.up, experts);
        out->weights.down = translate_table(out, call->weights.down, experts);
        translate_tensors(out);
    } else {
        cli_mirror_close(out);
    }
    return status;
}

cmoe_status cli_mirror_send(struct cli_mirror *m)
{
    struct gen_span span;
    cmoe_status status = CMOE_OK;
    for (int i = 0; status == CMOE_OK && gen_span_at(m->call, i, &span); i++) {
        unsigned char *to = (unsigned char *)m->base[i] + offset_of(&span);
        status = cmoe_device_fill(m->dev, m->base[i], GUARD, size_of(&span), NULL);
        if (status == CMOE_OK)
            status = cmoe_device_copy(m->dev, to, span.data, span.size, CMOE_COPY_TO_DEVICE, NULL);
    }
    return status == CMOE_OK ? cmoe_device_sync(m->dev, NULL) : status;
}

static bool is_guard(const unsigned char *at, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (at[i] != GUARD) return false;
    return true;
}

cmoe_status cli_mirror_fetch(struct cli_mirror *m, const char **damage)
{
    struct gen_span span;
    *damage = NULL;
    for (int i = 0; gen_span_at(m->call, i, &span); i++) {
        const size_t size = size_of(&span), offset = offset_of(&span);
        unsigned char *copy = malloc(size);
        if (copy == NULL) return CMOE_ERR_NO_MEMORY;
        cmoe_status status =
            cmoe_device_copy(m->dev, copy, m->base[i], size, CMOE_COPY_FROM_DEVICE, NULL);
        if (status == CMOE_OK) status = cmoe_device_sync(m->dev, NULL);
        if (status == CMOE_OK) {
            if (!is_guard(copy, offset)) *damage = "wrote before the start of a buffer";
            if (!is_guard(copy + offset + span.size, GUARD_BYTES))
                *damage = "wrote past the end of a buffer";
            memcpy(span.data, copy + offset, span.size);
        }
        free(copy);
        if (status != CMOE_OK) return status;
    }
    return CMOE_OK;
}

void cli_mirror_close(struct cli_mirror *m)
{
    struct gen_span span;
    for (int i = 0; m->base != NULL && gen_span_at(m->call, i, &span); i++)
        cmoe_device_free(m->dev, m->base[i]);
    free(m->base);
    free((void *)m->weights.gate_up);
    free((void *)m->weights.up);
    free((void *)m->weights.down);
    *m = (struct cli_mirror){.dev = NULL};
}
