/* SPDX-License-Identifier: MIT
 * Messages: names that come from files, and sentences that several readers need. */
#include "fail.h"

#include <string.h>

struct cmoe_quoted cmoe__quote_bytes(const char *bytes, size_t n)
{
    struct cmoe_quoted out;
    const size_t room = sizeof out.text - 4; /* "..." and the final 0 */
    size_t keep = n < room ? n : room;
    if (keep < n) {
        /* Do not cut inside a UTF-8 sequence. */
        while (keep > 0 && ((unsigned char)bytes[keep] & 0xc0) == 0x80)
            keep--;
    }
    for (size_t i = 0; i < keep; i++) {
        const unsigned char c = (unsigned char)bytes[i];
        out.text[i] = c < 0x20 || c == 0x7f ? '?' : bytes[i];
    }
    memcpy(out.text + keep, "...", 4);
    if (keep == n) out.text[keep] = '\0';
    return out;
}

struct cmoe_quoted cmoe__quote(const char *name)
{
    return cmoe__quote_bytes(name, strlen(name));
}

cmoe_status cmoe__fail_memory(size_t size, const char *what)
{
    return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for %zu bytes of %s", size, what);
}

cmoe_status cmoe__check_argument(const void *pointer, const char *function, const char *name)
{
    if (pointer) return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_INVALID, "%s: %s is NULL", function, name);
}

cmoe_status cmoe__check_not_pointer(const void *image, size_t size, const char *what)
{
    static const char start[] = "version https://git-lfs.github.com/spec/";
    if (size < sizeof start - 1 || memcmp(image, start, sizeof start - 1) != 0) return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_CORRUPT,
                     "%s: a Git LFS pointer in place of the file: run git lfs pull", what);
}
