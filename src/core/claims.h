/* SPDX-License-Identifier: MIT
 * Which addresses calls in progress have to themselves, so that a second call on the same workspace
 * is refused instead of racing. No lock: a claim is one slot of a table of atomics. */
#ifndef CMOE_CORE_CLAIMS_H
#define CMOE_CORE_CLAIMS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Calls beyond this many at once are not watched. */
enum { CMOE_CLAIMS = 32 };

struct cmoe_claims {
    _Atomic uintptr_t slot[CMOE_CLAIMS]; /* 0: free */
};

/* False when another call holds `at`. *slot is what to release, -1 when nothing is (`at` is NULL or
 * the table is full). Of two calls that claim at the same instant both may be refused. */
bool cmoe__claim(struct cmoe_claims *claims, const void *at, int *slot);
void cmoe__release(struct cmoe_claims *claims, int slot);

#endif
