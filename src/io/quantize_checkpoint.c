/* SPDX-License-Identifier: MIT
 * A quantised copy of a checkpoint, shard by shard. Memory is one matrix in f32 and its codes, and a
 * layer's experts where the input has to be converted to be read. Everything happens in OUT.partial,
 * where finished shards stay for a later run. */
#include "fail.h"
#include "file.h"
#include "layer.h"
#include "memory.h"
#include "quantize_job.h"

#include <cmoe/convert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static cmoe_status fail_path(const char *what, const char *path)
{
    return CMOE_FAIL(CMOE_ERR_IO, "cannot %s %s: %s", what, path, strerror(errno));
}

/* A number that differs where other magnitudes were observed (FNV-1a). */
static uint32_t observed(const struct cmoe_quantize_job *job)
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
static cmoe_status claim(const struct cmoe_quantize_job *job)
{
    char line[512];
    char *text = NULL, *const path = cmoe__path_join(job->work, "job.txt");
    size_t size = 0;
    if (!path) return cmoe__fail_memory(CMOE_QUANTIZE_PATH, "a path");
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

static cmoe_status publish(const struct cmoe_quantize_job *job)
{
    char *const path = cmoe__path_join(job->work, "job.txt");
    if (!path) return cmoe__fail_memory(CMOE_QUANTIZE_PATH, "a path");
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
static cmoe_status check_amax(const struct cmoe_quantize_job *job)
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

static cmoe_status check(struct cmoe_quantize_job *job)
{
    cmoe_problem p = job->config.problem;
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

static cmoe_status allocate(struct cmoe_quantize_job *job)
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
static cmoe_status survey(struct cmoe_quantize_job *job)
{
    for (int64_t i = 0; i < cmoe_checkpoint_count(job->checkpoint); i++) {
        const cmoe_tensor_info *const t = cmoe_checkpoint_at(job->checkpoint, i);
        int j = 0;
        job->report->bytes_in += (int64_t)t->bytes;
        if (job->gguf) continue; /* its layers are all that is written */
        while (j < job->n_files && job->files[j] != t->file)
            j++;
        if (j == CMOE_QUANTIZE_FILES)
            return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "more than %d shards", (int)CMOE_QUANTIZE_FILES);
        if (j == job->n_files) job->files[job->n_files++] = t->file;
    }
    for (int l = 0; l < job->config.layers; l++)
        job->n_layers += cmoe__layer_has_experts(&job->config, l);
    job->n_shards = job->n_files + job->n_layers;
    return CMOE_OK;
}

static cmoe_status run(struct cmoe_quantize_job *job)
{
    CMOE_TRY(cmoe_config_read(job->in, &job->config));
    CMOE_TRY(cmoe_checkpoint_open(job->in, &job->checkpoint));
    job->family = cmoe__family_find(job->config.model_type);
    job->gguf = strcmp(job->config.quantization, "gguf") == 0;
    strcpy(job->report->source, job->config.quantization);
    CMOE_TRY(check(job));
    CMOE_TRY(cmoe__quantize_rest_check(job));
    CMOE_TRY(survey(job));
    CMOE_TRY(allocate(job));
    if (!job->options->dry_run) CMOE_TRY(claim(job));
    CMOE_TRY(cmoe__quantize_shards(job));
    if (job->options->dry_run) return CMOE_OK;
    CMOE_TRY(cmoe__quantize_files(job));
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
    struct cmoe_quantize_job *const job = cmoe__io_alloc(sizeof *job);
    if (!job) return cmoe__fail_memory(sizeof *job, "a run");
    *job = (struct cmoe_quantize_job){.in = in,
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
        status = CMOE_FAIL(CMOE_ERR_INVALID, "%s is no path of at most %d bytes", out,
                           CMOE_QUANTIZE_PATH - 9);
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
