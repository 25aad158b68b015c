/* SPDX-License-Identifier: MIT
 * The context: all environment variables of the library are read here.
 *
 * CMOE_THREADS  threads, where the options say 0        CMOE_CPU    cap on the instruction set
 * CMOE_TUNED    file of tuned choices                   CMOE_DEVICE device of a NULL device name
 * CMOE_NODES    memory nodes, where the options say 0
 * CMOE_LOG      0, 1 or 2: without a log callback, write messages up to this level to stderr */
#include "core/context.h"

#include "core/device.h"
#include "core/fail.h"
#include "core/numa.h"
#include "core/size.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_THREADS = 4096, MAX_TUNED_BYTES = 64 << 20 };

/* An environment variable; NULL also when it is set to nothing. */
static const char *environment(const char *name)
{
    const char *const value = getenv(name);
    return value && *value ? value : NULL;
}

/* Whole text as a number within [low, high]; false otherwise. */
static bool parse_int(const char *text, long low, long high, int *out)
{
    char *end;
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high) return false;
    *out = (int)value;
    return true;
}

static cmoe_status choose_threads(cmoe_context *ctx)
{
    const int asked = ctx->options.n_threads;
    if (asked < 0 || asked > MAX_THREADS) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "n_threads is %d; it must be 0 (automatic) to %d.",
                         asked, MAX_THREADS);
    }
    if (asked > 0) return CMOE_OK;
    const char *const text = environment("CMOE_THREADS");
    if (!text) {
        ctx->options.n_threads = cmoe__threads_default();
    } else if (!parse_int(text, 1, MAX_THREADS, &ctx->options.n_threads)) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "CMOE_THREADS is \"%s\"; it must be 1 to %d.", text,
                         MAX_THREADS);
    }
    return CMOE_OK;
}

static cmoe_status choose_nodes(cmoe_context *ctx)
{
    const int asked = ctx->options.nodes;
    if (asked < 0 || asked > CMOE_NODES) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "nodes is %d; it must be 0 (automatic) to %d.", asked,
                         CMOE_NODES);
    }
    const char *const text = asked == 0 ? environment("CMOE_NODES") : NULL;
    if (text && !parse_int(text, 1, CMOE_NODES, &ctx->options.nodes)) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "CMOE_NODES is \"%s\"; it must be 1 to %d.", text,
                         CMOE_NODES);
    }
    return CMOE_OK;
}

static cmoe_status choose_cpu(cmoe_context *ctx)
{
    const char *const source = ctx->options.cpu ? "The option cpu" : "CMOE_CPU";
    const char *const text = ctx->options.cpu ? ctx->options.cpu : environment("CMOE_CPU");
    ctx->options.cpu = NULL;
    if (!text) return CMOE_OK;
    bool known = false;
    for (int i = 0; i < CMOE_ISA_LEVELS; i++) {
        known = known || strcmp(text, cmoe__isa_name((enum cmoe_isa)i)) == 0;
    }
    if (!known) {
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "%s is \"%.60s\"; it must be \"generic\", \"avx2\", \"avx512\", "
                         "\"avx512vnni\", \"avx512bf16\" or \"amx\".",
                         source, text);
    }
    ctx->cpu = cmoe__strdup(ctx, text);
    if (!ctx->cpu) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "No memory for the context.");
    ctx->options.cpu = ctx->cpu;
    return CMOE_OK;
}

/* The whole of an open file as a string. */
static cmoe_status read_text(cmoe_context *ctx, FILE *file, const char *path, char **out)
{
    size_t capacity = 1 << 16, used = 0;
    char *text = cmoe__alloc(ctx, capacity, 1);
    while (text) {
        used += fread(text + used, 1, capacity - 1 - used, file);
        if (used < capacity - 1) break;
        if (capacity >= MAX_TUNED_BYTES) {
            cmoe__free(ctx, text);
            return CMOE_FAIL(CMOE_ERR_CORRUPT, "The tuned file %s is larger than %d bytes.", path,
                             MAX_TUNED_BYTES);
        }
        char *const larger = cmoe__alloc(ctx, capacity * 2, 1);
        if (larger) memcpy(larger, text, used);
        cmoe__free(ctx, text);
        text = larger;
        capacity *= 2;
    }
    if (!text) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "No memory for the tuned file %s.", path);
    if (ferror(file)) {
        cmoe__free(ctx, text);
        return CMOE_FAIL(CMOE_ERR_IO, "The tuned file %s cannot be read: %s.", path,
                         strerror(errno));
    }
    text[used] = '\0';
    *out = text;
    return CMOE_OK;
}

