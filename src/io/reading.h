/* SPDX-License-Identifier: MIT
 * A layer being read from a checkpoint: its memory, its tensors, and the one format of its matrices. */
#ifndef CMOE_IO_READING_H
#define CMOE_IO_READING_H

#include <cmoe/io.h>
#include <stdbool.h>

/* All matrices have one format: the first sets it. */
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
int64_t cmoe__tensor_elements(const cmoe_tensor_info *t);
bool cmoe__tensor_is(const cmoe_tensor_info *t, const char *dtype);
/* E8M0 by name, or the bytes that stand for it. */
bool cmoe__tensor_is_e8m0(const cmoe_tensor_info *t);
/* CMOE_NONE: not one of BF16, F16, F32. */
cmoe_dtype cmoe__tensor_float(const cmoe_tensor_info *t);
/* Its data at an address divisible by `align`: a copy of the layer's where the file has it elsewhere. */
cmoe_status cmoe__tensor_data(const struct cmoe_reading *r, const cmoe_tensor_info *t, size_t align,
                              const void **out);
/* BF16, F16, F32, or E8M0 elements as f32, in place where they are. */
cmoe_status cmoe__tensor_f32(const struct cmoe_reading *r, const cmoe_tensor_info *t, int64_t n,
                             const float **out);

/* Every matrix of a layer in the same format. */
cmoe_status cmoe__reading_format(struct cmoe_reading *r, const char *module, cmoe_format format);

/* "2 x 64", for messages. */
struct cmoe_shape_text {
    char text[192];
};
struct cmoe_shape_text cmoe__shape_text(int ndim, const int64_t *shape);

#endif
