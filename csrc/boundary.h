/* SPDX-License-Identifier: Apache-2.0
 *
 * Where real numbers become integers: at the input of a network that takes floats, and nowhere else. This is the only
 * floating-point arithmetic of the C code; no network contains it.
 */
#ifndef INTONLY_BOUNDARY_H
#define INTONLY_BOUNDARY_H

#include <stddef.h>
#include <stdint.h>

/* y[i] = clamp(floor((double)x[i] / scale + 1/2) + zero_point, lo, hi), exactly; y holds the low byte of the code.
 *
 * Limits: scale > 0; lo, hi and zero_point in -128..255. Return 1, or 0 when an x is not a number (y is then
 * unspecified). */
int intonly_codes_of_reals(const float *x, size_t count, double scale, int32_t zero_point, int32_t lo, int32_t hi,
                           uint8_t *y);

#endif
