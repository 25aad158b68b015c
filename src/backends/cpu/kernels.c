/* SPDX-License-Identifier: MIT
 * The rows, what they take, and what they cost. All of them run the same way (run.c), so there is
 * one family; a row takes what each of its stages takes. */
#include "backends/cpu/kernels.h"

#include "backends/cpu/gemm_item.h"
#include "backends/cpu/ops_quant.h"
#include "backends/cpu/run.h"
#include "core/size.h"
#include <string.h>

/* --- what a row takes ----------------------------------------------------------------------- */

static bool float_operand(cmoe_format f, const char *name, struct cmoe_why *why)
{
    if (f.scaling == CMOE_SCALE_NONE && cmoe__cpu_is_float(f.dtype)) return true;
    return cmoe__refuse(why, "%s=%s is quantised; the row takes f32, f16 and bf16", name,
                        cmoe_dtype_name((cmoe_dtype)f.dtype));
}

/* Weights that the row's packed format holds. */
static bool takes_panels(const struct cmoe_kernel *k, const struct cmoe_query *q,
                         struct cmoe_why *why)
{
    const char *const format = k->format1 ? k->format1 : k->format2;
    const struct cmoe_packing_format *const held = cmoe__cpu_panel_format(q->p->w);
    if (held && strcmp(held->name, format) == 0) return true;
    return cmoe__refuse(why, "%s does not hold w=%s", format,
                        cmoe_dtype_name((cmoe_dtype)q->p->w.dtype));
}

/* Whole rows of int8 with one scale each; columns of int8 too, or 4-bit groups. */
static bool takes_dots(bool tiles, const struct cmoe_query *q, cmoe_format a, const char *name,
                       struct cmoe_why *why)
{
    const cmoe_format w = q->p->w;
    const int64_t k = cmoe__max64(q->shape->H, q->shape->I);
    if (a.dtype != CMOE_I8 || (a.scaling != CMOE_SCALE_TOKEN && a.scaling != CMOE_SCALE_SMOOTH &&
                               a.scaling != CMOE_SCALE_TENSOR))
        return cmoe__refuse(why, "%s=%s is not int8 with one scale a row", name,
                            cmoe_dtype_name((cmoe_dtype)a.dtype));
    const bool grouped = w.dtype == CMOE_I4 || w.dtype == CMOE_U4;
    if (!grouped && (w.zero || (w.scaling != CMOE_SCALE_CHANNEL && w.scaling != CMOE_SCALE_TENSOR)))
        return cmoe__refuse(why, "w has zero points, or other scales than one a channel");
    if (grouped && tiles) return cmoe__refuse(why, "w has 4 bits");
    if (k > CMOE_CPU_DOT_K)
        return cmoe__refuse(why, "K=%lld is more than %d", (long long)k, CMOE_CPU_DOT_K);
    return true;
}

/* Pairs of bf16 that are bf16 already, but for weights that may be rounded to x's type. */
static bool takes_pairs(const struct cmoe_kernel *k, const struct cmoe_query *q, cmoe_format a,
                        const char *name, struct cmoe_why *why)
{
    const struct cmoe_cpu_config *const config = k->config;
    if (a.dtype != CMOE_BF16 || a.scaling != CMOE_SCALE_NONE)
        return cmoe__refuse(why, "%s=%s is not bf16", name, cmoe_dtype_name((cmoe_dtype)a.dtype));
    if (config->how == CMOE_CPU_MULTIPLY_FLOATS && q->p->w.dtype != CMOE_BF16)
        return cmoe__refuse(why, "w=%s is not bf16", cmoe_dtype_name((cmoe_dtype)q->p->w.dtype));
    if (q->p->flags & CMOE_BATCH_INVARIANT)
        return cmoe__refuse(why, "sums in another order than rows that other token counts get");
    return config->how == CMOE_CPU_MULTIPLY_FLOATS || takes_panels(k, q, why);
}

