/* SPDX-License-Identifier: Apache-2.0
 *
 * The window step on AVX2.
 *
 * Depthwise products: the codes of two taps are interleaved and widened to int16, and vpmaddwd adds both products in 32
 * bits. Sums: at most 257 codes are added in 16 bits before they are widened; their constants are gathered for a line,
 * or for a pixel where they vary along it.
 */
#include "kernels/window/x86_avx2.h"

#include "kernels/window/window.h"
#include "kernels/window/x86_256.h"

#define IN_GROUP 1

size_t intonly_depthwise_size_avx2(const intonly_weights *weights) { return window_size(weights, IN_GROUP); }

void intonly_depthwise_pack_avx2(const intonly_weights *weights, uint8_t *packed) {
    window_pack(weights, IN_GROUP, packed);
}

int intonly_depthwise_accepts_avx2(const intonly_window *step, const uint8_t *packed) {
    return window_accepts(step, IN_GROUP, packed);
}

ALWAYS_INLINE sums32 add_group(sums32 s, tap_group x, const uint8_t *w) {
    const __m256i none = _mm256_setzero_si256();
    const __m256i low = _mm256_unpacklo_epi8(x.t0, x.t1), high = _mm256_unpackhi_epi8(x.t0, x.t1);
    s.s0 = _mm256_add_epi32(s.s0, _mm256_madd_epi16(_mm256_unpacklo_epi8(low, none), load32(w)));
    s.s1 = _mm256_add_epi32(s.s1, _mm256_madd_epi16(_mm256_unpackhi_epi8(low, none), load32(w + 32)));
    s.s2 = _mm256_add_epi32(s.s2, _mm256_madd_epi16(_mm256_unpacklo_epi8(high, none), load32(w + 64)));
    s.s3 = _mm256_add_epi32(s.s3, _mm256_madd_epi16(_mm256_unpackhi_epi8(high, none), load32(w + 96)));
    return s;
}

/* data: the first panel of the packed form. */
static void weigh(const window *v, const line *l, int64_t channel, int64_t channels, const void *data) {
    weigh_panel(v, l, channel, channels, data, IN_GROUP);
}

/* The constants of a sum. */
typedef struct sum_constants {
    const int32_t *bias, *multiplier;
    const int8_t *shift;
} sum_constants;

/* Gather those of a panel at a pixel. Return whether vectors may finish it: no sum overflows on the way. */
static int gather(const window *v, const sum_constants *from, int64_t at, int64_t channel, int64_t channels,
                  panel_constants *k) {
    const int64_t form = v->step->form, most = v->step->taps * 255;
    int fits = 1;
    memset(k, 0, 2 * sizeof *k);
    for (int64_t c = 0; c < channels; ++c, at += v->step->constant_c) {
        const int32_t bias = from->bias == NULL ? 0 : from->bias[channel + c];
        const intonly_weights one = {.bias = &bias,
                                     .form = form,
                                     .multiplier = form == INTONLY_FORM_ACC ? NULL : from->multiplier + at,
                                     .shift = form == INTONLY_FORM_ACC ? NULL : from->shift + at,
                                     .channels = 1,
                                     .acc_limit = (bias < 0 ? -(int64_t)bias : bias) + most};
        panel_pack(&one, 0, c & 15, c & 15, k + (c >> 4));
        if (form == INTONLY_FORM_NARROW && !narrow_summarize(&one).fits) fits = 0;
    }
    if (channels <= 16) k[1] = k[0];
    return fits;
}

/* Return sums with the codes of a unit added. */
ALWAYS_INLINE sums32 add_up(const window *v, sums32 s, const unit *u) {
    const __m256i none = _mm256_setzero_si256();
    const int64_t taps = v->step->taps;
    for (int64_t t = 0; t < taps;) {
        const int64_t end = t + 257 < taps ? t + 257 : taps;
        __m256i low = none, high = none;
        for (; t < end; ++t) {
            const __m256i x = unit_codes(u, v->offsets[t]);
            low = _mm256_add_epi16(low, _mm256_unpacklo_epi8(x, none));
            high = _mm256_add_epi16(high, _mm256_unpackhi_epi8(x, none));
        }
        s.s0 = _mm256_add_epi32(s.s0, _mm256_unpacklo_epi16(low, none));
        s.s1 = _mm256_add_epi32(s.s1, _mm256_unpackhi_epi16(low, none));
        s.s2 = _mm256_add_epi32(s.s2, _mm256_unpacklo_epi16(high, none));
        s.s3 = _mm256_add_epi32(s.s3, _mm256_unpackhi_epi16(high, none));
    }
    return s;
}

