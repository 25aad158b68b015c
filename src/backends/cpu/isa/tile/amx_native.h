/* SPDX-License-Identifier: MIT
 * AMX tiles as the CPU has them. Tile numbers must be literals, hence macros. */
#ifndef CMOE_BACKENDS_CPU_ISA_TILE_AMX_NATIVE_H
#define CMOE_BACKENDS_CPU_ISA_TILE_AMX_NATIVE_H

#include "core/attr.h"
#include <immintrin.h>

/* The registers are the thread's own; this stands for them. */
struct tiles {
    char unused;
};

/* The compiler does not know what a tile load reads. */
CMOE_INLINE const void *settled(const void *p)
{
    __asm__ volatile("" : "+r"(p) : : "memory");
    return p;
}

#define TILE_ZERO(t, n)             _tile_zero(n)
#define TILE_LOAD(t, n, p, stride)  _tile_loadd(n, settled(p), stride)
#define TILE_STORE(t, n, p, stride) _tile_stored(n, p, stride)
#define TILE_DOT_BF16(t, acc, a, b) _tile_dpbf16ps(acc, a, b)
#define TILE_DOT_I8(t, acc, a, b)   _tile_dpbssd(acc, a, b)

CMOE_INLINE void tiles_configure(const void *config)
{
    _tile_loadconfig(settled(config));
}

CMOE_INLINE void tiles_release(void)
{
    _tile_release();
}

#endif
