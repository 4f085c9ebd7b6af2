/* SPDX-License-Identifier: Apache-2.0
 *
 * Which contractions are products of matrices: one operand does not vary along the last axis of the output, the other
 * not along the last but one, as in attention. Both may lie in any order in memory.
 */
#ifndef INTONLY_CONTRACT_MATRICES_H
#define INTONLY_CONTRACT_MATRICES_H

#include <stdint.h>

#include "exec/program.h"
#include "intonly.h"

enum { OUTER = INTONLY_RANK - 2, INNER = INTONLY_RANK - 1 }; /* the rows and the columns of a product */
enum { DEPTH = 256, COLUMNS = 32 };                          /* most products that are summed at once; outputs of a tile */
enum { LEAST_DEPTH = 16, LEAST_SUMMED = 8, LEAST_ROWS = 4, LEAST_COLUMNS = 8 };

/* Codes of an operand as 16 bits hold them. */
typedef struct fitted {
    int64_t base;  /* is subtracted from each code: the zero point where 16 bits hold the result, else less or more */
    int64_t rest;  /* of the zero point */
    int64_t reach; /* no magnitude of what is left exceeds this; 0 = 16 bits hold no codes of this type */
} fitted;

static inline fitted fitted_of(int64_t type, int64_t zero) {
    static const int64_t lowest[] = {INT8_MIN, 0, INT16_MIN, 0};
    static const int64_t highest[] = {INT8_MAX, UINT8_MAX, INT16_MAX, UINT16_MAX};
    fitted f = {0, zero, 0};
    if (type > INTONLY_U16) return f;
    const int fits = lowest[type] - zero >= INT16_MIN && highest[type] - zero <= INT16_MAX;
    f.base = fits ? zero : type == INTONLY_U16 ? -(int64_t)INT16_MIN : 0;
    f.rest = zero - f.base;
    const int64_t least = lowest[type] - f.base, most = highest[type] - f.base;
    f.reach = -least > most ? -least : most;
    return f;
}

/* Return how many products can be summed in 32 bits at once; 0 = too few. */
static inline int64_t depth_of(const intonly_contract *s) {
    const int64_t most = fitted_of(s->a_type, s->a_zero).reach * fitted_of(s->b_type, s->b_zero).reach;
    int64_t depth = DEPTH;
    while (depth * most > INT32_MAX) depth >>= 1;
    return most == 0 || depth < LEAST_DEPTH ? 0 : depth;
}

/* Return whether a step is a product of matrices that is worth the copies. */
static inline int is_product(const intonly_contract *s) {
    if (s->op != INTONLY_SUM_PRODUCTS || s->b_ref < 0 || s->a_strides[INNER] != 0 || s->b_strides[OUTER] != 0) return 0;
    int64_t summed = 1;
    for (int axis = 0; axis < INTONLY_REDUCED; ++axis) summed *= s->reduced[axis];
    return s->extent[OUTER] >= LEAST_ROWS && s->extent[INNER] >= LEAST_COLUMNS && summed >= LEAST_SUMMED &&
           depth_of(s) != 0;
}

#endif
