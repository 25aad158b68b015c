/* SPDX-License-Identifier: MIT
 * A device whose calls are recorded into a temporary folder, and running what was read back. */
#ifndef CMOE_TESTS_RECORD_RIG_H
#define CMOE_TESTS_RECORD_RIG_H

#include "harness.h"

#include "harness_files.h"

#include <cmoe/io.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where the callback writes to, and what came of it. */
struct recording {
    char dir[600];
    cmoe_status status;
    int calls;
};

static void record(void *user, const cmoe_record *call)
{
    struct recording *const r = user;
    r->calls++;
    r->status = cmoe_record_write(r->dir, call);
}

struct rig {
    struct folder folder;
    struct recording recording;
    cmoe_recorder recorder;
    cmoe_context *ctx;
    cmoe_device *dev;
};

static void rig_open(struct rig *rig)
{
    folder_make(&rig->folder);
    snprintf(rig->recording.dir, sizeof rig->recording.dir, "%s/call", rig->folder.path);
    rig->recording.calls = 0;
    rig->recorder = (cmoe_recorder){.record = record, .user = &rig->recording};
    const cmoe_context_options options = {
        .struct_size = sizeof options, .n_threads = 1, .recorder = &rig->recorder};
    expect_ok(cmoe_context_create(&options, &rig->ctx));
    rig->dev = test_device(rig->ctx, "ref");
}

static void rig_close(struct rig *rig)
{
    cmoe_device_close(rig->dev);
    cmoe_context_destroy(rig->ctx);
    folder_remove(&rig->folder);
}

static void run(struct rig *rig, const cmoe_problem *p, const cmoe_weights_desc *desc,
                const cmoe_tensors *t)
{
    cmoe_plan *plan;
    cmoe_weights *w = NULL;
    if (desc) expect_ok(cmoe_weights_create(rig->dev, p, desc, &w));
    expect_ok(cmoe_plan_create(rig->dev, p, w, NULL, &plan));
    const size_t bytes = cmoe_plan_workspace_size(plan);
    void *const workspace = aligned_alloc(256, (bytes + 256) / 256 * 256);
    assert_non_null(workspace);
    expect_ok(cmoe_execute(plan, t, workspace, bytes, NULL));
    free(workspace);
    cmoe_plan_destroy(plan);
    cmoe_weights_destroy(w);
}

static void remove_files(const char *dir)
{
    struct folder f;
    snprintf(f.path, sizeof f.path, "%s", dir);
    folder_remove(&f);
}

/* Run a call that was read back; what that records goes elsewhere. */
static void run_again(struct rig *rig, const cmoe_replay *replay, bool weights)
{
    char *const end = rig->recording.dir + strlen(rig->recording.dir);
    strcpy(end, "2");
    run(rig, &replay->problem, weights ? &replay->weights : NULL, &replay->tensors);
    remove_files(rig->recording.dir);
    *end = '\0';
}

#endif
