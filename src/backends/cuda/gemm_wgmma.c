/* SPDX-License-Identifier: MIT
 * The wgmma rows of Hopper: what they take, what they cost, their parameters. */
#include "backends/cuda/wgmma.h"

#include "backends/cuda/products.h"
#include "core/fail.h"
#include "core/numeric.h"
#include "core/size.h"
#include <math.h>

enum { A_BYTES = 2 * CMOE_WGMMA_HALF * CMOE_WGMMA_SPAN, FEW_ROWS = 16 /* an expert */ };

/* How scales go with the sums. */
enum scales { NO_SCALES, ROW_SCALES, BLOCK_SCALES };

static bool scales_of(cmoe_format x, cmoe_format w, enum scales *scales)
{
    if (x.dtype != w.dtype || w.zero) return false;
    *scales = NO_SCALES;
    if (x.dtype == CMOE_BF16 || x.dtype == CMOE_F16)
        return x.scaling == CMOE_SCALE_NONE && w.scaling == CMOE_SCALE_NONE;
    if (x.dtype != CMOE_E4M3) return false;
    *scales = BLOCK_SCALES;
    if (x.scaling == CMOE_SCALE_GROUP && x.group == 128 && x.scale_dtype == CMOE_NONE &&
        w.scaling == CMOE_SCALE_BLOCK)
        return true;
    *scales = ROW_SCALES;
    return (x.scaling == CMOE_SCALE_TENSOR || x.scaling == CMOE_SCALE_TOKEN) &&
           (w.scaling == CMOE_SCALE_TENSOR || w.scaling == CMOE_SCALE_CHANNEL);
}

/* What a kernel writes: sums in f32, the activation's result, z in 16 bits, the result quantised. */
enum result { SUMS, ACTIVATED, SHORT_SUMS, CODES, RESULTS };

static enum cmoe_cuda_function function_of(cmoe_dtype type, enum scales scales, enum result result)
{
    static const uint8_t functions[4][RESULTS] = {
        {CMOE_CUDA_cmoe_wgmma_bf16, CMOE_CUDA_cmoe_wgmma_bf16_act, CMOE_CUDA_cmoe_wgmma_bf16_z, 0},
        {CMOE_CUDA_cmoe_wgmma_f16, CMOE_CUDA_cmoe_wgmma_f16_act, CMOE_CUDA_cmoe_wgmma_f16_z, 0},
        {CMOE_CUDA_cmoe_wgmma_e4m3, CMOE_CUDA_cmoe_wgmma_e4m3_act, CMOE_CUDA_cmoe_wgmma_e4m3_z, 0},
        {CMOE_CUDA_cmoe_wgmma_e4m3_block, CMOE_CUDA_cmoe_wgmma_e4m3_block_act,
         CMOE_CUDA_cmoe_wgmma_e4m3_block_z, CMOE_CUDA_cmoe_wgmma_e4m3_block_codes},
    };
    const int row = type == CMOE_BF16 ? 0 : type == CMOE_F16 ? 1 : scales == ROW_SCALES ? 2 : 3;
    return (enum cmoe_cuda_function)functions[row][result];
}

bool cmoe__cuda_wgmma_one_scale(const cmoe_problem *p)
{
    return p->w.dtype == CMOE_E4M3 && p->w.scaling != CMOE_SCALE_BLOCK;
}

/* Whether tokens' results are in the 16 bits that GEMM2 can write. */
static bool short_y(const cmoe_problem *p, const struct cmoe_shape *s)
{
    const cmoe_dtype y = p->mid.dtype == CMOE_F16 ? CMOE_F16 : CMOE_BF16;
    return !(p->flags & CMOE_NO_REDUCE) && !s->batched && p->last == CMOE_STAGE_COMBINE &&
           p->y == y && s->H % 8 == 0;
}

bool cmoe__cuda_wgmma_short_z(const cmoe_problem *p, const struct cmoe_shape *s)
{
    return (p->flags & CMOE_REDUCED) && short_y(p, s);
}

bool cmoe__cuda_wgmma_straight(const cmoe_problem *p, const struct cmoe_shape *s)
{
    const bool weighed_bias = (p->flags & CMOE_BIAS2) && p->weight_on == CMOE_WEIGHT_ON_OUTPUT;
    return s->slots == 1 && short_y(p, s) && s->h_used == s->H && p->accumulate == 0.0f &&
           !weighed_bias;
}

