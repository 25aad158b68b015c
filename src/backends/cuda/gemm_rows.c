/* SPDX-License-Identifier: MIT
 * The rows of Hopper for many rows an expert, whose M operand is x: what they take, what they cost. What
 * no copy engine reads they leave to the rows whose M operand is weights. */
#include "backends/cuda/families.h"
#include "backends/cuda/wgmma.h"

#include "core/fail.h"
#include "core/numeric.h"
#include "core/size.h"

#include <math.h>

/* As measured on an H100: the share of the tensor cores' rate inside a tile, spans' worth of time outside;
 * rows an expert from which on these may win, of 16 bits, with biases in the results of the others; from which on they
 * are some, many, so many that 16 bits are no faster than with the others, and so many that they are again; too few
 * experts for one's second tile to be made up for by another's missing one; spans from which on GEMM2 of codes is
 * faster. */
#define BUSY       0.75
#define UNPROMOTED 0.92 /* of the time, sums of e4m3 that never go on in f32 */
enum {
    OTHER_SPANS = 4,
    ENOUGH_ROWS = 75,
    WIDE_ROWS = 40,
    BIASED_ROWS = 60,
    SOME_ROWS = 150,
    MANY_ROWS = 200,
    EVEN_ROWS = 400,
    MOST_ROWS = 560,
    FEW_EXPERTS = 12,
    ENOUGH_SPANS = 4
};

/* GEMM1 .. REQUANT in two kernels: of an h in bf16 that a scale of the row, or a given one, follows. */
static bool in_two(const struct cmoe_kernel *k, const cmoe_problem *p)
{
    return k->last == CMOE_STAGE_REQUANT && cmoe__cuda_wgmma_one_scale(p);
}

/* GEMM2 to y itself. */
static bool straight(const struct cmoe_kernel *k)
{
    return k->first == CMOE_STAGE_GEMM2 && k->last == CMOE_STAGE_COMBINE;
}

static const struct cmoe_kernel gemm2 = {.first = CMOE_STAGE_GEMM2, .last = CMOE_STAGE_GEMM2};
static const struct cmoe_kernel first_of_two = {.first = CMOE_STAGE_GEMM1, .last = CMOE_STAGE_ACT};
static const struct cmoe_kernel requant = {.first = CMOE_STAGE_REQUANT, .last = CMOE_STAGE_REQUANT};

bool cmoe__cuda_rows_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                              struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const cmoe_problem *p = q->p;
    struct cmoe_edge between;
    if (q->shape->batched || p->first > CMOE_STAGE_SORT)
        return cmoe__refuse(why, "nothing before it in the plan clears its counters");
    if (straight(k)) {
        if (!cmoe__cuda_wgmma_straight(p, q->shape))
            return cmoe__refuse(why, "for one slot a token, whose result y takes as it is");
        if (!cmoe__cuda_wgmma_supports(&gemm2, q, in, out, why)) return false;
        *out = cmoe__usual_edge(p, k->last + 1);
        return true;
    }
    if (k->first == CMOE_STAGE_GEMM2 && !cmoe__cuda_wgmma_short_z(p, q->shape))
        return cmoe__refuse(why, "leaves z to a combine of 16-bit numbers only");
    if (k->last == CMOE_STAGE_ACT && p->w.scaling == CMOE_SCALE_BLOCK)
        return cmoe__refuse(why, "quantises the intermediate under block scales");
    if (!in_two(k, p)) return cmoe__cuda_wgmma_supports(k, q, in, out, why);
    return cmoe__cuda_wgmma_supports(&first_of_two, q, in, &between, why) &&
           cmoe__cuda_quant_e4m3_supports(&requant, q, between, out, why);
}

/* h, in f32 where other rows have to do it. */
size_t cmoe__cuda_rows_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    if (!in_two(k, q->p)) return 0;
    return (size_t)cmoe__shape_rows(q->p, q->shape, q->tokens) * (size_t)q->shape->I * 4;
}

