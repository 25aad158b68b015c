/* SPDX-License-Identifier: MIT
 * libcmoe-io: files. npy arrays, safetensors checkpoints, config.json, recorded calls.
 * Everything read is treated as hostile: a malformed file is CMOE_ERR_CORRUPT with the byte offset
 * or key, in time and memory proportional to its real size. */
#ifndef CMOE_IO_H
#define CMOE_IO_H

#include <cmoe/cmoe.h>

CMOE_BEGIN_DECLS

/* ---- npy ---- */

/** A NumPy array. dtype: f4 -> F32, f2 -> F16, i4, i8, i1, u1; bf16 and fp8 travel as u2/u1 views
 *  (u2 is read as BF16, fp8 as U8). C order only. */
typedef struct cmoe_array {
    cmoe_dtype dtype;
    int ndim;
    int64_t shape[8];
    size_t bytes;
    void *data; /* [shape], tight */
} cmoe_array;

/** Read a .npy file (versions 1-3, little endian, C order). Free with cmoe_array_free.
 *  @return CMOE_OK; CMOE_ERR_IO (it cannot be opened or read); CMOE_ERR_CORRUPT (with the byte where it
 *          stops being one); CMOE_ERR_UNSUPPORTED (another type or order, more than 8 dimensions);
 *          CMOE_ERR_NO_MEMORY; CMOE_ERR_INVALID. */
CMOE_API cmoe_status cmoe_npy_read(const char *path, cmoe_array *out) CMOE_MUST_CHECK;
/** Parse a .npy image in memory; *out then points into `image`, aligned as the image has it. For
 *  fuzzing and mapped files; not to be freed. @return as cmoe_npy_read. */
CMOE_API cmoe_status cmoe_npy_parse(const void *image, size_t size, cmoe_array *out)
    CMOE_MUST_CHECK;
/** Write atomically: to PATH.partial, fsync, rename. Nothing is left behind on failure.
 *  @return CMOE_OK; CMOE_ERR_INVALID (shape and bytes differ, a type without a name in npy); CMOE_ERR_IO. */
CMOE_API cmoe_status cmoe_npy_write(const char *path, const cmoe_array *array) CMOE_MUST_CHECK;
/** Free what cmoe_npy_read gave and zero the struct; NULL is fine. */
CMOE_API void cmoe_array_free(cmoe_array *array);

/* ---- safetensors ---- */

typedef struct cmoe_checkpoint cmoe_checkpoint;

typedef struct cmoe_tensor_info {
    const char *name;
    char dtype[16]; /* as the file says: "BF16", "F8_E4M3", "U8", ... */
    int ndim;
    int64_t shape[8];
    size_t bytes;
    const void *data; /* mapped, read only; aligned as the file has it */
    const char *file; /* shard */
} cmoe_tensor_info;

/** Open a .safetensors or GGUF file, an index .json, or a directory that holds model.safetensors.index.json
 *  or model.safetensors. Files are mapped: replace a checkpoint that may be open by renaming, never
 *  by truncating. @return CMOE_OK; CMOE_ERR_IO (a missing shard is named); CMOE_ERR_CORRUPT;
 *  CMOE_ERR_UNSUPPORTED (more than 8 dimensions); CMOE_ERR_NO_MEMORY. */
CMOE_API cmoe_status cmoe_checkpoint_open(const char *path, cmoe_checkpoint **out) CMOE_MUST_CHECK;
/** Close; NULL is fine. Layers opened from it must be freed before: they point into its files. */
CMOE_API void cmoe_checkpoint_close(cmoe_checkpoint *c);
/** Tensors of all shards together. */
CMOE_API int64_t cmoe_checkpoint_count(const cmoe_checkpoint *c);
/** The i-th tensor in name order, or NULL past the end. Valid until close. */
CMOE_API const cmoe_tensor_info *cmoe_checkpoint_at(const cmoe_checkpoint *c, int64_t i);
/** By name, or NULL. Valid until close. */
CMOE_API const cmoe_tensor_info *cmoe_checkpoint_find(const cmoe_checkpoint *c, const char *name);
/** Check a safetensors header image: 8-byte length, JSON; `file_size` is the whole file's. Time and
 *  memory (at most 32 times the header) follow `size`. @return CMOE_OK; CMOE_ERR_CORRUPT;
 *  CMOE_ERR_UNSUPPORTED (more than 8 dimensions); CMOE_ERR_INVALID (`size` does not cover the
 *  header); CMOE_ERR_NO_MEMORY. */
