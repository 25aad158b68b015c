/* SPDX-License-Identifier: MIT
 * Reading a recorded call back. problem.txt says which arrays there are; each must be one that the
 * problem reads, with exactly its type and shape. */
#include "record.h"

#include "fail.h"
#include "memory.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TEXT_LIMIT = 1 << 16,
    MAX_ARRAYS = CMOE_MAX_FIELDS + CMOE_MAX_PARTS * CMOE_MAX_PART_FIELDS,
};

struct storage {
    cmoe_array arrays[MAX_ARRAYS];
    int n;
    cmoe_matrix *tables[CMOE_MAX_PARTS];
};

struct reader {
    const char *dir;
    char *text; /* problem.txt, cut into lines */
    const char *problem, *tokens, *vocab;
    const char *names[MAX_ARRAYS]; /* of arrays that were listed ... */
    bool used[MAX_ARRAYS];         /* ... and found a place */
    int n_names;
    cmoe_replay *out;
    struct storage *storage;
};

static cmoe_status fail_line(const char *dir, int line, const char *clause)
{
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s/problem.txt: line %d %s", dir, line, clause);
}

static cmoe_status parse_line(struct reader *r, int number, char *line)
{
    char *const blank = strchr(line, ' ');
    const char *value = "";
    if (blank) {
        *blank = '\0';
        value = blank + 1;
    }
    if (strcmp(line, "device") == 0 || strcmp(line, "path") == 0) return CMOE_OK;
    if (strcmp(line, "array") == 0) {
        if (r->n_names == MAX_ARRAYS) return fail_line(r->dir, number, "is one array too many");
        for (int i = 0; i < r->n_names; i++) {
            if (strcmp(r->names[i], value) == 0) {
                return fail_line(r->dir, number, "repeats an array");
            }
        }
        r->names[r->n_names++] = value;
        return CMOE_OK;
    }
    const char **const slot = strcmp(line, "problem") == 0  ? &r->problem
                              : strcmp(line, "tokens") == 0 ? &r->tokens
                              : strcmp(line, "vocab") == 0  ? &r->vocab
                                                            : NULL;
    if (!slot) return fail_line(r->dir, number, "has an unknown key");
    if (*slot) return fail_line(r->dir, number, "repeats a key");
    *slot = value;
    return CMOE_OK;
}

static cmoe_status parse_text(struct reader *r, size_t size)
{
    static const char magic[] = "cmoe record 1";
    char *line = r->text, *const end = r->text + size;
    if (memchr(r->text, '\0', size) || size == 0 || end[-1] != '\n') {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s/problem.txt: not lines of text", r->dir);
    }
    for (int number = 1; line < end; number++) {
        char *const stop = memchr(line, '\n', (size_t)(end - line));
        *stop = '\0';
        if (number > 1) {
            CMOE_TRY(parse_line(r, number, line));
        } else if (strcmp(line, magic) != 0) {
            return fail_line(r->dir, 1, "is not \"cmoe record 1\"");
        }
        line = stop + 1;
    }
    if (r->problem && r->tokens && r->vocab) return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s/problem.txt: problem, tokens or vocab is missing",
                     r->dir);
}

static cmoe_status parse_count(const struct reader *r, const char *key, const char *text,
                               int64_t most, int64_t *out)
{
    char *end = NULL;
    errno = 0;
    const long long v = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || v < 0 || v > most) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s/problem.txt: %s is \"%s\", not 0 to %" PRId64,
                         r->dir, key, cmoe__quote(text).text, most);
    }
    *out = v;
    return CMOE_OK;
}

static cmoe_status parse_problem(struct reader *r)
{
    cmoe_problem *const p = &r->out->problem;
    int64_t tokens;
    cmoe_problem_init(p);
    if (cmoe_problem_parse(p, r->problem) != CMOE_OK || cmoe_problem_check(p) != CMOE_OK) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s/problem.txt: %s", r->dir, cmoe_last_error());
    }
    CMOE_TRY(parse_count(r, "tokens", r->tokens, p->max_tokens, &tokens));
    CMOE_TRY(parse_count(r, "vocab", r->vocab, INT64_MAX, &r->out->tensors.vocab));
    r->out->tensors.struct_size = sizeof r->out->tensors;
    r->out->tensors.n_tokens = (int32_t)tokens;
    return CMOE_OK;
}

/* Index of a listed array, or -1. */
static int find_name(const struct reader *r, const char *name)
{
    for (int i = 0; i < r->n_names; i++) {
        if (strcmp(r->names[i], name) == 0) return i;
    }
    return -1;
}

/* Read the listed array dir/name.npy, which must have this type and shape. */
static cmoe_status load(struct reader *r, const char *name, const cmoe_array *want,
                        const void **data)
{
    char file[64];
    snprintf(file, sizeof file, "%s.npy", name);
    char *const path = cmoe__path_join(r->dir, file);
    if (!path) return cmoe__fail_memory(strlen(r->dir), "a path");
    r->used[find_name(r, name)] = true;
    cmoe_array *const a = &r->storage->arrays[r->storage->n];
    const cmoe_status status = cmoe_npy_read(path, a);
    cmoe__io_free(path);
    CMOE_TRY(status);
    r->storage->n++;
    bool same = a->dtype == want->dtype && a->ndim == want->ndim;
    for (int i = 0; same && i < want->ndim; i++)
        same = a->shape[i] == want->shape[i];
    if (!same) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT,
                         "%s/%s has %s in %d dimensions, %" PRId64 " x %" PRId64 " x %" PRId64
                         ", the problem has %s in %d, %" PRId64 " x %" PRId64 " x %" PRId64,
                         r->dir, file, cmoe_dtype_name(a->dtype), a->ndim, a->shape[0], a->shape[1],
                         a->shape[2], cmoe_dtype_name(want->dtype), want->ndim, want->shape[0],
                         want->shape[1], want->shape[2]);
    }
    *data = a->data;
    return CMOE_OK;
}

