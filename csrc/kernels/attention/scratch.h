/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the kernels of attention keep keys, values, scores and weights: memory that the program reserves for each part of
 * a step, because threads with small stacks run it.
 */
#ifndef INTONLY_ATTENTION_SCRATCH_H
#define INTONLY_ATTENTION_SCRATCH_H

#include <stdint.h>

#include "exec/program.h"

/* Return n rounded up to a multiple of `to`, a power of 2. */
static inline int64_t attention_padded(int64_t n, int64_t to) { return (n + to - 1) & -to; }

/* Return the bytes of a part, a multiple of 64, that are enough for every instruction set: keys and values of up to two
 * bytes, and 64 bytes of scores and weights for each key. */
static inline int64_t intonly_attention_scratch(int64_t keys, int64_t depth, int64_t width) {
    const int64_t k = attention_padded(keys, 64);
    return 2 * k * (attention_padded(depth, 32) + attention_padded(width, 32)) + 64 * k + 1024;
}

#endif
