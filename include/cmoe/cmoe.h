/* SPDX-License-Identifier: MIT
 * cmoe: Mixture-of-Experts operators. Everything except file formats (cmoe/io.h).
 *
 * What holds for every function unless its comment says otherwise:
 *   - A cmoe_status other than CMOE_OK leaves *out NULL, or a struct with nothing to free; the sentence is
 *     in cmoe_last_error(). A NULL where an object is needed is CMOE_ERR_INVALID and names the argument;
 *     a function without a status then answers 0, NULL or "" and writes nothing.
 *   - What a _create, _open, _read, _alloc or _upload gave is the caller's, who ends it with the _destroy,
 *     _close or _free of the same name, once; those take NULL. Objects end in the reverse order of making:
 *     plans, weights, devices, contexts. Names and texts that are returned belong to the library or to the
 *     object asked.
 *   - Objects are immutable once made: any number of threads may use one at the same time, and functions
 *     without an object have no state. Ending an object while another thread uses it is an error.
 *   - struct_size is sizeof the struct, or 0 for "this version"; cmoe_problem_init sets a problem's.
 *   - Sizes and strides are in bytes where the name or comment says so, else in elements; matrices are
 *     row-major, [rows, columns]. */
#ifndef CMOE_CMOE_H
#define CMOE_CMOE_H

#include <cmoe/abi.h>
#include <cmoe/context.h>
#include <cmoe/convert.h>
#include <cmoe/observe.h>
#include <cmoe/plan.h>
#include <cmoe/probe.h>
#include <cmoe/problem.h>
#include <cmoe/record.h>
#include <cmoe/reference.h>
#include <cmoe/status.h>
#include <cmoe/stream.h>
#include <cmoe/types.h>
#include <cmoe/version.h>
#include <cmoe/weights.h>

#endif
