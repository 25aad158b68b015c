/* SPDX-License-Identifier: MIT
 * What to compute: plain data that says everything that changes a result, and nothing else.
 *
 * The same problem is a C struct, one line of text ("e=128 k=8 h=2048 i=768 x=bf16 w=bf16 ...") and
 * a hash, so that a failing test, a tuned row, a benchmark line and a bug report are one string.
 * docs/problem.md lists every key, its default, and every combination that is refused and why. */
#ifndef CMOE_PROBLEM_H
#define CMOE_PROBLEM_H

#include <cmoe/status.h>
#include <cmoe/types.h>

CMOE_BEGIN_DECLS

/** Element type and scaling of x, of the weights, or of the intermediate. */
typedef struct cmoe_format {
    uint8_t dtype;       /* cmoe_dtype */
    uint8_t scaling;     /* cmoe_scaling */
    uint8_t scale_dtype; /* CMOE_NONE: f32 (e8m0 for MX, e4m3 for NV); GROUP: also bf16, f16 */
    uint8_t zero;        /* weights, GROUP or CHANNEL: explicit zero points (u4, u8) */
    uint8_t fixed;       /* activations, TENSOR or NV: static scale from cmoe_tensors */
    uint8_t rounding;    /* cmoe_rounding, value to code; activations only */
    uint8_t mx_rounding; /* cmoe_mx_rounding; MX activations only */
    uint8_t reserved;
    uint16_t group; /* GROUP: 16, 32, 64 or 128 columns; else 0 */
    uint16_t reserved2;
} cmoe_format;

typedef struct cmoe_problem {
    size_t struct_size; /* set by cmoe_problem_init */

    /* Sizes. Letters in the documentation: T, H, I, E, k. */
    int32_t max_tokens;   /* T: execute takes any count up to this */
    int32_t hidden;       /* H: columns of x and y */
    int32_t inter;        /* I: columns of the intermediate */
    int32_t hidden_pad;   /* trailing columns inside H that count as zero */
    int32_t inter_pad;    /* trailing columns inside I that count as zero */
    int32_t experts;      /* E: routed experts over all ranks */
    int32_t expert_first; /* local slice: first global id ... */
    int32_t expert_count; /* ... and how many; 0 = all from expert_first (with EXPERT_MAP: local) */
    int32_t topk;         /* k: experts a token is routed to */
    int32_t shared;       /* fused shared experts: ids E .. E+shared-1, in slots k .. k+shared-1 */
    int32_t capacity;     /* > 0: batched layout, x and y are [E_local, capacity, H] */

    /* Router */
    int32_t groups, groups_kept; /* 0: no groups */
    float renorm_eps;            /* added to the sum that RENORMALIZE divides by */
    float route_scale;           /* multiplies every routed weight; default 1 */
    float shared_weight;         /* weight of the shared slots; default 1 */

    /* Activation parameters; the defaults depend on the activation (docs/numerics.md) */
    float act_limit; /* clamp: gate <= limit, |up| <= limit; 0 = none */
    float act_alpha; /* swiglu-oai: 1.702 */
    float act_beta;  /* swiglu-oai: added to up, 1; situv2: 4 */
    float act_lbeta; /* situv2: 25; <= 0: up unchanged */

    float accumulate; /* y = accumulate*y + result; default 0: y is only written */

    uint32_t flags; /* enum cmoe_flag */

    uint8_t router;      /* cmoe_router */
    uint8_t act;         /* cmoe_activation */
    uint8_t gate;        /* cmoe_gate */
    uint8_t weight_on;   /* cmoe_weight_on */
    uint8_t first;       /* cmoe_stage: first stage of the plan */
    uint8_t last;        /* cmoe_stage: last stage of the plan */
    uint8_t sort_format; /* cmoe_sort_format at the plan's edge: last = SORT, or first = GEMM1.. */
    uint8_t logits;      /* cmoe_dtype of logits: f32 bf16 f16 */
    int32_t block_m;     /* PACKED, FLAT: rows an expert's segment is padded to; 1..1024 */

    uint8_t in; /* cmoe_dtype of the caller's x before quantisation: f32 f16 bf16 */
    uint8_t y;  /* cmoe_dtype of the output: f32 f16 bf16 */
    uint8_t reserved[2];
    cmoe_format x, w, mid; /* GEMM1's input, both weight matrices, GEMM2's input */
} cmoe_problem;

