/* SPDX-License-Identifier: MIT
 * A generated call on a device whose memory the host cannot read: every buffer copied there between
 * guard bytes, every pointer of the call translated, and the buffers copied back. */
#ifndef CMOE_CLI_MIRROR_H
#define CMOE_CLI_MIRROR_H

#include "cli/gen.h"

struct cli_mirror {
    cmoe_device *dev;
    const struct gen_call *call;
    void **base;               /* device memory of each of the call's blocks */
    cmoe_weights_desc weights; /* tables in host memory, pointing to the device */
    cmoe_tensors tensors;
};

/* Copy all blocks and translate. @return the library's status. */
cmoe_status cli_mirror_open(cmoe_device *dev, const struct gen_call *call, struct cli_mirror *out);
/* Copy all blocks as they are now on the host (outputs poisoned, y restored). */
cmoe_status cli_mirror_send(struct cli_mirror *mirror);
/* Copy all blocks back; *damage is NULL, or what lay between them was changed. */
cmoe_status cli_mirror_fetch(struct cli_mirror *mirror, const char **damage);
void cli_mirror_close(struct cli_mirror *mirror);

#endif
