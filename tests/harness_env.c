/* SPDX-License-Identifier: MIT
 * Floating-point environments: rounding modes everywhere, flushing where x86 has a register for
 * it. */
#include "harness_env.h"

#include <fenv.h>
#include <stddef.h>

#if defined(__SSE2__)
#    include <immintrin.h>
enum { FLUSH_BITS = 0x8040 }; /* FTZ and DAZ */
#endif

static const struct float_env envs[] = {
    {"to nearest", FE_TONEAREST, false},
    {"upward", FE_UPWARD, false},
    {"downward", FE_DOWNWARD, false},
    {"toward zero", FE_TOWARDZERO, false},
#if defined(__SSE2__)
    {"to nearest, flushing", FE_TONEAREST, true},
    {"downward, flushing", FE_DOWNWARD, true},
#endif
};

bool float_env_at(int i, struct float_env *env)
{
    if (i < 0 || (size_t)i >= sizeof envs / sizeof envs[0]) return false;
    *env = envs[i];
    return true;
}

void float_env_enter(const struct float_env *env)
{
    fesetround(env->rounding);
#if defined(__SSE2__)
    if (env->flush) _mm_setcsr(_mm_getcsr() | FLUSH_BITS);
#endif
}

void float_env_leave(void)
{
#if defined(__SSE2__)
    _mm_setcsr(_mm_getcsr() & ~(unsigned)FLUSH_BITS);
#endif
    fesetround(FE_TONEAREST);
}
