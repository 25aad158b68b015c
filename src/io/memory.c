/* SPDX-License-Identifier: MIT
 * The C library's allocator, with a way to make one call fail. */
#include "memory.h"

#include <stdlib.h>

static _Thread_local int fail_in;

void *cmoe__io_alloc(size_t size)
{
    if (fail_in > 0 && --fail_in == 0) return NULL;
    return calloc(size ? size : 1, 1);
}

void cmoe__io_free(void *ptr)
{
    free(ptr);
}

void cmoe__io_alloc_fail(int n)
{
    fail_in = n;
}
