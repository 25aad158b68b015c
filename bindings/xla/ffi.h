/* SPDX-License-Identifier: MIT
 * XLA's foreign function interface as far as the handlers use it: our own declarations of a binary
 * interface (API version 0.x), so that libcmoe-xla is built without jaxlib. Every struct begins with
 * its size and grows at its end only; a test compares the offsets with the header in jaxlib. */
#ifndef CMOE_XLA_FFI_H
#define CMOE_XLA_FFI_H

#include <stddef.h>
#include <stdint.h>

/* Each struct's first two fields. */
struct xla_head {
    size_t struct_size;
    struct xla_extension *extensions;
};

enum { XLA_EXTENSION_METADATA = 1, XLA_TRAIT_COMMAND_BUFFER = 1 };

struct xla_extension {
    size_t struct_size;
    int type;
    struct xla_extension *next;
};

struct xla_version {
    struct xla_head head;
    int major, minor;
};

struct xla_metadata {
    size_t struct_size;
    struct xla_version version;
    uint32_t traits;
};

struct xla_error; /* XLA's own */

/* The extension of a call that asks what the handler is, instead of running it. */
struct xla_metadata_extension {
    struct xla_extension base;
    struct xla_metadata *metadata;
};

enum xla_code { XLA_INVALID_ARGUMENT = 3, XLA_FAILED_PRECONDITION = 9, XLA_INTERNAL = 13 };

struct xla_error_args {
    struct xla_head head;
    const char *message; /* copied */
    int code;
};

struct xla_stream_args {
    struct xla_head head;
    void *context;
    void *stream; /* out: CUstream */
};

typedef void xla_unused(void);

struct xla_api {
    struct xla_head head;
    struct xla_version version;
    void *internal;
    struct xla_error *(*error_create)(struct xla_error_args *args);
    xla_unused *error_message, *error_destroy, *handler_register;
    struct xla_error *(*stream_get)(struct xla_stream_args *args);
};

enum xla_type {
    XLA_S8 = 2,
    XLA_S32 = 4,
    XLA_S64 = 5,
    XLA_U8 = 6,
    XLA_F16 = 10,
    XLA_F32 = 11,
    XLA_BF16 = 16,
    XLA_E5M2 = 19,
    XLA_E4M3 = 20
};

struct xla_buffer {
    struct xla_head head;
    int type;
    void *data;
    int64_t rank;
    int64_t *dims;
};

/* Arguments or results: `items` are struct xla_buffer where `types` is 1. */
struct xla_list {
    struct xla_head head;
    int64_t size;
    int *types;
    void **items;
};

struct xla_text {
    const char *text;
    size_t len;
};

enum { XLA_ATTRIBUTE_ARRAY = 1 };

struct xla_array {
    int type;
    size_t size;
    void *data;
};

struct xla_attributes {
    struct xla_head head;
    int64_t size;
    int *types;
    struct xla_text **names;
    void **items;
};

struct xla_call {
    struct xla_head head;
    const struct xla_api *api;
    void *context;
    int stage;
    struct xla_list args, results;
    struct xla_attributes attributes;
};

#endif