bool cmoe__cuda_wgmma_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                               struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const cmoe_problem *p = q->p;
    const cmoe_format x = cmoe__cuda_input_of(p, k->first);
    enum scales scales;
    if (q->props->arch != 90) return cmoe__refuse(why, "needs compute capability 9.0");
    if (!scales_of(x, p->w, &scales))
        return cmoe__refuse(why, "has no instruction for %s times %s with these scales",
                            cmoe_dtype_name((cmoe_dtype)x.dtype),
                            cmoe_dtype_name((cmoe_dtype)p->w.dtype));
    if (q->shape->local > CMOE_WGMMA_EXPERTS)
        return cmoe__refuse(why, "%d experts do not fit in shared memory", q->shape->local);
    if (scales == BLOCK_SCALES && (p->flags & CMOE_BLOCK_JOINT) && p->inter % 64 != 0)
        return cmoe__refuse(why, "up rows begin inside a block of 64: inter=%d", p->inter);
    if (k->last == CMOE_STAGE_REQUANT) {
        const cmoe_format mid = p->mid;
        if (scales != BLOCK_SCALES || !q->shape->gated || q->shape->i_used % 128 != 0)
            return cmoe__refuse(why, "quantises spans of 128 gated units under block scales");
        if (p->act != CMOE_ACT_SILU || p->act_limit != 0.0f || (p->flags & CMOE_BIAS1) ||
            p->weight_on == CMOE_WEIGHT_ON_GEMM1 || p->weight_on == CMOE_WEIGHT_ON_ACT)
            return cmoe__refuse(why, "quantises silu(gate)*up without bias, weight or limit");
        if (mid.dtype != CMOE_E4M3 || mid.scaling != CMOE_SCALE_GROUP || mid.group != 128 ||
            mid.scale_dtype != CMOE_NONE || (p->flags & CMOE_MID_ROUNDED))
            return cmoe__refuse(why, "the intermediate has no f32 scale every 128 columns");
    }
    if (k->last >= CMOE_STAGE_ACT && k->first == CMOE_STAGE_GEMM1) {
        if (!q->shape->gated) return cmoe__refuse(why, "there is no gate");
        if (p->act != CMOE_ACT_SILU && p->act != CMOE_ACT_SWIGLU_OAI)
            return cmoe__refuse(why, "the activation is not gate*sigmoid(gate)");
        if (cmoe__shape_h_dtype(p) != (scales == NO_SCALES ? (cmoe_dtype)x.dtype : CMOE_F32))
            return cmoe__refuse(why, "the intermediate has another type than x");
    }
    if (in.layout != cmoe__usual_edge(p, k->first).layout)
        return cmoe__refuse(why, "starts from another data layout");
    *out = cmoe__usual_edge(p, k->last + 1);
    if (k->first == CMOE_STAGE_GEMM2 && cmoe__cuda_wgmma_short_z(p, q->shape))
        out->layout = CMOE_EDGE_SLOT16;
    return true;
}

bool cmoe__cuda_combine_pairs_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                       struct cmoe_edge in, struct cmoe_edge *out,
                                       struct cmoe_why *why)
{
    if (in.layout != CMOE_EDGE_SLOT16 || !cmoe__cuda_wgmma_short_z(q->p, q->shape))
        return cmoe__refuse(why, "z is not in 16 bits");
    *out = cmoe__usual_edge(q->p, k->last + 1);
    return true;
}

double cmoe__cuda_combine_pairs_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    enum { LAUNCH_US = 3 };
    return LAUNCH_US + cmoe__stage_bytes(q->p, k->first, q->tokens) / 2 / (q->props->gbps * 1e3);
}

/* How rows of x are cut: at most tile_n a tile, whole tiles for each of a cluster's blocks. */
struct cut {
    int tile_n, cluster;
};

static int widest(enum scales scales)
{
    return scales == NO_SCALES ? CMOE_WGMMA_MOST_N : CMOE_WGMMA_SCALED_N;
}

/* As few tiles as hold an average expert's rows and a bit, with room for most experts': counts of uniform
 * routing scatter by their square root, and who has more gets more tiles. Two of them or more form clusters
 * that fetch weights once; three of e4m3 do not, for four tiles would be narrow and wait for shared memory. */
