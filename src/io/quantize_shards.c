/* SPDX-License-Identifier: MIT
 * The shards of a quantised checkpoint: every expert decoded to f32 and quantised, one matrix at a
 * time. Each shard is gone through twice: for its header, then for its data. */
#include "checkpoint.h"
#include "fail.h"
#include "layer.h"
#include "memory.h"
#include "quantize_job.h"

#include <cmoe/convert.h>
#include <cmoe/observe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Static scales for layer `at` of those with experts. */
static void set_input_scales(struct cmoe_quantize_job *job, int at)
{
    const cmoe_quantize_options *const o = job->options;
    job->input[0] = job->x.fixed ? cmoe_static_scale(job->x, o->x_amax[at]) : 0;
    job->input[1] = job->mid.fixed ? cmoe_static_scale(job->mid, o->mid_amax[at]) : 0;
}

static cmoe_status emit_matrix(struct cmoe_quantize_job *job, const cmoe_layer *layer, int expert,
                               int which, const char *module, struct cmoe_shard *s)
{
    struct cmoe_export m = job->matrix;
    m.rows = which == 2 ? layer->problem.hidden : layer->problem.inter;
    m.cols = which == 2 ? layer->problem.inter : layer->problem.hidden;
    m.input = job->input[which == 2];
    if (!s->file) {
        m.codes = NULL;
        return cmoe__export_matrix(s, module, &m);
    }
    CMOE_TRY(cmoe_layer_decode(layer, expert, which, job->source));
    CMOE_TRY(cmoe_quantize_weight(job->format, job->source, m.rows, m.cols, m.codes, m.scale,
                                  m.zero, &m.global));
    return cmoe__export_matrix(s, module, &m);
}

/* Row i of the bias of gate (0), up (1) or down (2). */
static float bias_at(const cmoe_layer *layer, int expert, int which, int64_t i)
{
    if (which == 2) return layer->down[expert].bias[i];
    if (!layer->up) return layer->gate[expert].bias[2 * i + which];
    return (which ? layer->up : layer->gate)[expert].bias[i];
}

static cmoe_status emit_bias(struct cmoe_quantize_job *job, const cmoe_layer *layer, int expert,
                             int which, const char *module, struct cmoe_shard *s)
{
    const uint32_t flag = which == 2 ? CMOE_BIAS2 : CMOE_BIAS1;
    const int64_t rows = which == 2 ? layer->problem.hidden : layer->problem.inter;
    char name[320];
    if (!(layer->problem.flags & flag)) return CMOE_OK;
    for (int64_t i = 0; i < rows && s->file; i++)
        job->source[i] = bias_at(layer, expert, which, i);
    snprintf(name, sizeof name, "%s.bias", module);
    return cmoe__shard_tensor(s, name, "F32", 1, &rows, job->source, (size_t)rows * sizeof(float));
}

/* The router of a GGUF layer, which the reader has widened to f32, under the family's names. */
static cmoe_status emit_router(const struct cmoe_quantize_job *job, const char *block,
                               const cmoe_layer *layer, struct cmoe_shard *s)
{
    const int64_t shape[] = {layer->problem.experts, layer->problem.hidden};
    const struct {
        const char *suffix;
        const void *data;
        int ndim;
    } parts[] = {
        {".weight", layer->router_w, 2},
        {".e_score_correction_bias", layer->router_bias, 1},
        {".bias", layer->logit_bias, 1},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        char name[256];
        const size_t n = (size_t)shape[0] * (size_t)(parts[i].ndim == 2 ? shape[1] : 1);
        if (!parts[i].data) continue;
        snprintf(name, sizeof name, "%s.%s%s", block, job->family->gate_name, parts[i].suffix);
        CMOE_TRY(cmoe__shard_tensor(s, name, "F32", parts[i].ndim, shape, parts[i].data,
                                    n * sizeof(float)));
    }
    return CMOE_OK;
}