/* Tiles of an expert's rows; one whose second half is absent is shorter. */
static double tiles_of(double rows)
{
    const double whole = floor(rows / CMOE_WGMMA_ROWS), rest = rows - whole * CMOE_WGMMA_ROWS;
    return whole + (rest < 1 ? 0 : (rest <= CMOE_WGMMA_ROWS / 2 ? 0.7 : 1));
}

/* Of an average expert, whose rows scatter by their square root under uniform routing. */
static double usual_tiles(double rows, double most)
{
    static const double steps[] = {-1.28, -0.52, 0, 0.52, 1.28};
    enum { STEPS = sizeof steps / sizeof steps[0] };
    double sum = 0;
    for (int i = 0; i < STEPS; i++)
        sum += tiles_of(fmin(rows + steps[i] * sqrt(rows), most));
    return sum / STEPS;
}

/* Blocks take whole tiles: a little more than one for each is as long as two. */
static bool odd_rounds(double tiles, double blocks)
{
    return tiles > blocks && tiles < 2 * blocks;
}

/* What measured layers differ by from the arithmetic below beside the other rows. Theirs leaves out what an expert's last
 * tile costs where it has a few rows: with 150 to 400 rows an expert more than here, with more of them next to nothing
 * (docs/perf-log.md, 20, 21, 25, 34 and 37). */
static double correction(const cmoe_problem *p, bool second, int64_t spans, double each, double hit)
{
    const bool block = p->w.scaling == CMOE_SCALE_BLOCK,
               fewer = each < (block ? MANY_ROWS : SOME_ROWS);
    if (p->w.dtype == CMOE_E4M3)
        return (second && spans >= ENOUGH_SPANS ? 0.9 : 1) * (fewer ? 0.87 : (block ? 0.95 : 1));
    if (fewer) return hit > FEW_EXPERTS ? 0.85 : 1.25;
    if (p->flags & CMOE_BIAS1) return 1;
    if (each < EVEN_ROWS) return second ? 0.9 : 1;
    return each < MOST_ROWS ? (second ? 1.15 : 1.25) : 1.1;
}

/* Of an h in bf16. */
static double requant_us(const struct cmoe_query *q)
{
    const double bytes = cmoe__stage_bytes(q->p, CMOE_STAGE_REQUANT, q->tokens);
    return CMOE_CUDA_LAUNCH_US + 0.6 * bytes / (q->props->gbps * 1e3);
}

/* The tiles' arithmetic, with results and the first stages of a tile as so many spans more; where memory
 * limits it, narrower tiles are no slower. */
double cmoe__cuda_rows_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const cmoe_problem *p = q->p;
    const bool second = k->first == CMOE_STAGE_GEMM2, wide = p->w.dtype != CMOE_E4M3;
    const double hit = cmoe__experts_hit(p, q->tokens) + 1e-9;
    const double each = cmoe__shape_local_rows(p, q->shape, q->tokens) / hit;
    const int64_t outputs = second ? q->shape->H : 2 * q->shape->I,
                  columns = second ? q->shape->I : q->shape->H;
    const int64_t n_tiles = cmoe__ceil_div(outputs, 2 * CMOE_WGMMA_HALF),
                  spans = cmoe__ceil_div(columns * (wide ? 2 : 1), CMOE_WGMMA_SPAN);
    const double usual = hit * (double)n_tiles * usual_tiles(each, q->tokens);
    const bool fast = (p->flags & CMOE_FAST_SUMS) && cmoe__cuda_wgmma_one_scale(p);
    const bool odd = odd_rounds(usual, q->props->threads);
    const double tiles = odd ? 2.0 * q->props->threads : usual;
    const double flops = tiles * 4.0 * CMOE_WGMMA_ROWS * CMOE_WGMMA_HALF *
                         (CMOE_WGMMA_SPAN / (wide ? 2.0 : 1.0)) * ((double)spans + OTHER_SPANS);
    const double arithmetic =
        flops * (fast ? UNPROMOTED : 1) / (q->props->gflops * 1e3 * BUSY * (wide ? 1 : 2));
    const double memory = 1.1 * cmoe__cuda_wgmma_bytes(k, q) / (0.92e3 * q->props->gbps);
    const double us =
        CMOE_WGMMA_START_US +
        fmax(arithmetic, memory) * (odd ? 1 : correction(p, second, spans, each, hit)) +
        (in_two(k, p) ? requant_us(q) : 0) + (straight(k) ? CMOE_CUDA_LAUNCH_US : 0);
    const int enough = p->flags & CMOE_BIAS1 ? BIASED_ROWS : (wide ? WIDE_ROWS : ENOUGH_ROWS);
    return each < enough ? us + cmoe__cuda_wgmma_cost_us(k, q) : us;
}

