// SPDX-License-Identifier: Apache-2.0
//
// The C headers of the engine, as C++ sees them.
#pragma once

extern "C" {
#include "exec/exec.h"
#include "exec/program.h"
#include "intonly.h"
#include "kernels/attention/scratch.h"
#include "kernels/kernels.h"
}