static cmoe_status emit_layer(struct cmoe_quantize_job *job, int index, const cmoe_layer *layer,
                              struct cmoe_shard *s)
{
    const struct cmoe_family *const f = job->family;
    const char *const names[] = {f->gate, f->up, f->down};
    const int64_t total = (int64_t)job->n_layers * layer->problem.experts;
    char block[160], module[256];
    cmoe__layer_block(job->checkpoint, f, index, block, sizeof block);
    if (job->gguf) CMOE_TRY(emit_router(job, block, layer, s));
    for (int e = 0; e < layer->problem.experts; e++) {
        if (s->file && job->options->progress)
            job->options->progress(job->options->user, job->done, total);
        if (s->file) job->done++;
        for (int m = 0; m < 3; m++) {
            snprintf(module, sizeof module, "%s.experts.%d.%s", block, e, names[m]);
            CMOE_TRY(emit_matrix(job, layer, e, m, module, s));
            CMOE_TRY(emit_bias(job, layer, e, m, module, s));
        }
    }
    return CMOE_OK;
}

static cmoe_status emit(struct cmoe_quantize_job *job, const char *file, int index,
                        const cmoe_layer *layer, struct cmoe_shard *s)
{
    return file ? cmoe__quantize_rest(job, file, s) : emit_layer(job, index, layer, s);
}

static bool is_finished(const struct cmoe_shard *s)
{
    struct stat info;
    char *const text = json_dumps(s->header, JSON_COMPACT);
    const size_t head = text ? 8 + (strlen(text) + 7) / 8 * 8 : 0;
    free(text);
    return stat(s->path, &info) == 0 && (uint64_t)info.st_size == head + s->at;
}

/* One shard: of a file's other tensors, or of a layer's experts. */
static cmoe_status write_shard(struct cmoe_quantize_job *job, const char *file, int index,
                               const cmoe_layer *layer)
{
    char name[64];
    const char *key;
    json_t *value;
    struct cmoe_shard s;
    job->report->shards++;
    snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", (int)job->report->shards,
             job->n_shards);
    CMOE_TRY(cmoe__shard_begin(job->work, name, &s));
    cmoe_status status = emit(job, file, index, layer, &s);
    json_object_foreach(s.header, key, value) json_object_set_new(job->map, key, json_string(name));
    job->report->bytes_out += (int64_t)s.at;
    if (status == CMOE_OK && !job->options->dry_run) {
        if (is_finished(&s)) {
            job->report->reused++;
            if (layer) job->done += layer->problem.experts;
        } else {
            status = cmoe__shard_open(&s);
            if (status == CMOE_OK) status = emit(job, file, index, layer, &s);
            if (status == CMOE_OK) status = cmoe__shard_finish(&s);
        }
    }
    cmoe__shard_free(&s);
    return status;
}

/* Converted copies of a layer, and both first matrices where their rows alternate. */
static void note_memory(struct cmoe_quantize_job *job, const cmoe_layer *layer)
{
    const int64_t both = 2 * (int64_t)layer->problem.inter * layer->problem.hidden;
    const int64_t mixed = layer->up ? 0 : both * (int64_t)sizeof(float);
    const int64_t tables = 3 * layer->problem.experts * (int64_t)sizeof(cmoe_matrix);
    const int64_t need = (int64_t)layer->owned_bytes + mixed + tables;
    if (need > job->extra) job->extra = need;
}

static cmoe_status write_layers(struct cmoe_quantize_job *job)
{
    for (int l = 0, at = 0; l < job->config.layers; l++) {
        cmoe_layer layer;
        if (!cmoe__layer_has_experts(&job->config, l)) continue;
        set_input_scales(job, at++);
        CMOE_TRY(cmoe_layer_open(job->checkpoint, &job->config, l, &layer));
        note_memory(job, &layer);
        const cmoe_status status = write_shard(job, NULL, l, &layer);
        cmoe_layer_free(&layer);
        CMOE_TRY(status);
    }
    return CMOE_OK;
}

cmoe_status cmoe__quantize_shards(struct cmoe_quantize_job *job)
{
    for (int i = 0; i < job->n_files; i++)
        CMOE_TRY(write_shard(job, job->files[i], 0, NULL));
    CMOE_TRY(write_layers(job));
    job->report->memory += job->extra;
    return CMOE_OK;
}
