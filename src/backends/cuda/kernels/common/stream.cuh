/* SPDX-License-Identifier: MIT
 * How weights are streamed: every lane copies its own 16-byte pieces of 16 weight rows into a ring of
 * its warp in shared memory (cp.async), some stages ahead of the multiplication, across the ends of
 * strips and experts. A warp needs no other warp for that, so the loads in flight never drain. */
#ifndef CMOE_KERNELS_STREAM_CUH
#define CMOE_KERNELS_STREAM_CUH

#include "backends/cuda/kernels/common/copy.cuh"
#include "backends/cuda/kernels/common/operand.cuh"
#include "backends/cuda/kernels/common/scale.cuh"
#include "backends/cuda/kernels/common/tile.cuh"

enum {
    WARPS = 8,
    STAGES = 5,
    STAGE_BYTES = 64, /* of each of a strip's 16 rows */
    TILES = 2,        /* of 8 rows, at most */
};

/* Codes of a row in a stage, groups of scales in it at most, and bytes from row to row of the ring,
 * chosen so that no two lanes meet in a bank. */
template <int BITS> struct stage_of {
    static constexpr int CODES = STAGE_BYTES * 8 / BITS;
    static constexpr int GROUPS = BITS == 16 ? 0 : (BITS == 8 ? 2 : 8);
    static constexpr int STRIDE = BITS == 16 ? 64 : (BITS == 8 ? 96 : 80);
    static constexpr int SCALES = STAGES * 16 * STRIDE, ZEROS = SCALES + STAGES * 16 * GROUPS * 4;
    static constexpr int BYTES = ZEROS + STAGES * 16 * GROUPS;
};

/* A warp's ring: codes, then scales, then zero points of the stages. */
template <int BITS> struct warp_ring {
    using shape = stage_of<BITS>;
    uint8_t *base;

    MEMBER uint8_t *codes(int slot) const
    {
        return base + slot * 16 * shape::STRIDE;
    }
    MEMBER float *scales(int slot) const
    {
        return (float *)(base + shape::SCALES) + slot * 16 * shape::GROUPS;
    }
    MEMBER uint8_t *zeros(int slot) const
    {
        return base + shape::ZEROS + slot * 16 * shape::GROUPS;
    }
};

/* Strip groups of an expert: what WARPS warps, k_parts a strip, cover together. */
DEV int strip_groups(const cmoe_gpu_stream &s)
{
    const int strips = (s.outputs + (s.gated ? 7 : 15)) / (s.gated ? 8 : 16), each = WARPS / s.k_parts;
    return (strips + each - 1) / each;
}

/* A place in a block's list of units. An expert's units are its strip groups, and for each its tiles of
 * rows one after the other, so that weights read twice come from the cache. */
struct cursor {
    int expert, tiles, tile, strips, groups;

    /* Units before expert e are before[e] * groups. */
    MEMBER void seek(const cmoe_gpu_stream &s, const int *before, int unit)
    {
        int low = 0, high = s.g.call.local - 1;
        groups = strip_groups(s);
        while (low < high) {
            const int middle = (low + high) / 2;
            if (before[middle + 1] * groups <= unit)
                low = middle + 1;
            else
                high = middle;
        }
        expert = low;
        tiles = before[low + 1] - before[low];
        const int at = unit - before[low] * groups;
        tile = at % tiles;
        strips = at / tiles;
    }

    /* The next unit; there is one. Returns whether it is of another expert. */
    MEMBER bool advance(const int *before)
    {
        if (++tile < tiles)
            return false;
        tile = 0;
        if (++strips < groups)
            return false;
        strips = 0;
        do
            expert++;
        while (before[expert + 1] == before[expert]);
        tiles = before[expert + 1] - before[expert];
        return true;
    }
};

/* Tiles before each expert into before[0..local]; returns their number. All threads of a block. */
DEV int count_tiles(const cmoe_gpu_stream &s, int *before)
{
    const int local = s.g.call.local, rows = 8 * s.tiles;
    for (int e = threadIdx.x; e < local; e += blockDim.x)
        before[e + 1] = (__ldcg(&s.g.call.offsets[e + 1]) - __ldcg(&s.g.call.offsets[e]) + rows - 1) / rows;
    __syncthreads();
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x;
        int carry = 0;
        for (int base = 0; base < local; base += 32) {
            const int e = base + lane;
            int sum = e < local ? before[e + 1] : 0;
            for (int offset = 1; offset < 32; offset <<= 1) {
                const int below = __shfl_up_sync(0xffffffff, sum, offset);
                sum += lane >= offset ? below : 0;
            }
            if (e < local)
                before[e + 1] = carry + sum;
            carry += __shfl_sync(0xffffffff, sum, 31);
        }
        if (lane == 0)
            before[0] = 0;
    }
    __syncthreads();
    return before[local];
}