static enum cmoe_cuda_function function_of(const cmoe_problem *p, const struct cmoe_kernel *k)
{
    static const uint8_t functions[4][2] = {
        {CMOE_CUDA_cmoe_rows_bf16_act, CMOE_CUDA_cmoe_rows_bf16_z},
        {CMOE_CUDA_cmoe_rows_f16_act, CMOE_CUDA_cmoe_rows_f16_z},
        {CMOE_CUDA_cmoe_rows_e4m3_act, CMOE_CUDA_cmoe_rows_e4m3_z},
        {CMOE_CUDA_cmoe_rows_e4m3_block_codes, CMOE_CUDA_cmoe_rows_e4m3_block_z},
    };
    const int type = p->w.dtype == CMOE_BF16         ? 0
                     : p->w.dtype == CMOE_F16        ? 1
                     : cmoe__cuda_wgmma_one_scale(p) ? 2
                                                     : 3;
    const bool fast = p->flags & CMOE_FAST_SUMS, second = k->first == CMOE_STAGE_GEMM2;
    if (in_two(k, p))
        return fast ? CMOE_CUDA_cmoe_rows_e4m3_fast_short : CMOE_CUDA_cmoe_rows_e4m3_short;
    if (type == 2 && fast && second) return CMOE_CUDA_cmoe_rows_e4m3_fast_z;
    return (enum cmoe_cuda_function)functions[type][second];
}

/* Weights or rows that no copy engine reads. */
static cmoe_status by_others(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    struct cmoe_step first = *step;
    if (step->kernel->first == CMOE_STAGE_GEMM2) return cmoe__cuda_wgmma_gemm2(step, x);
    if (!in_two(step->kernel, x->p)) return cmoe__cuda_wgmma_gemm1(step, x);
    first.kernel = &first_of_two;
    return cmoe__cuda_wgmma_gemm1(&first, x);
}

cmoe_status cmoe__cuda_rows(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    const bool second = step->kernel->first == CMOE_STAGE_GEMM2, two = in_two(step->kernel, x->p);
    struct cmoe_exec inner = *x;
    if (two) inner.h = x->scratch;
    const int last = two ? CMOE_STAGE_ACT : step->kernel->last;
    cmoe_gpu_rows f = {
        .gemm =
            second ? cmoe__cuda_wgmma_second(&inner, last) : cmoe__cuda_wgmma_first(&inner, last),
        .taken = x->progress + (second ? CMOE_PROGRESS_DONE : CMOE_PROGRESS_TAKEN),
    };
    const size_t shared = cmoe__cuda_wgmma_settle(x, &f.gemm, CMOE_WGMMA_ROWS, 1);
    const bool copied = f.gemm.tma && f.gemm.vectors;
    if (copied)
        CMOE_TRY(cmoe__cuda_wgmma_launch(x, &f.gemm, function_of(x->p, step->kernel), shared, &f));
    else
        CMOE_TRY(by_others(step, &inner));
    if (straight(step->kernel)) return cmoe__cuda_combine_absent(x);
    return two ? cmoe__cuda_requant_bf16(&inner, copied) : CMOE_OK;
}
