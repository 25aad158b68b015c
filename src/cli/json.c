/* SPDX-License-Identifier: MIT
 * JSON output by hand: strings escaped to ASCII-safe text, numbers that read back to the same
 * value, null for what JSON has no number for. */
#include "cli/report.h"

#include <math.h>

static void write_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(out, "\\%c", *c);
        else if (*c == '\n')
            fputs("\\n", out);
        else if (*c < 0x20)
            fprintf(out, "\\u%04x", *c);
        else
            fputc(*c, out);
    }
    fputc('"', out);
}

static void begin_value(struct cli_json *json, const char *key)
{
    if (json->comma) fputs(", ", json->out);
    json->comma = true;
    if (key == NULL) return;
    write_string(json->out, key);
    fputs(": ", json->out);
}

void cli_json_open(struct cli_json *json, const char *key, char bracket)
{
    begin_value(json, key);
    fputc(bracket, json->out);
    json->comma = false;
}

void cli_json_close(struct cli_json *json, char bracket)
{
    fputc(bracket, json->out);
    json->comma = true;
}

void cli_json_string(struct cli_json *json, const char *key, const char *value)
{
    begin_value(json, key);
    if (value == NULL)
        fputs("null", json->out);
    else
        write_string(json->out, value);
}

void cli_json_int(struct cli_json *json, const char *key, int64_t value)
{
    begin_value(json, key);
    fprintf(json->out, "%lld", (long long)value);
}

void cli_json_double(struct cli_json *json, const char *key, double value)
{
    begin_value(json, key);
    if (isfinite(value))
        fprintf(json->out, "%.9g", value);
    else
        fputs("null", json->out);
}

void cli_json_bool(struct cli_json *json, const char *key, bool value)
{
    begin_value(json, key);
    fputs(value ? "true" : "false", json->out);
}

void cli_json_end(struct cli_json *json)
{
    fputc('\n', json->out);
    json->comma = false;
}