/* Sum pixels first..end of a panel of a line, which have the same constants. */
ALWAYS_INLINE void sum_pixels(const window *v, const line *l, const sum_constants *from, int64_t first, int64_t end,
                              int64_t channel, int64_t channels, int wide, int slack) {
    const intonly_window *s = v->step;
    const int64_t at = l->i * s->constant_h + first * s->constant_w + channel * s->constant_c;
    panel_constants k[2];
    finish f = v->finish;
    if (!gather(v, from, at, channel, channels, k)) f.fast = 0;
    const lanes n = lanes_of_columns(k, k + 1);
    const sums32 bias = unit_bias(k);
    unit next = unit_at(v, l, first, channel, channels, wide, slack);
    for (int64_t j = first; j < end; j += wide ? 1 : 2) {
        const unit u = !wide && j + 1 == end ? unit_alone(next) : next;
        unit_finish(&f, &n, k, &u, add_up(v, bias, &u));
        unit_move(s, wide ? 1 : 2, &next);
    }
}

/* data: the sum_constants. */
static void sum(const window *v, const line *l, int64_t channel, int64_t channels, const void *data) {
    const int64_t ow = v->step->ow, run = v->step->constant_w == 0 ? ow : 1;
    for (int64_t j = 0; j < ow; j += run) {
        if (channels == 32 || (v->slack && channels > 16))
            sum_pixels(v, l, data, j, j + run, channel, channels, 1, 1);
        else
            sum_pixels(v, l, data, j, j + run, channel, channels, channels > 16, channels == 16 || v->slack);
    }
}

/* Take the maxima of a panel of a line. */
ALWAYS_INLINE void max_pixels(const window *v, const line *l, int64_t channel, int64_t channels, int wide, int slack) {
    const int64_t ow = v->step->ow, taps = v->step->taps, *offsets = v->offsets;
    unit next = unit_at(v, l, 0, channel, channels, wide, slack);
    for (int64_t j = 0; j < ow; j += wide ? 1 : 2) {
        const unit u = !wide && j + 1 == ow ? unit_alone(next) : next;
        __m256i most = unit_codes(&u, offsets[0]);
        for (int64_t t = 1; t < taps; ++t) most = _mm256_max_epu8(most, unit_codes(&u, offsets[t]));
        unit_store(&u, most);
        unit_move(v->step, wide ? 1 : 2, &next);
    }
}

static void max(const window *v, const line *l, int64_t channel, int64_t channels, const void *data) {
    (void)data;
    if (channels == 32)
        max_pixels(v, l, channel, 32, 1, 1);
    else
        max_pixels(v, l, channel, channels, channels > 16, channels == 16 || v->slack);
}

void intonly_window_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_window *s = step;
    const narrow_summary any = {.fits = 1, .left = 1};
    const int bytes = s->x_type == INTONLY_U8 && s->y_type == INTONLY_U8;
    if (s->op == INTONLY_SUM_PRODUCTS) {
        window_run_packed(s, bases, part, parts, weigh);
    } else if (s->op == INTONLY_SUM && s->x_type == INTONLY_U8) {
        const sum_constants constants = {.bias = intonly_int32_at(bases, s->bias),
                                         .multiplier = intonly_int32_at(bases, s->multiplier),
                                         .shift = intonly_int8_at(bases, s->shift)};
        window_run(s, bases, part, parts, 0, &any, sum, &constants);
    } else if (s->op == INTONLY_MAX && bytes && s->form == INTONLY_FORM_ACC) {
        window_run(s, bases, part, parts, 0, &any, max, NULL);
    } else {
        intonly_window_ref(step, bases, part, parts);
    }
}
