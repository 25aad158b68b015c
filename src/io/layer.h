/* SPDX-License-Identifier: MIT
 * What a layer is made of beside its separate matrices, and where its tensors are. */
#ifndef CMOE_IO_LAYER_H
#define CMOE_IO_LAYER_H

#include "reading.h"

struct cmoe_family;

/* "model.layers.LAYER.mlp": what the names of the layer's tensors begin with. */
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
