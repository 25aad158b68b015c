/* SPDX-License-Identifier: MIT
 * All memory of libcmoe-io that is not jansson's: functions here have no context to allocate by. */
#ifndef CMOE_IO_MEMORY_H
#define CMOE_IO_MEMORY_H

#include <stddef.h>

/* Zeroed memory, aligned for any element type; NULL when there is none. Size 0 counts as 1. */
void *cmoe__io_alloc(size_t size);
void cmoe__io_free(void *ptr);

/* For tests: this thread's n-th allocation from now on fails, once; n < 1: none does. */
void cmoe__io_alloc_fail(int n);

#endif
