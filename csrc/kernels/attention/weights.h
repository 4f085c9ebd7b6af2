/* SPDX-License-Identifier: Apache-2.0
 *
 * From the distance between a score and the largest of its row to a weight: 255 * 2^(-distance in octaves), and from a
 * sum of weights to its reciprocal. Normative: core/composites.py, softmax_weights and weighted_mean.
 */
#ifndef INTONLY_ATTENTION_WEIGHTS_H
#define INTONLY_ATTENTION_WEIGHTS_H

#include <stdint.h>

#include "arith.h"

enum {
    WEIGHT_NEAR = INT16_MAX,          /* distances are cut to 15 bits */
    WEIGHT_FARTHEST = 10 * 1024 - 1,  /* in 1024ths of octaves: from here on a weight is 0 */
    WEIGHT_LARGEST = 255,
    MEAN_BITS = 22,
    RECIPROCAL_BITS = 38,
};

/* round(255 * 128 * 2^(-i / 32)) */
static const int16_t weight_octave[32] = {32640, 31941, 31256, 30586, 29931, 29290, 28662, 28048, 27447, 26859, 26283,
                                          25720, 25169, 24630, 24102, 23585, 23080, 22585, 22101, 21628, 21164, 20711,
                                          20267, 19833, 19408, 18992, 18585, 18187, 17797, 17416, 17043, 16677};

/* round(2^(15 - i / 1024)), the first less 1 */
static const int16_t weight_fine[32] = {32767, 32746, 32724, 32702, 32679, 32657, 32635, 32613, 32591, 32569, 32547,
                                        32525, 32503, 32481, 32459, 32437, 32415, 32393, 32371, 32349, 32327, 32306,
                                        32284, 32262, 32240, 32218, 32196, 32175, 32153, 32131, 32109, 32088};

/* Return the weight of a score that is `difference` >= 0 below the largest. */
static inline int32_t weight_of(int64_t difference, int64_t shift, int32_t multiplier) {
    const int64_t moved = shift >= 0 ? (difference + ((INT64_C(1) << shift) >> 1)) >> shift : difference << -shift;
    const int32_t near = (int32_t)intonly_clamp(moved, 0, WEIGHT_NEAR);
    const int32_t scaled = (near * multiplier + (1 << 14)) >> 15;
    const int32_t distance = scaled < WEIGHT_FARTHEST ? scaled : WEIGHT_FARTHEST;
    const int32_t coarse = weight_octave[distance >> 5 & 31] >> (distance >> 10);
    return (((coarse * weight_fine[distance & 31] + (1 << 14)) >> 15) + 64) >> 7;
}

/* Return floor(2^38 / total) of several totals, 255 to 2^31 each, by restoring division side by side. */
static inline void weight_reciprocals(const int32_t *total, int count, int32_t *reciprocal) {
    int64_t rest[16], quotient[16];
    for (int r = 0; r < count; ++r) {
        rest[r] = INT64_C(1) << (RECIPROCAL_BITS - 31); /* below 255 */
        quotient[r] = 0;
    }
    for (int bit = 0; bit < 31; ++bit) {
        for (int r = 0; r < count; ++r) {
            const int64_t twice = rest[r] * 2, takes = -(int64_t)(twice >= total[r]);
            rest[r] = twice - (total[r] & takes);
            quotient[r] = quotient[r] * 2 - takes;
        }
    }
    for (int r = 0; r < count; ++r) reciprocal[r] = (int32_t)quotient[r];
}

/* Return a sum of weighted codes, over the sum of the weights, in units of 2^-22. */
static inline int64_t weight_mean(int64_t acc, int32_t reciprocal) {
    return intonly_shift_floor(acc * reciprocal, RECIPROCAL_BITS - MEAN_BITS);
}

#endif