CMOE_API cmoe_status cmoe_safetensors_check(const void *image, size_t size, uint64_t file_size)
    CMOE_MUST_CHECK;

/* ---- models ---- */

/** What config.json says about a model's MoE layers. */
typedef struct cmoe_model_config {
    char model_type[64];
    char quantization[64]; /* quant_method, with its format after a slash; "" without one */
    cmoe_problem problem;  /* geometry, router, activation; bf16 */
    int layers;
    int dense_layers; /* leading layers without experts */
    int moe_step;     /* from there on every moe_step-th layer has experts; 0 and 1: all */
    int heads, kv_heads, head_dim, vocab;
    int tied; /* tie_word_embeddings */
    float rms_eps, rope_theta;
} cmoe_model_config;

/** Read DIR/config.json, the file itself, or the metadata of a GGUF file. Families and schemes:
 *  docs/checkpoints.md.
 *  @return CMOE_OK; CMOE_ERR_IO (no such file); CMOE_ERR_CORRUPT (no JSON; the key that is missing or has
 *          no meaning); CMOE_ERR_UNSUPPORTED (an unknown model_type or quantisation: it is named);
 *          CMOE_ERR_NO_MEMORY. */
CMOE_API cmoe_status cmoe_config_read(const char *path, cmoe_model_config *out) CMOE_MUST_CHECK;
/** The same from text of `size` bytes; for fuzzing. @return as cmoe_config_read. */
CMOE_API cmoe_status cmoe_config_parse(const char *json, size_t size, cmoe_model_config *out)
    CMOE_MUST_CHECK;

/** One MoE layer's routed experts: views of the checkpoint wherever the canonical layout allows it,
 *  else converted into memory of the layer. `gate`, `up`, `down` have problem.experts entries in the
 *  format problem.w; where gate and up rows alternate (problem.gate), `gate` holds both and `up` is
 *  NULL. router_w is [E, H] in router_dtype. Free with cmoe_layer_free. */
typedef struct cmoe_layer {
    cmoe_problem problem;
    cmoe_matrix *gate, *up, *down;
    const void *router_w;
    cmoe_dtype router_dtype;
    const void *router_bias; /* selection bias (e_score_correction_bias) or NULL */
    cmoe_dtype router_bias_dtype;
    const void *logit_bias; /* added to the logits (gpt-oss), or NULL */
    cmoe_dtype logit_bias_dtype;
    /* Static scales of x and mid that the checkpoint brings, the largest of its experts; 0: none */
    float x_scale, mid_scale;
    size_t owned_bytes; /* converted copies */
    void *storage;      /* private */
} cmoe_layer;

/** Find the layer's router and experts by the family's tensor names and check every shape and type.
 *  @return CMOE_ERR_INVALID (no such layer), CMOE_ERR_CORRUPT (a tensor is missing or has the wrong
 *          shape: it is named), CMOE_ERR_UNSUPPORTED. */
CMOE_API cmoe_status cmoe_layer_open(const cmoe_checkpoint *c, const cmoe_model_config *config,
                                     int layer, cmoe_layer *out) CMOE_MUST_CHECK;
/** Free and zero the struct; NULL is fine. Weights made in place from its matrices must be gone. */
CMOE_API void cmoe_layer_free(cmoe_layer *layer);
/** Decode matrix 0 (gate), 1 (up) or 2 (down) of an expert to f32 [rows, columns], rows in the
 *  matrix's own order: dst holds [I, H], [I, H] or [H, I]. @return CMOE_OK; CMOE_ERR_INVALID; CMOE_ERR_NO_MEMORY. */
CMOE_API cmoe_status cmoe_layer_decode(const cmoe_layer *layer, int expert, int matrix, float *dst)
    CMOE_MUST_CHECK;

/* ---- quantised copies of a layer ---- */

typedef struct cmoe_quantized cmoe_quantized;

/** Quantise p's local experts of `layer` to p->w on the host, by way of f32 where the layer is quantised
 *  itself; the tables can be handed to cmoe_weights_create. The smooth vectors of SMOOTH problems are all
 *  ones. @return CMOE_OK; CMOE_ERR_MISMATCH (p is not of the layer's geometry, or has shared experts or
 *          other biases); CMOE_ERR_UNSUPPORTED (EXPERT_MAP); CMOE_ERR_OVERFLOW; CMOE_ERR_NO_MEMORY; what
 *          cmoe_problem_check returns. */
