/* SPDX-License-Identifier: MIT
 * Streams, events and graphs of a device, for callers without a GPU runtime of their own: enough to
 * time calls and to replay them without launching each kernel from the host.
 *
 * The handles are the driver's own (CUstream, CUevent, CUgraphExec), so they mix with other code on the
 * same GPU. Host devices run every call at once and have none of them: CMOE_ERR_UNSUPPORTED. Like the
 * driver's, a stream, an event or a graph is for one thread at a time. */
#ifndef CMOE_STREAM_H
#define CMOE_STREAM_H

#include <cmoe/context.h>

CMOE_BEGIN_DECLS

/** A stream that does not wait for the default one. Ends with cmoe_stream_destroy.
 *  @return CMOE_OK; CMOE_ERR_INVALID; CMOE_ERR_UNSUPPORTED (a host device); CMOE_ERR_DEVICE; the same of
 *          every function here. */
CMOE_API cmoe_status cmoe_stream_create(cmoe_device *dev, void **stream) CMOE_MUST_CHECK;
/** NULL is fine. What is on the stream is finished first. */
CMOE_API void cmoe_stream_destroy(cmoe_device *dev, void *stream);

/** An event that takes time stamps. Ends with cmoe_event_destroy. @return as cmoe_stream_create. */
CMOE_API cmoe_status cmoe_event_create(cmoe_device *dev, void **event) CMOE_MUST_CHECK;
/** NULL is fine. */
CMOE_API void cmoe_event_destroy(cmoe_device *dev, void *event);
/** Mark the place that the stream has reached; while a graph is recorded: a place in that graph.
 *  @return as cmoe_stream_create. */
CMOE_API cmoe_status cmoe_event_record(cmoe_device *dev, void *event, void *stream) CMOE_MUST_CHECK;
/** Wait for `last`, then microseconds from `first` to it; both must have been recorded.
 *  @return as cmoe_stream_create. */
CMOE_API cmoe_status cmoe_event_elapsed(cmoe_device *dev, void *first, void *last, double *us)
    CMOE_MUST_CHECK;

/** Record what is put on the stream (cmoe_execute, cmoe_device_copy on device, ...) instead of running
 *  it, until cmoe_graph_end. The stream must not be the default one. @return as cmoe_stream_create. */
CMOE_API cmoe_status cmoe_graph_begin(cmoe_device *dev, void *stream) CMOE_MUST_CHECK;
/** *graph replays it with the same pointers and counts; everything it uses must outlive it. Ends with
 *  cmoe_graph_destroy. @return as cmoe_stream_create. */
CMOE_API cmoe_status cmoe_graph_end(cmoe_device *dev, void *stream, void **graph) CMOE_MUST_CHECK;
/** Replay on a stream. @return as cmoe_stream_create; a kernel's fault shows in cmoe_device_sync. */
CMOE_API cmoe_status cmoe_graph_launch(cmoe_device *dev, void *graph, void *stream) CMOE_MUST_CHECK;
/** NULL is fine. */
CMOE_API void cmoe_graph_destroy(cmoe_device *dev, void *graph);

CMOE_END_DECLS

#endif
