/* SPDX-License-Identifier: Apache-2.0
 *
 * Lines of pixels, 64 channels of them: products by any taps, by 3 x 3 taps that neighbours share, and maxima.
 */
#ifndef INTONLY_WINDOW_X86_AVX512VNNI_LINES_H
#define INTONLY_WINDOW_X86_AVX512VNNI_LINES_H

#include "kernels/window/x86_avx512vnni.h"
#include "kernels/x86_avx512_plain.h"

#ifdef __AVX512VNNI__

/* A step on its way. Taps are in groups of four; those of the last group that are missing have weight 0. */
typedef struct window {
    const intonly_window *step;
    const int64_t *offsets; /* [4 * groups] */
    int64_t groups, last_group[4];
    int has_last_group;
    int64_t weights_step; /* bytes between the weights of groups: 256, or 0 where all are 1 */
    int fast;             /* the epilogue runs on registers; else by the plain law, on a copy */
    int joins;            /* whether a residual does */
    narrow_scalars narrow;
    plain_end end;
} window;

/* Up to 64 channels, and where they are in a line of pixels. */
typedef struct window_panel {
    const panel_constants *constants;
    const int8_t *weights, *last_weights;
    int64_t channels;
    const uint8_t *x, *residual;
    uint8_t *y;
} window_panel;

/* Four vectors in slot order. */
typedef struct quad {
    __m512i a, b, c, d;
} quad;

ALWAYS_INLINE __m512i channels_at(const uint8_t *p, int64_t channels) {
    return channels == 64 ? load64(p) : _mm512_maskz_loadu_epi8(first_bytes(channels), p);
}

/* Return the codes of four taps side by side. */
ALWAYS_INLINE quad interleave(__m512i t0, __m512i t1, __m512i t2, __m512i t3) {
    const __m512i lo01 = _mm512_unpacklo_epi8(t0, t1), hi01 = _mm512_unpackhi_epi8(t0, t1);
    const __m512i lo23 = _mm512_unpacklo_epi8(t2, t3), hi23 = _mm512_unpackhi_epi8(t2, t3);
    return (quad){_mm512_unpacklo_epi16(lo01, lo23), _mm512_unpackhi_epi16(lo01, lo23),
                  _mm512_unpacklo_epi16(hi01, hi23), _mm512_unpackhi_epi16(hi01, hi23)};
}

ALWAYS_INLINE quad load_quad(const void *p) {
    const uint8_t *bytes = p;
    return (quad){load64(bytes), load64(bytes + 64), load64(bytes + 128), load64(bytes + 192)};
}

ALWAYS_INLINE quad dot_quad(quad acc, quad codes, quad w) {
    return (quad){_mm512_dpbusd_epi32(acc.a, codes.a, w.a), _mm512_dpbusd_epi32(acc.b, codes.b, w.b),
                  _mm512_dpbusd_epi32(acc.c, codes.c, w.c), _mm512_dpbusd_epi32(acc.d, codes.d, w.d)};
}

/* Finish and store one pixel. */
ALWAYS_INLINE void finish_pixel(const window *v, const window_panel *p, int64_t channels, const uint8_t *residual,
                                uint8_t *y, quad acc) {
    if (v->fast) {
        const narrow_constants *k = &p->constants->narrow;
        narrow_pair u = narrow_scale(&v->narrow, k, acc.a, acc.b, acc.c, acc.d);
        if (v->joins) u = narrow_join(&v->narrow, k, u, channels_at(residual, channels));
        _mm512_mask_storeu_epi8(y, first_bytes(channels), narrow_codes(&v->narrow, u));
    } else {
        int32_t kept[64];
        _mm512_storeu_si512(kept, acc.a);
        _mm512_storeu_si512(kept + 16, acc.b);
        _mm512_storeu_si512(kept + 32, acc.c);
        _mm512_storeu_si512(kept + 48, acc.d);
        plain_finish(&v->end, kept, 4, channels, residual, y);
    }
}

ALWAYS_INLINE quad add_group(quad acc, const uint8_t *x, const int64_t *offsets, int64_t channels, const int8_t *w) {
    const quad codes = interleave(channels_at(x + offsets[0], channels), channels_at(x + offsets[1], channels),
                                  channels_at(x + offsets[2], channels), channels_at(x + offsets[3], channels));
    return dot_quad(acc, codes, load_quad(w));
}