static struct cut cut_of(double each, int64_t most, enum scales scales)
{
    enum { NARROW = 128 };
    const int limit = widest(scales);
    const double spread = sqrt(each), room = fmin(each + 2.5 * spread, (double)most);
    int64_t tiles = (int64_t)ceil(fmin(each + spread, (double)most) / limit);
    const int cluster = tiles < 2 || (tiles == 3 && scales != NO_SCALES) ? 1 : 2;
    tiles = cmoe__max64(1, cmoe__round_up(tiles, cluster));
    int64_t tile = cmoe__min64(most, NARROW);
    if (room > NARROW) tile = (int64_t)ceil(room / (double)tiles);
    tile = cmoe__min64(cmoe__round_up(tile, 16), limit);
    return (struct cut){tile <= 16 && most <= 8 ? 8 : (int)tile, cluster};
}

static struct cut cut(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens,
                      enum scales scales)
{
    const double rows = cmoe__shape_local_rows(p, s, tokens);
    const double each = rows / (cmoe__experts_hit(p, tokens) + 1e-9);
    return cut_of(each, s->batched ? p->capacity : tokens, scales);
}

double cmoe__cuda_wgmma_bytes(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const double bytes = cmoe__stage_bytes(q->p, k->first, q->tokens);
    const double rows = cmoe__shape_local_rows(q->p, q->shape, q->tokens);
    if (k->first != CMOE_STAGE_GEMM1 || k->last < CMOE_STAGE_ACT) return bytes;
    return bytes - rows * ((double)q->shape->rows1 * 4 - (double)q->shape->I * 2);
}

/* Weights once and rows of x per weight tile from memory, or the padded tiles' arithmetic. */
double cmoe__cuda_wgmma_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const cmoe_problem *p = q->p;
    const double bytes = cmoe__cuda_wgmma_bytes(k, q);
    const double rows = cmoe__shape_local_rows(p, q->shape, q->tokens);
    const double hit = cmoe__experts_hit(p, q->tokens) + 1e-9, each = rows / hit;
    const bool second = k->first == CMOE_STAGE_GEMM2 || !q->shape->gated;
    const int64_t m =
        second ? (k->first == CMOE_STAGE_GEMM2 ? q->shape->H : q->shape->I) : q->shape->I;
    const int64_t step = second ? 2 * CMOE_WGMMA_HALF : CMOE_WGMMA_HALF;
    const double m_tiles = (double)cmoe__ceil_div(m, step);
    const double fp8 = p->w.dtype == CMOE_E4M3 ? 2 : 1;
    /* A tile of 256 weight rows and 8 rows of x takes about as long as its weights' loads. */
    const double blocks = (double)q->props->threads;
    const double tiles = hit * m_tiles * (each > 128 ? each / 128 : 1);
    const double waves = tiles / blocks < 1 ? 1 : tiles / blocks;
    const double uneven = (double)cmoe__ceil_div((int64_t)(waves * 1000), 1000) / waves;
    const int64_t k_columns = k->first == CMOE_STAGE_GEMM2 ? q->shape->I : q->shape->H;
    const double padded = hit * m_tiles * (double)step * (second ? 1 : 2) * (double)k_columns * 2 *
                          (double)cmoe__round_up((int64_t)(each + 0.999), 8);
    const double arithmetic = padded / (q->props->gflops * 1e3 * 0.55 * fp8);
    /* Clearly fewer tiles than multiprocessors: those that load do not reach all of the bandwidth. */
    enum { BLOCK_GBPS = 60 };
    const double some = tiles < 0.85 * blocks ? 0.7 * q->props->gbps : 0.92 * q->props->gbps;
    const double memory = bytes / (1e3 * (some < tiles * BLOCK_GBPS ? some : tiles * BLOCK_GBPS));
    return CMOE_WGMMA_START_US +
           (arithmetic > memory ? arithmetic * (uneven > 1.5 ? 1.5 : uneven) : memory);
}

