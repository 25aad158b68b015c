/* SPDX-License-Identifier: MIT
 * The context as the rest of the library sees it: memory, threads, log, ISA cap. */
#ifndef CMOE_CORE_CONTEXT_H
#define CMOE_CORE_CONTEXT_H

#include "core/attr.h"
#include "core/claims.h"
#include "core/threads.h"
#include <cmoe/context.h>
#include <pthread.h>

struct cmoe_context {
    cmoe_context_options options; /* callbacks resolved, never NULL except log and recorder */
    char *cpu;                    /* ISA cap or NULL */
    char *tuned;                  /* text of the tuned file or NULL */
    char *device;                 /* CMOE_DEVICE or NULL */
    int log_level;                /* messages above it are dropped */
    struct cmoe_threads *threads;
    pthread_mutex_t lock;      /* device opening and plan creation */
    struct cmoe_claims claims; /* workspaces of the calls in progress */
};

/* All of the library's memory. NULL (and no message) when the allocator has none; size 0 is 1. */
void *cmoe__alloc(cmoe_context *ctx, size_t size, size_t align);
/* The same, zeroed. */
void *cmoe__calloc(cmoe_context *ctx, size_t size, size_t align);
void cmoe__free(cmoe_context *ctx, void *ptr);
/* A copy of a string; NULL for NULL or when there is no memory. */
char *cmoe__strdup(cmoe_context *ctx, const char *text);

void cmoe__log(cmoe_context *ctx, int level, const char *format, ...) CMOE_PRINTF(3, 4);

#endif
