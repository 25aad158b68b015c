/* SPDX-License-Identifier: MIT
 * Decide once, execute many times.
 *
 * A plan holds, for every power-of-two bucket of token counts up to max_tokens, the cheapest chain
 * of kernels that covers the problem's stages. Executing it allocates nothing, takes no lock, reads
 * no environment and never waits for a device. */
#ifndef CMOE_PLAN_H
#define CMOE_PLAN_H

#include <cmoe/weights.h>

CMOE_BEGIN_DECLS

typedef struct cmoe_plan cmoe_plan;

typedef struct cmoe_plan_options {
    size_t struct_size;
    /* Kernel-name globs, comma separated: where a row matching one of them can be used, rows that
     * do not match are not considered for the stages it covers. An unusable pin is an error. */
    const char *pin;
    /* Weights not made yet: restrict the planner to these formats (NULL: it chooses). */
    const char *format1, *format2;
    /* Weight of each bucket (index log2 tokens) in the choice of weight formats; NULL: equal. */
    const double *bucket_weight;
    int n_bucket_weight;
    size_t workspace_limit; /* bytes; 0: none. Larger calls are cut into chunks of tokens */
    int ignore_tuned;       /* 1: estimates only */
    int n_threads;          /* 0: the context's */
} cmoe_plan_options;

/** Plan problem p on a device. `w` may be NULL: the planner then chooses the weight formats
 *  (cmoe_plan_weight_format) and cmoe_execute takes them in cmoe_tensors.weights. With `w`, it must
 *  fit p. `opt` may be NULL. Thread-safe; the plan is immutable and may be executed by any number
 *  of threads at once, each with its own workspace.
 *  @return CMOE_OK; what cmoe_problem_check returns; CMOE_ERR_MISMATCH (weights made for another
 *          problem; both are named); CMOE_ERR_UNSUPPORTED (no path; the reasons are in the message);
 *          CMOE_ERR_INVALID (pin matches nothing); CMOE_ERR_NO_MEMORY. */
CMOE_API cmoe_status cmoe_plan_create(cmoe_device *dev, const cmoe_problem *p,
                                      const cmoe_weights *w, const cmoe_plan_options *opt,
                                      cmoe_plan **out) CMOE_MUST_CHECK;
/** Destroy; NULL is fine. Calls must be done: on a GPU, their stream must have passed them. */
CMOE_API void cmoe_plan_destroy(cmoe_plan *plan);

/** Bytes of workspace that covers every token count up to max_tokens; alignment 256. */
CMOE_API size_t cmoe_plan_workspace_size(const cmoe_plan *plan);
/** Weight format that the paths read for matrix 1 (gate|up) or 2 (down); "none" if no step reads it. */
CMOE_API const char *cmoe_plan_weight_format(const cmoe_plan *plan, int matrix);
/** The problem as planned. Valid as long as the plan. */
CMOE_API const cmoe_problem *cmoe_plan_problem(const cmoe_plan *plan);

/** Names of the kernels used for `tokens`, joined by " > ". snprintf rules. */
CMOE_API int cmoe_plan_path(const cmoe_plan *plan, int tokens, char *buf, size_t len);
/** Microseconds that the planner expects of a call with `tokens`: the sum of its steps' estimates, or of
 *  measured times where a tuned table has them (docs/tuning.md). For comparing plans; 0 for NULL. */
CMOE_API double cmoe_plan_estimate(const cmoe_plan *plan, int tokens);
/** The plan's device as lines of a tuned table name it: "cpu-avx512-2t", "cuda-sm_90-132t". snprintf rules. */
CMOE_API int cmoe_plan_device(const cmoe_plan *plan, char *buf, size_t len);
/** Full report for `tokens` (0: every bucket): steps with estimated costs, weight formats with
 *  their regret, workspace, and every rejected row with its reason. snprintf rules. */
CMOE_API int cmoe_plan_explain(const cmoe_plan *plan, int tokens, char *buf, size_t len);

/** Arguments of one execution. Only what the plan's first and last stage need must be set; the
 *  rest is ignored. Element types and layouts are the problem's. S = slots a token (topk+shared).
 *  All pointers belong to the caller and must be readable (writable) by the device. */
