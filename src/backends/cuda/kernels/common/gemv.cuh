/* SPDX-License-Identifier: MIT
 * How a block of the gemv kernels cuts its work. A tile is 8 rows of weights: 4 gate rows and the 4
 * up rows of the same units, or 8 rows of one matrix; a step is 128 bytes of each row. Blocks own
 * equal runs of tiles, and the warps of a block equal runs of its steps, wherever tiles begin. */
#ifndef CMOE_KERNELS_GEMV_CUH
#define CMOE_KERNELS_GEMV_CUH

#include "backends/cuda/kernels/common/operand.cuh"
#include "backends/cuda/kernels/common/scale.cuh"
#include "backends/cuda/params_gemv.h"

enum { THREADS = CMOE_GEMV_THREADS, WARPS = THREADS / 32, SPAN = 128, ROWS = 8 };

/* A lane's 16 bytes of codes. A step of a row is 8 of them. */
template <int W> struct piece_of {
    static constexpr int TYPE = W == CMOE_GEMV_NV ? (int)CMOE_E2M1 : (W == CMOE_GEMV_MX8 ? (int)CMOE_E4M3 : W);
    static constexpr int BITS =
        TYPE == CMOE_BF16 || TYPE == CMOE_F16 ? 16 : (TYPE == CMOE_E4M3 || TYPE == CMOE_I8 ? 8 : 4);
    static constexpr int COLUMNS = 128 / BITS, STEP = 8 * COLUMNS;
};

/* Bytes of an operand of x. */
template <int OP> constexpr int operand_bytes = OP == CMOE_I8 ? 1 : 2;

/* Codes 0 and 255 are no powers of two that f32 has as its normal numbers. */
DEV float scale_of_e8m0(uint32_t code)
{
    return bits_f32(code == 255 ? 0x7fc00000 : max(code << 23, 0x00400000u));
}

/* What a block knows of all slots before it multiplies, in shared memory: no load waits in between. */
struct slots_of {
    int experts[CMOE_GEMV_ROWS]; /* local ones, or -1 */
    float weights[CMOE_GEMV_ROWS];
    float global[2][CMOE_GEMV_ROWS]; /* NV: of the halves that the kernel multiplies by */
    float fixed;                     /* x's given scale */
};

/* What a block has to do: tiles, their steps, and rows of x of the tokens that they have. */
struct work {
    uint8_t *memory; /* the ring; x; factors of x; largest magnitudes; sums */
    int tokens, first_token, row_count, first_tile, tiles;
    int tile_steps, all_steps, warps; /* warps that have steps */

    MEMBER uint4 *x(const cmoe_gpu_gemv &s) const
    {
        return (uint4 *)(memory + s.x_at);
    }

    /* Of a row of x and a span of its scales. */
    MEMBER float *factor(const cmoe_gpu_gemv &s) const
    {
        return (float *)(memory + s.factor_at);
    }

    MEMBER uint32_t *amax(const cmoe_gpu_gemv &s) const
    {
        return (uint32_t *)(memory + s.amax_at);
    }

    /* [tile][row][parts()] */
    MEMBER float *part(const cmoe_gpu_gemv &s) const
    {
        return (float *)(memory + s.part_at);
    }
};

/* The warp that has a step. */
DEV int warp_of(const work &k, int step)
{
    return ((step + 1) * k.warps - 1) / k.all_steps;
}

/* Most warps that have steps of one tile. */
DEV int parts(const work &k)
{
    return min(k.tile_steps / max(k.all_steps / WARPS, 1) + 2, (int)WARPS);
}

/* A warp's next step, and how many are left. */
struct cursor {
    int token, slot, strip, tile, step, left;
};

/* Behind the last step of a row: the next slot's (GEMM2), or the next tile's; true: the next tile. */
template <bool FIRST> DEV bool next_row(const cmoe_gpu_gemv &s, cursor &c)
{
    c.step = 0;
    if (!FIRST && ++c.slot < s.g.call.slots)
        return false;
    c.slot = FIRST ? c.slot : 0;
    c.tile++;
    if (++c.strip == s.strips) {
        c.strip = 0;
        if (!FIRST || ++c.slot == s.g.call.slots) {
            c.slot = 0;
            c.token++;
        }
    }
    return true;
}

template <bool FIRST> DEV cursor first_step(const cmoe_gpu_gemv &s, const work &k)
{
    const int warp = threadIdx.x / 32, slots = s.g.call.slots;
    if (warp >= k.warps)
        return {0, 0, 0, 0, 0, 0};
    const int begin = k.all_steps * warp / k.warps;
    const int tile = begin / k.tile_steps, step = begin - tile * k.tile_steps, slot = step / s.steps;
    const int at = k.first_tile + tile, over = at / s.strips, token = FIRST ? over / slots : over;
    return {token, FIRST ? over - token * slots : slot, at - over * s.strips, tile, step - slot * s.steps,
            k.all_steps * (warp + 1) / k.warps - begin};
}

/* Row of a matrix that a lane holds: of which half, and its number in the tile. */
template <bool FIRST> DEV int lane_half(const cmoe_gpu_gemv &s)
{
    return FIRST && s.gated && threadIdx.x % 32 >= 16;
}

template <bool FIRST> DEV int lane_row(const cmoe_gpu_gemv &s, int strip)
{
    const int row = threadIdx.x % 32 / 4;
    return FIRST && s.gated ? strip * (ROWS / 2) + row % (ROWS / 2) : strip * ROWS + row;
}

/* Equal runs of tiles. */
template <bool FIRST> DEV work cut_work(const cmoe_gpu_gemv &s, uint8_t *memory)
{
    work k;
    const int slots = s.g.call.slots, of_token = s.strips * (FIRST ? slots : 1);
    k.memory = memory;
    k.tokens = token_count(s.g.call);
    const unsigned all = (unsigned)(k.tokens * of_token), blocks = gridDim.x, b = blockIdx.x;
    k.first_tile = (int)(all * b / blocks);
    k.tiles = (int)(all * (b + 1) / blocks) - k.first_tile;
    k.first_token = k.first_tile / of_token;
    const int last = k.tiles > 0 ? (k.first_tile + k.tiles - 1) / of_token : k.first_token - 1;
    k.row_count = (last - k.first_token + 1) * (FIRST ? 1 : slots);
    k.tile_steps = s.steps * (FIRST ? 1 : slots);
    k.all_steps = k.tiles * k.tile_steps;
    k.warps = min(k.all_steps, (int)WARPS);
    return k;
}

#endif
