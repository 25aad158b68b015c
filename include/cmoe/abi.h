/* SPDX-License-Identifier: MIT
 * For bindings that mirror the public structs: what this library was compiled with. */
#ifndef CMOE_ABI_H
#define CMOE_ABI_H

#include <cmoe/export.h>
#include <stddef.h>

CMOE_BEGIN_DECLS

/** Bytes of a public struct ("cmoe_problem"), or the offset of one of its fields
 *  ("cmoe_problem.flags": the last of each struct, and those after padding). SIZE_MAX when the name
 *  is not known. */
CMOE_API size_t cmoe_abi_size(const char *name);

CMOE_END_DECLS

#endif
