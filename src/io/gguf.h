/* SPDX-License-Identifier: MIT
 * GGUF version 3, read only: metadata, then tensor infos, then data. */
#ifndef CMOE_IO_GGUF_H
#define CMOE_IO_GGUF_H

#include "safetensors.h"

#include <stdbool.h>

bool cmoe__gguf_is(const void *image, size_t size);

/* Everything before the data, checked against the file's size; the tensors as a safetensors header
 * has them, shapes outermost first, types "Q8_0" and so on. */
cmoe_status cmoe__gguf_parse(const void *image, size_t size, const char *what,
                             struct cmoe_header *out);

/* A value of the metadata of an image that cmoe__gguf_parse accepted. */
struct cmoe_gguf_value {
    enum {
        CMOE_GGUF_ABSENT,
        CMOE_GGUF_INTEGER,
        CMOE_GGUF_REAL,
        CMOE_GGUF_BOOL,
        CMOE_GGUF_TEXT,
        CMOE_GGUF_ARRAY
    } kind;
    int64_t integer; /* also of BOOL, and the length of TEXT and ARRAY */
    double real;
    const char *text; /* not terminated */
};
struct cmoe_gguf_value cmoe__gguf_find(const void *image, size_t size, const char *key);

/* The metadata as text of a config.json of the same model. Free with cmoe__io_free. */
cmoe_status cmoe__gguf_config(const void *image, size_t size, const char *what, char **text);

#endif
