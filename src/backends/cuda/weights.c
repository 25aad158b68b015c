/* SPDX-License-Identifier: MIT
 * A weights object on the device: where every expert's halves lie, as one table in device memory. */
#include "backends/cuda/cuda.h"

#include "core/fail.h"
#include "core/size.h"

static cmoe_gpu_half half_of(const cmoe_matrix *m, size_t row_bytes, int32_t first, int32_t step)
{
    const int64_t stride = m->row_stride ? m->row_stride : (int64_t)row_bytes;
    return (cmoe_gpu_half){.data = (const uint8_t *)m->data + first * stride,
                           .scale = m->scale,
                           .zero = m->zero,
                           .global = m->global,
                           .bias = m->bias,
                           .row_stride = stride * step,
                           .col_stride = m->col_stride,
                           .first = first,
                           .step = step};
}

/* Gate and up of one expert: two matrices, two halves of one, or its even and odd rows. */
static void first_matrix(const cmoe_weights *w, int e, size_t row_bytes, cmoe_gpu_half *half)
{
    const cmoe_problem *p = &w->p;
    const cmoe_matrix *gate = &w->gate[e];
    if (p->gate == CMOE_GATE_INTERLEAVED) {
        half[0] = half_of(gate, row_bytes, 0, 2);
        half[1] = half_of(gate, row_bytes, 1, 2);
        return;
    }
    half[0] = half_of(gate, row_bytes, 0, 1);
    if (p->gate == CMOE_GATE_NONE) return;
    if (w->up[e].data) {
        half[1] = half_of(&w->up[e], row_bytes, 0, 1);
        return;
    }
    half[1] = half_of(gate, row_bytes, p->inter, 1);
    /* Each half has its own grid of block scales unless the problem says joint. */
    if (p->w.scaling == CMOE_SCALE_BLOCK && !(p->flags & CMOE_BLOCK_JOINT)) {
        const int64_t grid = cmoe__ceil_div(p->inter, 128) * cmoe__ceil_div(p->hidden, 128);
        half[1].scale = (const float *)gate->scale + grid;
        half[1].bias = gate->bias ? gate->bias + p->inter : NULL;
        half[1].first = 0;
    }
}

static bool aligned(const cmoe_gpu_half *h)
{
    return (uintptr_t)h->data % 16 == 0 && h->row_stride % 16 == 0 && h->col_stride == 0;
}

static void find_strides(const cmoe_weights *w, const cmoe_gpu_expert *table, int half,
                         struct cmoe_cuda_half *to)
{
    const cmoe_gpu_half *first = &table[0].half[half];
    const int64_t most = (int64_t)1 << 40;
    int64_t stride = first->row_stride;
    if (w->experts > 1)
        stride = (int64_t)((uintptr_t)table[1].half[half].data - (uintptr_t)first->data);
    *to = (struct cmoe_cuda_half){.data = first->data,
                                  .row_stride = first->row_stride,
                                  .expert_stride = stride,
                                  .strided = first->data && first->row_stride > 0 && stride > 0 &&
                                             stride % 16 == 0 && stride < most &&
                                             first->row_stride < most};
    for (int e = 0; e < w->experts; e++) {
        const cmoe_gpu_half *h = &table[e].half[half];
        to->strided = to->strided && aligned(h) && h->row_stride == first->row_stride &&
                      (const uint8_t *)h->data == first->data + e * stride;
    }
}

static int64_t distance(const void *from, const void *to)
{
    return (int64_t)((uintptr_t)to - (uintptr_t)from);
}

/* Whether what belongs to a half lies at one distance from expert to expert. */
static void find_distances(const cmoe_weights *w, const cmoe_gpu_expert *table, int half,
                           struct cmoe_cuda_half *to)
{
    const cmoe_gpu_half *first = &table[0].half[half];
    to->first = *first;
    to->all_strided = to->strided;
    if (w->experts > 1) {
        to->scale_stride = distance(first->scale, table[1].half[half].scale);
        to->bias_stride = distance(first->bias, table[1].half[half].bias);
    }
    for (int e = 1; e < w->experts; e++) {
        const cmoe_gpu_half *h = &table[e].half[half];
        to->all_strided = to->all_strided && h->first == first->first && h->step == first->step &&
                          distance(first->scale, h->scale) == e * to->scale_stride &&
                          distance(first->bias, h->bias) == e * to->bias_stride;
    }
}

static void fill(const cmoe_weights *w, struct cmoe_cuda_weights *state, cmoe_gpu_expert *table)
{
    const cmoe_problem *p = &w->p;
    const size_t bytes1 = cmoe_dtype_bytes((cmoe_dtype)p->w.dtype, p->hidden);
    const size_t bytes2 = cmoe_dtype_bytes((cmoe_dtype)p->w.dtype, p->inter);
    state->vectors = state->contiguous = true;
    for (int e = 0; e < w->experts; e++) {
        if (w->has[0]) first_matrix(w, e, bytes1, table[e].half);
        if (w->has[1]) table[e].half[2] = half_of(&w->down[e], bytes2, 0, 1);
        table[e].smooth[0] = w->gate[e].smooth;
        table[e].smooth[1] = w->down[e].smooth;
        for (int h = 0; h < 3; h++) {
            state->vectors = state->vectors && aligned(&table[e].half[h]);
            state->contiguous = state->contiguous && table[e].half[h].col_stride == 0;
        }
    }
    for (int h = 0; h < 3 && w->experts > 0; h++) {
        find_strides(w, table, h, &state->half[h]);
        find_distances(w, table, h, &state->half[h]);
    }
}

cmoe_status cmoe__cuda_weights_open(cmoe_device *dev, cmoe_weights *w)
{
    const struct cmoe_cuda *cuda = dev->state;
    const size_t bytes = (size_t)w->experts * sizeof(cmoe_gpu_expert);
    struct cmoe_cuda_weights *state = cmoe__calloc(w->ctx, sizeof *state, _Alignof(max_align_t));
    cmoe_gpu_expert *table = cmoe__calloc(w->ctx, bytes, 64);
    CUdeviceptr on_device = 0;
    cmoe_status status = CMOE_OK;
    w->state = state;
    if (!state || !table) {
        status =
            CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for the tables of %d experts", w->experts);
        goto done;
    }
    fill(w, state, table);
    const char *what = "copying the table of experts";
    CUresult result = bytes > 0 ? cuda->driver->cuMemAlloc(&on_device, bytes) : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS && bytes > 0)
        result = cuda->driver->cuMemcpyHtoD(on_device, table, bytes);
    state->experts = (cmoe_gpu_expert *)(uintptr_t)on_device;
    if (result != CUDA_SUCCESS)
        status = cmoe__cuda_fail(cuda->driver, result, what, "cuMemAlloc or cuMemcpyHtoD");
done:
    cmoe__free(w->ctx, table);
    return status;
}

void cmoe__cuda_weights_close(cmoe_weights *w)
{
    struct cmoe_cuda_weights *state = w->state;
    if (!state) return;
    const struct cmoe_driver *driver = cmoe__cuda_driver(NULL);
    if (state->experts && driver) driver->cuMemFree((CUdeviceptr)(uintptr_t)state->experts);
    cmoe__free(w->ctx, state);
}
