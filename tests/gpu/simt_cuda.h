/* SPDX-License-Identifier: MIT
 * What kernels in CUDA C call, on the host (simt.h). For threads of a whole warp alone: masks are not looked at. */
#ifndef CMOE_TESTS_GPU_SIMT_CUDA_H
#define CMOE_TESTS_GPU_SIMT_CUDA_H

#include "simt.h"

#include <math.h>
#include <string.h>
#include <vector_functions.h>
#include <vector_types.h>

#define _CUDA_PIPELINE_H_ /* cuda_pipeline.h is for device code alone */

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __noinline__
#define __noinline__ __attribute__((noinline))
#undef __shared__
#define __shared__ thread_local /* threads of a block are fibers of one */
#define threadIdx  simt_thread()
#define blockIdx   simt_block()
#define blockDim   simt_block_size()
#define gridDim    simt_grid_size()

template <class TO, class FROM> static inline TO bits_as(FROM v)
{
    static_assert(sizeof(TO) == 4 && sizeof(FROM) == 4, "words");
    TO out;
    memcpy(&out, &v, 4);
    return out;
}

static inline uint32_t __float_as_uint(float v)
{
    return bits_as<uint32_t>(v);
}
static inline int __float_as_int(float v)
{
    return bits_as<int>(v);
}
static inline float __uint_as_float(uint32_t v)
{
    return bits_as<float>(v);
}
static inline float __int_as_float(int v)
{
    return bits_as<float>(v);
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}

static inline float __frcp_rn(float v)
{
    return 1.0f / v;
}

static inline int __ffs(int v)
{
    return __builtin_ffs(v);
}

/* Of kernels that do not run here. */
static inline size_t __cvta_generic_to_shared(const void *)
{
    return 0;
}

static inline int __popc(uint32_t v)
{
    return __builtin_popcount(v);
}

static inline int __clz(int v)
{
    return v ? __builtin_clz((uint32_t)v) : 32;
}
template <class T> static inline T min(T a, T b)
{
    return a < b ? a : b;
}

template <class T> static inline T max(T a, T b)
{
    return a > b ? a : b;
}

static inline void __syncthreads()
{
    simt_meet_block();
}
/* Not of a part of the warp. */
static inline void __syncwarp(uint32_t mask = 0xffffffff)
{
    if (mask == 0xffffffff) simt_meet(SIMT_WARP_BARRIER, 0);
}

static inline int lane_of_warp()
{
    return (int)(simt_thread().x % SIMT_WARP);
}

template <class T> static inline T __shfl_sync(uint32_t, T v, int from)
{
    return bits_as<T>(simt_meet(SIMT_SHUFFLE, bits_as<uint32_t>(v))[from % SIMT_WARP]);
}

template <class T> static inline T __shfl_xor_sync(uint32_t, T v, int with)
{
    return bits_as<T>(simt_meet(SIMT_SHUFFLE, bits_as<uint32_t>(v))[lane_of_warp() ^ with]);
}

template <class T> static inline T __shfl_down_sync(uint32_t, T v, int away)
{
    const int from = lane_of_warp() + away;
    return bits_as<T>(
        simt_meet(SIMT_SHUFFLE, bits_as<uint32_t>(v))[from < SIMT_WARP ? from : lane_of_warp()]);
}

static inline uint32_t __ballot_sync(uint32_t, bool v)
{
    const uint32_t *all = simt_meet(SIMT_BALLOT, v);
    uint32_t set = 0;
    for (int i = 0; i < SIMT_WARP; i++)
        set |= all[i] << i;
    return set;
}

static inline bool __any_sync(uint32_t mask, bool v)
{
    return __ballot_sync(mask, v) != 0;
}

template <class T> static inline T __reduce_max_sync(uint32_t, T v)
{
    const uint32_t *all = simt_meet(SIMT_REDUCE, bits_as<uint32_t>(v));
    for (int i = 0; i < SIMT_WARP; i++)
        v = max(v, bits_as<T>(all[i]));
    return v;
}

template <class T> static inline T __reduce_min_sync(uint32_t, T v)
{
    const uint32_t *all = simt_meet(SIMT_REDUCE, bits_as<uint32_t>(v));
    for (int i = 0; i < SIMT_WARP; i++)
        v = min(v, bits_as<T>(all[i]));
    return v;
}

template <class T> static inline T __reduce_add_sync(uint32_t, T v)
{
    const uint32_t *all = simt_meet(SIMT_REDUCE, bits_as<uint32_t>(v));
    T sum = 0;
    for (int i = 0; i < SIMT_WARP; i++)
        sum += bits_as<T>(all[i]);
    return sum;
}

template <class T> static inline T __shfl_up_sync(uint32_t, T v, int away, int width = SIMT_WARP)
{
    const int from = lane_of_warp() % width >= away ? lane_of_warp() - away : lane_of_warp();
    return bits_as<T>(simt_meet(SIMT_SHUFFLE, bits_as<uint32_t>(v))[from]);
}

static inline uint32_t __match_any_sync(uint32_t, int v)
{
    const uint32_t *all = simt_meet(SIMT_BALLOT, (uint32_t)v);
    uint32_t set = 0;
    for (int i = 0; i < SIMT_WARP; i++)
        set |= (uint32_t)(all[i] == (uint32_t)v) << i;
    return set;
}

static inline uint32_t atomicOr(uint32_t *at, uint32_t bits)
{
    const uint32_t before = *at;
    *at |= bits;
    return before;
}

static inline uint32_t atomicMax(uint32_t *at, uint32_t v)
{
    const uint32_t before = *at;
    *at = max(before, v);
    return before;
}

/* Copies that are complete at once. */
static inline void __pipeline_memcpy_async(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

static inline void __pipeline_commit() {}

static inline void __pipeline_wait_prior(int) {}

#endif
