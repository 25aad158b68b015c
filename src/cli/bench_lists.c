/* SPDX-License-Identifier: MIT
 * What --tokens and --scheme list, and whether a problem can be timed. */
#include "cli/bench.h"
#include "cli/report.h"

#include <string.h>

int bench_parse_tokens(const struct cli_args *args, struct bench_tokens *out)
{
    const char *text = cli_args_value(args, "tokens"), *name = args->command->name;
    char copy[512];
    snprintf(copy, sizeof copy, "%s", text != NULL ? text : "1,4,16,64,256");
    char *rest = copy;
    *out = (struct bench_tokens){.n = 0};
    for (char *word = strsep(&rest, ","); word != NULL; word = strsep(&rest, ",")) {
        int64_t n = 0;
        if (!cli_parse_int(word, &n) || n < 1 || n > INT32_MAX)
            return cli_fail(CLI_USAGE, "%s: --tokens has '%.40s', which is no token count", name,
                            word);
        if (out->n == BENCH_TOKEN_COUNTS)
            return cli_fail(CLI_USAGE, "%s: --tokens has more than %d counts", name,
                            BENCH_TOKEN_COUNTS);
        out->at[out->n++] = n;
        if (n > out->most) out->most = n;
    }
    return CLI_OK;
}

int bench_count_schemes(const char *text)
{
    int n = 0;
    if (text != NULL && strcmp(text, "all") == 0)
        while (cmoe_scheme_name(n) != NULL)
            n++;
    else
        for (n = 1; text != NULL && (text = strchr(text, '+')) != NULL; text++)
            n++;
    return n;
}

int bench_each_scheme(const char *text, int (*run)(void *user, const char *scheme), void *user)
{
    int code = CLI_OK;
    if (text == NULL) return run(user, NULL);
    if (strcmp(text, "all") == 0) {
        const char *name = NULL;
        for (int i = 0; code == CLI_OK && (name = cmoe_scheme_name(i)) != NULL; i++)
            code = run(user, name);
        return code;
    }
    char copy[512];
    snprintf(copy, sizeof copy, "%s", text);
    char *rest = copy;
    for (char *name = strsep(&rest, "+"); code == CLI_OK && name != NULL; name = strsep(&rest, "+"))
        code = run(user, name);
    return code;
}

static int check_memory(const struct cli_session *session, const char *name, const cmoe_problem *p,
                        int plans)
{
    const double gib = 1024.0 * 1024 * 1024;
    const double needed = (double)plans * bench_sets(session, p) * bench_expert_bytes(p) *
                          cmoe_problem_local_experts(p);
    if (session->info.memory <= 0 || needed < 0.8 * (double)session->info.memory) return CLI_OK;
    return cli_fail(CLI_NO_MEMORY,
                    "%s: the weights may take %.1f GiB and there are %.1f; take fewer experts, "
                    "such as --problem local=8",
                    name, needed / gib, (double)session->info.memory / gib);
}

int bench_check(const struct cli_session *session, const struct cli_args *args,
                const cmoe_problem *p, int plans)
{
    const char *name = args->command->name;
    const int code = cli_problem_check(p);
    if (code != CLI_OK) return code;
    if (p->last != CMOE_STAGE_COMBINE || p->first > CMOE_STAGE_SORT || p->capacity > 0)
        return cli_fail(CLI_USAGE,
                        "%s: the problem must start at route, quant or sort, and end at combine",
                        name);
    if (cli_args_given(args, "routing") && !bench_routable(p))
        return cli_fail(CLI_USAGE,
                        "%s: --routing needs a problem that takes ids or logits, "
                        "such as --problem first=quant",
                        name);
    return check_memory(session, name, p, plans);
}
