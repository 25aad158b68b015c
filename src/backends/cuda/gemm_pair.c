/* SPDX-License-Identifier: MIT
 * The row of both GEMMs on Hopper, for few rows an expert: one kernel instead of two, so that the second
 * GEMM's weights stream while the first one ends. Wider tiles are left to the rows of one GEMM. */
#include "backends/cuda/wgmma.h"

#include "core/fail.h"
#include "core/numeric.h"
#include "core/size.h"
#include <math.h>

_Static_assert((int)CMOE_PROGRESS == (int)CMOE_PROGRESS_EXPERTS,
               "SORT clears what the workspace has");

/* The combine, too, in a kernel beside. */
static bool whole(const struct cmoe_kernel *k)
{
    return k->last == CMOE_STAGE_COMBINE;
}

static int last_of_first(const cmoe_problem *p)
{
    return p->w.scaling == CMOE_SCALE_BLOCK ? CMOE_STAGE_REQUANT : CMOE_STAGE_ACT;
}

/* The rows that do the same in two kernels (with one scale a row of h: three). */
static struct cmoe_kernel first_row(const cmoe_problem *p)
{
    return (struct cmoe_kernel){.first = CMOE_STAGE_GEMM1, .last = (uint8_t)last_of_first(p)};
}

static const struct cmoe_kernel second_row = {.first = CMOE_STAGE_GEMM2, .last = CMOE_STAGE_GEMM2};

static double rows_each(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    return cmoe__shape_local_rows(p, s, tokens) / (cmoe__experts_hit(p, tokens) + 1e-9);
}

/* Rows of an expert that all but a few have no more of: so many times the square root above the average. */
static double room(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens, double spread)
{
    const double each = rows_each(p, s, tokens);
    return fmin(each + spread * sqrt(each), (double)tokens);
}

static int widest(const cmoe_problem *p)
{
    return p->w.dtype == CMOE_E4M3 ? CMOE_WGMMA_PAIR_N : CMOE_WGMMA_MOST_N;
}

/* With 48 rows five stages fit beside block scales, too. */
static int tile_of(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    enum { USUAL = 48 };
    if (tokens <= 8) return 8;
    const int64_t rows = cmoe__max64((int64_t)ceil(room(p, s, tokens, 2.5)), USUAL);
    return (int)cmoe__min64(cmoe__min64(cmoe__round_up(rows, 16), cmoe__round_up(tokens, 16)),
                            widest(p));
}

static int64_t strips_of(const struct cmoe_shape *s)
{
    return cmoe__ceil_div(s->H, 2 * CMOE_WGMMA_HALF);
}

bool cmoe__cuda_pair_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                              struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const cmoe_problem *p = q->p;
    const struct cmoe_kernel first = first_row(p);
    struct cmoe_edge between;
    if (q->shape->batched || p->first > CMOE_STAGE_SORT)
        return cmoe__refuse(why, "nothing before it in the plan clears its counters");
    if (!cmoe__cuda_wgmma_short_z(p, q->shape))
        return cmoe__refuse(why, "leaves z to a combine of 16-bit numbers only");
    if (p->w.dtype == CMOE_E4M3 && !q->shape->requant)
        return cmoe__refuse(why, "the intermediate is not quantised");
    if (cmoe__cuda_wgmma_one_scale(p) &&
        (p->mid.dtype != CMOE_E4M3 || p->mid.scaling != CMOE_SCALE_TOKEN || p->mid.fixed ||
         (p->flags & CMOE_MID_ROUNDED)))
        return cmoe__refuse(why, "the intermediate has no scale of its own a row");
    if (cmoe__cuda_wgmma_one_scale(p) && q->shape->I > CMOE_WGMMA_MOST_H)
        return cmoe__refuse(why, "a row of %lld columns does not fit in registers",
                            (long long)q->shape->I);
    if (room(p, q->shape, q->tokens, 1.5) > widest(p))
        return cmoe__refuse(why, "%d tokens are for wider tiles", q->tokens);
    if (whole(k) && strips_of(q->shape) > CMOE_PROGRESS_EXPERTS - CMOE_PROGRESS_STRIPS)
        return cmoe__refuse(why, "%lld columns of z have too many strips", (long long)q->shape->H);
    if (!cmoe__cuda_wgmma_supports(&first, q, in, &between, why) ||
        !cmoe__cuda_wgmma_supports(&second_row, q, between, out, why))
        return false;
    if (whole(k)) *out = cmoe__usual_edge(p, k->last + 1);
    return true;
}

/* Warps that quantise a row of h together: a power of two. */
static int row_warps(const struct cmoe_shape *s)
{
    enum { COLUMNS = CMOE_WGMMA_MOST_H / (CMOE_WGMMA_MATH / 32) };
    int warps = 1;
    while (warps * COLUMNS < s->I)
        warps *= 2;
    return warps;
}

/* With one scale a row GEMM2 waits for the rounds of quantising of the expert that is done last, which as
 * many blocks share as it has tiles. */