/* The map of one half: (k, row, expert), one span by 128 rows a box. */
static bool encode_map(const struct cmoe_exec *x, const struct cmoe_cuda_half *h, cmoe_dtype type,
                       int64_t columns, int64_t rows, CUtensorMap *map)
{
    const struct cmoe_cuda *cuda = cmoe__cuda_of(x);
    const bool wide = type != CMOE_E4M3;
    const cuuint64_t sizes[3] = {(cuuint64_t)columns, (cuuint64_t)rows,
                                 (cuuint64_t)cmoe__max64(1, x->w->experts)};
    const cuuint64_t strides[2] = {(cuuint64_t)h->row_stride, (cuuint64_t)h->expert_stride};
    const cuuint32_t box[3] = {wide ? CMOE_WGMMA_SPAN / 2 : CMOE_WGMMA_SPAN, CMOE_WGMMA_HALF, 1};
    const cuuint32_t steps[3] = {1, 1, 1};
    const CUtensorMapDataType kind = type == CMOE_BF16  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                     : type == CMOE_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                        : CU_TENSOR_MAP_DATA_TYPE_UINT8;
    /* What is fetched beside a box belongs to rows that come much later unless rows are so aligned; with few
     * rows of x longer reads are worth that (docs/perf-log.md, 25). */
    const bool few = (int64_t)x->tokens * x->shape->slots < (int64_t)FEW_ROWS * x->p->experts;
    const CUtensorMapL2promotion also = few || h->row_stride % 256 == 0
                                            ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B
                                            : CU_TENSOR_MAP_L2_PROMOTION_NONE;
    return h->strided && cuda->driver->cuTensorMapEncodeTiled(
                             map, kind, 3, (void *)(uintptr_t)h->data, sizes, strides, box, steps,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, also,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

size_t cmoe__cuda_wgmma_settle(const struct cmoe_exec *x, cmoe_gpu_wgmma *w, int tile_n,
                               int cluster)
{
    const struct cmoe_cuda_weights *state = x->w->state;
    const cmoe_dtype type = (cmoe_dtype)w->g.w.dtype;
    const int64_t step = w->gated ? CMOE_WGMMA_HALF : 2 * CMOE_WGMMA_HALF;
    const int tail = w->g.w.scaling == CMOE_SCALE_BLOCK ? CMOE_WGMMA_SCALED_TAIL : CMOE_WGMMA_TAIL;
    const int stage = A_BYTES + tile_n * CMOE_WGMMA_SPAN,
              room = cmoe__cuda_of(x)->shared_limit - 1024 - tail;
    w->tile_n = tile_n;
    w->m_tiles = (int32_t)cmoe__ceil_div(w->out_cols, step);
    w->stages = (int32_t)cmoe__min64(CMOE_WGMMA_STAGES, room / stage);
    w->vectors = (uintptr_t)w->g.a % 16 == 0 && w->g.a_stride % 16 == 0 &&
                 (w->g.k * cmoe_dtype_bits(type) / 8) % 16 == 0;
    w->tma = 1;
    for (int box = 0; box < 2; box++)
        w->tma = w->tma && encode_map(x, &state->half[w->g.half + (w->gated ? box : 0)], type,
                                      w->g.k, w->out_used, &w->map[box]);
    const bool silu = w->gated && w->alpha == 1.0f && w->beta == 0.0f && w->limit == 0.0f;
    const bool lines = (uintptr_t)w->g.out % 16 == 0 && w->g.out_stride % 16 == 0;
    w->plain = !w->g.bias && !w->g.weigh && !w->weigh_act && w->out_used % step == 0 &&
               w->out_used == w->out_cols && lines && (w->g.half == 2 || silu);
    w->cluster = w->tma ? cluster : 1;
    w->ahead = w->tma && w->g.half == 2 && x->p->first <= CMOE_STAGE_SORT;
    return (size_t)(1024 + tail + w->stages * stage);
}

cmoe_status cmoe__cuda_wgmma_launch(const struct cmoe_exec *x, const cmoe_gpu_wgmma *w,
                                    enum cmoe_cuda_function f, size_t shared, void *params)
{
    const int64_t all = cmoe__shape_rows(x->p, x->shape, x->tokens);
    const int64_t each = (int64_t)w->tile_n * w->cluster,
                  experts = cmoe__min64(all, x->shape->local);
    const int64_t tiles = (all / each + experts) * w->cluster * w->m_tiles;
    const int sms = cmoe__cuda_of(x)->multiprocessors / w->cluster * w->cluster;
    const struct cmoe_cuda_grid grid = {(unsigned)cmoe__min64(tiles, sms), 1, CMOE_WGMMA_THREADS,
                                        shared};
    void *args[] = {params};
    return cmoe__cuda_launch_clusters(x, f, grid, (unsigned)w->cluster, args);
}

static cmoe_status launch(const struct cmoe_exec *x, cmoe_gpu_wgmma *w, enum cmoe_cuda_function f,
                          enum scales scales)
{
    const struct cut c = cut(x->p, x->shape, x->tokens, scales);
    const size_t shared = cmoe__cuda_wgmma_settle(x, w, c.tile_n, c.cluster);
    return cmoe__cuda_wgmma_launch(x, w, f, shared, w);
}

/* One scale for all rows has no stride. */
static void fix_scale(cmoe_gpu_gemm *g)
{
    if (g->x.scaling != CMOE_SCALE_TENSOR) return;
    g->a_scale = (const uint8_t *)g->a_fixed;
    g->a_scale_stride = 0;
}

static float or_default(float given, float otherwise)
{
    return given != 0.0f ? given : otherwise;
}

cmoe_gpu_wgmma cmoe__cuda_wgmma_first(const struct cmoe_exec *x, int last)
{
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const bool act = last >= CMOE_STAGE_ACT, oai = p->act == CMOE_ACT_SWIGLU_OAI;
    cmoe_gpu_wgmma w = {
        .g = cmoe__cuda_gemm1_params(x),
        .gated = s->gated,
        .out_used = (int32_t)(act ? s->i_used : s->I),
        .out_cols = (int32_t)s->I,
        .weigh_act = act && p->weight_on == CMOE_WEIGHT_ON_ACT,
        .alpha = oai ? or_default(p->act_alpha, 1.702f) : 1.0f,
        .beta = oai ? or_default(p->act_beta, 1.0f) : 0.0f,
        .limit = or_default(p->act_limit, oai ? 7.0f : 0.0f),
    };
    fix_scale(&w.g);
    if (act) {
        w.g.out = x->h;
        w.g.out_stride = s->I;
    }
    if (last == CMOE_STAGE_REQUANT) {
        w.g.out = x->hq;
        w.g.out_stride = (int64_t)cmoe__row_code_bytes(p->mid, s->I);
        w.mid_scales = x->hs;
        w.mid_scale_stride = (int64_t)cmoe__row_scale_bytes(p->mid, s->I) / 4;
    }
    return w;
}

cmoe_gpu_wgmma cmoe__cuda_wgmma_second(const struct cmoe_exec *x, int last)
{
    const bool shorts = cmoe__cuda_wgmma_short_z(x->p, x->shape); /* read whole by the combine */
    cmoe_gpu_wgmma w = {
        .g = cmoe__cuda_gemm2_params(x),
        .out_used = (int32_t)x->shape->h_used,
        .out_cols = (int32_t)(shorts ? x->shape->H : x->shape->h_used),
    };
    fix_scale(&w.g);
    if (last == CMOE_STAGE_COMBINE) { /* a token has one slot, so a row of y is one of z */
        w.g.out = x->y;
        w.g.out_stride = x->y_stride / 2;
        w.g.weigh = x->p->weight_on == CMOE_WEIGHT_ON_OUTPUT;
    }
    return w;
}

static cmoe_status gemm1(const struct cmoe_exec *x, int last)
{
    enum scales scales = NO_SCALES;
    (void)scales_of(x->p->x, x->p->w, &scales);
    const enum result result =
        last < CMOE_STAGE_ACT ? SUMS : (last == CMOE_STAGE_REQUANT ? CODES : ACTIVATED);
    cmoe_gpu_wgmma w = cmoe__cuda_wgmma_first(x, last);
    return launch(x, &w, function_of((cmoe_dtype)x->p->w.dtype, scales, result), scales);
}

cmoe_status cmoe__cuda_wgmma_gemm1(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    return gemm1(x, step->kernel->last);
}

cmoe_status cmoe__cuda_wgmma_gemm2(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    const struct cmoe_kernel *k = step->kernel; /* of more stages, where they run one by one */
    const int last = k->first == CMOE_STAGE_GEMM2 ? k->last : CMOE_STAGE_GEMM2;
    enum scales scales = NO_SCALES;
    (void)scales_of(x->p->mid, x->p->w, &scales);
    const bool shorts = last == CMOE_STAGE_COMBINE || cmoe__cuda_wgmma_short_z(x->p, x->shape);
    const enum result result = shorts ? SHORT_SUMS : SUMS;
    cmoe_gpu_wgmma w = cmoe__cuda_wgmma_second(x, last);
    return launch(x, &w, function_of((cmoe_dtype)x->p->w.dtype, scales, result), scales);
}
