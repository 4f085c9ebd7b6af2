/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast a core can multiply and add 8-bit integers at all, with every operand in a register: the yardstick of
 * benchmarks. Not part of any network.
 */
#ifndef INTONLY_PEAK_H
#define INTONLY_PEAK_H

#include <stdint.h>

#include "kernels/kernels.h"

/* Run `iterations` rounds of the best dot-product instruction of an instruction set, and return how many multiply-
 * accumulates that were; the caller takes the time. 0 = there is no loop for it. The processor must have it. */
int64_t intonly_peak_macs(intonly_isa isa, int64_t iterations);

#endif
