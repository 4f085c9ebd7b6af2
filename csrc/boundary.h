/* SPDX-License-Identifier: Apache-2.0
 *
 * Where real numbers become codes, before the integer program starts. This header, its source and its binding are the
 * only C files of the project that know a float.
 */
#ifndef INTONLY_BOUNDARY_H
#define INTONLY_BOUNDARY_H

#include <stddef.h>
#include <stdint.h>

#include "intonly.h"

/* code = clamp(floor((x - mean) / std / scale + 1/2) + zero_point, lo, hi), each operation in double precision, rounded
 * to nearest.
 *
 * x is an array [outer][channels][inner]; mean and std have one entry for each channel. */
typedef struct intonly_boundary {
    double scale;       /* positive, finite */
    const double *mean; /* [channels], finite */
    const double *std;  /* [channels], positive, finite */
    size_t channels;    /* at least 1 */
    size_t inner;       /* at least 1 */
    int32_t zero_point;
    int64_t lo; /* lo <= hi, both within the type of the codes */
    int64_t hi;
} intonly_boundary;

/* Write the codes of `count` reals. Return 1, or 0 when one of them is NaN: the codes are then unspecified.
 *
 * x: float, or double where x_is_double; it may stand at any byte address. count: a multiple of channels * inner. type:
 * any but INTONLY_S64. Infinities saturate. Exactness: bit-exact. */
int intonly_codes_of_reals(const intonly_boundary *boundary, const void *x, int x_is_double, size_t count, void *codes,
                           intonly_type type);

#endif