static double quantise_us(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    enum { WARPS = CMOE_WGMMA_MATH / 32, ROUND_US = 2 };
    if (!cmoe__cuda_wgmma_one_scale(p)) return 0;
    const double rounds = rows_each(p, s, tokens) * row_warps(s) / WARPS;
    return ROUND_US * ceil(rounds / (double)strips_of(s));
}

/* One start, and nearly no multiprocessor waits between the GEMMs: but with less than half a tile of GEMM1 for
 * each, those that have one load at their own rate either way. A handful of tokens takes longer than bytes say;
 * under one scale a row so do the rows beside this one, whose prices do not say it either. */
static double pair_us(const struct cmoe_query *q)
{
    enum { START_US = 6, FEW = 8, FEW_US = 10, ODD_US = 2 };
    const struct cmoe_kernel first = first_row(q->p);
    const double two =
        cmoe__cuda_wgmma_cost_us(&first, q) + cmoe__cuda_wgmma_cost_us(&second_row, q);
    const double tiles =
        cmoe__experts_hit(q->p, q->tokens) * (double)cmoe__ceil_div(q->shape->I, CMOE_WGMMA_HALF);
    if (tiles < 0.5 * (double)q->props->threads) return two + ODD_US;
    const bool few = q->tokens <= FEW && !cmoe__cuda_wgmma_one_scale(q->p);
    return START_US + (few ? FEW_US : 0) + 0.95 * (two - 2 * CMOE_WGMMA_START_US) +
           quantise_us(q->p, q->shape, q->tokens);
}

/* Of z in 16 bits, and of the weights that make it. */
static double z_bytes(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    return cmoe__shape_local_rows(p, s, tokens) * (double)s->H * 2;
}

static double second_bytes(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    const int bits = cmoe_dtype_bits((cmoe_dtype)p->w.dtype);
    return cmoe__experts_hit(p, tokens) * (double)(s->H * s->I) * bits / 8;
}

/* z once less to memory and back where L2 cannot hold all of it but most, which must be much beside the weights;
 * else, as measured, the order of tiles costs more than the combine's kernel (docs/perf-log.md, 28). */
static double beside_us(const struct cmoe_query *q)
{
    enum { ODD_US = 10, SHARE = 20 };
    const struct cmoe_kernel combine = {.first = CMOE_STAGE_COMBINE, .last = CMOE_STAGE_COMBINE};
    const double z = z_bytes(q->p, q->shape, q->tokens), l2 = (double)q->props->l2;
    const bool gains = q->p->w.dtype == CMOE_E4M3 && z > l2 && z < 2 * l2 &&
                       z * SHARE > second_bytes(q->p, q->shape, q->tokens);
    return cmoe__cuda_combine_pairs_cost_us(&combine, q) +
           (gains ? -z / (q->props->gbps * 1e3) : ODD_US);
}

double cmoe__cuda_pair_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    return pair_us(q) + (whole(k) ? beside_us(q) : 0);
}

/* h, or its codes, their scales from `scales` on, what is quantised from `h` on, turns, and z. */
struct between {
    size_t scales, h, turns, z, bytes;
};

static struct between between_of(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens,
                                 bool with_z)
{
    const size_t rows = (size_t)cmoe__shape_rows(p, s, tokens), line = 256;
    const size_t scales = (rows * cmoe__row_code_bytes(p->mid, s->I) + line - 1) / line * line;
    const size_t h = scales + (rows * cmoe__row_scale_bytes(p->mid, s->I) + line - 1) / line * line;
    const size_t turns = h + rows * (size_t)s->I * 4;
    const size_t end = cmoe__cuda_wgmma_one_scale(p) ? turns + (size_t)s->local * 4 : h;
    const size_t z = (end + line - 1) / line * line;
    return (struct between){scales, h, turns, z, with_z ? z + rows * (size_t)s->H * 2 : end};
}

size_t cmoe__cuda_pair_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    return between_of(q->p, q->shape, q->tokens, whole(k)).bytes;
}

static enum cmoe_cuda_function function_of(const cmoe_problem *p)
{
    if (p->w.dtype == CMOE_E4M3)
        return cmoe__cuda_wgmma_one_scale(p) ? CMOE_CUDA_cmoe_wgmma_e4m3_pair
                                             : CMOE_CUDA_cmoe_wgmma_e4m3_block_pair;
    return p->w.dtype == CMOE_F16 ? CMOE_CUDA_cmoe_wgmma_f16_pair : CMOE_CUDA_cmoe_wgmma_bf16_pair;
}

/* Stages of weights to fetch before the experts are known: where nearly all have rows. */
static int32_t early(const struct cmoe_exec *x)
{
    enum { STAGES = 3 };
    const double hit = cmoe__experts_hit(x->p, x->tokens);
    return hit > 0.9 * (double)x->shape->local ? STAGES : 0;
}

/* Blocks that leave their multiprocessors to the combine: 8 where z is an eighth of GEMM2's weights; with 5 it is what
 * the layer waits for. */