/* Rows as integers. Those of three bytes keep no order of sums with the f32 rows. */
static bool takes_digits(const struct cmoe_query *q, cmoe_format a, const char *name,
                         struct cmoe_why *why)
{
    struct cmoe_cpu_digits d;
    const int64_t k = cmoe__max64(q->shape->H, q->shape->I);
    if (!cmoe__cpu_digits_layout(a, q->p->w, k, &d))
        return cmoe__refuse(why, "%s=%s in its groups is not made integers", name,
                            cmoe_dtype_name((cmoe_dtype)a.dtype));
    if (a.dtype != CMOE_I8 && (q->p->flags & CMOE_BATCH_INVARIANT))
        return cmoe__refuse(why, "sums in another order than rows that other token counts get");
    return true;
}

/* Codes as bf16, in the order of sums of the tiles. */
static bool takes_spans(const struct cmoe_kernel *k, const struct cmoe_query *q, cmoe_format a,
                        const char *name, struct cmoe_why *why)
{
    struct cmoe_cpu_spans s;
    if (!takes_panels(k, q, why)) return false;
    if (!cmoe__cpu_spans_layout(a, q->p->w, cmoe__max64(q->shape->H, q->shape->I), &s) || s.plain)
        return cmoe__refuse(why, "%s=%s is not quantised, or its groups are not whole steps", name,
                            cmoe_dtype_name((cmoe_dtype)a.dtype));
    if (q->p->flags & CMOE_BATCH_INVARIANT)
        return cmoe__refuse(why, "sums in another order than rows that other token counts get");
    return true;
}

/* A GEMM: floats as they are, or anything else decoded. */
static bool takes_operands(const struct cmoe_kernel *k, const struct cmoe_query *q, cmoe_format a,
                           const char *name, struct cmoe_why *why)
{
    const struct cmoe_cpu_config *const config = k->config;
    const cmoe_format w = q->p->w;
    if (config->how == CMOE_CPU_MULTIPLY_SPANS) return takes_spans(k, q, a, name, why);
    if (config->tiles && config->how != CMOE_CPU_MULTIPLY_DOTS)
        return takes_pairs(k, q, a, name, why);
    if (config->how != CMOE_CPU_MULTIPLY_FLOATS && !takes_panels(k, q, why)) return false;
    if (config->how == CMOE_CPU_MULTIPLY_CODES) return true;
    if (config->how == CMOE_CPU_MULTIPLY_DIGITS) return takes_digits(q, a, name, why);
    if (config->how == CMOE_CPU_MULTIPLY_DOTS) return takes_dots(config->tiles, q, a, name, why);
    if (!config->decodes) return float_operand(a, name, why) && float_operand(w, "w", why);
    if (!float_operand(a, name, NULL) || !float_operand(w, "w", NULL)) return true;
    return cmoe__refuse(why, "nothing has to be decoded");
}

static bool takes_stage(const struct cmoe_kernel *k, const struct cmoe_query *q, int stage,
                        struct cmoe_why *why)
{
    const cmoe_problem *const p = q->p;
    switch ((cmoe_stage)stage) {
    case CMOE_STAGE_ROUTE:
        if ((p->flags & CMOE_ROUTE_FROM_X) && (p->flags & CMOE_X_QUANTIZED) &&
            p->x.scaling != CMOE_SCALE_NONE)
            return cmoe__refuse(why, "rx with xq: the router's input is quantised");
        return true;
    case CMOE_STAGE_GEMM1:
        return takes_operands(k, q, p->x, "x", why);
    case CMOE_STAGE_GEMM2:
        return takes_operands(k, q, p->mid, "mid", why);
    case CMOE_STAGE_QUANT:
    case CMOE_STAGE_REQUANT:
    case CMOE_STAGE_SORT:
    case CMOE_STAGE_ACT:
    case CMOE_STAGE_COMBINE:
    case CMOE_STAGE_COUNT:
        break;
    }
    return true;
}

/* Rows of several stages pass x and the intermediate on as they are, unless they end with codes. */
static bool takes_between(const struct cmoe_kernel *k, const struct cmoe_query *q, int stage,
                          struct cmoe_why *why)
{
    if (stage == CMOE_STAGE_QUANT && q->shape->quant)
        return cmoe__refuse(why, "x is changed before the sort");
    if (stage == CMOE_STAGE_REQUANT && q->shape->requant && k->last > stage)
        return cmoe__refuse(why, "the intermediate is quantised");
    return true;
}