CMOE_API cmoe_status cmoe_layer_quantize(const cmoe_layer *layer, const cmoe_problem *p,
                                         cmoe_quantized **out) CMOE_MUST_CHECK;
/** Its matrices; valid as long as q, also after the layer has been freed. */
CMOE_API const cmoe_weights_desc *cmoe_quantized_desc(const cmoe_quantized *q);
/** Bytes of codes, scales and zero points per weight, on average. */
CMOE_API double cmoe_quantized_bytes_per_weight(const cmoe_quantized *q);
/** NULL is fine. Weights made in place from its matrices must be gone. */
CMOE_API void cmoe_quantized_free(cmoe_quantized *q);

/* ---- quantised checkpoints ---- */

typedef struct cmoe_quantize_options {
    size_t struct_size;
    const char *scheme; /* of cmoe_problem_scheme */
    int dry_run;        /* only fill the report */
    /* Where the scheme's activation scales are static: what cmoe_observe saw in each layer with
     * experts, in order; else 0 and NULL. */
    int layers;
    const float *x_amax, *mid_amax;
    /* Called before each expert, or NULL. */
    void (*progress)(void *user, int64_t done, int64_t total);
    void *user;
} cmoe_quantize_options;

typedef struct cmoe_quantize_report {
    char format[48];        /* what the tensors are called: "fp8", "mxfp4-pack-quantized", ... */
    char source[64];        /* how IN was quantised, as in cmoe_model_config; "" if it was not */
    int64_t shards, reused; /* reused: finished by a run before this one */
    int64_t bytes_in, bytes_out;
    int64_t memory; /* the most that is allocated at once */
} cmoe_quantize_report;

/** Write folder `out`: the checkpoint in folder `in` with the routed experts of every layer in the
 *  weight format of a scheme, under the names of the format's own tools; everything else is copied.
 *  What is quantised already is decoded to f32 and quantised again, other matrices of fp8 or int8
 *  become bf16. Of a GGUF file only routers and experts are written, with a config.json.
 *  The work lies in OUT.partial, shard by shard, and is renamed to OUT when it is complete and
 *  flushed; run again, it continues with the first shard that is missing.
 *  @return CMOE_OK; CMOE_ERR_INVALID (a scheme with static scales without x_amax and mid_amax, or the
 *          reverse); CMOE_ERR_IO (OUT exists, a file cannot be written); CMOE_ERR_UNSUPPORTED (no
 *          layout holds the scheme; a packed matrix that is no expert's);
 *          CMOE_ERR_MISMATCH (OUT.partial is another run's); as cmoe_layer_open. */
CMOE_API cmoe_status cmoe_checkpoint_quantize(const char *in, const char *out,
                                              const cmoe_quantize_options *options,
                                              cmoe_quantize_report *report) CMOE_MUST_CHECK;

/* ---- recorded calls ---- */

/** Write one call as a directory: npy files of what the call reads (fields of cmoe_tensors as
 *  [rows, columns], weights as [experts, rows, columns], codes as bytes) and, last, problem.txt.
 *  Host memory and canonical weights only. @return CMOE_OK; CMOE_ERR_UNSUPPORTED (packed weights,
 *  arrays in a device's memory);
 *  CMOE_ERR_IO; CMOE_ERR_NO_MEMORY; CMOE_ERR_INVALID. */
CMOE_API cmoe_status cmoe_record_write(const char *dir, const cmoe_record *call) CMOE_MUST_CHECK;

/** A recorded call read back: weights to give to cmoe_weights_create, and tensors without outputs,
 *  which the caller sets. With `accumulate`, y is the recorded one. */
typedef struct cmoe_replay {
    cmoe_problem problem;
    cmoe_weights_desc weights;
    cmoe_tensors tensors;
    void *storage; /* private */
} cmoe_replay;
/** Read what cmoe_record_write wrote. Everything in *out lives until cmoe_replay_free.
 *  @return CMOE_OK; CMOE_ERR_IO; CMOE_ERR_CORRUPT (with the file and line, or the array whose type or shape
 *          is wrong); CMOE_ERR_UNSUPPORTED; CMOE_ERR_NO_MEMORY; CMOE_ERR_INVALID. */
CMOE_API cmoe_status cmoe_record_read(const char *dir, cmoe_replay *out) CMOE_MUST_CHECK;
/** Free and zero the struct; NULL is fine. Weights made from it must be gone. */
CMOE_API void cmoe_replay_free(cmoe_replay *replay);

CMOE_END_DECLS

#endif
