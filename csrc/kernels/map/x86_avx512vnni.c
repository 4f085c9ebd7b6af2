/* SPDX-License-Identifier: Apache-2.0
 *
 * Four registers hold a table of 256 bytes: two look-ups among 128 entries each, and the upper bit chooses.
 */
#include "kernels/map/x86_avx512vnni.h"

#include <immintrin.h>

#include "kernels/map/narrow_rows.h"
#include "kernels/map/table.h"
#include "kernels/map/x86_avx512vnni_wide.h"

static inline __m512i looked_up(const __m512i *quarter, __m512i bytes) {
    const __m512i lower = _mm512_permutex2var_epi8(quarter[0], bytes, quarter[1]);
    const __m512i upper = _mm512_permutex2var_epi8(quarter[2], bytes, quarter[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), lower, upper);
}

void intonly_look_up_avx512vnni(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count) {
    __m512i quarter[4];
    for (int k = 0; k < 4; ++k) quarter[k] = _mm512_loadu_si512(table + 64 * k);
    for (; count >= 64; count -= 64, x += 64, y += 64)
        _mm512_storeu_si512(y, looked_up(quarter, _mm512_loadu_si512(x)));
    const __mmask64 rest = (UINT64_C(1) << count) - 1;
    if (rest != 0) _mm512_mask_storeu_epi8(y, rest, looked_up(quarter, _mm512_maskz_loadu_epi8(rest, x)));
}

void intonly_map_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_map *s = (const intonly_map *)step;
    if (is_wide_rows(s))
        wide_rows(s, bases, part, parts);
    else
        intonly_map_by_table(s, bases, part, parts, intonly_look_up_avx512vnni, map_rows);
}
