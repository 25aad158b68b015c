/* SPDX-License-Identifier: MIT
 * Sizes and offsets of the public structs, by name: a binding compares them with its own mirrors
 * before the first call, so that a stale copy is an error and not a wrong result. */
#include <cmoe/abi.h>

#include <cmoe/observe.h>
#include <cmoe/record.h>
#include <cmoe/reference.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* clang-format off */
#define SIZE(type)         {#type, sizeof(type)}
#define OFFSET(type, name) {#type "." #name, offsetof(type, name)}
/* clang-format on */

static const struct {
    const char *name;
    size_t size;
} table[] = {
    SIZE(cmoe_context_options),
    OFFSET(cmoe_context_options, user),
    OFFSET(cmoe_context_options, recorder),
    OFFSET(cmoe_context_options, nodes),
    SIZE(cmoe_device_info),
    OFFSET(cmoe_device_info, threads),
    OFFSET(cmoe_device_info, host),
    SIZE(cmoe_format),
    OFFSET(cmoe_format, group),
    SIZE(cmoe_problem),
    OFFSET(cmoe_problem, max_tokens),
    OFFSET(cmoe_problem, groups),
    OFFSET(cmoe_problem, flags),
    OFFSET(cmoe_problem, router),
    OFFSET(cmoe_problem, block_m),
    OFFSET(cmoe_problem, x),
    OFFSET(cmoe_problem, mid),
    SIZE(cmoe_plan_options),
    OFFSET(cmoe_plan_options, workspace_limit),
    OFFSET(cmoe_plan_options, n_threads),
    SIZE(cmoe_tensors),
    OFFSET(cmoe_tensors, weights),
    OFFSET(cmoe_tensors, topk_ids),
    OFFSET(cmoe_tensors, x),
    OFFSET(cmoe_tensors, sorted_ids),
    OFFSET(cmoe_tensors, y),
    OFFSET(cmoe_tensors, stage_us),
    SIZE(cmoe_matrix),
    OFFSET(cmoe_matrix, smooth),
    SIZE(cmoe_weights_desc),
    OFFSET(cmoe_weights_desc, format2),
    SIZE(cmoe_fused),
    OFFSET(cmoe_fused, rows),
    OFFSET(cmoe_fused, transposed),
    SIZE(cmoe_kernel_info),
    OFFSET(cmoe_kernel_info, conversion),
    SIZE(cmoe_observation),
    OFFSET(cmoe_observation, mid_amax),
    SIZE(cmoe_record),
    OFFSET(cmoe_record, far),
    SIZE(cmoe_recorder),
    SIZE(cmoe_error),
    OFFSET(cmoe_error, zeros),
};

size_t cmoe_abi_size(const char *name)
{
    for (size_t i = 0; name != NULL && i < sizeof table / sizeof table[0]; i++) {
        if (strcmp(name, table[i].name) == 0) return table[i].size;
    }
    return SIZE_MAX;
}
