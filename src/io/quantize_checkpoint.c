/* SPDX-License-Identifier: MIT
 * A quantised copy of a checkpoint, shard by shard: first what is not an expert, a file for each of
 * the input's, then a file for each layer's experts. Memory is one matrix in f32 and its codes.
 * Everything happens in OUT.partial, where finished shards stay for a later run. */
#include "checkpoint.h"
#include "export.h"
#include "fail.h"
#include "family.h"
#include "file.h"
#include "json.h"
#include "linear.h"
#include "memory.h"

#include <cmoe/convert.h>
#include <cmoe/observe.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH = 4096, CONFIG_LIMIT = 1 << 20, OTHER_LIMIT = 1 << 27, FILES = 4096 };

struct job {
    const char *in, *out, *scheme;
    const cmoe_quantize_options *options;
    cmoe_quantize_report *report;
    cmoe_checkpoint *checkpoint;
    cmoe_model_config config;
    const struct cmoe_family *family;
    cmoe_format format, x, mid; /* of weights and of the inputs of matrices 1 and 2 */
    char work[PATH];            /* OUT.partial */
    const char *files[FILES];
    int n_files, n_layers, n_shards;
    json_t *map; /* weight_map of the index */
    int64_t done;
    float input[2]; /* static scales of x and mid in this layer; 0: none */
    float *source;
    struct cmoe_export matrix;
};

static cmoe_status fail_path(const char *what, const char *path)
{
    return CMOE_FAIL(CMOE_ERR_IO, "cannot %s %s: %s", what, path, strerror(errno));
}

/* ---- what is written ---- */

/* Whether a tensor belongs to the routed experts of a layer that is quantised. */
static bool is_expert(const struct job *job, const char *name)
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

static cmoe_status emit_rest(struct job *job, const char *file, struct cmoe_shard *s)
{
    for (int64_t i = 0; i < cmoe_checkpoint_count(job->checkpoint); i++) {
        const cmoe_tensor_info *const t = cmoe_checkpoint_at(job->checkpoint, i);
        if (strcmp(t->file, file) != 0 || is_expert(job, t->name)) continue;
        CMOE_TRY(cmoe__shard_tensor(s, t->name, t->dtype, t->ndim, t->shape, t->data, t->bytes));
    }
    return CMOE_OK;
}

/* Static scales for layer `at` of those with experts. */
static void set_input_scales(struct job *job, int at)
{
    const cmoe_quantize_options *const o = job->options;
    job->input[0] = job->x.fixed ? cmoe_static_scale(job->x, o->x_amax[at]) : 0;
    job->input[1] = job->mid.fixed ? cmoe_static_scale(job->mid, o->mid_amax[at]) : 0;
}

static cmoe_status emit_matrix(struct job *job, const cmoe_layer *layer, int expert, int which,
                               const char *module, struct cmoe_shard *s)
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

static cmoe_status emit_layer(struct job *job, int index, const cmoe_layer *layer,
                              struct cmoe_shard *s)
{
    const struct cmoe_family *const f = job->family;
    const char *const names[] = {f->gate, f->up, f->down};
    const int64_t total = (int64_t)job->n_layers * layer->problem.experts;
    char block[160], module[256];
    cmoe__layer_block(job->checkpoint, f, index, block, sizeof block);
    for (int e = 0; e < layer->problem.experts; e++) {
        if (s->file && job->options->progress)
            job->options->progress(job->options->user, job->done, total);
        if (s->file) job->done++;
        for (int m = 0; m < 3; m++) {
            snprintf(module, sizeof module, "%s.experts.%d.%s", block, e, names[m]);
            CMOE_TRY(emit_matrix(job, layer, e, m, module, s));
        }
    }
    return CMOE_OK;
}

/* ---- shards ---- */

