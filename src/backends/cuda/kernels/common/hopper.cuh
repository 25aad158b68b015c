/* SPDX-License-Identifier: MIT
 * PTX of Hopper that has no C++ form, one function an instruction: barriers in shared memory, bulk
 * tensor copies, asynchronous copies, the proxy fence, register budgets. */
#ifndef CMOE_KERNELS_HOPPER_CUH
#define CMOE_KERNELS_HOPPER_CUH

#include "backends/cuda/kernels/common/numeric.cuh"

DEV uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* mbarrier.init */
DEV void barrier_init(uint32_t barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/* mbarrier.arrive */
DEV void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* mbarrier.arrive.expect_tx: one arrival, and bytes of bulk copies still to come */
DEV void barrier_expect(uint32_t barrier, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

DEV bool barrier_passed(uint32_t barrier, int parity)
{
    uint32_t done;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done != 0;
}

/* Until the phase of this parity has ended. With CMOE_SPIN_LIMIT (debug builds) a lost arrival traps. */
DEV void barrier_wait(uint32_t barrier, int parity)
{
#ifdef CMOE_SPIN_LIMIT
    for (int i = 0; !barrier_passed(barrier, parity); i++)
        if (i > CMOE_SPIN_LIMIT)
            __trap();
#else
    while (!barrier_passed(barrier, parity)) {
    }
#endif
}

/* One arrival of the warp here and, if `both`, one at the barrier that has this address in block `peer` of
 * the cluster. Predicates: a branch would cost more than the arrivals. */
DEV void barrier_arrive_warp(uint32_t barrier, bool both, uint32_t peer)
{
    asm volatile("{\n.reg .pred p, q;\n.reg .b32 there;\n"
                 "elect.sync _|p, 0xffffffff;\n"
                 "setp.ne.and.s32 q, %1, 0, p;\n"
                 "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n"
                 "mapa.shared::cluster.u32 there, %0, %2;\n"
                 "@q mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
                 "r"((int)both), "r"(peer)
                 : "memory");
}

/* st.async of a word to the place in block `rank` that has this address here, and its barrier */
DEV void send(uint32_t to, uint32_t v, uint32_t barrier, int rank)
{
    asm volatile("{\n.reg .b32 there, barrier;\n"
                 "mapa.shared::cluster.u32 there, %0, %3;\n"
                 "mapa.shared::cluster.u32 barrier, %1, %3;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %2, [barrier];\n}" ::"r"(to),
                 "r"(barrier), "r"(v), "r"(rank)
                 : "memory");
}

/* The same of 8 bytes. */
DEV void send(uint32_t to, uint2 v, uint32_t barrier, int rank)
{
    asm volatile("{\n.reg .b32 there, barrier;\n"
                 "mapa.shared::cluster.u32 there, %0, %4;\n"
                 "mapa.shared::cluster.u32 barrier, %1, %4;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [there], {%2, %3}, "
                 "[barrier];\n}" ::"r"(to),
                 "r"(barrier), "r"(v.x), "r"(v.y), "r"(rank)
                 : "memory");
}

/* The same of 16 bytes. */
DEV void send(uint32_t to, uint4 v, uint32_t barrier, int rank)
{
    asm volatile("{\n.reg .b32 there, barrier;\n"
                 "mapa.shared::cluster.u32 there, %0, %6;\n"
                 "mapa.shared::cluster.u32 barrier, %1, %6;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [there], {%2, %3, %4, %5}, "
                 "[barrier];\n}" ::"r"(to),
                 "r"(barrier), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(rank)
                 : "memory");
}

/* The same value of all lanes, in a register that they share. */
DEV uint32_t uniform(uint32_t v)
{
    return __reduce_or_sync(0xffffffff, v);
}

/* %cluster_ctarank: which of the cluster's blocks this is */
DEV uint32_t cluster_rank(void)
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* barrier.cluster: all threads of all blocks of the cluster */
DEV void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* bar.sync: the first `threads` threads that come to a barrier other than __syncthreads' 0 */
DEV void group_sync(int barrier, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/* fence.mbarrier_init: initialised barriers before the copy engine's first use */
DEV void fence_barrier_init(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* fence.proxy.async: ordinary writes seen by this thread before reads by wgmma and bulk copies */
DEV void fence_proxy(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* cp.async.bulk.tensor, three coordinates; policy: an L2 cache hint */
DEV void copy_box(uint32_t to, const void *map, int c0, int c1, int c2, uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
                 "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(barrier), "l"(policy)
                 : "memory");
}

/* The same into this place of both blocks of a cluster, completing on the barrier of each. */
DEV void copy_box_both(uint32_t to, const void *map, int c0, int c1, int c2, uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %7, %6;" ::"r"(to),
                 "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(barrier), "l"(policy), "h"((uint16_t)3)
                 : "memory");
}

/* cp.async.bulk.prefetch.tensor: the same to L2 only */
DEV void prefetch_box(const void *map, int c0, int c1, int c2)
{
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map), "r"(c0), "r"(c1),
                 "r"(c2)
                 : "memory");
}

/* prefetch.tensormap */
DEV void prefetch_map(const void *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* createpolicy.fractional: data read once */
DEV uint64_t evict_first(void)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

DEV uint64_t evict_normal(void)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_unchanged.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* cp.async of 16 bytes if `wanted`, and of zeros if not `inside` */
DEV void copy_16(uint32_t to, const void *from, bool wanted, bool inside)
{
    asm volatile("{\n.reg .pred p, q;\nsetp.ne.b32 p, %2, 0;\nsetp.eq.b32 q, %3, 0;\n"
                 "@p cp.async.cg.shared.global [%0], [%1], 16, q;\n}" ::"r"(to),
                 "l"(from), "r"((int)wanted), "r"((int)inside)
                 : "memory");
}

/* cp.async of 4 bytes */
DEV void copy_4(uint32_t to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

/* cp.async.mbarrier.arrive.noinc: an arrival when this thread's copies so far have landed */
DEV void barrier_arrive_copied(uint32_t barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

/* cp.async.wait_all */
DEV void copy_wait(void)
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* ld.acquire.gpu: what was released with this value or before is visible behind it */
DEV int load_acquire(const int32_t *from)
{
    int v;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}

/* ld.relaxed.gpu: what another kernel may be writing */
DEV float load_relaxed(const float *from)
{
    float v;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(from) : "memory");
    return v;
}

/* fence.acq_rel.gpu */
DEV void fence_gpu(void)
{
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

/* red.relaxed.gpu.add */
DEV void add_relaxed(int32_t *to, int v)
{
    asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

DEV void store_shared_u16(uint32_t to, uint16_t v)
{
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(v) : "memory");
}

DEV void store_shared_u8(uint32_t to, uint8_t v)
{
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(to), "r"((uint32_t)v) : "memory");
}

/* setmaxnreg; needs __launch_bounds__(threads, 1) */
template <int REGISTERS> DEV void fewer_registers(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS> DEV void more_registers(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/* stmatrix: four 8x8 matrices of 16-bit elements, each transposed; lane i gives the address of row i % 8
 * of matrix i / 8 */
DEV void store_transposed(uint32_t to, const uint32_t (&m)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(m[0]),
                 "r"(m[1]), "r"(m[2]), "r"(m[3])
                 : "memory");
}

/* The same, not transposed. */
DEV void store_matrices(uint32_t to, const uint32_t (&m)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(m[0]), "r"(m[1]),
                 "r"(m[2]), "r"(m[3])
                 : "memory");
}

/* ldmatrix: four 8x8 matrices of 16-bit elements; addresses as above */
DEV void load_matrices(uint32_t from, uint32_t (&m)[4])
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
}

DEV float load_shared_f32(uint32_t from)
{
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(from) : "memory");
    return v;
}

DEV float2 load_shared_f32x2(uint32_t from)
{
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from) : "memory");
    return v;
}

DEV uint4 load_shared_16(uint32_t from)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(from)
                 : "memory");
    return v;
}

#endif