static bool supports(const struct cmoe_kernel *k, const struct cmoe_query *q, struct cmoe_edge in,
                     struct cmoe_edge *out, struct cmoe_why *why)
{
    if (in.layout != cmoe__usual_edge(q->p, k->first).layout)
        return cmoe__refuse(why, "starts from another data layout");
    const bool layer = k->last > k->first && k->last == CMOE_STAGE_COMBINE;
    if (layer && q->shape->batched)
        return cmoe__refuse(why, "a row of the whole layer does not take batched rows");
    if (layer && q->tokens > CMOE_CPU_SMALL_TOKENS)
        return cmoe__refuse(why, "tokens=%d is more than %d", q->tokens, CMOE_CPU_SMALL_TOKENS);
    if (k->last == CMOE_STAGE_QUANT && !q->shape->quant)
        return cmoe__refuse(why, "x is used as it is");
    if (k->last == CMOE_STAGE_REQUANT && !q->shape->requant)
        return cmoe__refuse(why, "the intermediate is used as it is");
    for (int stage = k->first; k->last > k->first && stage <= k->last; stage++)
        if (!takes_between(k, q, stage, why)) return false;
    for (int stage = k->first; stage <= k->last; stage++)
        if (!takes_stage(k, q, stage, why)) return false;
    *out = cmoe__usual_edge(q->p, k->last + 1);
    return true;
}

/* --- what it costs -------------------------------------------------------------------------- */

/* Of one core with each instruction set: flops a cycle, the same by int8 dots and by pairs of bf16 (0:
 * as the device says), weights it can stream in GB/s, and the time to decode a packed weight in ns. */
#if defined __SSE2__ /* multiplies 16 bits in pairs */
enum { GENERIC_DOTS = 8 };
#else
enum { GENERIC_DOTS = 4 };
#endif
static const struct speed {
    double flops, dots, gbps, decode_ns, pairs;
} speeds[CMOE_ISA_LEVELS] = {
    [CMOE_ISA_LEVEL_GENERIC] = {4, GENERIC_DOTS, 6, 2, 0},
    [CMOE_ISA_LEVEL_AVX2] = {32, 48, 18, 0.3, 0},
    [CMOE_ISA_LEVEL_AVX512] = {64, 96, 30, 0.15, 0},
    [CMOE_ISA_LEVEL_AVX512VNNI] = {64, 256, 30, 0.15, 0},
    [CMOE_ISA_LEVEL_AVX512BF16] = {64, 256, 30, 0.3, 0},
    [CMOE_ISA_LEVEL_AMX] = {64, 1024, 30, 0.3, 512},
};

/* To decode a weight for spans: with this they and the f32 rows cost the same at 16 rows, where a Xeon
 * 8581C is as fast with either (docs/perf-log-cpu.md, 13); and where tables in registers do it. */
static const double spans_decode_ns = 0.4, table_decode_ns = 0.03, rounded_decode_ns = 0.09;

/* Of the rate of int8 dots, rows of three bytes; where the tiles of bf16 are twice as fast as f32, so that on a
 * Zen 5 these take over between 2 and 4 rows an expert (docs/perf-log-cpu.md, 31). */
static const double three_bytes = 0.3, three_bytes_beside_pairs = 0.2;

/* A barrier between loops, a loop of one item, and a step of a plan: us. */
static const double barrier_us = 0.2, loop_us = 0.3, step_us = 0.5;

/* Share of the rate of pairs that is left where sums of spans are scaled: about this many k's more. */
static double spans_share(const struct cmoe_kernel *k, const struct cmoe_query *q, cmoe_format x)
{
    const double more = k->target == CMOE_ISA_LEVEL_AMX ? 24 : 8;
    struct cmoe_cpu_spans s = {.span = 0};
    (void)cmoe__cpu_spans_layout(x, q->p->w, cmoe__max64(q->shape->H, q->shape->I), &s);
    return s.span > 0 ? 1 / (1 + more / (double)s.span) : 1;
}