static cmoe_status emit(struct job *job, const char *file, int index, const cmoe_layer *layer,
                        struct cmoe_shard *s)
{
    return file ? emit_rest(job, file, s) : emit_layer(job, index, layer, s);
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
static cmoe_status write_shard(struct job *job, const char *file, int index,
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

static cmoe_status write_layers(struct job *job)
{
    for (int l = 0, at = 0; l < job->config.layers; l++) {
        cmoe_layer layer;
        if (!cmoe__layer_has_experts(&job->config, l)) continue;
        set_input_scales(job, at++);
        CMOE_TRY(cmoe_layer_open(job->checkpoint, &job->config, l, &layer));
        const cmoe_status status = write_shard(job, NULL, l, &layer);
        cmoe_layer_free(&layer);
        CMOE_TRY(status);
    }
    return CMOE_OK;
}

/* ---- the other files ---- */

static cmoe_status write_json(const struct job *job, const char *name, const json_t *value)
{
    char *const path = cmoe__path_join(job->work, name);
    char *const text = json_dumps(value, JSON_INDENT(2) | JSON_SORT_KEYS);
    cmoe_status status = cmoe__fail_memory(PATH, name);
    if (path && text) {
        const struct cmoe_piece pieces[] = {{text, strlen(text)}, {"\n", 1}};
        status = cmoe__file_replace(path, pieces, 2);
    }
    free(text);
    cmoe__io_free(path);
    return status;
}

static cmoe_status write_config(const struct job *job)
{
    char *const path = cmoe__path_join(job->in, "config.json");
    char *text = NULL;
    size_t size = 0;
    json_t *root = NULL;
    if (!path) return cmoe__fail_memory(PATH, "a path");
    cmoe_status status = cmoe__file_load(path, CONFIG_LIMIT, &text, &size);
    if (status == CMOE_OK) status = cmoe__json_parse(text, size, 64, path, 0, &root);
    if (status == CMOE_OK) {
        json_t *const quantization = cmoe__export_config(job->format, job->x);
        if (quantization) json_object_set_new(root, "quantization_config", quantization);
        status = write_json(job, "config.json", root);
    }
    json_decref(root);
    cmoe__io_free(text);
    cmoe__io_free(path);
    return status;
}

static cmoe_status write_index(const struct job *job)
{
    json_t *const index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size",
                                    (json_int_t)job->report->bytes_out, "weight_map", job->map);
    if (!index) return cmoe__fail_memory(PATH, "an index");
    const cmoe_status status = write_json(job, "model.safetensors.index.json", index);
    json_decref(index);
    return status;
}

/* Tokenizers and the like: what transformers keeps beside a model. */
static bool is_other(const char *name)
{
    static const char *const ends[] = {".json", ".txt", ".model", ".jinja", ".md"};
    if (name[0] == '.' || strcmp(name, "config.json") == 0 ||
        strcmp(name, "model.safetensors.index.json") == 0)
        return false;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        const size_t n = strlen(name), m = strlen(ends[i]);
        if (n > m && strcmp(name + n - m, ends[i]) == 0) return true;
    }
    return false;
}

static cmoe_status copy_file(const struct job *job, const char *name)
{
    char *const from = cmoe__path_join(job->in, name), *const to = cmoe__path_join(job->work, name);
    char *text = NULL;
    size_t size = 0;
    cmoe_status status = from && to ? CMOE_OK : cmoe__fail_memory(PATH, "a path");
    if (status == CMOE_OK) status = cmoe__file_load(from, OTHER_LIMIT, &text, &size);
    if (status == CMOE_OK)
        status = cmoe__file_replace(to, &(const struct cmoe_piece){text, size}, 1);
    cmoe__io_free(text);
    cmoe__io_free(from);
    cmoe__io_free(to);
    return status;
}

static cmoe_status copy_others(const struct job *job)
{
    DIR *const dir = opendir(job->in);
    cmoe_status status = CMOE_OK;
    if (!dir) return fail_path("read", job->in);
    for (const struct dirent *d = readdir(dir); d && status == CMOE_OK; d = readdir(dir)) {
        struct stat info;
        char *const path = cmoe__path_join(job->in, d->d_name);
        const bool file = path && stat(path, &info) == 0 && S_ISREG(info.st_mode);
        cmoe__io_free(path);
        if (file && is_other(d->d_name)) status = copy_file(job, d->d_name);
    }
    (void)closedir(dir);
    return status;
}

/* ---- beginning and end ---- */

/* A number that differs where other magnitudes were observed (FNV-1a). */
static uint32_t observed(const struct job *job)
{
    const cmoe_quantize_options *const o = job->options;
    uint32_t sum = 2166136261u;
    for (int i = 0; i < 2 * o->layers; i++) {
        uint32_t bits;
        memcpy(&bits, (i % 2 ? o->mid_amax : o->x_amax) + i / 2, sizeof bits);
        sum = (sum ^ bits) * 16777619u;
    }
    return sum;
}