/* What one warp loads: walks the stages of its share of the block's units and keeps the ring full. */
template <int TYPE, int BITS> struct weight_stream {
    using shape = stage_of<BITS>;
    static constexpr int PER_LANE = (16 * shape::GROUPS + 31) / 32 + (BITS == 16);

    cursor at;
    int units, step, first_step, last_step, full_steps, slot, scale_groups, shift;
    const uint8_t *row[2], *piece[2]; /* column 0, and where the lane's next piece lies */
    scale_row scales;
    uint32_t pending[PER_LANE], pending_zeros; /* a byte each */
    float pending_factor;

    /* Rows and scales of the lane in the unit's strip; rows past the end are some other row. */
    MEMBER void enter(const cmoe_gpu_stream &s)
    {
        const int lane = threadIdx.x % 32, strip = at.strips * (WARPS / s.k_parts) + threadIdx.x / 32 / s.k_parts;
        const cmoe_gpu_half *half = s.g.experts[at.expert].half + s.g.half;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int n = s.gated ? strip * 8 + lane / 4 : strip * 16 + lane / 4 + 8 * r;
            const cmoe_gpu_half &h = half[s.gated ? r : 0];
            row[r] = h.data + (int64_t)(n < s.outputs ? n : 0) * h.row_stride;
        }
        if (BITS < 16 && s.w_varies) {
            const int r = lane % 16, n = s.gated ? strip * 8 + r % 8 : strip * 16 + r;
            scales = scales_of(s.g, half[s.gated ? r / 8 : 0], n < s.outputs ? n : 0, shift);
        }
    }

    MEMBER void rewind()
    {
        step = first_step;
#pragma unroll
        for (int r = 0; r < 2; r++)
            piece[r] = row[r] + first_step * STAGE_BYTES + threadIdx.x % 4 * 16;
    }

    MEMBER void start(const cmoe_gpu_stream &s, const int *before, int first, int n)
    {
        const int part = threadIdx.x / 32 % s.k_parts, steps = (s.g.k + shape::CODES - 1) / shape::CODES;
        first_step = steps * part / s.k_parts;
        last_step = steps * (part + 1) / s.k_parts;
        full_steps = s.w_vectors ? s.g.k / shape::CODES : 0;
        units = first_step < last_step ? n : 0;
        slot = 0;
        shift = span_shift(s.g.w);
        scale_groups = s.g.group == 0 || s.g.group >= shape::CODES ? 1 : shape::CODES / s.g.group;
        if (units > 0) {
            at.seek(s, before, first);
            enter(s);
            rewind();
        }
    }

    /* Scales that were loaded with the stage before, decoded into its slot. */
    MEMBER void settle(const cmoe_gpu_stream &s, const warp_ring<BITS> &ring, int to)
    {
        const int lane = threadIdx.x % 32, n = 16 * scale_groups, type = scale_type(s.g.w);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            const int j = lane + 32 * i;
            if (32 * i >= n)
                break;
            if (j < n) {
                ring.scales(to)[j] = scale_value(type, pending[i]) * pending_factor;
                ring.zeros(to)[j] = (uint8_t)(pending_zeros >> (8 * i));
            }
        }
    }

    MEMBER void load_scales(const cmoe_gpu_stream &s)
    {
        const int lane = threadIdx.x % 32, n = 16 * scale_groups, type = scale_type(s.g.w);
        const int none = BITS == 4 ? 8 : 128;
        pending_factor = scales.factor;
        pending_zeros = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            if (32 * i >= n)
                break;
            const int j = lane + 32 * i, k = step * shape::CODES + j / 16 * (shape::CODES / scale_groups);
            const bool inside = j < n && k < s.g.k;
            pending[i] = inside ? raw_scale(type, scales.at, k >> shift) : 0;
            pending_zeros |= (uint32_t)(inside && scales.zero ? scales.zero[k >> shift] : none) << (8 * i);
        }
    }

    /* The last, partial stage of a row, or any stage of rows without alignment. */
    MEMBER void copy_partial(const cmoe_gpu_stream &s, uint8_t *to)
    {
        const int k = step * shape::CODES + threadIdx.x % 4 * (128 / BITS);
        const int64_t col_stride = s.g.experts[at.expert].half[s.g.half].col_stride;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint8_t *out = to + 8 * r * shape::STRIDE;
            if (s.w_vectors && k + 128 / BITS <= s.g.k)
                copy_async(out, piece[r]);
            else
                copy_slowly<BITS>(out, row[r], col_stride, k, s.g.k);
        }
    }

    /* The next stage, if there is one, into the next slot. */
    MEMBER void advance(const cmoe_gpu_stream &s, const int *before, const warp_ring<BITS> &ring)
    {
        const int lane = threadIdx.x % 32;
        if (BITS < 16 && s.w_varies)
            settle(s, ring, slot == 0 ? STAGES - 1 : slot - 1);
        if (units > 0) {
            uint8_t *to = ring.codes(slot) + lane / 4 * shape::STRIDE + lane % 4 * 16;
            if (step < full_steps) {
                copy_async(to, piece[0]);
                copy_async(to + 8 * shape::STRIDE, piece[1]);
            } else {
                copy_partial(s, to);
            }
            piece[0] += STAGE_BYTES;
            piece[1] += STAGE_BYTES;
            if (BITS < 16 && s.w_varies)
                load_scales(s);
            if (++step == last_step && --units > 0) {
                at.advance(before);
                if (at.tile == 0)
                    enter(s);
                rewind();
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        slot = slot == STAGES - 1 ? 0 : slot + 1;
    }
};

#endif