static int32_t leave(const struct cmoe_exec *x)
{
    enum { LEAST = 2, MOST = 32, EACH = 50 };
    const double z = z_bytes(x->p, x->shape, x->tokens);
    return (int32_t)fmin(MOST, LEAST + EACH * z / second_bytes(x->p, x->shape, x->tokens));
}

/* Started when all blocks of the other kernel run; more blocks than find room at first, for its last strips. */
static cmoe_status combine_beside(const struct cmoe_exec *x, const cmoe_gpu_wgmma_pair *f)
{
    enum { THREADS = 128, EACH = 5 };
    cmoe_gpu_beside b = {
        .c = cmoe__cuda_combine_params(x),
        .progress = x->progress,
        .strips = f->strips,
        .tile_n = f->gemm[1].tile_n,
    };
    const struct cmoe_cuda_grid grid = {EACH * (unsigned)cmoe__cuda_of(x)->multiprocessors, 1,
                                        THREADS, 0};
    void *args[] = {&b};
    return cmoe__cuda_launch_after(x,
                                   x->p->y == CMOE_BF16 ? CMOE_CUDA_cmoe_combine_beside_bf16
                                                        : CMOE_CUDA_cmoe_combine_beside_f16,
                                   grid, args);
}

static cmoe_status launch(const struct cmoe_exec *x, cmoe_gpu_wgmma_pair *f, size_t shared,
                          bool combines)
{
    enum { STAGES_AT_ONCE = 8, FIRST_ROUNDS = 6 };
    const int64_t all = cmoe__shape_rows(x->p, x->shape, x->tokens);
    const int64_t rows = all / f->gemm[0].tile_n + cmoe__min64(all, x->shape->local);
    const int64_t tiles = rows * (f->gemm[0].m_tiles + f->gemm[1].m_tiles);
    const int64_t sms = cmoe__cuda_of(x)->multiprocessors;
    const int64_t columns = CMOE_WGMMA_SPAN * 8 / cmoe_dtype_bits((cmoe_dtype)x->p->w.dtype);
    const struct cmoe_cuda_grid grid = {(unsigned)cmoe__min64(tiles, sms), 1, CMOE_WGMMA_THREADS,
                                        shared};
    f->progress = x->progress;
    f->turns = (int32_t *)(void *)((char *)x->scratch +
                                   between_of(x->p, x->shape, x->tokens, combines).turns);
    f->row_warps = row_warps(x->shape);
    f->first_rounds =
        f->row_warps > 1 ? FIRST_ROUNDS : INT32_MAX; /* short rounds gain nothing by help */
    f->lines = x->shape->I % 32 == 0 && (uintptr_t)x->scratch % 128 == 0;
    f->each = (int32_t)cmoe__max64(1, STAGES_AT_ONCE / cmoe__ceil_div(f->gemm[1].g.k, columns));
    f->early = early(x);
    f->strips = combines ? f->gemm[1].m_tiles : 0;
    f->leave = combines && (int64_t)grid.x == sms ? leave(x) : 0;
    void *args[] = {f};
    CMOE_TRY(cmoe__cuda_launch_after(x, function_of(x->p), grid, args));
    return combines ? combine_beside(x, f) : CMOE_OK;
}

/* Weights or rows that no copy engine reads. */
static cmoe_status one_by_one(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    const struct cmoe_kernel first = first_row(x->p);
    struct cmoe_step one = *step;
    one.kernel = &first;
    CMOE_TRY(cmoe__cuda_wgmma_gemm1(&one, x));
    if (cmoe__cuda_wgmma_one_scale(x->p)) CMOE_TRY(cmoe__cuda_requant_e4m3(step, x));
    CMOE_TRY(cmoe__cuda_wgmma_gemm2(step, x));
    return whole(step->kernel) ? cmoe__cuda_combine_pairs(step, x) : CMOE_OK;
}

cmoe_status cmoe__cuda_pair(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    const bool combines = whole(step->kernel);
    const struct between at = between_of(x->p, x->shape, x->tokens, combines);
    const int tile = tile_of(x->p, x->shape, x->tokens);
    struct cmoe_exec inner = *x;
    inner.hq = x->scratch;
    inner.hs = (char *)x->scratch + at.scales;
    inner.h = x->shape->requant ? (char *)x->scratch + at.h : x->scratch;
    if (combines) {
        inner.z = (float *)(void *)((char *)x->scratch + at.z);
        inner.spent_bytes = 0; /* of the step before this one, not of GEMM2 */
    }
    cmoe_gpu_wgmma_pair f = {
        .gemm = {cmoe__cuda_wgmma_first(&inner, last_of_first(x->p)),
                 cmoe__cuda_wgmma_second(&inner, CMOE_STAGE_GEMM2)},
    };
    const size_t shared = cmoe__cuda_wgmma_settle(&inner, &f.gemm[0], tile, 1);
    (void)cmoe__cuda_wgmma_settle(&inner, &f.gemm[1], tile, 1);
    const bool copied = f.gemm[0].tma && f.gemm[0].vectors && f.gemm[1].tma && f.gemm[1].vectors;
    return copied ? launch(&inner, &f, shared, combines) : one_by_one(step, &inner);
}