/** Fill `p` with the defaults: T=1 k=1 e=1, bf16 everywhere, silu, gated split, ROUTE..COMBINE.
 *  hidden and inter stay 0 and must be set. */
CMOE_API void cmoe_problem_init(cmoe_problem *p);

/** Accept or refuse. Refusals are those of docs/problem.md and no others.
 *  @return CMOE_OK; CMOE_ERR_INVALID with a sentence naming field, value and limit;
 *          CMOE_ERR_UNSUPPORTED for a valid but refused combination; CMOE_ERR_OVERFLOW. */
CMOE_API cmoe_status cmoe_problem_check(const cmoe_problem *p) CMOE_MUST_CHECK;

/** Parse "key=value key=value flag ..." (separated by blanks or commas) on top of *p, which must
 *  be initialised. Besides the keys of docs/problem.md: model=NAME, router=NAME and scheme=NAME
 *  apply a preset where they stand, so later keys override it. Does not call cmoe_problem_check.
 *  On error *p is unchanged.
 *  @return CMOE_OK or CMOE_ERR_INVALID naming the word that was not understood. */
CMOE_API cmoe_status cmoe_problem_parse(cmoe_problem *p, const char *text) CMOE_MUST_CHECK;

/** Bytes that hold the line of any problem, the terminating 0 included. */
enum { CMOE_PROBLEM_TEXT = 1536 };

/** Write the canonical line: sizes always, other keys where they differ from the default, in a
 *  fixed order. Parsing it gives an equal problem. snprintf rules: returns the length needed
 *  without the terminating 0, writes at most len bytes (CMOE_PROBLEM_TEXT are
 *  always enough). */
CMOE_API int cmoe_problem_print(const cmoe_problem *p, char *buf, size_t len);

/** FNV-1a of the canonical line without max_tokens: the key of tuned tables. */
CMOE_API uint64_t cmoe_problem_hash(const cmoe_problem *p);

/** Apply a scheme such as "fp8-block" or "int4-w4a16:g64,zp": sets x, w, mid, in, y and nothing
 *  else. Options after the colon: gN, channel, tensor, b128, zp, static, f32, f16, bf16 (type of in
 *  and y), e5m2, fnuz, fp8 (activation of w4a8), up, down, even, ceil. docs/schemes.md.
 *  On error *p is unchanged. @return CMOE_OK or CMOE_ERR_INVALID naming the word. */
CMOE_API cmoe_status cmoe_problem_scheme(cmoe_problem *p, const char *scheme) CMOE_MUST_CHECK;

/** Apply a model preset (geometry, router, activation, scheme): "qwen3-30b-a3b", "deepseek-v3" ...
 *  On error *p is unchanged. @return CMOE_OK or CMOE_ERR_INVALID naming the name. */
CMOE_API cmoe_status cmoe_problem_model(cmoe_problem *p, const char *name) CMOE_MUST_CHECK;

/** Apply a router preset: "mixtral", "qwen3", "deepseek-v2", "deepseek-v3", "deepseek-v4",
 *  "llama4", "gpt-oss", "minimax-m2", "glm4", "kimi-k2", "olmoe" ...
 *  On error *p is unchanged. @return CMOE_OK or CMOE_ERR_INVALID naming the name. */
CMOE_API cmoe_status cmoe_problem_router(cmoe_problem *p, const char *name) CMOE_MUST_CHECK;

/** Enumerate names: the i-th scheme / model / router, NULL past the end. */
CMOE_API const char *cmoe_scheme_name(int i);
CMOE_API const char *cmoe_model_name(int i);
CMOE_API const char *cmoe_router_name(int i);

/** Slots a token has: topk + shared (experts of ROUTE_ALL). */
CMOE_API int32_t cmoe_problem_slots(const cmoe_problem *p);
/** Experts whose weights this plan holds, shared experts included. */
CMOE_API int32_t cmoe_problem_local_experts(const cmoe_problem *p);
/** Rows of an expert's first matrix: 2I gated, I ungated. */
CMOE_API int64_t cmoe_problem_rows1(const cmoe_problem *p);

/** Range of tokens that rank `rank` of `size` computes when shared experts are data parallel:
 *  per = ceil(n/size), [min(per*rank, n), min((rank+1)*per, n)). */
CMOE_API void cmoe_rank_tokens(int64_t n, int size, int rank, int64_t *first, int64_t *end);

CMOE_END_DECLS

#endif
