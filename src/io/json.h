/* SPDX-License-Identifier: MIT
 * JSON from untrusted files: jansson behind a check of depth and number of containers. */
#ifndef CMOE_IO_JSON_H
#define CMOE_IO_JSON_H

#include <cmoe/status.h>
#include <jansson.h>
#include <stddef.h>

/* The text must be one object, without duplicate keys, nested at most `depth` deep (the object
 * itself is 1). Containers are the part of a tree that costs the most memory a byte of text, so
 * there may be one for every 16 bytes: what is built stays within 32 times the text.
 * `what` and `offset` (of the text in its file) go into messages. Free with json_decref. */
cmoe_status cmoe__json_parse(const char *text, size_t size, int depth, const char *what,
                             size_t offset, json_t **out);

#endif
