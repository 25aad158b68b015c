/* SPDX-License-Identifier: MIT
 * Everything that is printed: messages on standard error, tables and JSON on standard output, and
 * progress of slow commands. Nothing is coloured, so there is nothing for NO_COLOR to turn off. */
#ifndef CMOE_CLI_REPORT_H
#define CMOE_CLI_REPORT_H

#include <cmoe/status.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define CLI_PRINTF(text, first) __attribute__((format(printf, text, first)))

/* ---- messages ---- */

/* "cmoe: SENTENCE" on standard error; returns `code`. */
int cli_fail(int code, const char *format, ...) CLI_PRINTF(2, 3);
/* The same for a failed library call: its sentence, after "WHAT: " unless what is NULL. */
int cli_fail_status(cmoe_status status, const char *what);
/* For calls that write: a refused file operation is about the output. */
int cli_fail_output(cmoe_status status);
/* The exit code a library status has. */
int cli_exit_code(cmoe_status status);

/* ---- tables ---- */

enum { CLI_MAX_COLUMNS = 16 };

struct cli_table {
    int columns;
    bool numeric[CLI_MAX_COLUMNS]; /* aligned right */
    char **cells;
    int count, capacity;
};

/* Headings are the first `columns` cells. */
void cli_table_cell(struct cli_table *table, const char *format, ...) CLI_PRINTF(2, 3);
void cli_table_print(const struct cli_table *table, bool markdown);
void cli_table_free(struct cli_table *table);

/* ---- JSON ---- */

/* One value a line on `out`. `key` is NULL inside arrays and at the top. */
struct cli_json {
    FILE *out;
    bool comma;
};

void cli_json_open(struct cli_json *json, const char *key, char bracket);
void cli_json_close(struct cli_json *json, char bracket);
void cli_json_string(struct cli_json *json, const char *key, const char *value); /* NULL: null */
void cli_json_int(struct cli_json *json, const char *key, int64_t value);
void cli_json_double(struct cli_json *json, const char *key, double value); /* not finite: null */
void cli_json_bool(struct cli_json *json, const char *key, bool value);
void cli_json_end(struct cli_json *json); /* newline */

/* ---- progress ---- */

/* Seconds of a steady clock. */
double cli_now(void);

struct cli_progress {
    const char *what; /* "check: problem" */
    double start, shown;
    bool open; /* a line on the terminal has not been wiped */
};

/* Show done of total once the work has taken two seconds: a line that is overwritten on a terminal,
 * else a line every five seconds, both on standard error. */
void cli_progress_show(struct cli_progress *progress, int64_t done, int64_t total);
void cli_progress_end(struct cli_progress *progress);

#endif
