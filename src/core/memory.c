/* SPDX-License-Identifier: MIT
 * All memory of the library: the caller's allocator, or the C library's. */
#include "core/memory.h"

#include "core/context.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20, HUGE_PAGES = 2 }; /* bytes; of the smallest block that asks for them */

/* Large blocks begin at huge pages and ask for them: a miss of the TLB costs as much as the weights that
 * are read until the next one. A system without them says no, which changes nothing. */
void *cmoe__default_alloc(void *user, size_t size, size_t align)
{
    (void)user;
    void *ptr = NULL;
    const bool large = size >= HUGE_PAGES * HUGE_PAGE;
    if (large && align < HUGE_PAGE) align = HUGE_PAGE;
    if (posix_memalign(&ptr, align, size) != 0) return NULL;
    if (large) (void)madvise(ptr, size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return ptr;
}

void cmoe__default_free(void *user, void *ptr)
{
    (void)user;
    free(ptr);
}

void *cmoe__alloc(cmoe_context *ctx, size_t size, size_t align)
{
    if (align < sizeof(void *)) align = sizeof(void *);
    return ctx->options.alloc(ctx->options.user, size ? size : 1, align);
}

void *cmoe__calloc(cmoe_context *ctx, size_t size, size_t align)
{
    void *const ptr = cmoe__alloc(ctx, size, align);
    if (ptr) memset(ptr, 0, size);
    return ptr;
}

void cmoe__free(cmoe_context *ctx, void *ptr)
{
    if (ptr) ctx->options.free(ctx->options.user, ptr);
}

char *cmoe__strdup(cmoe_context *ctx, const char *text)
{
    if (!text) return NULL;
    const size_t size = strlen(text) + 1;
    char *const copy = cmoe__alloc(ctx, size, 1);
    if (copy) memcpy(copy, text, size);
    return copy;
}
