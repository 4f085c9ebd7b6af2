/* SPDX-License-Identifier: Apache-2.0
 *
 * A tile of products with AVX2: pairs of 16-bit codes, sums in 32 bits (contract/matrices.h).
 */
#ifndef INTONLY_CONTRACT_X86_AVX2_TILE_H
#define INTONLY_CONTRACT_X86_AVX2_TILE_H

#include <stdint.h>
#include <string.h>

#include "kernels/contract/matrices.h"

#if defined(__AVX2__)
#include <immintrin.h>

#define PRODUCT_TILE product_tile
enum { TILE_ROWS = 4 };

enum { HALF = COLUMNS / 2, QUARTER = COLUMNS / 4 };

static inline __m256i add_pairs(__m256i sums, __m256i a, __m256i b) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
}

static void product_tile(int16_t left[TILE_ROWS][DEPTH], int16_t panel[DEPTH / 2][COLUMNS][2], int64_t pairs,
                         int32_t sums[TILE_ROWS][COLUMNS]) {
    for (int half = 0; half < COLUMNS; half += HALF) {
        __m256i low[TILE_ROWS], high[TILE_ROWS];
        for (int r = 0; r < TILE_ROWS; ++r) low[r] = high[r] = _mm256_setzero_si256();
        for (int64_t p = 0; p < pairs; ++p) {
            const __m256i first = _mm256_load_si256((const __m256i *)(const void *)(panel[p] + half));
            const __m256i second = _mm256_load_si256((const __m256i *)(const void *)(panel[p] + half + QUARTER));
            for (int r = 0; r < TILE_ROWS; ++r) {
                int32_t pair;
                memcpy(&pair, left[r] + 2 * p, sizeof pair);
                low[r] = add_pairs(low[r], first, _mm256_set1_epi32(pair));
                high[r] = add_pairs(high[r], second, _mm256_set1_epi32(pair));
            }
        }
        for (int r = 0; r < TILE_ROWS; ++r) {
            _mm256_storeu_si256((__m256i *)(void *)(sums[r] + half), low[r]);
            _mm256_storeu_si256((__m256i *)(void *)(sums[r] + half + QUARTER), high[r]);
        }
    }
}

#endif

#endif
