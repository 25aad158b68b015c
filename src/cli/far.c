/* SPDX-License-Identifier: MIT
 * Copies of a call's arrays: which there are, and how large, follows from the problem. */
#include "cli/far.h"

#include <stdbool.h>
#include <string.h>

struct array {
    size_t offset; /* of its pointer in cmoe_tensors */
    int64_t bytes;
};

static bool has(const cmoe_problem *p, enum cmoe_flag flag)
{
    return (p->flags & (uint32_t)flag) != 0;
}

/* From the first byte of the first row to the last of the last. */
static int64_t span(int64_t rows, int64_t row, int64_t stride)
{
    return rows > 0 ? (rows - 1) * (stride > 0 ? stride : row) + row : 0;
}

static int64_t bytes_of(int dtype, int64_t n)
{
    return (int64_t)cmoe_dtype_bytes((cmoe_dtype)dtype, n);
}

/* Rows that x has, and bytes of its scales; codes come a row for every slot where the slot changes them. */
static int64_t x_rows(const cmoe_problem *p, int64_t tokens)
{
    const bool given = p->first > CMOE_STAGE_QUANT || has(p, CMOE_X_QUANTIZED);
    const bool by_slot =
        given && (p->weight_on == CMOE_WEIGHT_ON_INPUT || p->x.scaling == CMOE_SCALE_SMOOTH);
    return by_slot ? tokens * cmoe_problem_slots(p) : tokens;
}

static int64_t x_scale_bytes(const cmoe_problem *p, int64_t rows)
{
    size_t scales = 0;
    const bool given = p->first > CMOE_STAGE_QUANT || has(p, CMOE_X_QUANTIZED);
    if (!given || p->x.scaling == CMOE_SCALE_TENSOR) return sizeof(float);
    if (p->x.scaling == CMOE_SCALE_SMOOTH) return rows * (int64_t)sizeof(float);
    if (cmoe_format_bytes(p->x, rows, p->hidden, NULL, &scales, NULL) != CMOE_OK) return 0;
    return (int64_t)scales;
}

/* Those that ROUTE reads, or else those that it would have written. */
static int list_routing(const cmoe_problem *p, const cmoe_tensors *t, struct array *out)
{
    const int64_t columns = (int64_t)p->experts + (has(p, CMOE_SHARED_SIGMOID) ? p->shared : 0);
    const int64_t tokens = t->n_tokens, slots = tokens * cmoe_problem_slots(p);
    const bool routes = p->first == CMOE_STAGE_ROUTE;
    const int64_t element = cmoe_dtype_bits((cmoe_dtype)p->logits) / 8;
    const struct array all[] = {
        {offsetof(cmoe_tensors, logits),
         span(tokens, columns * element, t->logits_stride * element)},
        {offsetof(cmoe_tensors, router_w), columns * p->hidden * 4},
        {offsetof(cmoe_tensors, router_b), columns * 4},
        {offsetof(cmoe_tensors, route_bias), (int64_t)p->experts * 4},
        {offsetof(cmoe_tensors, hash_table), t->vocab * p->topk * 4},
        {offsetof(cmoe_tensors, token_ids), tokens * 8},
        {offsetof(cmoe_tensors, expert_map), ((int64_t)p->experts + p->shared) * 4},
        {offsetof(cmoe_tensors, topk_ids), routes ? 0 : slots * 4},
        {offsetof(cmoe_tensors, topk_weights), routes ? 0 : slots * 4},
        {offsetof(cmoe_tensors, topk_ids64), routes ? 0 : slots * 8},
    };
    memcpy(out, all, sizeof all);
    return (int)(sizeof all / sizeof all[0]);
}

static int list_rows(const cmoe_problem *p, const cmoe_tensors *t, struct array *out)
{
    const int64_t rows = x_rows(p, t->n_tokens);
    const bool codes = has(p, CMOE_X_QUANTIZED) && p->x.scaling != CMOE_SCALE_NONE;
    const int64_t x_row = bytes_of(codes ? p->x.dtype : p->in, p->hidden);
    const struct array all[] = {
        {offsetof(cmoe_tensors, x), span(rows, x_row, t->x_stride)},
        {offsetof(cmoe_tensors, x_scale), x_scale_bytes(p, rows)},
        {offsetof(cmoe_tensors, x_global), p->x.fixed ? 4 : rows * 4},
        {offsetof(cmoe_tensors, mid_scale), 4},
        {offsetof(cmoe_tensors, n_tokens_dev), 4},
    };
    memcpy(out, all, sizeof all);
    return (int)(sizeof all / sizeof all[0]);
}

static cmoe_status copy(struct cli_far *far, const struct array *array)
{
    void *pointer, *memory = NULL;
    memcpy(&pointer, (char *)&far->tensors + array->offset, sizeof pointer);
    if (pointer == NULL) return CMOE_OK;
    if (array->bytes > 0) {
        const size_t bytes = (size_t)array->bytes;
        const cmoe_status status = cmoe_device_alloc(far->dev, bytes, &memory);
        if (status != CMOE_OK) return status;
        far->memory[far->n++] = memory;
        const cmoe_status copied =
            cmoe_device_copy(far->dev, memory, pointer, bytes, CMOE_COPY_TO_DEVICE, NULL);
        if (copied != CMOE_OK) return copied;
    }
    memcpy((char *)&far->tensors + array->offset, &memory, sizeof memory);
    return CMOE_OK;
}

cmoe_status cli_far_open(cmoe_device *dev, const cmoe_problem *p, const cmoe_tensors *tensors,
                         struct cli_far *out)
{
    cmoe_device_info info = {.struct_size = sizeof info};
    cmoe_device_describe(dev, &info);
    *out = (struct cli_far){.dev = dev, .tensors = *tensors};
    if (info.host) return CMOE_OK;
    const int64_t slots = has(p, CMOE_NO_REDUCE) ? cmoe_problem_slots(p) : 1;
    struct array arrays[CLI_FAR_ARRAYS];
    int n = list_routing(p, tensors, arrays);
    n += list_rows(p, tensors, arrays + n);
    out->y = tensors->y;
    out->y_bytes = cmoe_dtype_bytes((cmoe_dtype)p->y, tensors->n_tokens * slots * p->hidden);
    arrays[n++] = (struct array){offsetof(cmoe_tensors, y), (int64_t)out->y_bytes};
    cmoe_status status = CMOE_OK;
    for (int i = 0; status == CMOE_OK && i < n; i++)
        status = copy(out, &arrays[i]);
    if (status == CMOE_OK) status = cmoe_device_sync(dev, NULL);
    if (status != CMOE_OK) cli_far_close(out);
    return status;
}

cmoe_status cli_far_fetch(const struct cli_far *far)
{
    if (far->y == NULL) return CMOE_OK;
    const cmoe_status status = cmoe_device_copy(far->dev, far->y, far->tensors.y, far->y_bytes,
                                                CMOE_COPY_FROM_DEVICE, NULL);
    return status == CMOE_OK ? cmoe_device_sync(far->dev, NULL) : status;
}

void cli_far_close(struct cli_far *far)
{
    for (int i = 0; i < far->n; i++)
        cmoe_device_free(far->dev, far->memory[i]);
    *far = (struct cli_far){.dev = NULL};
}
