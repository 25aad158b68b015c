/* SPDX-License-Identifier: MIT
 * Messages, tables and progress. Running out of memory while printing ends the program: nothing
 * useful can follow. */
#include "cli/report.h"

#include "cli/args.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int cli_fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("cmoe: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return code;
}

int cli_exit_code(cmoe_status status)
{
    switch (status) {
    case CMOE_OK:
        return CLI_OK;
    case CMOE_ERR_INVALID:
    case CMOE_ERR_OVERFLOW:
        return CLI_USAGE;
    case CMOE_ERR_CORRUPT:
    case CMOE_ERR_MISMATCH:
        return CLI_BAD_DATA;
    case CMOE_ERR_IO:
        return CLI_NO_INPUT;
    case CMOE_ERR_UNSUPPORTED:
    case CMOE_ERR_NO_DEVICE:
        return CLI_UNAVAILABLE;
    case CMOE_ERR_NO_MEMORY:
        return CLI_NO_MEMORY;
    case CMOE_ERR_WORKSPACE:
    case CMOE_ERR_BUSY:
    case CMOE_ERR_DEVICE:
        return CLI_INTERNAL;
    }
    return CLI_INTERNAL;
}

int cli_fail_status(cmoe_status status, const char *what)
{
    const char *sentence = cmoe_last_error();
    if (sentence[0] == '\0') sentence = cmoe_status_sentence(status);
    return cli_fail(cli_exit_code(status), "%s%s%s", what != NULL ? what : "",
                    what != NULL ? ": " : "", sentence);
}

int cli_fail_output(cmoe_status status)
{
    const int code = cli_fail_status(status, NULL);
    return code == CLI_NO_INPUT ? CLI_NO_OUTPUT : code;
}

/* ---- tables ---- */

static void *must(void *ptr)
{
    if (ptr == NULL) {
        fputs("cmoe: out of memory\n", stderr);
        exit(CLI_NO_MEMORY);
    }
    return ptr;
}

void cli_table_cell(struct cli_table *table, const char *format, ...)
{
    if (table->count == table->capacity) {
        table->capacity = table->capacity > 0 ? 2 * table->capacity : 64;
        table->cells =
            must(realloc(table->cells, (size_t)table->capacity * sizeof table->cells[0]));
    }
    char *text = NULL;
    va_list args;
    va_start(args, format);
    if (vasprintf(&text, format, args) < 0) text = NULL;
    va_end(args);
    table->cells[table->count++] = must(text);
}

static void print_padded(const char *text, int width, bool right)
{
    printf(right ? "%*s" : "%-*s", width, text);
}

static void print_row(const struct cli_table *table, int row, const int *width, bool markdown)
{
    for (int c = 0; c < table->columns; c++) {
        const bool last = c == table->columns - 1 && !markdown;
        if (markdown) printf(c == 0 ? "| " : " | ");
        if (!markdown && c > 0) printf("  ");
        print_padded(table->cells[row * table->columns + c],
                     last && !table->numeric[c] ? 0 : width[c], table->numeric[c]);
    }
    printf(markdown ? " |\n" : "\n");
}

void cli_table_print(const struct cli_table *table, bool markdown)
{
    int width[CLI_MAX_COLUMNS] = {0};
    for (int i = 0; i < table->count; i++) {
        const int n = (int)strlen(table->cells[i]);
        if (n > width[i % table->columns]) width[i % table->columns] = n;
    }
    for (int c = 0; markdown && c < table->columns; c++)
        if (width[c] < 3) width[c] = 3;
    for (int row = 0; row < table->count / table->columns; row++) {
        print_row(table, row, width, markdown);
        if (row > 0 || !markdown) continue;
        for (int c = 0; c < table->columns; c++) {
            printf(c == 0 ? "|" : "");
            for (int i = 0; i < width[c] + 1; i++)
                putchar('-');
            printf(table->numeric[c] ? ":|" : "-|");
        }
        putchar('\n');
    }
}

void cli_table_free(struct cli_table *table)
{
    for (int i = 0; i < table->count; i++)
        free(table->cells[i]);
    free(table->cells);
}

/* ---- progress ---- */

double cli_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool on_terminal(void)
{
    const char *term = getenv("TERM");
    return isatty(STDERR_FILENO) && (term == NULL || strcmp(term, "dumb") != 0);
}

enum { BAR = 24 }; /* characters of a full bar */

void cli_progress_show(struct cli_progress *progress, int64_t done, int64_t total)
{
    const double now = cli_now();
    if (progress->start <= 0) progress->start = now;
    if (now - progress->start < 2) return;
    const bool terminal = on_terminal();
    if (progress->shown > 0 && now - progress->shown < (terminal ? 0.1 : 5)) return;
    progress->shown = now;
    const double share = total > 0 ? (double)done / (double)total : 0;
    char left[40] = "";
    if (done > 0)
        snprintf(left, sizeof left, ", %.0f s left", (now - progress->start) * (1 / share - 1));
    fprintf(stderr, "%scmoe: %s %lld of %lld", terminal ? "\r\033[K" : "", progress->what,
            (long long)done, (long long)total);
    if (terminal)
        fprintf(stderr, " [%-*.*s]%s", BAR, (int)(share * BAR), "########################", left);
    else
        fprintf(stderr, "%s\n", left);
    progress->open = terminal;
}

void cli_progress_end(struct cli_progress *progress)
{
    if (progress->open) fputs("\r\033[K", stderr);
    progress->open = false;
}
