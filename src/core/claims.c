/* SPDX-License-Identifier: MIT
 * Claims: take a free slot first, then look for the same address in the others. In this order two
 * calls cannot both miss each other. */
#include "core/claims.h"

bool cmoe__claim(struct cmoe_claims *claims, const void *at, int *slot)
{
    const uintptr_t address = (uintptr_t)at;
    *slot = -1;
    if (!address) return true;
    for (int i = 0; *slot < 0 && i < CMOE_CLAIMS; i++) {
        uintptr_t unused = 0;
        if (atomic_compare_exchange_strong(&claims->slot[i], &unused, address)) *slot = i;
    }
    for (int i = 0; i < CMOE_CLAIMS; i++) {
        if (i == *slot || atomic_load(&claims->slot[i]) != address) continue;
        cmoe__release(claims, *slot);
        *slot = -1;
        return false;
    }
    return true;
}

void cmoe__release(struct cmoe_claims *claims, int slot)
{
    if (slot >= 0) atomic_store(&claims->slot[slot], 0);
}
