/* SPDX-License-Identifier: MIT
 * What a test asks of the driver of driver.c beside what cuda.h has. */
#ifndef CMOE_TESTS_GPU_DRIVER_H
#define CMOE_TESTS_GPU_DRIVER_H

#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>

/* Count from here on the calls that can fail on a working GPU; the given one is refused, 0: none. */
void driver_refuse(long call);
long driver_calls(void);
/* Of device memory that nobody has freed. */
int driver_allocations(void);
/* Whether the bytes lie in one allocation. */
bool driver_holds(const void *at, size_t bytes);
/* Whether the device reads and writes the host's memory as well. */
extern bool driver_shares_host;
/* Called with every launch: the kernel's name and its parameters. */
void driver_watch(void (*watch)(const CUlaunchConfig *launch, const char *kernel, void **params));

#endif
