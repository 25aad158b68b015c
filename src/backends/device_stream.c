/* SPDX-License-Identifier: MIT
 * Streams, events and graphs of a device, through its backend's table. */
#include "backends/backend.h"
#include "core/fail.h"

static cmoe_status enter(cmoe_device *dev, const void *argument, const char *name)
{
    if (!dev || !argument)
        return CMOE_FAIL(CMOE_ERR_INVALID, "The argument %s is NULL.", dev ? name : "dev");
    if (!dev->backend->streams)
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "The device %s runs every call at once and has no streams.",
                         dev->backend->name);
    return dev->backend->enter(dev);
}

static cmoe_status leave(cmoe_device *dev, cmoe_status status)
{
    dev->backend->leave(dev);
    return status;
}

/* Destroying never fails: what was never made is left alone. */
static void destroy(cmoe_device *dev, void *handle, void (*of)(cmoe_device *, void *))
{
    if (!handle || dev->backend->enter(dev) != CMOE_OK) return;
    of(dev, handle);
    dev->backend->leave(dev);
}

cmoe_status cmoe_stream_create(cmoe_device *dev, void **stream)
{
    if (stream) *stream = NULL;
    CMOE_TRY(enter(dev, stream, "stream"));
    return leave(dev, dev->backend->streams->create(dev, stream));
}

void cmoe_stream_destroy(cmoe_device *dev, void *stream)
{
    if (dev && dev->backend->streams) destroy(dev, stream, dev->backend->streams->destroy);
}

cmoe_status cmoe_event_create(cmoe_device *dev, void **event)
{
    if (event) *event = NULL;
    CMOE_TRY(enter(dev, event, "event"));
    return leave(dev, dev->backend->streams->event_create(dev, event));
}

void cmoe_event_destroy(cmoe_device *dev, void *event)
{
    if (dev && dev->backend->streams) destroy(dev, event, dev->backend->streams->event_destroy);
}

cmoe_status cmoe_event_record(cmoe_device *dev, void *event, void *stream)
{
    CMOE_TRY(enter(dev, event, "event"));
    return leave(dev, dev->backend->streams->event_record(dev, event, stream));
}

cmoe_status cmoe_event_elapsed(cmoe_device *dev, void *first, void *last, double *us)
{
    CMOE_TRY(enter(dev, first && last ? us : NULL, first && last ? "us" : "first or last"));
    return leave(dev, dev->backend->streams->event_elapsed(dev, first, last, us));
}

cmoe_status cmoe_graph_begin(cmoe_device *dev, void *stream)
{
    CMOE_TRY(enter(dev, stream, "stream"));
    return leave(dev, dev->backend->streams->graph_begin(dev, stream));
}

cmoe_status cmoe_graph_end(cmoe_device *dev, void *stream, void **graph)
{
    if (graph) *graph = NULL;
    CMOE_TRY(enter(dev, stream ? graph : NULL, stream ? "graph" : "stream"));
    return leave(dev, dev->backend->streams->graph_end(dev, stream, graph));
}

cmoe_status cmoe_graph_launch(cmoe_device *dev, void *graph, void *stream)
{
    CMOE_TRY(enter(dev, graph, "graph"));
    return leave(dev, dev->backend->streams->graph_launch(dev, graph, stream));
}

void cmoe_graph_destroy(cmoe_device *dev, void *graph)
{
    if (dev && dev->backend->streams) destroy(dev, graph, dev->backend->streams->graph_destroy);
}
