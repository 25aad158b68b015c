/* SPDX-License-Identifier: MIT
 * All of the library's memory comes from its context's allocator. */
#ifndef CMOE_CORE_MEMORY_H
#define CMOE_CORE_MEMORY_H

#include <cmoe/context.h>
#include <stddef.h>

/* NULL (and no message) when the allocator has none; size 0 is 1. */
void *cmoe__alloc(cmoe_context *ctx, size_t size, size_t align);
/* The same, zeroed. */
void *cmoe__calloc(cmoe_context *ctx, size_t size, size_t align);
void cmoe__free(cmoe_context *ctx, void *ptr);
/* A copy of a string; NULL for NULL or when there is no memory. */
char *cmoe__strdup(cmoe_context *ctx, const char *text);

/* The allocator of a context whose options have none. */
void *cmoe__default_alloc(void *user, size_t size, size_t align);
void cmoe__default_free(void *user, void *ptr);

#endif