/* Flops a cycle of a row's products. */
static double product_rate(const struct cmoe_kernel *k, const struct cmoe_query *q, cmoe_format x)
{
    const struct cmoe_props *const props = q->props;
    const struct cmoe_cpu_config *const config = k->config;
    const struct speed *const s = &speeds[k->target];
    if (config->how == CMOE_CPU_MULTIPLY_DOTS) return s->dots;
    if (config->how == CMOE_CPU_MULTIPLY_DIGITS && x.dtype != CMOE_I8 && x.dtype != CMOE_E2M1) {
        const bool beside = props->isa == CMOE_ISA_LEVEL_AVX512BF16 && props->pairs > 1;
        return s->dots * (beside ? three_bytes_beside_pairs : three_bytes);
    }
    if (config->how == CMOE_CPU_MULTIPLY_DIGITS) return s->dots;
    if (!config->tiles) return s->flops;
    const double pairs = s->pairs > 0 ? s->pairs : s->flops * props->pairs;
    if (config->how != CMOE_CPU_MULTIPLY_FLOATS) return pairs * spans_share(k, q, x);
    return pairs;
}

/* Whether tiles of bf16 decode weights in registers (isa/tile/code_pairs.h). */
static bool looks_up(cmoe_format w)
{
    const bool apart = w.scaling != CMOE_SCALE_GROUP && w.scaling != CMOE_SCALE_MX;
    if (w.dtype == CMOE_E4M3 || w.dtype == CMOE_E5M2) return apart;
    return w.dtype == CMOE_I4 || w.dtype == CMOE_U4 || w.dtype == CMOE_E2M1;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* Decoding every weight once for each block of rows; from canonical rows about 2 ns. */
static double decode_us(const struct cmoe_kernel *k, const struct cmoe_query *q, int stage)
{
    const struct cmoe_cpu_config *const config = k->config;
    const struct cmoe_shape *const s = q->shape;
    const bool spans = config->how == CMOE_CPU_MULTIPLY_SPANS;
    const bool packed = config->how == CMOE_CPU_MULTIPLY_CODES || spans;
    const double slow = spans ? spans_decode_ns : packed ? speeds[k->target].decode_ns : 2;
    const bool rounded =
        q->p->w.dtype != CMOE_E2M1 && cmoe_dtype_bits((cmoe_dtype)q->p->w.dtype) == 4;
    const double table = rounded ? rounded_decode_ns : table_decode_ns;
    const double ns = config->tiles && looks_up(q->p->w) ? table : slow;
    const int panel_rows = config->tiles ? CMOE_CPU_TILE_ROWS : CMOE_CPU_PANEL_ROWS;
    const int block = packed ? panel_rows : CMOE_CPU_ROW_BLOCK;
    if (!config->decodes && !packed) return 0;
    const double weights = (double)(stage == CMOE_STAGE_GEMM1 ? s->rows1 * s->H : s->H * s->I);
    const double hit = cmoe__experts_hit(q->p, q->tokens);
    const double rows = cmoe__stage_flops(q->p, stage, q->tokens) / (2 * weights);
    return larger(hit, rows / block) * weights * ns * 1e-3 / CMOE_COST_THREADS;
}

/* Roofline of one stage: arithmetic at the share of the peak that its loop reaches, or memory. */
static double stage_us(const struct cmoe_kernel *k, const struct cmoe_query *q, int stage)
{
    const struct cmoe_props *const props = q->props;
    const struct speed own = speeds[k->target], top = speeds[props->isa];
    const double flops = cmoe__stage_flops(q->p, stage, q->tokens);
    const double bytes = cmoe__stage_bytes(q->p, stage, q->tokens);
    const bool gemm = stage == CMOE_STAGE_GEMM1 || stage == CMOE_STAGE_GEMM2;
    const double rate =
        gemm ? product_rate(k, q, stage == CMOE_STAGE_GEMM1 ? q->p->x : q->p->mid) : own.flops;
    const double peak = props->gflops * rate / top.flops * 1e3; /* a us */
    const double limit = own.gbps * CMOE_COST_THREADS;
    const double gbps = props->gbps < limit ? props->gbps : limit;
    double share = 0.1; /* of the peak: everything that is not a GEMM */
    if (gemm) share = cmoe__cpu_reads_p32(k) ? 0.75 : 0.4;
    if (stage == CMOE_STAGE_ROUTE && !(q->p->flags & CMOE_ROUTE_FROM_X))
        return flops * 0.5e-3 / CMOE_COST_THREADS; /* the C library's functions: 10 ns an expert */
    if (stage == CMOE_STAGE_SORT) return flops * 0.25e-3;
    if (stage == CMOE_STAGE_QUANT || stage == CMOE_STAGE_REQUANT)
        return flops * 0.5e-3 / CMOE_COST_THREADS; /* one value at a time */
    const double us = larger(flops / (peak * share), bytes / (gbps * 1e3));
    return gemm ? us + decode_us(k, q, stage) : us;
}

/* Whether the stage's loop has one item, for which nobody is woken. */
static bool is_one_item(const struct cmoe_query *q, int stage)
{
    const bool slots = stage == CMOE_STAGE_REQUANT || q->p->weight_on == CMOE_WEIGHT_ON_INPUT;
    switch ((cmoe_stage)stage) {
    case CMOE_STAGE_ROUTE:
        return q->tokens <= CMOE_CPU_SMALL_TOKENS;
    case CMOE_STAGE_SORT:
        return true;
    case CMOE_STAGE_QUANT:
    case CMOE_STAGE_REQUANT:
        return (slots ? cmoe__shape_rows(q->p, q->shape, q->tokens) : q->tokens) <=
               CMOE_CPU_QUANT_ROWS;
    case CMOE_STAGE_COMBINE:
        return cmoe__cpu_combine_items(q->p, q->shape, q->tokens) <= 1;
    case CMOE_STAGE_GEMM1:
    case CMOE_STAGE_ACT:
    case CMOE_STAGE_GEMM2:
    case CMOE_STAGE_COUNT:
        break;
    }
    return false;
}

static double cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const bool together =
        k->last > k->first && !cmoe__cpu_is_tiny(q->p, q->shape, q->tokens); /* all threads */
    double sum = step_us;
    for (int stage = k->first; stage <= k->last; stage++) {
        const bool quant = stage == CMOE_STAGE_QUANT || stage == CMOE_STAGE_REQUANT;
        if (quant && k->last > stage) continue; /* empty there */
        if (together) sum += 2 * barrier_us;
        if (k->last == k->first) sum += is_one_item(q, stage) ? 0 : CMOE_COST_FORK_US;
        sum += loop_us + stage_us(k, q, stage);
    }
    if (together) sum += CMOE_COST_FORK_US;
    return sum * (1 + 0.02 * (CMOE_ISA_LEVELS - 1 - k->target));
}

