/* SPDX-License-Identifier: MIT
 * What commands that execute share: a context and a device, and recording by CMOE_RECORD. */
#ifndef CMOE_CLI_SESSION_H
#define CMOE_CLI_SESSION_H

#include <cmoe/io.h>
#include <stdbool.h>

struct cli_session {
    cmoe_context *ctx;
    cmoe_device *dev;  /* NULL until cli_session_device */
    cmoe_device *host; /* for references: dev itself when it takes host pointers */
    cmoe_device_info info;
    char label[256]; /* "cpu-avx512-2t (model)" */
    cmoe_recorder recorder;

    /* CMOE_RECORD=DIR: the next call is written to DIR once `armed` is set. */
    const char *record_dir;
    bool armed;
    const cmoe_weights *canonical; /* to record instead of packed weights */
    const cmoe_tensors *near;      /* to record instead of those on a device */
    cmoe_status record_status;
};

/* Make the context. The session must not move. @return an exit code. */
int cli_session_open(struct cli_session *session);
/* The same with a tuned table of its own; NULL: CMOE_TUNED, if any. */
int cli_session_open_tuned(struct cli_session *session, const char *table);
/* Open a device; NULL: CMOE_DEVICE or the default. Closes the one that was open. */
int cli_session_device(struct cli_session *session, const char *spec);
/* The same for commands that only know host memory: other devices are refused. */
int cli_session_host_device(struct cli_session *session, const char *spec);
/* Closes everything; passes `code` on, or says that the record could not be written. */
int cli_session_close(struct cli_session *session, int code);

/* A problem with weights, planned and ready to run on the session's device. */
struct cli_job {
    cmoe_device *dev;
    cmoe_weights *canonical;  /* in place, what the reference reads */
    cmoe_weights *packed;     /* as the plan wants them; NULL: canonical as well */
    const cmoe_tensors *near; /* the call in host memory, to record; NULL: the one that is run */
    cmoe_plan *plan;
    void *workspace;
    size_t workspace_size;
};

/* @return the library's status: cmoe_last_error has the sentence. `pin` may be NULL. */
cmoe_status cli_job_open(struct cli_session *session, const cmoe_problem *p,
                         const cmoe_weights_desc *weights, const char *pin, struct cli_job *out);
/* The same with weights in host memory, whatever the device; `canonical` stays there. */
cmoe_status cli_job_open_near(struct cli_session *session, const cmoe_problem *p,
                              const cmoe_weights_desc *weights, const char *pin,
                              struct cli_job *out);
cmoe_status cli_job_run(struct cli_session *session, const struct cli_job *job,
                        const cmoe_tensors *tensors);
void cli_job_close(struct cli_job *job);

/* Room for a problem's line and for a plan's path. */
enum { CLI_PATH_TEXT = 1024 };

/* What --model, then --scheme (if wanted), then --problem say. @return an exit code. */
struct cli_args;
int cli_problem_from_args(const struct cli_args *args, bool with_scheme, cmoe_problem *out);
/* Whatever is wrong with a problem, it is wrong on the command line. */
int cli_problem_check(const cmoe_problem *p);

/* Wall times of repeated runs, sorted, in microseconds. */
struct cli_times {
    double median, min, p90;
    int runs;
};

/* Run once to warm up, then for at least `seconds`, 3 to `most` times. */
cmoe_status cli_job_time(struct cli_session *session, const struct cli_job *job,
                         const cmoe_tensors *tensors, double seconds, struct cli_times *out);

#endif
