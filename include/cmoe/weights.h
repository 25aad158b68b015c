/* SPDX-License-Identifier: MIT
 * One layer's experts, as the checkpoint has them or packed for a device.
 *
 * Layout of the canonical form, per expert matrix of `rows` output features and K inputs:
 *   data    [rows, K] codes, K contiguous unless col_stride says otherwise; 4-bit types two a byte,
 *           low nibble = even column, each row starting on a byte
 *   scale   TENSOR f32 [1]; CHANNEL f32 [rows]; BLOCK f32 [ceil(rows/128), ceil(K/128)], where
 *           fused gate and up rows (GATE_SPLIT) each begin a row of blocks, 2*ceil(I/128) in all,
 *           unless the problem's BLOCK_JOINT counts them through;
 *           GROUP f32|bf16|f16 [rows, ceil(K/group)]; MX e8m0 [rows, ceil(K/32)];
 *           NV e4m3 [rows, ceil(K/16)]; NONE: not read
 *   zero    u8 [rows, ceil(K/group)] (CHANNEL: [rows]), one byte each; only if format.zero
 *   global  NV: f32 [1], a multiplier
 *   bias    f32 [rows]; only if the problem has it
 *   smooth  SMOOTH activations: f32 [K], multiplies the matrix's input */
#ifndef CMOE_WEIGHTS_H
#define CMOE_WEIGHTS_H

#include <cmoe/context.h>
#include <cmoe/problem.h>

CMOE_BEGIN_DECLS

typedef struct cmoe_matrix {
    const void *data;
    int64_t row_stride; /* bytes from row to row; 0: tight (with a col_stride: one element) */
    int64_t col_stride; /* bytes from column to column, f32/f16/bf16/8-bit types; 0: contiguous */
    const void *scale;
    const uint8_t *zero;
    const float *global;
    const float *bias;
    const float *smooth;
} cmoe_matrix;

typedef struct cmoe_weights cmoe_weights;

typedef struct cmoe_weights_desc {
    size_t struct_size;
    /* Tables of cmoe_problem_local_experts() entries. */
    const cmoe_matrix *gate_up; /* [2I, H] (or [I, H] when ungated, or when `up` is given) */
    const cmoe_matrix *up;      /* [I, H] each, or NULL; only with CMOE_GATE_SPLIT */
    const cmoe_matrix *down;    /* [H, I] */
    const char *format1;        /* NULL or "canonical": used in place, nothing is copied, the */
    const char *format2;        /*   memory must outlive the weights; else a packed format's name */
} cmoe_weights_desc;

/** Make the weights object: checks pointers against the problem, copies the tables, packs if asked.
 *  Only p's geometry, gate, w, x/mid scaling and bias flags matter. The object is immutable and may
 *  be shared by plans and threads.
 *  @return CMOE_OK; CMOE_ERR_INVALID (a NULL where the problem needs data: which expert, which
 *          matrix; unknown format); CMOE_ERR_UNSUPPORTED (that format cannot hold these weights);
 *          CMOE_ERR_OVERFLOW; CMOE_ERR_NO_MEMORY. */
CMOE_API cmoe_status cmoe_weights_create(cmoe_device *dev, const cmoe_problem *p,
                                         const cmoe_weights_desc *desc, cmoe_weights **out)
    CMOE_MUST_CHECK;
/** The same from matrices in host memory, whatever the device: what `desc` points to is copied to the
 *  device's memory first, every matrix tight, and may be freed afterwards.
 *  @return as cmoe_weights_create; CMOE_ERR_DEVICE. */
CMOE_API cmoe_status cmoe_weights_upload(cmoe_device *dev, const cmoe_problem *p,
                                         const cmoe_weights_desc *desc, cmoe_weights **out)
    CMOE_MUST_CHECK;
/** Destroy; NULL is fine. Plans made with it must be gone. */
CMOE_API void cmoe_weights_destroy(cmoe_weights *w);

/** Format of matrix 1 (gate|up) or 2 (down): "canonical", or a packed one. */
CMOE_API const char *cmoe_weights_format(const cmoe_weights *w, int matrix);
/** Bytes that the object itself owns (packed or uploaded copies); 0 for canonical ones in place. */
CMOE_API size_t cmoe_weights_owned_bytes(const cmoe_weights *w);

/** A fused tensor of all experts, [experts, rows, cols]. */
typedef struct cmoe_fused {
    const void *data;
    const void *scale;
    const uint8_t *zero;
    const float *global; /* [experts] */
    const float *bias;   /* [experts, rows] */
    const float *smooth; /* [experts, cols] */
    int64_t rows, cols;
    int64_t scale_rows; /* BLOCK: rows of one expert's scale grid; 0: ceil(rows / 128) */
    int experts;
    int transposed;
} cmoe_fused;

/** Fill out[0..experts) with views of a fused tensor [experts, rows, cols] in format f; scale, zero
 *  and bias are fused the same way ([experts, ...] of the layouts above, contiguous) or NULL.
 *  With transposed != 0 data is [experts, cols, rows] (f32, f16, bf16 and 8-bit types only).
 *  @return CMOE_OK, CMOE_ERR_INVALID, CMOE_ERR_OVERFLOW. */
CMOE_API cmoe_status cmoe_matrix_split(const cmoe_fused *fused, cmoe_format f, cmoe_matrix *out)
    CMOE_MUST_CHECK;

CMOE_END_DECLS

#endif
