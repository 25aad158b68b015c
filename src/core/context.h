/* SPDX-License-Identifier: MIT
 * The context as the rest of the library sees it. */
#ifndef CMOE_CORE_CONTEXT_H
#define CMOE_CORE_CONTEXT_H

#include "core/claims.h"
#include "core/log.h"
#include "core/memory.h"
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

#endif