/* The run that OUT.partial belongs to: another one's shards must not be mixed in. */
static cmoe_status claim(const struct job *job)
{
    char line[512];
    char *text = NULL, *const path = cmoe__path_join(job->work, "job.txt");
    size_t size = 0;
    if (!path) return cmoe__fail_memory(PATH, "a path");
    snprintf(line, sizeof line, "%s %s %lld %lld %08x\n", job->config.model_type, job->scheme,
             (long long)cmoe_checkpoint_count(job->checkpoint), (long long)job->report->bytes_in,
             observed(job));
    cmoe_status status = CMOE_OK;
    if (mkdir(job->work, 0777) != 0 && errno != EEXIST) status = fail_path("create", job->work);
    if (status == CMOE_OK && cmoe__path_exists(path)) {
        status = cmoe__file_load(path, sizeof line, &text, &size);
        if (status == CMOE_OK && strcmp(text, line) != 0) {
            status = CMOE_FAIL(CMOE_ERR_MISMATCH,
                               "%s is of another run (%.*s); remove it, or name another folder",
                               job->work, (int)strcspn(text, "\n"), text);
        }
        cmoe__io_free(text);
    } else if (status == CMOE_OK) {
        status = cmoe__file_replace(path, &(const struct cmoe_piece){line, strlen(line)}, 1);
    }
    cmoe__io_free(path);
    return status;
}

static cmoe_status publish(const struct job *job)
{
    char *const path = cmoe__path_join(job->work, "job.txt");
    if (!path) return cmoe__fail_memory(PATH, "a path");
    (void)unlink(path);
    cmoe__io_free(path);
    const int fd = open(job->work, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
    if (rename(job->work, job->out) != 0)
        return fail_path("rename the finished folder to", job->out);
    return CMOE_OK;
}

/* Whether what was observed is what the scheme asks for. */
static cmoe_status check_amax(const struct job *job)
{
    const cmoe_quantize_options *const o = job->options;
    const bool wanted = job->x.fixed || job->mid.fixed;
    int layers = 0;
    for (int l = 0; l < job->config.layers; l++)
        layers += cmoe__layer_has_experts(&job->config, l);
    if (wanted && (!o->x_amax || !o->mid_amax || o->layers != layers)) {
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "%s has static activation scales: they need magnitudes observed in %d "
                         "layers (--calib), %d are given",
                         job->scheme, layers, o->x_amax && o->mid_amax ? o->layers : 0);
    }
    if (!wanted && o->layers != 0) {
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "%s has no static activation scales: there is nothing to calibrate",
                         job->scheme);
    }
    return CMOE_OK;
}

static cmoe_status check(struct job *job)
{
    cmoe_problem p = job->config.problem;
    if (job->family->traits & CMOE_FAMILY_BIASES || job->config.quantization[0]) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "%s is of the family %s%s%s; unquantised checkpoints of families without "
                         "biases are quantised",
                         job->in, job->config.model_type,
                         job->config.quantization[0] ? " quantised as " : "",
                         job->config.quantization);
    }
    CMOE_TRY(cmoe_problem_scheme(&p, job->scheme));
    CMOE_TRY(cmoe_problem_check(&p));
    job->format = p.w;
    job->x = p.x;
    job->mid = p.mid;
    CMOE_TRY(check_amax(job));
    if (!cmoe__export_layout(p.w)) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "no checkpoint layout holds the weights of %s",
                         job->scheme);
    }
    if (cmoe__path_exists(job->out)) return CMOE_FAIL(CMOE_ERR_IO, "%s exists already", job->out);
    snprintf(job->report->format, sizeof job->report->format, "%s", cmoe__export_layout(p.w));
    return CMOE_OK;
}

