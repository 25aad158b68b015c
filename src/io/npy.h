/* SPDX-License-Identifier: MIT
 * The header of a .npy file, apart from its data. */
#ifndef CMOE_IO_NPY_H
#define CMOE_IO_NPY_H

#include "file.h"

#include <cmoe/io.h>

enum {
    CMOE_NPY_FIXED = 12,             /* magic, version and a 4-byte header length */
    CMOE_NPY_HEADER_LIMIT = 1 << 16, /* NumPy itself refuses longer ones than 10000 */
};

/* Start of the data and length of the header text, from the first bytes of a file. */
cmoe_status cmoe__npy_prefix(const uint8_t *image, size_t size, size_t *text, size_t *text_size);
/* Parse the header's dict literal; sets everything of *out but data. `offset` of the text in its
 * file goes into messages. */
cmoe_status cmoe__npy_header_parse(const char *text, size_t size, size_t offset, cmoe_array *out);

/* Write an array whose data lies in pieces[1] to pieces[n - 1], which together have the bytes that
 * its shape needs; pieces[0] is used for the header. */
cmoe_status cmoe__npy_write_pieces(const char *path, const cmoe_array *array,
                                   struct cmoe_piece *pieces, int n);

/* The type's name in headers ("<f4"), or NULL when npy files do not hold it. */
const char *cmoe__npy_descr(cmoe_dtype dtype);

#endif