/* A file that the caller named must be there; one that the environment names may be missing. */
static cmoe_status load_tuned(cmoe_context *ctx)
{
    const bool asked = ctx->options.tuned != NULL;
    const char *const path = asked ? ctx->options.tuned : environment("CMOE_TUNED");
    ctx->options.tuned = NULL;
    if (!path) return CMOE_OK;
    FILE *const file = fopen(path, "re");
    if (!file) {
        const int error = errno;
        if (asked) {
            return CMOE_FAIL(CMOE_ERR_IO, "The tuned file %s cannot be opened: %s.", path,
                             strerror(error));
        }
        cmoe__log(ctx, 1, "CMOE_TUNED=%s cannot be opened: %s", path, strerror(error));
        return CMOE_OK;
    }
    const cmoe_status status = read_text(ctx, file, path, &ctx->tuned);
    fclose(file);
    CMOE_TRY(status);
    return CMOE_OK;
}

static void choose_log(cmoe_context *ctx)
{
    ctx->log_level = 2;
    const char *const text = environment("CMOE_LOG");
    if (!ctx->options.log && text && parse_int(text, 0, 2, &ctx->log_level)) {
        ctx->options.log = cmoe__stderr_log;
    }
}

static cmoe_status fill(cmoe_context *ctx)
{
    choose_log(ctx);
    CMOE_TRY(choose_threads(ctx));
    CMOE_TRY(choose_nodes(ctx));
    CMOE_TRY(choose_cpu(ctx));
    CMOE_TRY(load_tuned(ctx));
    const char *const device = environment("CMOE_DEVICE");
    ctx->device = cmoe__strdup(ctx, device);
    if (device && !ctx->device) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "No memory for the context.");
    CMOE_TRY(cmoe__threads_create(ctx, &ctx->threads));
    return CMOE_OK;
}

/* Options of this version from those of the caller's, who may have been built with older headers:
 * what his struct does not have keeps its default. */
static cmoe_status resolve_options(const cmoe_context_options *given, cmoe_context_options *out)
{
    memset(out, 0, sizeof *out);
    if (given) {
        const size_t size = given->struct_size ? given->struct_size : sizeof *given;
        memcpy(out, given, size < sizeof *out ? size : sizeof *out);
    }
    out->struct_size = sizeof *out;
    if (!out->alloc != !out->free) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "The options give only %s; give both alloc and free.",
                         out->alloc ? "alloc" : "free");
    }
    if (!out->alloc) {
        out->alloc = cmoe__default_alloc;
        out->free = cmoe__default_free;
    }
    return CMOE_OK;
}

cmoe_status cmoe_context_create(const cmoe_context_options *opt, cmoe_context **out)
{
    if (!out) return CMOE_FAIL(CMOE_ERR_INVALID, "The argument out is NULL.");
    *out = NULL;
    cmoe_context_options options;
    CMOE_TRY(resolve_options(opt, &options));
    cmoe_context *const ctx = options.alloc(options.user, sizeof *ctx, _Alignof(cmoe_context));
    if (!ctx) return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "No memory for the context.");
    memset(ctx, 0, sizeof *ctx);
    ctx->options = options;
    pthread_mutex_init(&ctx->lock, NULL);
    const cmoe_status status = fill(ctx);
    if (status != CMOE_OK) {
        cmoe_context_destroy(ctx);
        CMOE_FAIL_TRACE();
        return status;
    }
    *out = ctx;
    return CMOE_OK;
}

void cmoe_context_destroy(cmoe_context *ctx)
{
    if (!ctx) return;
    cmoe__threads_destroy(ctx, ctx->threads);
    pthread_mutex_destroy(&ctx->lock);
    cmoe__free(ctx, ctx->cpu);
    cmoe__free(ctx, ctx->tuned);
    cmoe__free(ctx, ctx->device);
    ctx->options.free(ctx->options.user, ctx);
}

int cmoe_context_threads(const cmoe_context *ctx)
{
    return ctx ? cmoe__threads_count(ctx->threads) : 0;
}

const char *cmoe_context_executor(const cmoe_context *ctx)
{
    return ctx ? cmoe__threads_name(ctx->threads) : NULL;
}