static cmoe_status allocate(struct job *job)
{
    size_t codes = 0, scales = 0, zeros = 0;
    const cmoe_problem *const p = &job->config.problem;
    const size_t n = (size_t)p->inter * (size_t)p->hidden * sizeof(float);
    size_t most[4] = {0};
    const int64_t sizes[2][2] = {{p->inter, p->hidden}, {p->hidden, p->inter}};
    for (int i = 0; i < 2; i++) {
        CMOE_TRY(cmoe_format_bytes(job->format, sizes[i][0], sizes[i][1], &codes, &scales, &zeros));
        const size_t need[4] = {codes, scales, zeros,
                                cmoe__export_scratch(job->format, sizes[i][0], sizes[i][1])};
        for (int j = 0; j < 4; j++)
            if (need[j] > most[j]) most[j] = need[j];
    }
    job->report->memory = (int64_t)(n + most[0] + most[1] + most[2] + most[3]);
    job->matrix.format = job->format;
    if (job->options->dry_run) return CMOE_OK;
    job->source = cmoe__io_alloc(n);
    job->matrix.codes = cmoe__io_alloc(most[0]);
    job->matrix.scale = cmoe__io_alloc(most[1]);
    job->matrix.zero = cmoe__io_alloc(most[2]);
    job->matrix.scratch = cmoe__io_alloc(most[3]);
    if (job->source && job->matrix.codes && job->matrix.scale && job->matrix.zero &&
        job->matrix.scratch)
        return CMOE_OK;
    return cmoe__fail_memory((size_t)job->report->memory, "a matrix");
}

/* The input's files, layers and bytes. */
static cmoe_status survey(struct job *job)
{
    for (int64_t i = 0; i < cmoe_checkpoint_count(job->checkpoint); i++) {
        const cmoe_tensor_info *const t = cmoe_checkpoint_at(job->checkpoint, i);
        int j = 0;
        while (j < job->n_files && job->files[j] != t->file)
            j++;
        if (j == FILES) return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "more than %d shards", (int)FILES);
        if (j == job->n_files) job->files[job->n_files++] = t->file;
        job->report->bytes_in += (int64_t)t->bytes;
    }
    for (int l = 0; l < job->config.layers; l++)
        job->n_layers += cmoe__layer_has_experts(&job->config, l);
    job->n_shards = job->n_files + job->n_layers;
    return CMOE_OK;
}

static cmoe_status run(struct job *job)
{
    CMOE_TRY(cmoe_config_read(job->in, &job->config));
    CMOE_TRY(cmoe_checkpoint_open(job->in, &job->checkpoint));
    job->family = cmoe__family_find(job->config.model_type);
    CMOE_TRY(check(job));
    CMOE_TRY(survey(job));
    CMOE_TRY(allocate(job));
    if (!job->options->dry_run) CMOE_TRY(claim(job));
    for (int i = 0; i < job->n_files; i++)
        CMOE_TRY(write_shard(job, job->files[i], 0, NULL));
    CMOE_TRY(write_layers(job));
    if (job->options->dry_run) return CMOE_OK;
    CMOE_TRY(copy_others(job));
    CMOE_TRY(write_index(job));
    CMOE_TRY(write_config(job));
    return publish(job);
}

cmoe_status cmoe_checkpoint_quantize(const char *in, const char *out,
                                     const cmoe_quantize_options *options,
                                     cmoe_quantize_report *report)
{
    static const char name[] = "cmoe_checkpoint_quantize";
    CMOE_TRY(cmoe__check_argument(in, name, "in"));
    CMOE_TRY(cmoe__check_argument(out, name, "out"));
    CMOE_TRY(cmoe__check_argument(options, name, "options"));
    CMOE_TRY(cmoe__check_argument(options->scheme, name, "options->scheme"));
    CMOE_TRY(cmoe__check_argument(report, name, "report"));
    *report = (cmoe_quantize_report){.shards = 0};
    struct job *const job = cmoe__io_alloc(sizeof *job);
    if (!job) return cmoe__fail_memory(sizeof *job, "a run");
    *job = (struct job){.in = in,
                        .out = out,
                        .scheme = options->scheme,
                        .options = options,
                        .report = report,
                        .map = json_object()};
    size_t length = strlen(out);
    while (length > 1 && out[length - 1] == '/')
        length--;
    const int n = snprintf(job->work, sizeof job->work, "%.*s.partial", (int)length, out);
    cmoe_status status = CMOE_OK;
    if (n < 0 || (size_t)n >= sizeof job->work || !job->map)
        status = CMOE_FAIL(CMOE_ERR_INVALID, "%s is no path of at most %d bytes", out, PATH - 9);
    if (status == CMOE_OK) status = run(job);
    cmoe_checkpoint_close(job->checkpoint);
    json_decref(job->map);
    cmoe__io_free(job->source);
    cmoe__io_free(job->matrix.codes);
    cmoe__io_free(job->matrix.scale);
    cmoe__io_free(job->matrix.zero);
    cmoe__io_free(job->matrix.scratch);
    cmoe__io_free(job);
    return status;
}
