/* SPDX-License-Identifier: MIT
 * Reading and writing .npy files. The header says how long the file must be; a file of any other
 * length is refused before memory for it is taken. */
#include "npy.h"

#include "fail.h"
#include "file.h"
#include "memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static cmoe_status check_size(const cmoe_array *array, uint64_t offset, uint64_t file_size)
{
    if (file_size - offset == array->bytes) return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_CORRUPT,
                     "npy: the shape needs %zu bytes of data, the file has %" PRIu64
                     " after its header at byte %" PRIu64,
                     array->bytes, file_size - offset, offset);
}

static cmoe_status fail_short(size_t have, size_t need)
{
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "npy: the file ends at byte %zu, its header at %zu", have,
                     need);
}

cmoe_status cmoe_npy_parse(const void *image, size_t size, cmoe_array *out)
{
    const uint8_t *const bytes = image;
    size_t text = 0, text_size = 0;
    cmoe_array array;
    CMOE_TRY(cmoe__check_argument(image, "cmoe_npy_parse", "image"));
    CMOE_TRY(cmoe__check_argument(out, "cmoe_npy_parse", "out"));
    CMOE_TRY(cmoe__npy_prefix(bytes, size, &text, &text_size));
    if (text_size > size - text) return fail_short(size, text + text_size);
    CMOE_TRY(cmoe__npy_header_parse((const char *)bytes + text, text_size, text, &array));
    CMOE_TRY(check_size(&array, text + text_size, size));
    array.data = (void *)(uintptr_t)(bytes + text + text_size);
    *out = array;
    return CMOE_OK;
}

/* Header and data of an open file; *out owns the data. */
static cmoe_status read_open(const struct cmoe_file *file, const char *path, cmoe_array *out)
{
    uint8_t prefix[CMOE_NPY_FIXED];
    char header[CMOE_NPY_HEADER_LIMIT];
    size_t text = 0, text_size = 0;
    const size_t have = file->size < sizeof prefix ? (size_t)file->size : sizeof prefix;
    CMOE_TRY(cmoe__file_read(file->fd, path, prefix, have));
    CMOE_TRY(cmoe__npy_prefix(prefix, have, &text, &text_size));
    if (text_size > file->size - text) return fail_short((size_t)file->size, text + text_size);

    /* A version 1 header begins inside the prefix that was read; no header ends there. */
    const size_t early = have - text < text_size ? have - text : text_size;
    memcpy(header, prefix + text, early);
    CMOE_TRY(cmoe__file_read(file->fd, path, header + early, text_size - early));
    CMOE_TRY(cmoe__npy_header_parse(header, text_size, text, out));
    CMOE_TRY(check_size(out, text + text_size, file->size));
    out->data = cmoe__io_alloc(out->bytes);
    if (!out->data) return cmoe__fail_memory(out->bytes, path);
    return cmoe__file_read(file->fd, path, out->data, out->bytes);
}

cmoe_status cmoe_npy_read(const char *path, cmoe_array *out)
{
    struct cmoe_file file;
    CMOE_TRY(cmoe__check_argument(path, "cmoe_npy_read", "path"));
    CMOE_TRY(cmoe__check_argument(out, "cmoe_npy_read", "out"));
    *out = (cmoe_array){0};
    CMOE_TRY(cmoe__file_open(path, &file));
    const cmoe_status status = read_open(&file, path, out);
    close(file.fd);
    if (status != CMOE_OK) cmoe_array_free(out);
    return status;
}

/* Whether shape and bytes agree and can be written. */
static cmoe_status check_array(const cmoe_array *a)
{
    if (a->ndim < 0 || a->ndim > (int)(sizeof a->shape / sizeof a->shape[0])) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "npy: ndim is %d, at most 8", a->ndim);
    }
    if (!cmoe__npy_descr(a->dtype)) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "npy: type %s has no name there: pass its codes as u8",
                         cmoe_dtype_name(a->dtype));
    }
    size_t n = (size_t)cmoe_dtype_bits(a->dtype) / 8;
    for (int i = 0; i < a->ndim; i++) {
        if (a->shape[i] < 0 || __builtin_mul_overflow(n, (uint64_t)a->shape[i], &n)) {
            return CMOE_FAIL(CMOE_ERR_INVALID, "npy: size %" PRId64 " of dimension %d", a->shape[i],
                             i);
        }
    }
    if (n != a->bytes || (n > 0 && !a->data)) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "npy: the shape needs %zu bytes, the array has %zu", n,
                         a->data ? a->bytes : 0);
    }
    return CMOE_OK;
}

/* Longest: 8 sizes of 19 digits; a multiple of 64, so that mapped data is aligned. */
enum { HEADER = 384 };

static size_t format_header(const cmoe_array *array, char image[HEADER])
{
    size_t n = 10 + (size_t)snprintf(image + 10, HEADER - 10,
                                     "{'descr': '%s', 'fortran_order': False, 'shape': (",
                                     cmoe__npy_descr(array->dtype));
    for (int i = 0; i < array->ndim; i++) {
        n += (size_t)snprintf(image + n, HEADER - n, "%s%" PRId64, i ? ", " : "", array->shape[i]);
    }
    n += (size_t)snprintf(image + n, HEADER - n, "%s), }", array->ndim == 1 ? "," : "");
    const size_t end = (n + 1 + 63) / 64 * 64;
    memset(image + n, ' ', end - n);
    image[end - 1] = '\n';
    memcpy(image, "\x93NUMPY\x01\x00", 8);
    image[8] = (char)((end - 10) & 0xff);
    image[9] = (char)((end - 10) >> 8);
    return end;
}

cmoe_status cmoe__npy_write_pieces(const char *path, const cmoe_array *array,
                                   struct cmoe_piece *pieces, int n)
{
    char image[HEADER];
    const size_t size = format_header(array, image);
    pieces[0] = (struct cmoe_piece){.data = image, .size = size};
    return cmoe__file_replace(path, pieces, n);
}

cmoe_status cmoe_npy_write(const char *path, const cmoe_array *array)
{
    CMOE_TRY(cmoe__check_argument(path, "cmoe_npy_write", "path"));
    CMOE_TRY(cmoe__check_argument(array, "cmoe_npy_write", "array"));
    CMOE_TRY(check_array(array));
    struct cmoe_piece pieces[] = {{0}, {.data = array->data, .size = array->bytes}};
    return cmoe__npy_write_pieces(path, array, pieces, 2);
}

void cmoe_array_free(cmoe_array *array)
{
    if (!array) return;
    cmoe__io_free(array->data);
    *array = (cmoe_array){0};
}
