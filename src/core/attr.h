/* SPDX-License-Identifier: MIT
 * The compiler extensions the library uses, in one place. */
#ifndef CMOE_CORE_ATTR_H
#define CMOE_CORE_ATTR_H

#define CMOE_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define CMOE_ALIGNED(n)        __attribute__((aligned(n)))
#define CMOE_INLINE            static inline __attribute__((always_inline))
#define CMOE_THREAD_LOCAL      _Thread_local

/* Before a loop of at most 16 turns, whose number is a constant after inlining: one copy for each, so that
 * arrays it indexes are registers. clang takes a count that is not the loop's own for a partial one.
 * CMOE_ROLLED: left to the compiler, where checks of every copy would take it minutes. */
#if defined CMOE_ROLLED
#    define CMOE_UNROLL
#elif defined __clang__
#    define CMOE_UNROLL _Pragma("clang loop unroll(full)")
#else
#    define CMOE_UNROLL _Pragma("GCC unroll 16")
#endif

#endif
