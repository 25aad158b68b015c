/* SPDX-License-Identifier: MIT
 * A run of cmoe_checkpoint_quantize: what its parts share. */
#ifndef CMOE_IO_QUANTIZE_JOB_H
#define CMOE_IO_QUANTIZE_JOB_H

#include "export.h"
#include "family.h"

#include <cmoe/io.h>
#include <jansson.h>
#include <stdbool.h>

enum { CMOE_QUANTIZE_PATH = 4096, CMOE_QUANTIZE_FILES = 4096 };

struct cmoe_quantize_job {
    const char *in, *out, *scheme;
    const cmoe_quantize_options *options;
    cmoe_quantize_report *report;
    cmoe_checkpoint *checkpoint;
    cmoe_model_config config;
    const struct cmoe_family *family;
    bool gguf;                     /* IN is a GGUF file */
    cmoe_format format, x, mid;    /* of weights and of the inputs of matrices 1 and 2 */
    char work[CMOE_QUANTIZE_PATH]; /* OUT.partial */
    const char *files[CMOE_QUANTIZE_FILES];
    int n_files, n_layers, n_shards;
    json_t *map; /* weight_map of the index */
    int64_t done;
    int64_t extra;  /* the most that a layer or a matrix takes beside the buffers below */
    float input[2]; /* static scales of x and mid in this layer; 0: none */
    float *source;  /* a matrix in f32 */
    struct cmoe_export matrix;
};

/* Every shard: what is not an expert, a file for each of the input's, then each layer's experts. */
cmoe_status cmoe__quantize_shards(struct cmoe_quantize_job *job);
/* CMOE_ERR_UNSUPPORTED: a matrix beside experts cannot be decoded. */
cmoe_status cmoe__quantize_rest_check(const struct cmoe_quantize_job *job);
/* Tensors of `file` that are no experts; 8-bit matrices among them become bf16. */
cmoe_status cmoe__quantize_rest(struct cmoe_quantize_job *job, const char *file,
                                struct cmoe_shard *s);
/* config.json, the index, and what transformers keeps beside a model. */
cmoe_status cmoe__quantize_files(const struct cmoe_quantize_job *job);

#endif
