/* SPDX-License-Identifier: MIT
 * Streams, events and graphs of the driver. */
#include "backends/cuda/cuda.h"

#include "core/fail.h"

static const struct cmoe_driver *driver_of(const cmoe_device *dev)
{
    const struct cmoe_cuda *cuda = dev->state;
    return cuda->driver;
}

static cmoe_status create(cmoe_device *dev, void **stream)
{
    CUstream made = NULL;
    CMOE_CUDA_TRY("making a stream", driver_of(dev), cuStreamCreate, &made, CU_STREAM_NON_BLOCKING);
    *stream = made;
    return CMOE_OK;
}

static void destroy(cmoe_device *dev, void *stream)
{
    driver_of(dev)->cuStreamDestroy(stream);
}

static cmoe_status event_create(cmoe_device *dev, void **event)
{
    CUevent made = NULL;
    CMOE_CUDA_TRY("making an event", driver_of(dev), cuEventCreate, &made, CU_EVENT_DEFAULT);
    *event = made;
    return CMOE_OK;
}

static void event_destroy(cmoe_device *dev, void *event)
{
    driver_of(dev)->cuEventDestroy(event);
}

/* Inside a graph an event is only recorded at each replay when it is said to be external. */
static cmoe_status event_record(cmoe_device *dev, void *event, void *stream)
{
    const struct cmoe_driver *d = driver_of(dev);
    CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
    if (stream) CMOE_CUDA_TRY("recording an event", d, cuStreamIsCapturing, stream, &capture);
    const unsigned flags = capture == CU_STREAM_CAPTURE_STATUS_ACTIVE ? CU_EVENT_RECORD_EXTERNAL
                                                                      : CU_EVENT_RECORD_DEFAULT;
    CMOE_CUDA_TRY("recording an event", d, cuEventRecordWithFlags, event, stream, flags);
    return CMOE_OK;
}

static cmoe_status event_elapsed(cmoe_device *dev, void *first, void *last, double *us)
{
    const struct cmoe_driver *d = driver_of(dev);
    float ms = 0;
    CMOE_CUDA_TRY("waiting for an event", d, cuEventSynchronize, last);
    CMOE_CUDA_TRY("reading two events", d, cuEventElapsedTime, &ms, first, last);
    *us = 1e3 * (double)ms;
    return CMOE_OK;
}

static cmoe_status graph_begin(cmoe_device *dev, void *stream)
{
    CMOE_CUDA_TRY("beginning a graph", driver_of(dev), cuStreamBeginCapture, stream,
                  CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    return CMOE_OK;
}

static cmoe_status graph_end(cmoe_device *dev, void *stream, void **graph)
{
    const struct cmoe_driver *d = driver_of(dev);
    CUgraph recorded = NULL;
    CUgraphExec made = NULL;
    CMOE_CUDA_TRY("ending a graph", d, cuStreamEndCapture, stream, &recorded);
    const CUresult result = d->cuGraphInstantiate(&made, recorded, 0);
    d->cuGraphDestroy(recorded);
    if (result != CUDA_SUCCESS)
        return cmoe__cuda_fail(d, result, "ending a graph", "cuGraphInstantiate");
    *graph = made;
    return CMOE_OK;
}

static cmoe_status graph_launch(cmoe_device *dev, void *graph, void *stream)
{
    CMOE_CUDA_TRY("replaying a graph", driver_of(dev), cuGraphLaunch, graph, stream);
    return CMOE_OK;
}

static void graph_destroy(cmoe_device *dev, void *graph)
{
    driver_of(dev)->cuGraphExecDestroy(graph);
}

const struct cmoe_stream_table cmoe__cuda_streams = {
    .create = create,
    .destroy = destroy,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_elapsed = event_elapsed,
    .graph_begin = graph_begin,
    .graph_end = graph_end,
    .graph_launch = graph_launch,
    .graph_destroy = graph_destroy,
};
