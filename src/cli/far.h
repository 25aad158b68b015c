/* SPDX-License-Identifier: MIT
 * A call from host memory on any device: its arrays copied to a device that has memory of its own, or
 * used where they are. For calls that start at ROUTE, QUANT or SORT and end at COMBINE. */
#ifndef CMOE_CLI_FAR_H
#define CMOE_CLI_FAR_H

#include <cmoe/cmoe.h>

enum { CLI_FAR_ARRAYS = 24 };

struct cli_far {
    cmoe_device *dev;
    cmoe_tensors tensors; /* for the device */
    void *memory[CLI_FAR_ARRAYS];
    int n;
    void *y; /* the host's */
    size_t y_bytes;
};

/* `tensors` are the host's and stay so; their y is tight. @return the library's status. */
cmoe_status cli_far_open(cmoe_device *dev, const cmoe_problem *p, const cmoe_tensors *tensors,
                         struct cli_far *out);
/* Copy y back. */
cmoe_status cli_far_fetch(const struct cli_far *far);
void cli_far_close(struct cli_far *far);

#endif