static size_t scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    struct cmoe_cpu_run run = {.n_items = 0};
    return cmoe__cpu_lay_out(k, q->p, q->shape, q->tokens, q->props->threads, &run, NULL);
}

/* --- the table ------------------------------------------------------------------------------ */

static const struct cmoe_cpu_config floats = {.decodes = false}, decoded = {.decodes = true},
                                    codes = {.how = CMOE_CPU_MULTIPLY_CODES},
                                    dots = {.how = CMOE_CPU_MULTIPLY_DOTS},
                                    digits = {.how = CMOE_CPU_MULTIPLY_DIGITS},
                                    pairs = {.tiles = true},
                                    spans = {.tiles = true, .how = CMOE_CPU_MULTIPLY_SPANS},
                                    pair_codes = {.tiles = true, .how = CMOE_CPU_MULTIPLY_CODES},
                                    quads = {.tiles = true, .how = CMOE_CPU_MULTIPLY_DOTS};

static const struct cmoe_family family = {
    .supports = supports, .cost_us = cost_us, .scratch = scratch, .run = cmoe__cpu_run};

/* clang-format off */
const struct cmoe_kernel cmoe__cpu_kernels[CMOE_CPU_KERNELS] = {
#define KERNEL(row, a, b, isa, prio, f1, f2, conf)                                                    \
    [CMOE_CPU_ROW_##row] = {                                                                       \
        .name = #row,                                                                              \
        .first = CMOE_STAGE_##a,                                                                   \
        .last = CMOE_STAGE_##b,                                                                    \
        .target = CMOE_ISA_LEVEL_##isa,                                                            \
        .priority = (prio),                                                                        \
        .format1 = f1,                                                                             \
        .format2 = f2,                                                                             \
        .family = &family,                                                                         \
        .config = &conf,                                                                           \
    },
#include "backends/cpu/kernels.def"
#undef KERNEL
};
/* clang-format on */
