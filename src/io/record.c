/* SPDX-License-Identifier: MIT
 * Writing one call as a folder: what it reads as npy files, and problem.txt, written last, so that a
 * folder with that file is complete. */
#include "record.h"

#include "fail.h"
#include "memory.h"
#include "npy.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { TEXT = 8192 };

struct writer {
    const char *dir;
    const cmoe_record *call;
    char text[TEXT]; /* problem.txt */
    size_t used;
};

__attribute__((format(printf, 2, 3))) static void say(struct writer *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(w->text + w->used, TEXT - w->used, format, args);
    va_end(args);
    if (n > 0) w->used += (size_t)n;
    if (w->used >= TEXT) w->used = TEXT - 1;
}

/* "key value" on one line, whatever the value holds. */
static void say_text(struct writer *w, const char *key, const char *value)
{
    const size_t start = w->used;
    say(w, "%s %.600s", key, value ? value : "");
    for (size_t i = start; i < w->used; i++) {
        if ((unsigned char)w->text[i] < ' ') w->text[i] = '?';
    }
    say(w, "\n");
}

/* rows x row_bytes from memory whose rows and columns lie apart, as one piece. A tight source is the
 * piece itself; else *copy holds it. */
static cmoe_status gather(const void *src, int64_t rows, size_t row_bytes, int64_t row_stride,
                          size_t element, int64_t col_stride, struct cmoe_piece *piece, void **copy)
{
    const uint8_t *const from = src;
    const bool columns = col_stride != 0 && (size_t)col_stride != element;
    const size_t bytes = (size_t)rows * row_bytes;
    *piece = (struct cmoe_piece){.data = src, .size = bytes};
    if (!columns && (row_stride == 0 || (size_t)row_stride == row_bytes)) return CMOE_OK;
    if (row_stride == 0) row_stride = (int64_t)row_bytes;
    uint8_t *const to = cmoe__io_alloc(bytes);
    if (!to) return cmoe__fail_memory(bytes, "a copy of an array");
    for (int64_t r = 0; r < rows; r++) {
        uint8_t *const row = to + (size_t)r * row_bytes;
        if (!columns) memcpy(row, from + r * row_stride, row_bytes);
        for (size_t i = 0; columns && i < row_bytes / element; i++) {
            memcpy(row + i * element, from + r * row_stride + (int64_t)i * col_stride, element);
        }
    }
    piece->data = *copy = to;
    return CMOE_OK;
}

static cmoe_status write_array(struct writer *w, const char *name, const cmoe_array *array,
                               struct cmoe_piece *pieces, int n)
{
    char file[64];
    snprintf(file, sizeof file, "%s.npy", name);
    char *const path = cmoe__path_join(w->dir, file);
    if (!path) return cmoe__fail_memory(strlen(w->dir), "a path");
    const cmoe_status status = cmoe__npy_write_pieces(path, array, pieces, n);
    cmoe__io_free(path);
    if (status == CMOE_OK) say(w, "array %s\n", name);
    return status;
}

static cmoe_status write_field(struct writer *w, const struct cmoe_field *f)
{
    const void *src;
    void *copy = NULL;
    struct cmoe_piece pieces[2] = {{0}};
    memcpy(&src, (const char *)w->call->tensors + f->offset, sizeof src);
    if (!src) return CMOE_OK;
    const cmoe_array array = {.dtype = f->dtype, .ndim = 2, .shape = {f->rows, f->cols}};
    CMOE_TRY(gather(src, f->rows, cmoe_dtype_bytes(f->dtype, f->cols), f->stride, 1, 0, &pieces[1],
                    &copy));
    const cmoe_status status = write_array(w, f->name, &array, pieces, 2);
    cmoe__io_free(copy);
    return status;
}

/* One array of one expert's matrix. */
static cmoe_status take(const struct writer *w, const struct cmoe_part *part,
                        const struct cmoe_part_field *f, int expert, struct cmoe_piece *piece,
                        void **copy)
{
    cmoe_matrix first = {0}, second = {0};
    const void *src;
    CMOE_TRY(cmoe_weights_matrix(w->call->weights, expert, part->matrix, &first, &second));
    const cmoe_matrix *const m = part->up ? &second : &first;
    memcpy(&src, (const char *)m + f->offset, sizeof src);
    if (!src) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "expert %d has no %s%s", expert, part->name, f->suffix);
    }
    const bool codes = f->offset == offsetof(cmoe_matrix, data);
    const int bits = cmoe_dtype_bits((cmoe_dtype)w->call->problem->w.dtype);
    return gather(src, f->rows, cmoe_dtype_bytes(f->dtype, f->cols), codes ? m->row_stride : 0,
                  codes && bits >= 8 ? (size_t)bits / 8 : 1, codes ? m->col_stride : 0, piece,
                  copy);
}

