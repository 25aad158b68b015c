/* SPDX-License-Identifier: MIT
 * The compiler extensions the library uses, in one place. */
#ifndef CMOE_CORE_ATTR_H
#define CMOE_CORE_ATTR_H

#define CMOE_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define CMOE_ALIGNED(n)        __attribute__((aligned(n)))
#define CMOE_INLINE            static inline __attribute__((always_inline))
#define CMOE_THREAD_LOCAL      _Thread_local

#endif
