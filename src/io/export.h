/* SPDX-License-Identifier: MIT
 * Writing quantised matrices under the names that the formats' own tools use. */
#ifndef CMOE_IO_EXPORT_H
#define CMOE_IO_EXPORT_H

#include "safetensors.h"

#include <jansson.h>
#include <stdio.h>

/* A safetensors file in the making: sizes first, then the same tensors again with their data. */
struct cmoe_shard {
    char *path;
    json_t *header; /* while sizes are collected */
    FILE *file;     /* while data is written */
    uint64_t at;    /* end of the tensors so far */
};
cmoe_status cmoe__shard_begin(const char *dir, const char *name, struct cmoe_shard *out);
/* `data` is not read while sizes are collected. */
cmoe_status cmoe__shard_tensor(struct cmoe_shard *s, const char *name, const char *dtype, int ndim,
                               const int64_t *shape, const void *data, size_t bytes);
/* From sizes to data: creates PATH.partial with the header. */
cmoe_status cmoe__shard_open(struct cmoe_shard *s);
/* Flush and rename to PATH. */
cmoe_status cmoe__shard_finish(struct cmoe_shard *s);
/* Whatever state it is in; an unfinished file is removed. */
void cmoe__shard_free(struct cmoe_shard *s);

/* A matrix quantised by cmoe_quantize_weight, or only its sizes (codes NULL). */
struct cmoe_export {
    cmoe_format format;
    int64_t rows, cols;
    uint8_t *codes, *scale, *zero;
    float global;
    float input;      /* static scale of the matrix's input; 0: none */
    uint8_t *scratch; /* of cmoe__export_scratch bytes */
};

/* Name of the layout that holds this format, or NULL: there is none. */
const char *cmoe__export_layout(cmoe_format f);
size_t cmoe__export_scratch(cmoe_format f, int64_t rows, int64_t cols);
/* The tensors MODULE.weight... of one matrix. */
cmoe_status cmoe__export_matrix(struct cmoe_shard *s, const char *module,
                                const struct cmoe_export *m);
/* quantization_config of a config.json for weights f and inputs x; NULL when there is no memory, or
 * for plain formats. */
json_t *cmoe__export_config(cmoe_format f, cmoe_format x);

#endif
