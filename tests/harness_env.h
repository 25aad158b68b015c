/* SPDX-License-Identifier: MIT
 * Floating-point environments that callers may be in. A test computes what it expects in the
 * default one, enters each other one around the call alone, and compares afterwards. */
#ifndef CMOE_TESTS_HARNESS_ENV_H
#define CMOE_TESTS_HARNESS_ENV_H

#include <stdbool.h>

struct float_env {
    const char *name;
    int rounding; /* for fesetround */
    bool flush;   /* denormals in and out count as zero */
};

/* The i-th environment (0: the default one), false past the last. */
bool float_env_at(int i, struct float_env *env);
void float_env_enter(const struct float_env *env);
/* Back to the default. */
void float_env_leave(void);

#endif