typedef struct cmoe_tensors {
    size_t struct_size;
    int32_t n_tokens;            /* T of this call, 0 .. max_tokens; 0 does nothing */
    const int32_t *n_tokens_dev; /* device-side count <= n_tokens: rows past it are ignored and
                                    their outputs left alone; NULL: n_tokens */
    const cmoe_weights *weights; /* NULL: those given to cmoe_plan_create */

    /* ROUTE */
    const void *logits;        /* [T, E (+shared with SHARED_SIGMOID)] of type `logits` */
    int64_t logits_stride;     /* elements from row to row; 0: tight */
    const float *router_w;     /* ROUTE_FROM_X: [E (+shared), H] f32 */
    const float *router_b;     /* ROUTE_FROM_X: [E (+shared)] f32 or NULL */
    const float *route_bias;   /* ROUTE_BIAS: [E] */
    const int32_t *hash_table; /* HASH: [vocab, topk] expert ids */
    const int64_t *token_ids;  /* HASH: [T] rows of hash_table */
    int64_t vocab;             /* HASH: rows of hash_table; a token id outside routes nowhere */

    /* Routing result: output of ROUTE (optional, else in the workspace), input of later stages */
    int32_t *topk_ids;         /* [T, S] */
    float *topk_weights;       /* [T, S] */
    const int64_t *topk_ids64; /* plans that start after ROUTE: instead of topk_ids */
    const int32_t *expert_map; /* EXPERT_MAP: [E + shared] local index or -1 */

    /* Activations */
    const void *x;          /* [T, H] of type `in` (X_QUANTIZED: codes of format x);
                                    batched: [E_local, capacity, H] */
    int64_t x_stride;       /* bytes from row to row; 0: tight */
    const void *x_scale;    /* static TENSOR or NV: f32 [1]; X_QUANTIZED: the scales of x:
                                    TENSOR f32 [1], TOKEN f32 [T], GROUP f32 [T, ceil(H/group)],
                                    MX e8m0 [T, ceil(H/32)], NV e4m3 [T, ceil(H/16)] */
    const float *x_global;  /* X_QUANTIZED NV: f32 [T] (static: [1]) */
    const float *mid_scale; /* static mid: f32 [1] */

    /* Sort, in the problem's sort_format: output of SORT, input of a plan that starts at GEMM1.. */
    int32_t *sorted_ids; /* INDEX: rows [T*S]; PACKED, FLAT: [cmoe_sort_capacity]; M_INDICES [T] */
    int32_t *expert_offsets; /* INDEX: [E_local + 1]; BATCHED: counts [E_local] */
    int32_t *block_experts;  /* PACKED, FLAT: local expert of every block */
    int32_t *num_valid;      /* PACKED: [2] padded rows, tokens; FLAT: [1] padded rows */
    float *sorted_weights;   /* PACKED: routing weight by sorted row, or NULL */

    /* Ends of partial plans, rows in slot order (t*S + s); batched: [E_local, capacity, ...] */
    void *xq;            /* QUANT's result: codes of format x; rows [T], or [T*S] when
                                    SMOOTH or WEIGHT_ON_INPUT make them per slot */
    void *xq_scale;      /* its scales, laid out as x_scale */
    float *xq_global;    /* dynamic NV: f32 a row */
    float *gate_up;      /* GEMM1's result f32 [T*S, rows1] */
    void *mid;           /* ACT's result [T*S, I]: f32 if mid is quantised, else mid's type */
    void *mid_q;         /* REQUANT's codes */
    void *mid_q_scale;   /* and scales */
    float *mid_q_global; /* dynamic NV: f32 a row */
    float *z;            /* GEMM2's result f32 [T*S, H]; rows of skipped slots are 0 */
    void *y;             /* [T, H] of type y; NO_REDUCE [T, S, H]; batched
                                    [E_local, capacity, H] */
    int64_t y_stride;    /* bytes from row to row; 0: tight */

    /* Statistics, added up when not NULL */
    int64_t *expert_load; /* [E_local]: slots computed by each local expert */
    double *stage_us;     /* [CMOE_STAGE_COUNT], host memory: wall time of the step that ends the
                             stage; on a GPU between events, and the call returns when it is done
                             (no stream that is being captured) */
} cmoe_tensors;

/** Run a plan. `workspace` holds workspace_size bytes at an address divisible by 256 and belongs to
 *  this call until it returns (host) or the stream passes it (GPU). `stream` is a CUstream (NULL:
 *  the default stream); host devices ignore it and return when done.
 *  Ids outside [0, E+shared) or not local contribute exactly zero. No value in any tensor moves an
 *  address. On error y is unspecified, nothing outside the described buffers was touched.
 *  @return CMOE_OK; CMOE_ERR_INVALID (a NULL or negative argument, named; n_tokens > max_tokens;
 *          y partly overlapping x); CMOE_ERR_WORKSPACE (both sizes); CMOE_ERR_MISMATCH (weights);
 *          CMOE_ERR_BUSY (another call is using the workspace); CMOE_ERR_DEVICE. */
CMOE_API cmoe_status cmoe_execute(const cmoe_plan *plan, const cmoe_tensors *t, void *workspace,
                                  size_t workspace_size, void *stream) CMOE_MUST_CHECK;

/** Entries (int32) of sorted_ids for PACKED and FLAT: the worst case over all routings of `tokens` tokens;
 *  block_experts has one for each block_m of them. */
CMOE_API int64_t cmoe_sort_capacity(const cmoe_problem *p, int64_t tokens);

/** A kernel row; its texts belong to the library. */
typedef struct cmoe_kernel_info {
    const char *name;
    const char *backend;
    const char *target;            /* "ref", "generic", "avx2", ... */
    const char *format1, *format2; /* weight formats read, or NULL */
    cmoe_stage first, last;
    int conversion; /* 1: converts a sort format and covers no stage */
} cmoe_kernel_info;
/** Enumerate kernel rows: the i-th of all compiled backends. @return 1, or 0 past the end. */
CMOE_API int cmoe_kernel_describe(int i, cmoe_kernel_info *info);

/** Whether the i-th row can run its stages of p on dev: 1 or 0, and then why, a clause cut to len bytes. */
CMOE_API int cmoe_kernel_supports(int i, cmoe_device *dev, const cmoe_problem *p, char *why,
                                  size_t len);

CMOE_END_DECLS

#endif
