/* SPDX-License-Identifier: Apache-2.0
 *
 * A tile of products with NEON: pairs of 16-bit codes, sums in 32 bits (contract/matrices.h).
 */
#ifndef INTONLY_CONTRACT_ARM_NEON_TILE_H
#define INTONLY_CONTRACT_ARM_NEON_TILE_H

#include <stdint.h>
#include <string.h>

#include "kernels/contract/matrices.h"

#if defined(__ARM_NEON)
#include <arm_neon.h>

#define PRODUCT_TILE product_tile
enum { TILE_ROWS = 4 };

static void product_tile(int16_t left[TILE_ROWS][DEPTH], int16_t panel[DEPTH / 2][COLUMNS][2], int64_t pairs,
                         int32_t sums[TILE_ROWS][COLUMNS]) {
    for (int column = 0; column < COLUMNS; column += 8) {
        int32x4_t low[TILE_ROWS], high[TILE_ROWS];
        for (int r = 0; r < TILE_ROWS; ++r) low[r] = high[r] = vdupq_n_s32(0);
        for (int64_t p = 0; p < pairs; ++p) {
            const int16x8x2_t both = vld2q_s16(panel[p][column]);
            for (int r = 0; r < TILE_ROWS; ++r) {
                const int16_t even = left[r][2 * p], odd = left[r][2 * p + 1];
                low[r] = vmlal_n_s16(low[r], vget_low_s16(both.val[0]), even);
                high[r] = vmlal_n_s16(high[r], vget_high_s16(both.val[0]), even);
                low[r] = vmlal_n_s16(low[r], vget_low_s16(both.val[1]), odd);
                high[r] = vmlal_n_s16(high[r], vget_high_s16(both.val[1]), odd);
            }
        }
        for (int r = 0; r < TILE_ROWS; ++r) {
            vst1q_s32(sums[r] + column, low[r]);
            vst1q_s32(sums[r] + column + 4, high[r]);
        }
    }
}

#endif

#endif
