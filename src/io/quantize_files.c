/* SPDX-License-Identifier: MIT
 * The files of a quantised checkpoint that hold no tensors. */
#include "fail.h"
#include "file.h"
#include "gguf.h"
#include "json.h"
#include "memory.h"
#include "quantize_job.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

enum { CONFIG_LIMIT = 1 << 20, OTHER_LIMIT = 1 << 27 };

static cmoe_status write_json(const struct cmoe_quantize_job *job, const char *name,
                              const json_t *value)
{
    char *const path = cmoe__path_join(job->work, name);
    char *const text = json_dumps(value, JSON_INDENT(2) | JSON_SORT_KEYS);
    cmoe_status status = cmoe__fail_memory(CMOE_QUANTIZE_PATH, name);
    if (path && text) {
        const struct cmoe_piece pieces[] = {{text, strlen(text)}, {"\n", 1}};
        status = cmoe__file_replace(path, pieces, 2);
    }
    free(text);
    cmoe__io_free(path);
    return status;
}

/* The text of IN's config.json, or that which the metadata of a GGUF file makes. */
static cmoe_status load_config(const struct cmoe_quantize_job *job, char **text, size_t *size)
{
    if (!job->gguf) {
        char *const path = cmoe__path_join(job->in, "config.json");
        if (!path) return cmoe__fail_memory(CMOE_QUANTIZE_PATH, "a path");
        const cmoe_status status = cmoe__file_load(path, CONFIG_LIMIT, text, size);
        cmoe__io_free(path);
        return status;
    }
    struct cmoe_mapping file = {0};
    CMOE_TRY(cmoe__file_map(job->in, &file));
    const cmoe_status status = cmoe__gguf_config(file.data, file.size, job->in, text);
    cmoe__file_unmap(&file);
    if (status == CMOE_OK) *size = strlen(*text);
    return status;
}

static cmoe_status write_config(const struct cmoe_quantize_job *job)
{
    char *text = NULL;
    size_t size = 0;
    json_t *root = NULL;
    cmoe_status status = load_config(job, &text, &size);
    if (status == CMOE_OK) status = cmoe__json_parse(text, size, 64, job->in, 0, &root);
    if (status == CMOE_OK) {
        json_t *const quantization = cmoe__export_config(job->format, job->x);
        json_object_del(root, "quantization_config");
        json_object_del(root, "compression_config");
        if (quantization) json_object_set_new(root, "quantization_config", quantization);
        status = write_json(job, "config.json", root);
    }
    json_decref(root);
    cmoe__io_free(text);
    return status;
}

static cmoe_status write_index(const struct cmoe_quantize_job *job)
{
    json_t *const index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size",
                                    (json_int_t)job->report->bytes_out, "weight_map", job->map);
    if (!index) return cmoe__fail_memory(CMOE_QUANTIZE_PATH, "an index");
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

static cmoe_status copy_file(const struct cmoe_quantize_job *job, const char *name)
{
    char *const from = cmoe__path_join(job->in, name), *const to = cmoe__path_join(job->work, name);
    char *text = NULL;
    size_t size = 0;
    cmoe_status status = from && to ? CMOE_OK : cmoe__fail_memory(CMOE_QUANTIZE_PATH, "a path");
    if (status == CMOE_OK) status = cmoe__file_load(from, OTHER_LIMIT, &text, &size);
    if (status == CMOE_OK)
        status = cmoe__file_replace(to, &(const struct cmoe_piece){text, size}, 1);
    cmoe__io_free(text);
    cmoe__io_free(from);
    cmoe__io_free(to);
    return status;
}

static cmoe_status copy_others(const struct cmoe_quantize_job *job)
{
    DIR *const dir = opendir(job->in);
    cmoe_status status = CMOE_OK;
    if (!dir) return CMOE_FAIL(CMOE_ERR_IO, "cannot read %s: %s", job->in, strerror(errno));
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

cmoe_status cmoe__quantize_files(const struct cmoe_quantize_job *job)
{
    if (!job->gguf) CMOE_TRY(copy_others(job));
    CMOE_TRY(write_index(job));
    return write_config(job);
}
