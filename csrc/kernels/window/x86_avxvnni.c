/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise convolution on AVX-VNNI: the codes of four taps are interleaved, and vpdpbusd adds their products to a
 * 32-bit sum. Sums and maxima are those of AVX2. For the EVEX form of the instruction see gemm/x86_avxvnni.c.
 */
#include "kernels/window/x86_256.h"
#include "kernels/window/x86_avx2.h"

#define IN_GROUP 2

size_t intonly_depthwise_size_avxvnni(const intonly_weights *weights) { return window_size(weights, IN_GROUP); }

void intonly_depthwise_pack_avxvnni(const intonly_weights *weights, uint8_t *packed) {
    window_pack(weights, IN_GROUP, packed);
}

int intonly_depthwise_accepts_avxvnni(const intonly_window *step, const uint8_t *packed) {
    return window_accepts(step, IN_GROUP, packed);
}

ALWAYS_INLINE sums32 add_group(sums32 s, tap_group x, const uint8_t *w) {
    const __m256i low01 = _mm256_unpacklo_epi8(x.t0, x.t1), high01 = _mm256_unpackhi_epi8(x.t0, x.t1);
    const __m256i low23 = _mm256_unpacklo_epi8(x.t2, x.t3), high23 = _mm256_unpackhi_epi8(x.t2, x.t3);
    s.s0 = add_dot(s.s0, _mm256_unpacklo_epi16(low01, low23), load32(w));
    s.s1 = add_dot(s.s1, _mm256_unpackhi_epi16(low01, low23), load32(w + 32));
    s.s2 = add_dot(s.s2, _mm256_unpacklo_epi16(high01, high23), load32(w + 64));
    s.s3 = add_dot(s.s3, _mm256_unpackhi_epi16(high01, high23), load32(w + 96));
    return s;
}

/* data: the first panel of the packed form. */
static void weigh(const window *v, const line *l, int64_t channel, int64_t channels, const void *data) {
    weigh_panel(v, l, channel, channels, data, IN_GROUP);
}

void intonly_window_avxvnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_window *s = step;
    if (s->op == INTONLY_SUM_PRODUCTS)
        window_run_packed(s, bases, part, parts, weigh);
    else
        intonly_window_avx2(step, bases, part, parts);
}
