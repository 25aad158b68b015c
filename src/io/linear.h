/* SPDX-License-Identifier: MIT
 * One weight matrix of a checkpoint in whatever scheme its tensors show: what a layer is read by. */
#ifndef CMOE_IO_LINEAR_H
#define CMOE_IO_LINEAR_H

#include <cmoe/io.h>
#include <stdbool.h>

/* A layer being read. All its matrices have one format: the first sets it. */
struct cmoe_reading {
    const cmoe_checkpoint *checkpoint;
    const char *quantization; /* config.json's, to tell variants apart that look the same */
    cmoe_layer *layer;        /* owns what is converted */
    cmoe_format format;       /* dtype CMOE_NONE: no matrix yet */
    char first[192];          /* the matrix that set it */
    int group;                /* columns of a group where a matrix has several, else 0 */
    bool dense;               /* decode integers to f32: their groups are not consecutive columns */
    bool wants_dense;         /* set by a matrix that needs it: the layer is read again */
};

/* Zeroed memory of the layer; NULL with no message when there is none. */
void *cmoe__layer_alloc(cmoe_layer *layer, size_t bytes);
void cmoe__layer_release(cmoe_layer *layer);

/* The tensor MODULE + SUFFIX, or NULL; `need` fails naming it. */
const cmoe_tensor_info *cmoe__tensor_find(const struct cmoe_reading *r, const char *module,
                                          const char *suffix);
cmoe_status cmoe__tensor_need(const struct cmoe_reading *r, const char *module, const char *suffix,
                              const cmoe_tensor_info **out);
/* CMOE_ERR_CORRUPT unless the tensor has that shape. */
cmoe_status cmoe__tensor_shape(const cmoe_tensor_info *t, int ndim, const int64_t *shape);
bool cmoe__tensor_is(const cmoe_tensor_info *t, const char *dtype);
/* Its data at an address divisible by `align`: a copy of the layer's where the file has it elsewhere. */
cmoe_status cmoe__tensor_data(const struct cmoe_reading *r, const cmoe_tensor_info *t, size_t align,
                              const void **out);
/* BF16, F16, F32, or E8M0 elements as f32, in place where they are. */
cmoe_status cmoe__tensor_f32(const struct cmoe_reading *r, const cmoe_tensor_info *t, int64_t n,
                             const float **out);
/* CMOE_NONE: not one of BF16, F16, F32. */
cmoe_dtype cmoe__tensor_float(const cmoe_tensor_info *t);

/* Every matrix of a layer in the same format. */
cmoe_status cmoe__reading_format(struct cmoe_reading *r, const char *module, cmoe_format format);

/* The matrix [rows, cols] of tensors whose names begin with `module`. */
cmoe_status cmoe__linear_read(struct cmoe_reading *r, const char *module, int64_t rows,
                              int64_t cols, cmoe_matrix *out);
/* Columns of a group of packed integers, as far as this matrix tells: 0 when it has one group only,
 * which may be a whole row's scale or a larger group's. */
int cmoe__linear_group(const struct cmoe_reading *r, const char *module, int64_t cols);
/* The same for .qweight (GPTQ, AWQ) and for .weight_packed of integers. */
cmoe_status cmoe__linear_gptq(struct cmoe_reading *r, const char *module, int64_t rows,
                              int64_t cols, cmoe_matrix *out);
cmoe_status cmoe__linear_packed(struct cmoe_reading *r, const char *module, int64_t rows,
                                int64_t cols, cmoe_matrix *out);

/* "model.layers.LAYER.mlp": what the names of the layer's tensors begin with. */
struct cmoe_family;
void cmoe__layer_block(const cmoe_checkpoint *c, const struct cmoe_family *f, int layer,
                       char *block, size_t size);
bool cmoe__layer_has_experts(const cmoe_model_config *config, int layer);

/* Static activation scales of separate experts, where the first has one, into the layer. */
cmoe_status cmoe__activation_scales(struct cmoe_reading *r, const struct cmoe_family *f,
                                    const char *block);

/* All experts' matrices of the module of a fused export: experts.gate_up_proj and down_proj. */
bool cmoe__fused_exists(const struct cmoe_reading *r, const char *module);
cmoe_status cmoe__fused_read(struct cmoe_reading *r, const struct cmoe_family *family,
                             const char *module);
/* Fills the layer from the tensors blk.LAYER.* of a GGUF file. */
cmoe_status cmoe__gguf_layer(struct cmoe_reading *r, const struct cmoe_family *family, int layer);
bool cmoe__gguf_has(const cmoe_checkpoint *c, int layer);

#endif
