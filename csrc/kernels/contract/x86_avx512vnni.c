/* SPDX-License-Identifier: Apache-2.0
 *
 * contract with AVX-512: products of matrices by pairs of 16-bit codes; all else is any.h on vectors.
 */
#include "kernels/contract/x86_avx512vnni.h"

#include <immintrin.h>

#define PRODUCT_TILE product_tile
#define TILE_ROWS 8
#include "kernels/contract/products.h"

static void product_tile(int16_t left[TILE_ROWS][DEPTH], int16_t panel[DEPTH / 2][COLUMNS][2], int64_t pairs,
                         int32_t sums[TILE_ROWS][COLUMNS]) {
    __m512i low[TILE_ROWS], high[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; ++r) low[r] = high[r] = _mm512_setzero_si512();
    for (int64_t p = 0; p < pairs; ++p) {
        const __m512i first = _mm512_load_si512(panel[p]), second = _mm512_load_si512(panel[p] + COLUMNS / 2);
        for (int r = 0; r < TILE_ROWS; ++r) {
            int32_t pair;
            memcpy(&pair, left[r] + 2 * p, sizeof pair);
            low[r] = _mm512_dpwssd_epi32(low[r], first, _mm512_set1_epi32(pair));
            high[r] = _mm512_dpwssd_epi32(high[r], second, _mm512_set1_epi32(pair));
        }
    }
    for (int r = 0; r < TILE_ROWS; ++r) {
        _mm512_storeu_si512(sums[r], low[r]);
        _mm512_storeu_si512(sums[r] + COLUMNS / 2, high[r]);
    }
}

void intonly_contract_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_contract *s = (const intonly_contract *)step;
    if (is_product(s))
        contract_products(s, bases, part, parts);
    else
        contract_any(step, bases, part, parts);
}
