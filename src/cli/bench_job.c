/* SPDX-License-Identifier: MIT
 * A plan and its weights for bench. Packed weights are made from the one expert that the inputs hold;
 * canonical ones are read in place, so every expert gets memory of its own first. */
#include "cli/bench.h"

#include <stdlib.h>
#include <string.h>

/* The block of the call that a pointer points into. */
static bool find_span(const struct gen_call *call, const void *pointer, struct gen_span *out)
{
    for (int i = 0; gen_span_at(call, i, out); i++)
        if (out->data == pointer) return true;
    return false;
}

/* n copies of a block of the host's in device memory, `stride` bytes apart; NULL stays NULL. */
static cmoe_status spread(struct bench_inputs *in, struct bench_job *job, const void *pointer,
                          int32_t n, unsigned char **out, size_t *stride)
{
    struct gen_span span;
    cmoe_device *dev = job->session->dev;
    *out = NULL;
    *stride = 0;
    if (pointer == NULL || !find_span(&in->call, pointer, &span)) return CMOE_OK;
    void *memory = NULL;
    *stride = (span.size + 15) / 16 * 16;
    const size_t bytes = *stride * (size_t)n;
    cmoe_status status = cmoe_device_alloc(dev, bytes, &memory);
    if (status != CMOE_OK) return status;
    job->memory[job->memories++] = memory;
    unsigned char *at = memory;
    status = cmoe_device_copy(dev, at, span.data, span.size, CMOE_COPY_TO_DEVICE, NULL);
    for (size_t done = *stride; status == CMOE_OK && done < bytes; done *= 2)
        status = cmoe_device_copy(dev, at + done, at, done < bytes - done ? done : bytes - done,
                                  CMOE_COPY_ON_DEVICE, NULL);
    *out = at;
    return status == CMOE_OK ? cmoe_device_sync(dev, NULL) : status;
}

static const void *offset(const unsigned char *base, size_t stride, int32_t e)
{
    return base != NULL ? base + stride * (size_t)e : NULL;
}

static cmoe_status spread_table(struct bench_inputs *in, struct bench_job *job,
                                const cmoe_matrix *table, cmoe_matrix **out)
{
    const int32_t n = cmoe_problem_local_experts(&in->call.problem);
    unsigned char *base[6];
    size_t stride[6];
    *out = NULL;
    if (table == NULL) return CMOE_OK;
    const void *from[6] = {table->data,   table->scale, table->zero,
                           table->global, table->bias,  table->smooth};
    for (int i = 0; i < 6; i++) {
        const cmoe_status status = spread(in, job, from[i], n, &base[i], &stride[i]);
        if (status != CMOE_OK) return status;
    }
    *out = malloc((size_t)(n > 0 ? n : 1) * sizeof **out);
    if (*out == NULL) return CMOE_ERR_NO_MEMORY;
    for (int32_t e = 0; e < n; e++)
        (*out)[e] = (cmoe_matrix){
            .data = offset(base[0], stride[0], e),
            .row_stride = table->row_stride,
            .scale = offset(base[1], stride[1], e),
            .zero = offset(base[2], stride[2], e),
            .global = offset(base[3], stride[3], e),
            .bias = offset(base[4], stride[4], e),
            .smooth = offset(base[5], stride[5], e),
        };
    return CMOE_OK;
}

/* One set of weights in the formats that the plan wants. */
static cmoe_status make_set(struct bench_inputs *in, struct bench_job *job, const char *format1,
                            const char *format2, cmoe_weights **out)
{
    const cmoe_problem *p = &in->call.problem;
    const bool packed = strcmp(format1, "canonical") != 0 && strcmp(format2, "canonical") != 0;
    cmoe_weights_desc desc = in->call.weights;
    cmoe_matrix *tables[3] = {NULL};
    cmoe_status status = CMOE_OK;
    if (!packed || in->mirror.dev != NULL) {
        status = spread_table(in, job, in->call.weights.gate_up, &tables[0]);
        if (status == CMOE_OK) status = spread_table(in, job, in->call.weights.up, &tables[1]);
        if (status == CMOE_OK) status = spread_table(in, job, in->call.weights.down, &tables[2]);
        desc.gate_up = tables[0];
        desc.up = tables[1];
        desc.down = tables[2];
    }
    desc.format1 = strcmp(format1, "none") == 0 ? NULL : format1;
    desc.format2 = strcmp(format2, "none") == 0 ? NULL : format2;
    if (status == CMOE_OK) status = cmoe_weights_create(job->session->dev, p, &desc, out);
    for (int i = 0; i < 3; i++)
        free(tables[i]);
    return status;
}

cmoe_status bench_job_open(struct bench_inputs *in, const char *pin, int sets,
                           struct bench_job *out)
{
    const cmoe_problem *p = &in->call.problem;
    const cmoe_plan_options options = {.struct_size = sizeof options, .pin = pin};
    cmoe_plan *draft = NULL;
    *out = (struct bench_job){.session = in->session, .sets = sets};
    cmoe_device *dev = in->session->dev;
    cmoe_status status = cmoe_plan_create(dev, p, NULL, &options, &draft);
    for (int i = 0; i < sets && status == CMOE_OK; i++)
        status = make_set(in, out, cmoe_plan_weight_format(draft, 1),
                          cmoe_plan_weight_format(draft, 2), &out->set[i]);
    cmoe_plan_destroy(draft);
    if (status == CMOE_OK) status = cmoe_plan_create(dev, p, out->set[0], &options, &out->plan);
    if (status == CMOE_OK) {
        out->workspace_size = cmoe_plan_workspace_size(out->plan);
        status = cmoe_device_alloc(dev, out->workspace_size, &out->workspace);
    }
    if (status != CMOE_OK) bench_job_close(out);
    return status;
}

cmoe_status bench_job_run(const struct bench_job *job, const struct bench_inputs *in, int i,
                          void *stream)
{
    cmoe_tensors tensors = in->tensors[i % in->variants];
    tensors.weights = job->set[i % job->sets];
    return cmoe_execute(job->plan, &tensors, job->workspace, job->workspace_size, stream);
}

cmoe_status bench_job_run_tensors(const struct bench_job *job, const struct bench_inputs *in,
                                  const cmoe_tensors *tensors)
{
    job->session->canonical = in->reference;
    const cmoe_status status =
        cmoe_execute(job->plan, tensors, job->workspace, job->workspace_size, NULL);
    job->session->canonical = NULL;
    return status == CMOE_OK ? cmoe_device_sync(job->session->dev, NULL) : status;
}

void bench_job_close(struct bench_job *job)
{
    if (job->session == NULL) return;
    cmoe_plan_destroy(job->plan);
    for (int i = 0; i < job->sets; i++)
        cmoe_weights_destroy(job->set[i]);
    for (int i = 0; i < job->memories; i++)
        cmoe_device_free(job->session->dev, job->memory[i]);
    cmoe_device_free(job->session->dev, job->workspace);
    *job = (struct bench_job){.session = NULL};
}
