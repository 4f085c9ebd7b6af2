/* SPDX-License-Identifier: Apache-2.0
 *
 * A table of 256 bytes is 16 rows of 16: each row is looked up by the lower four bits, and the upper four choose among
 * the rows, one bit after the other. A shuffle has to see an upper bit of 0, a blend looks at the upper bit alone.
 */
#include "kernels/map/x86_avx2.h"

#include <immintrin.h>

#include "kernels/map/narrow_rows.h"
#include "kernels/map/table.h"

static inline __m256i row(const uint8_t *table, int k, __m256i lower) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(table + 16 * k))), lower);
}

/* Return what the rows k..k+3 give, chosen by bits 4 and 5. */
static inline __m256i four_rows(const uint8_t *table, int k, __m256i lower, __m256i bit4, __m256i bit5) {
    const __m256i a = _mm256_blendv_epi8(row(table, k, lower), row(table, k + 1, lower), bit4);
    const __m256i b = _mm256_blendv_epi8(row(table, k + 2, lower), row(table, k + 3, lower), bit4);
    return _mm256_blendv_epi8(a, b, bit5);
}

static inline __m256i looked_up(const uint8_t *table, __m256i x) {
    const __m256i lower = _mm256_and_si256(x, _mm256_set1_epi8(15));
    const __m256i bit4 = _mm256_slli_epi16(x, 3), bit5 = _mm256_slli_epi16(x, 2), bit6 = _mm256_slli_epi16(x, 1);
    const __m256i a = _mm256_blendv_epi8(four_rows(table, 0, lower, bit4, bit5),
                                         four_rows(table, 4, lower, bit4, bit5), bit6);
    const __m256i b = _mm256_blendv_epi8(four_rows(table, 8, lower, bit4, bit5),
                                         four_rows(table, 12, lower, bit4, bit5), bit6);
    return _mm256_blendv_epi8(a, b, x);
}

void intonly_look_up_avx2(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count) {
    for (; count >= 32; count -= 32, x += 32, y += 32)
        _mm256_storeu_si256((void *)y, looked_up(table, _mm256_loadu_si256((const void *)x)));
    intonly_look_up_ref(table, x, y, count);
}

void intonly_map_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    intonly_map_by_table(step, bases, part, parts, intonly_look_up_avx2, map_rows);
}