/* `count` pixels by any taps. channels: p->channels, which the compiler may know. */
ALWAYS_INLINE void line_of_any(const window *v, const window_panel *p, int64_t count, int64_t channels) {
    const intonly_window *s = v->step;
    const uint8_t *x = p->x, *residual = p->residual;
    uint8_t *y = p->y;
    for (; count > 0; --count, x += s->x_w, y += s->y_w) {
        const int8_t *w = p->weights;
        quad acc = load_quad(p->constants->narrow.bias);
        for (int64_t group = 0; group < v->groups; ++group, w += v->weights_step)
            acc = add_group(acc, x, v->offsets + 4 * group, channels, w);
        if (v->has_last_group) acc = add_group(acc, x, v->last_group, channels, p->last_weights);
        finish_pixel(v, p, channels, residual, y, acc);
        if (v->joins) residual += s->r_w;
    }
}

static void window_line(const window *v, const window_panel *p, int64_t count) {
    if (p->channels == 64)
        line_of_any(v, p, count, 64);
    else
        line_of_any(v, p, count, p->channels);
}

/* Return whether taps are the 3 x 3 neighbours of a pixel, and columns are shared: x_w is one column or two. */
static inline int window_shares_columns(const intonly_window *s, const int64_t *offsets) {
    if (s->taps != 9) return 0;
    const int64_t down = offsets[3] - offsets[0], right = offsets[1] - offsets[0];
    for (int64_t i = 0; i < 9; ++i) {
        const int64_t row = i < 3 ? 0 : i < 6 ? 1 : 2;
        if (offsets[i] != offsets[0] + row * down + (i - 3 * row) * right) return 0;
    }
    return s->x_w == right || s->x_w == 2 * right;
}

/* 3 x 3 taps. A column of three codes is interleaved once, and serves up to three pixels: c0, c1 and c2 are the present
 * columns in some order. */
#define COLUMN(c)                                                                                                      \
    c = interleave(channels_at(x, channels), channels_at(x + down, channels), channels_at(x + 2 * down, channels),     \
                   _mm512_setzero_si512());                                                                            \
    x += right;
#define PIXEL(left, middle, right_)                                                                                    \
    finish_pixel(v, p, channels, NULL, y,                                                                              \
                 dot_quad(dot_quad(dot_quad(load_quad(bias), left, w0), middle, w1), right_, w2));                     \
    y += y_w;

ALWAYS_INLINE void line_of_columns(const window *v, const window_panel *p, int64_t count, int64_t channels) {
    const intonly_window *s = v->step;
    const int64_t right = v->offsets[4] - v->offsets[0], down = v->offsets[1] - v->offsets[0], y_w = s->y_w;
    const int32_t *bias = p->constants->narrow.bias;
    const quad w0 = load_quad(p->weights), w1 = load_quad(p->weights + 256), w2 = load_quad(p->weights + 512);
    const uint8_t *x = p->x + v->offsets[0];
    uint8_t *y = p->y;
    quad c0, c1, c2;
    COLUMN(c0)
    if (s->x_w == right) {
        COLUMN(c1)
        for (; count >= 3; count -= 3) {
            COLUMN(c2) PIXEL(c0, c1, c2)
            COLUMN(c0) PIXEL(c1, c2, c0)
            COLUMN(c1) PIXEL(c2, c0, c1)
        }
        if (count >= 1) { COLUMN(c2) PIXEL(c0, c1, c2) }
        if (count >= 2) { COLUMN(c0) PIXEL(c1, c2, c0) }
    } else {
        for (; count >= 2; count -= 2) {
            COLUMN(c1) COLUMN(c2) PIXEL(c0, c1, c2)
            COLUMN(c1) COLUMN(c0) PIXEL(c2, c1, c0)
        }
        if (count >= 1) { COLUMN(c1) COLUMN(c2) PIXEL(c0, c1, c2) }
    }
}

static void window_line_3x3(const window *v, const window_panel *p, int64_t count) {
    if (p->channels == 64)
        line_of_columns(v, p, count, 64);
    else
        line_of_columns(v, p, count, p->channels);
}

/* The largest code of any taps. */
static void window_line_of_maxima(const window *v, const window_panel *p, int64_t count) {
    const intonly_window *s = v->step;
    const uint8_t *x = p->x;
    uint8_t *y = p->y;
    for (; count > 0; --count, x += s->x_w, y += s->y_w) {
        __m512i most = channels_at(x + v->offsets[0], p->channels);
        for (int64_t t = 1; t < s->taps; ++t)
            most = _mm512_max_epu8(most, channels_at(x + v->offsets[t], p->channels));
        _mm512_mask_storeu_epi8(y, first_bytes(p->channels), most);
    }
}

#endif
#endif
