/* SPDX-License-Identifier: MIT
 * The header of a safetensors file: an 8-byte little-endian length, then JSON. */
#ifndef CMOE_IO_SAFETENSORS_H
#define CMOE_IO_SAFETENSORS_H

#include <cmoe/io.h>

enum { CMOE_SAFETENSORS_LIMIT = 100000000 }; /* bytes of JSON, the format's own limit */

struct cmoe_header_tensor {
    cmoe_tensor_info info; /* data and file are not set; name lies in names */
    size_t begin;          /* of its data, from the start of the file */
};

/* Everything a header says, checked against the file's size. */
struct cmoe_header {
    int64_t count;
    struct cmoe_header_tensor *tensors; /* in order of their data */
    char *names;
};

/* `image` holds the first `size` bytes of a file of `file_size` bytes; `what` names it. */
cmoe_status cmoe__header_parse(const void *image, size_t size, uint64_t file_size, const char *what,
                               struct cmoe_header *out);
void cmoe__header_free(struct cmoe_header *header);

#endif