static cmoe_status write_part_field(struct writer *w, const struct cmoe_part *part,
                                    const struct cmoe_part_field *f, int32_t experts)
{
    char name[48];
    const size_t n = (size_t)experts;
    struct cmoe_piece *const pieces = cmoe__io_alloc((n + 1) * sizeof pieces[0]);
    void **const copies = cmoe__io_alloc((n + 1) * sizeof copies[0]);
    cmoe_status status = pieces && copies
                             ? CMOE_OK
                             : cmoe__fail_memory((n + 1) * sizeof pieces[0], "a list of experts");
    for (int32_t e = 0; e < experts && status == CMOE_OK; e++) {
        status = take(w, part, f, e, &pieces[e + 1], &copies[e]);
    }
    const cmoe_array array = {.dtype = f->dtype, .ndim = 3, .shape = {experts, f->rows, f->cols}};
    snprintf(name, sizeof name, "%s%s", part->name, f->suffix);
    if (status == CMOE_OK) status = write_array(w, name, &array, pieces, experts + 1);
    for (size_t e = 0; copies && e < n; e++)
        cmoe__io_free(copies[e]);
    cmoe__io_free(copies);
    cmoe__io_free(pieces);
    return status;
}

static cmoe_status write_weights(struct writer *w)
{
    const cmoe_problem *const p = w->call->problem;
    const int32_t experts = cmoe_problem_local_experts(p);
    struct cmoe_part parts[CMOE_MAX_PARTS];
    cmoe_matrix gate = {0}, up = {0};
    int n = cmoe__record_parts(p, false, parts);
    if (n == 0) return CMOE_OK;
    if (!w->call->weights) return CMOE_FAIL(CMOE_ERR_INVALID, "the call has no weights to record");
    if (parts[0].matrix == 1 && experts > 0) {
        CMOE_TRY(cmoe_weights_matrix(w->call->weights, 0, 1, &gate, &up));
        n = cmoe__record_parts(p, up.data != NULL, parts);
    }
    for (int i = 0; i < n; i++) {
        struct cmoe_part_field fields[CMOE_MAX_PART_FIELDS];
        int n_fields = 0;
        CMOE_TRY(cmoe__part_fields(p, &parts[i], fields, &n_fields));
        for (int f = 0; f < n_fields; f++) {
            CMOE_TRY(write_part_field(w, &parts[i], &fields[f], experts));
        }
    }
    return CMOE_OK;
}

static cmoe_status write_all(struct writer *w)
{
    const cmoe_record *const call = w->call;
    struct cmoe_field fields[CMOE_MAX_FIELDS];
    char line[CMOE_PROBLEM_TEXT];
    cmoe_problem_print(call->problem, line, sizeof line);
    say(w, "cmoe record 1\nproblem %s\ntokens %d\nvocab %lld\n", line, call->tensors->n_tokens,
        (long long)call->tensors->vocab);
    say_text(w, "device", call->device);
    say_text(w, "path", call->path);
    const int n = cmoe__record_fields(call->problem, call->tensors, fields);
    for (int i = 0; i < n; i++)
        CMOE_TRY(write_field(w, &fields[i]));
    CMOE_TRY(write_weights(w));

    char *const path = cmoe__path_join(w->dir, "problem.txt");
    if (!path) return cmoe__fail_memory(strlen(w->dir), "a path");
    const struct cmoe_piece piece = {.data = w->text, .size = w->used};
    const cmoe_status status = cmoe__file_replace(path, &piece, 1);
    cmoe__io_free(path);
    return status;
}

cmoe_status cmoe_record_write(const char *dir, const cmoe_record *call)
{
    CMOE_TRY(cmoe__check_argument(dir, "cmoe_record_write", "dir"));
    CMOE_TRY(cmoe__check_argument(call, "cmoe_record_write", "call"));
    CMOE_TRY(cmoe__check_argument(call->problem, "cmoe_record_write", "call->problem"));
    CMOE_TRY(cmoe__check_argument(call->tensors, "cmoe_record_write", "call->tensors"));
    CMOE_TRY(cmoe_problem_check(call->problem));
    if (call->far)
        return CMOE_FAIL(
            CMOE_ERR_UNSUPPORTED,
            "cmoe_record_write: the call's arrays lie in the memory of device %s; copy "
            "them to the host, point to the copies and set far to 0",
            call->device ? call->device : "?");
    if (mkdir(dir, 0777) != 0 && (errno != EEXIST || !cmoe__path_is_directory(dir))) {
        return CMOE_FAIL(CMOE_ERR_IO, "cannot make the folder %s: %s", dir, strerror(errno));
    }
    struct writer *const w = cmoe__io_alloc(sizeof *w);
    if (!w) return cmoe__fail_memory(sizeof *w, "a record");
    w->dir = dir;
    w->call = call;
    const cmoe_status status = write_all(w);
    cmoe__io_free(w);
    return status;
}
