/* SPDX-License-Identifier: MIT
 * Waiting for another thread without giving up the CPU at once. */
#ifndef CMOE_CORE_SPIN_H
#define CMOE_CORE_SPIN_H

/* Tell the CPU that this is a waiting loop: saves power and the sibling thread's time. */
static inline void cmoe__spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
