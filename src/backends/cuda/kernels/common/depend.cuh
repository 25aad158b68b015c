/* SPDX-License-Identifier: MIT
 * Programmatic dependent launch: a kernel may start while the one before it still runs. Every kernel
 * waits before it reads what an earlier kernel wrote, and lets the next one start only then, so that
 * a started kernel knows everything but its direct predecessor to be complete. */
#ifndef CMOE_KERNELS_DEPEND_CUH
#define CMOE_KERNELS_DEPEND_CUH

#include "backends/cuda/kernels/common/numeric.cuh"

/* Until the kernel before this one is complete and its stores are visible. */
DEV void depend_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next kernel may be started; its own wait still waits for all of this one. */
DEV void depend_release()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEV void depend()
{
    depend_wait();
    depend_release();
}

#endif
