/* SPDX-License-Identifier: MIT
 * cmoe: Mixture-of-Experts operators. Everything except file formats (cmoe/io.h). */
#ifndef CMOE_CMOE_H
#define CMOE_CMOE_H

#include <cmoe/abi.h>
#include <cmoe/context.h>
#include <cmoe/convert.h>
#include <cmoe/observe.h>
#include <cmoe/plan.h>
#include <cmoe/probe.h>
#include <cmoe/problem.h>
#include <cmoe/record.h>
#include <cmoe/reference.h>
#include <cmoe/status.h>
#include <cmoe/stream.h>
#include <cmoe/types.h>
#include <cmoe/version.h>
#include <cmoe/weights.h>

#endif
