/* SPDX-License-Identifier: MIT */
/*
 * The version of these headers. The build compares it with its own; cmoe_version() tells the
 * library's.
 */
#ifndef CMOE_VERSION_H
#define CMOE_VERSION_H

#define CMOE_VERSION_MAJOR  0
#define CMOE_VERSION_MINOR  1
#define CMOE_VERSION_PATCH  0
#define CMOE_VERSION_STRING "0.1.0"

#endif
