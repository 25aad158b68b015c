/* SPDX-License-Identifier: MIT
 * XLA FFI handlers that execute a plan: cmoe_xla_cpu and cmoe_xla_cuda, registered by cmoe/jax.py.
 *
 * The plan and the layer belong to the Python process, and the call's one attribute says where the
 * plan is. A compiled program may outlive its process in a cache, so the attribute also holds the
 * process's session number: with another one the address is never followed. Workspace is a second
 * result, which XLA allocates. */
#include "ffi.h"

#include <cmoe/cmoe.h>

#include <stdatomic.h>
#include <stdbool.h>

/* The attribute "call": words of an array, written by cmoe/jax.py. */
enum word { SESSION, PLAN, WORKSPACE, HOST, ROUTED, EXTRAS, WORDS };

/* Optional arguments, in this order behind the others; bits of EXTRAS. */
enum extra { EXPERT_MAP, ROUTE_BIAS, X_SCALE, MID_SCALE, EXTRA_COUNT };

CMOE_API void cmoe_xla_begin(uint64_t session);
CMOE_API struct xla_error *cmoe_xla_cpu(struct xla_call *call);
CMOE_API struct xla_error *cmoe_xla_cuda(struct xla_call *call);

/* Chosen once, when the library is loaded: the only state. */
static _Atomic uint64_t this_session;

void cmoe_xla_begin(uint64_t session)
{
    uint64_t none = 0;
    atomic_compare_exchange_strong(&this_session, &none, session);
}

static struct xla_error *refuse(const struct xla_call *call, enum xla_code code,
                                const char *message)
{
    struct xla_error_args args = {
        .head.struct_size = sizeof args, .message = message, .code = (int)code};
    return call->api->error_create(&args);
}

/* Answers what the handler is; the call then runs nothing. */
static bool answer_metadata(const struct xla_call *call, bool cuda)
{
    for (struct xla_extension *e = call->head.extensions; e != NULL; e = e->next) {
        if (e->type != XLA_EXTENSION_METADATA) continue;
        struct xla_metadata *metadata = ((struct xla_metadata_extension *)(void *)e)->metadata;
        metadata->version.major = 0;
        metadata->version.minor = call->api ? call->api->version.minor : 1;
        metadata->traits = cuda ? XLA_TRAIT_COMMAND_BUFFER : 0;
        return true;
    }
    return false;
}

/* The words of the attribute, or NULL. */
static const int64_t *words_of(const struct xla_call *call)
{
    const struct xla_attributes *a = &call->attributes;
    if (a->size != 1 || a->types[0] != XLA_ATTRIBUTE_ARRAY) return NULL;
    const struct xla_array *array = a->items[0];
    if (array->type != XLA_S64 || array->size != WORDS) return NULL;
    return array->data;
}

static const struct xla_buffer *buffer(const struct xla_list *list, int64_t i)
{
    return i < list->size ? list->items[i] : NULL;
}

/* Set the fields of the optional arguments; the number of arguments that are expected in all. */
static int64_t set_extras(const struct xla_call *call, int64_t given, int64_t next, cmoe_tensors *t)
{
    for (int i = 0; i < EXTRA_COUNT; i++) {
        if (!(given >> i & 1)) continue;
        const struct xla_buffer *b = buffer(&call->args, next++);
        const void *data = b ? b->data : NULL;
        switch ((enum extra)i) {
        case EXPERT_MAP:
            t->expert_map = data;
            break;
        case ROUTE_BIAS:
            t->route_bias = data;
            break;
        case X_SCALE:
            t->x_scale = data;
            break;
        case MID_SCALE:
            t->mid_scale = data;
            break;
        case EXTRA_COUNT:
            break;
        }
    }
    return next;
}

/* The arguments' shapes and types are those that cmoe/jax.py has checked when it traced the call. */
static bool set_tensors(const struct xla_call *call, const int64_t *word, cmoe_tensors *t)
{
    const struct xla_buffer *x = buffer(&call->args, 0), *second = buffer(&call->args, 1);
    const struct xla_buffer *third = buffer(&call->args, 2), *y = buffer(&call->results, 0);
    if (x == NULL || second == NULL || y == NULL || x->rank < 2) return false;
    t->n_tokens = (int32_t)x->dims[0];
    t->x = x->data;
    t->y = y->data;
    int64_t next = 2;
    if (word[ROUTED]) {
        t->logits = second->data;
    } else {
        if (third == NULL || third->type != XLA_S32) return false;
        t->topk_weights = second->data;
        t->topk_ids = third->data;
        next = 3;
    }
    return set_extras(call, word[EXTRAS], next, t) == call->args.size;
}

static struct xla_error *run(const struct xla_call *call, bool cuda)
{
    const int64_t *word = words_of(call);
    if (word == NULL || call->results.size != 2)
        return refuse(call, XLA_INVALID_ARGUMENT, "cmoe: this call was not made by cmoe.jax");
    if ((uint64_t)word[SESSION] != atomic_load(&this_session))
        return refuse(call, XLA_FAILED_PRECONDITION,
                      "cmoe: this program was compiled in another process, whose layer is gone; "
                      "keep programs with cmoe layers out of JAX's persistent cache");
    if ((word[HOST] == 0) != cuda)
        return refuse(call, XLA_INVALID_ARGUMENT,
                      "cmoe: the layer's weights are on another kind of device than the call");
    cmoe_tensors t = {.struct_size = sizeof t};
    const struct xla_buffer *scratch = buffer(&call->results, 1);
    if (!set_tensors(call, word, &t) || scratch == NULL)
        return refuse(call, XLA_INVALID_ARGUMENT, "cmoe: the call has unexpected arguments");
    struct xla_stream_args stream = {.head.struct_size = sizeof stream, .context = call->context};
    if (cuda) {
        struct xla_error *error = call->api->stream_get(&stream);
        if (error != NULL) return error;
    }
    const uintptr_t first = ((uintptr_t)scratch->data + 255) & ~(uintptr_t)255;
    const cmoe_plan *plan = (const cmoe_plan *)(intptr_t)word[PLAN];
    const cmoe_status status =
        cmoe_execute(plan, &t, (void *)first, (size_t)word[WORKSPACE], stream.stream);
    if (status == CMOE_OK) return NULL;
    return refuse(call, status == CMOE_ERR_INVALID ? XLA_INVALID_ARGUMENT : XLA_INTERNAL,
                  cmoe_last_error());
}

struct xla_error *cmoe_xla_cpu(struct xla_call *call)
{
    return answer_metadata(call, false) ? NULL : run(call, false);
}

struct xla_error *cmoe_xla_cuda(struct xla_call *call)
{
    return answer_metadata(call, true) ? NULL : run(call, true);
}