static cmoe_status read_fields(struct reader *r)
{
    struct cmoe_field fields[CMOE_MAX_FIELDS];
    cmoe_tensors *const t = &r->out->tensors;
    /* Which of the two types of ids there are decides what is listed. */
    static const int64_t wide = 0;
    if (find_name(r, "topk_ids64") >= 0) t->topk_ids64 = &wide;
    const int n = cmoe__record_fields(&r->out->problem, t, fields);
    t->topk_ids64 = NULL;
    for (int i = 0; i < n; i++) {
        const struct cmoe_field *const f = &fields[i];
        const cmoe_array want = {.dtype = f->dtype, .ndim = 2, .shape = {f->rows, f->cols}};
        const void *data;
        if (find_name(r, f->name) < 0) continue;
        CMOE_TRY(load(r, f->name, &want, &data));
        memcpy((char *)t + f->offset, &data, sizeof data);
    }
    return CMOE_OK;
}

/* One array of all experts, spread over their matrices. */
static cmoe_status read_part_field(struct reader *r, const struct cmoe_part *part,
                                   const struct cmoe_part_field *f, cmoe_matrix *table)
{
    char name[48];
    const void *data;
    const int32_t experts = cmoe_problem_local_experts(&r->out->problem);
    snprintf(name, sizeof name, "%s%s", part->name, f->suffix);
    if (find_name(r, name) < 0) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s/problem.txt: array %s is missing", r->dir, name);
    }
    const cmoe_array want = {.dtype = f->dtype, .ndim = 3, .shape = {experts, f->rows, f->cols}};
    CMOE_TRY(load(r, name, &want, &data));
    const size_t bytes = (size_t)f->rows * cmoe_dtype_bytes(f->dtype, f->cols);
    for (int32_t e = 0; e < experts; e++) {
        const void *const item = (const uint8_t *)data + (size_t)e * bytes;
        memcpy((char *)&table[e] + f->offset, &item, sizeof item);
    }
    return CMOE_OK;
}

static cmoe_status read_weights(struct reader *r)
{
    const cmoe_problem *const p = &r->out->problem;
    const size_t bytes = (size_t)cmoe_problem_local_experts(p) * sizeof(cmoe_matrix);
    struct cmoe_part parts[CMOE_MAX_PARTS];
    const bool split = p->gate == CMOE_GATE_SPLIT && find_name(r, "w_gate") >= 0;
    const int n = cmoe__record_parts(p, split, parts);
    cmoe_weights_desc *const desc = &r->out->weights;
    desc->struct_size = sizeof *desc;
    for (int i = 0; i < n; i++) {
        struct cmoe_part_field fields[CMOE_MAX_PART_FIELDS];
        int n_fields = 0;
        CMOE_TRY(cmoe__part_fields(p, &parts[i], fields, &n_fields));
        cmoe_matrix *const table = cmoe__io_alloc(bytes);
        if (!table) return cmoe__fail_memory(bytes, "expert tables");
        r->storage->tables[i] = table;
        for (int f = 0; f < n_fields; f++) {
            CMOE_TRY(read_part_field(r, &parts[i], &fields[f], table));
        }
        *(parts[i].matrix == 2 ? &desc->down : parts[i].up ? &desc->up : &desc->gate_up) = table;
    }
    return CMOE_OK;
}

static cmoe_status read_all(struct reader *r)
{
    size_t size = 0;
    char *const path = cmoe__path_join(r->dir, "problem.txt");
    if (!path) return cmoe__fail_memory(strlen(r->dir), "a path");
    const cmoe_status status = cmoe__file_load(path, TEXT_LIMIT, &r->text, &size);
    cmoe__io_free(path);
    CMOE_TRY(status);
    CMOE_TRY(parse_text(r, size));
    CMOE_TRY(parse_problem(r));
    CMOE_TRY(read_fields(r));
    CMOE_TRY(read_weights(r));
    for (int i = 0; i < r->n_names; i++) {
        if (r->used[i]) continue;
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s/problem.txt: array \"%s\" is not one the call reads",
                         r->dir, cmoe__quote(r->names[i]).text);
    }
    return CMOE_OK;
}

cmoe_status cmoe_record_read(const char *dir, cmoe_replay *out)
{
    CMOE_TRY(cmoe__check_argument(dir, "cmoe_record_read", "dir"));
    CMOE_TRY(cmoe__check_argument(out, "cmoe_record_read", "out"));
    *out = (cmoe_replay){0};
    struct reader *const r = cmoe__io_alloc(sizeof *r);
    struct storage *const storage = cmoe__io_alloc(sizeof *storage);
    out->storage = storage;
    cmoe_status status = CMOE_OK;
    if (r && storage) {
        r->dir = dir;
        r->out = out;
        r->storage = storage;
        status = read_all(r);
        cmoe__io_free(r->text);
    } else {
        status = cmoe__fail_memory(sizeof *r + sizeof *storage, "a record");
    }
    cmoe__io_free(r);
    if (status != CMOE_OK) cmoe_replay_free(out);
    return status;
}

void cmoe_replay_free(cmoe_replay *replay)
{
    if (!replay) return;
    struct storage *const storage = replay->storage;
    for (int i = 0; storage && i < storage->n; i++)
        cmoe_array_free(&storage->arrays[i]);
    for (int i = 0; storage && i < CMOE_MAX_PARTS; i++)
        cmoe__io_free(storage->tables[i]);
    cmoe__io_free(storage);
    *replay = (cmoe_replay){0};
}
