/* SPDX-License-Identifier: MIT
 * Any text: it is refused whole and with a sentence, or its canonical line reads back as the same
 * problem. Checking a problem never fails otherwise than by a status. */
#include <cmoe/problem.h>

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *const text = malloc(size + 1);
    if (!text) return 0;
    if (size) memcpy(text, data, size);
    text[size] = '\0';
    cmoe_problem p, q;
    cmoe_problem_init(&p);
    q = p;
    const size_t fields = offsetof(cmoe_problem, mid) + sizeof p.mid;
    if (cmoe_problem_parse(&p, text) != CMOE_OK) {
        require(memcmp(&p, &q, fields) == 0);
        require(cmoe_last_error()[0] != '\0');
    } else {
        char line[2048];
        const int n = cmoe_problem_print(&p, line, sizeof line);
        require(n > 0 && (size_t)n < sizeof line);
        require(cmoe_problem_parse(&q, line) == CMOE_OK);
        require(memcmp(&p, &q, fields) == 0);
        require(cmoe_problem_hash(&p) == cmoe_problem_hash(&q));
        require(cmoe_problem_check(&p) == cmoe_problem_check(&q));
    }
    free(text);
    return 0;
}
