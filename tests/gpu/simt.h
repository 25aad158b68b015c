/* SPDX-License-Identifier: MIT
 * Blocks of a kernel on the host, without a GPU: every thread is a fiber, which runs until it meets the others of its
 * warp or block. What no GPU runs is told and ends the program: lanes of a warp that wait for different things, that
 * ended while others wait, a block in which nobody can go on. Shared memory holds garbage when a block starts. */
#ifndef CMOE_TESTS_GPU_SIMT_H
#define CMOE_TESTS_GPU_SIMT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SIMT_WARP = 32, SIMT_THREADS = 1024, SIMT_SHARED = 227 * 1024 };

/* What a lane waits for; all of a warp's, or of a block's, wait for the same. */
enum simt_meeting {
    SIMT_GOES_ON,
    SIMT_SHUFFLE,
    SIMT_BALLOT,
    SIMT_REDUCE,
    SIMT_WARP_BARRIER,
    SIMT_BLOCK_BARRIER,
    SIMT_ENDED,
};

struct simt_index {
    unsigned x, y, z;
};

struct simt_launch {
    struct simt_index grid, block;
    size_t shared_bytes;
    bool last_first; /* of the threads that can go on, the last one does */
};

struct simt_kernel {
    const char *name;
    void (*run)(void **params);
    void *shared; /* SIMT_SHARED bytes that all blocks use, one after the other */
    struct simt_kernel *next;
};

void simt_add(struct simt_kernel *kernel);

/* All blocks, one after the other. False: nobody has added a kernel of that name. */
bool simt_run(const char *kernel, void **params, const struct simt_launch *launch);

/* Of the thread that runs. */
struct simt_index simt_thread(void);
struct simt_index simt_block(void);
struct simt_index simt_block_size(void);
struct simt_index simt_grid_size(void);

/* Wait for the warp, and what each of its lanes brought. */
const uint32_t *simt_meet(enum simt_meeting what, uint32_t value);
void simt_meet_block(void);

#ifdef __cplusplus
}
#endif

#endif
