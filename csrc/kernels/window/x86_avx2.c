/* SPDX-License-Identifier: Apache-2.0
 *
 * The window step on AVX2: 16 channels of two pixels at a time, along a line.
 *
 * Depthwise products: the codes of two taps are widened to int16 and interleaved, and vpmaddwd adds both products in 32
 * bits. A packed form is a header, then panels of 16 channels, each with its constants before its weights, int16
 * [pairs of taps][16 slots][2]; the last panel is padded with zero weights, and so is the last pair.
 *
 * Sums: at most 257 codes are added in 16 bits before they are widened; their constants are gathered for each line.
 */
#include "kernels/window/x86_avx2.h"

#include "kernels/window/window.h"
#include "kernels/x86_256.h"

#define HEADER 64 /* bytes of the header: a narrow_summary */

static int64_t panels_of(int64_t channels) { return (channels + 15) >> 4; }
static int64_t panel_bytes(int64_t taps) { return (int64_t)sizeof(panel_constants) + ((taps + 1) >> 1) * 64; }
static int64_t form_bytes(int64_t channels, int64_t taps) { return HEADER + panels_of(channels) * panel_bytes(taps); }

size_t intonly_depthwise_size_avx2(const intonly_weights *weights) {
    if (weights->x_signed || weights->acc_limit > INT32_MAX) return 0;
    return (size_t)form_bytes(weights->channels, weights->taps);
}

void intonly_depthwise_pack_avx2(const intonly_weights *weights, uint8_t *packed) {
    const narrow_summary summary = narrow_summarize(weights);
    memset(packed, 0, (size_t)form_bytes(weights->channels, weights->taps));
    memcpy(packed, &summary, sizeof summary);
    for (int64_t c = 0; c < weights->channels; ++c) {
        uint8_t *panel = packed + HEADER + (c >> 4) * panel_bytes(weights->taps);
        panel_pack(weights, c, c & 15, (panel_constants *)(void *)panel);
        int16_t *w = (int16_t *)(void *)(panel + sizeof(panel_constants)) + 2 * slot_of(c & 15);
        for (int64_t t = 0; t < weights->taps; ++t) w[(t >> 1) * 32 + (t & 1)] = weights->w[c * weights->taps + t];
    }
}

int intonly_depthwise_accepts_avx2(const intonly_window *step, const uint8_t *packed) {
    const int64_t limit = step->packed_bytes, panels = panels_of(step->c);
    if (step->x_type != INTONLY_U8 || limit < HEADER || !intonly_product_within(step->taps, panels, limit)) return 0;
    if (form_bytes(step->c, step->taps) != limit) return 0;
    if (!narrow_summary_holds((const narrow_summary *)(const void *)packed)) return 0;
    for (int64_t i = 0; i < panels; ++i) {
        const int64_t left = step->c - i * 16, at = HEADER + i * panel_bytes(step->taps);
        if (!panel_holds(packed, at, left < 16 ? left : 16, step->form, step->r_ref >= 0)) return 0;
    }
    return 1;
}

typedef struct window {
    const intonly_window *step;
    const int64_t *offsets;
    const uint8_t *x, *r, *packed;
    uint8_t *y;
    const int32_t *bias, *multiplier; /* of sums */
    const int8_t *shift;
    finish finish;
    int slack; /* whether 16 channels may be read where there are fewer */
} window;

/* A line of y: pointers to its first pixel, and its place in the constants. */
typedef struct line {
    const uint8_t *x, *r;
    uint8_t *y;
    int64_t constant;
} line;

/* Return 16 codes, of which `channels` are asked for. */
ALWAYS_INLINE __m128i codes_at(const uint8_t *x, int64_t channels, int slack) {
    return slack ? load16(x) : load_some(x, channels);
}

/* The sums of 16 channels: of one pixel in s, of another in t. */
typedef struct sums {
    __m256i s0, s1, t0, t1;
} sums;

/* Return the sums of the products of all taps. */
ALWAYS_INLINE sums weigh(const window *v, const panel_constants *k, const uint8_t *x, const uint8_t *z,
                         int64_t channels, int slack) {
    const int64_t taps = v->step->taps, *offsets = v->offsets;
    const int16_t *w = (const int16_t *)(const void *)(k + 1);
    sums all;
    all.s0 = all.t0 = load32(k->bias);
    all.s1 = all.t1 = load32(k->bias + 8);
    for (int64_t t = 0; t < taps; t += 2, w += 32) {
        const int64_t even = offsets[t], odd = offsets[t + 1 < taps ? t + 1 : t];
        const __m256i w0 = load32(w), w1 = load32(w + 16);
        const __m256i a = _mm256_cvtepu8_epi16(codes_at(x + even, channels, slack));
        const __m256i b = _mm256_cvtepu8_epi16(codes_at(x + odd, channels, slack));
        const __m256i c = _mm256_cvtepu8_epi16(codes_at(z + even, channels, slack));
        const __m256i d = _mm256_cvtepu8_epi16(codes_at(z + odd, channels, slack));
        all.s0 = _mm256_add_epi32(all.s0, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), w0));
        all.s1 = _mm256_add_epi32(all.s1, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), w1));
        all.t0 = _mm256_add_epi32(all.t0, _mm256_madd_epi16(_mm256_unpacklo_epi16(c, d), w0));
        all.t1 = _mm256_add_epi32(all.t1, _mm256_madd_epi16(_mm256_unpackhi_epi16(c, d), w1));
    }
    return all;
}

/* Return the sums of the codes of all taps. */
ALWAYS_INLINE sums add_up(const window *v, const panel_constants *k, const uint8_t *x, const uint8_t *z,
                          int64_t channels, int slack) {
    const __m256i none = _mm256_setzero_si256();
    const int64_t taps = v->step->taps;
    sums all;
    all.s0 = all.t0 = load32(k->bias);
    all.s1 = all.t1 = load32(k->bias + 8);
    for (int64_t t = 0; t < taps;) {
        const int64_t end = t + 257 < taps ? t + 257 : taps;
        __m256i a = none, b = none;
        for (; t < end; ++t) {
            a = _mm256_add_epi16(a, _mm256_cvtepu8_epi16(codes_at(x + v->offsets[t], channels, slack)));
            b = _mm256_add_epi16(b, _mm256_cvtepu8_epi16(codes_at(z + v->offsets[t], channels, slack)));
        }
        all.s0 = _mm256_add_epi32(all.s0, _mm256_unpacklo_epi16(a, none));
        all.s1 = _mm256_add_epi32(all.s1, _mm256_unpackhi_epi16(a, none));
        all.t0 = _mm256_add_epi32(all.t0, _mm256_unpacklo_epi16(b, none));
        all.t1 = _mm256_add_epi32(all.t1, _mm256_unpackhi_epi16(b, none));
    }
    return all;
}

/* Pixels first..end of a line, at `channel`, which the constants k are for. */
ALWAYS_INLINE void run_pixels(const window *v, const finish *f, const panel_constants *k, const line *l, int64_t first,
                              int64_t end, int64_t channel, int64_t channels, int weighs, int slack) {
    const intonly_window *s = v->step;
    for (int64_t j = first; j < end; j += 2) {
        const int64_t next = j + 1 < end ? j + 1 : j;
        const uint8_t *x = l->x + j * s->x_w + channel, *z = l->x + next * s->x_w + channel;
        const sums all = weighs ? weigh(v, k, x, z, channels, slack) : add_up(v, k, x, z, channels, slack);
        const uint8_t *r = l->r + channel * f->r_bytes;
        uint8_t *y = l->y + channel * f->y_bytes;
        finish_two(f, k, all.s0, all.s1, all.t0, all.t1, r + j * s->r_w, r + next * s->r_w, y + j * s->y_w,
                   y + next * s->y_w, channels);
    }
}

static void weigh_line(const window *v, const line *l, int64_t panel, int64_t panel_end) {
    for (; panel < panel_end; ++panel) {
        const int64_t left = v->step->c - panel * 16, bytes = panel_bytes(v->step->taps);
        const uint8_t *at = v->packed + HEADER + panel * bytes;
        const panel_constants *k = (const panel_constants *)(const void *)at;
        if (left >= 16 || v->slack)
            run_pixels(v, &v->finish, k, l, 0, v->step->ow, panel * 16, left < 16 ? left : 16, 1, 1);
        else
            run_pixels(v, &v->finish, k, l, 0, v->step->ow, panel * 16, left, 1, 0);
    }
}

/* Gather the constants of sums. Return whether vectors may finish them: no sum overflows on the way. */
static int gather_constants(const window *v, int64_t constant, int64_t channel, int64_t channels, panel_constants *k) {
    const int64_t form = v->step->form, most = v->step->taps * 255;
    int fits = 1;
    memset(k, 0, sizeof *k);
    for (int64_t c = 0; c < channels; ++c, constant += v->step->constant_c) {
        const int32_t bias = v->bias == NULL ? 0 : v->bias[channel + c];
        const intonly_weights one = {.bias = &bias,
                                     .form = form,
                                     .multiplier = form == INTONLY_FORM_ACC ? NULL : v->multiplier + constant,
                                     .shift = form == INTONLY_FORM_ACC ? NULL : v->shift + constant,
                                     .channels = 1,
                                     .acc_limit = (bias < 0 ? -(int64_t)bias : bias) + most};
        panel_pack(&one, 0, c, k);
        if (form == INTONLY_FORM_NARROW && !narrow_summarize(&one).fits) fits = 0;
    }
    return fits;
}

static void sum_line(const window *v, const line *l, int64_t panel, int64_t panel_end) {
    const int64_t constant_w = v->step->constant_w, ow = v->step->ow, run = constant_w == 0 ? ow : 1;
    for (; panel < panel_end; ++panel) {
        const int64_t channel = panel * 16, left = v->step->c - channel, channels = left < 16 ? left : 16;
        for (int64_t j = 0; j < ow; j += run) {
            const int64_t constant = l->constant + j * constant_w + channel * v->step->constant_c;
            panel_constants k;
            finish f = v->finish;
            if (!gather_constants(v, constant, channel, channels, &k)) f.fast = 0;
            if (channels == 16 || v->slack)
                run_pixels(v, &f, &k, l, j, j + run, channel, channels, 0, 1);
            else
                run_pixels(v, &f, &k, l, j, j + run, channel, channels, 0, 0);
        }
    }
}

/* Maxima of `channels` channels, at most 32, and more than 16 when `wide`. */
ALWAYS_INLINE void max_pixels(const window *v, const line *l, int64_t channel, int64_t channels, int wide) {
    const intonly_window *s = v->step;
    const int64_t low = wide ? 16 : channels, high = channels - 16;
    for (int64_t j = 0; j < s->ow; ++j) {
        const uint8_t *x = l->x + j * s->x_w + channel;
        __m128i a = _mm_setzero_si128(), b = a;
        for (int64_t t = 0; t < s->taps; ++t) {
            a = _mm_max_epu8(a, load_some(x + v->offsets[t], low));
            if (wide) b = _mm_max_epu8(b, load_some(x + v->offsets[t] + 16, high));
        }
        store_some(l->y + j * s->y_w + channel, a, low);
        if (wide) store_some(l->y + j * s->y_w + channel + 16, b, high);
    }
}

static void max_line(const window *v, const line *l, int64_t panel, int64_t panel_end) {
    for (; panel < panel_end; panel += 2) {
        const int64_t left = v->step->c - panel * 16, most = panel + 1 < panel_end ? 32 : 16;
        const int64_t channels = left < most ? left : most;
        if (channels > 16)
            max_pixels(v, l, panel * 16, channels, 1);
        else
            max_pixels(v, l, panel * 16, channels, 0);
    }
}

/* Lines first..end, counted over all images, and panels panel..panel_end of them. */
static void run_lines(const window *v, int64_t first, int64_t end, int64_t panel, int64_t panel_end) {
    const intonly_window *s = v->step;
    for (int64_t n = 0, top = 0; n < s->n; ++n, top += s->oh) {
        const int64_t to = end - top < s->oh ? end - top : s->oh;
        for (int64_t i = first > top ? first - top : 0; i < to; ++i) {
            const line l = {.x = v->x + n * s->x_n + i * s->x_h,
                            .r = v->r + n * s->r_n + i * s->r_h,
                            .y = v->y + n * s->y_n + i * s->y_h,
                            .constant = i * s->constant_h};
            if (s->op == INTONLY_SUM_PRODUCTS)
                weigh_line(v, &l, panel, panel_end);
            else if (s->op == INTONLY_SUM)
                sum_line(v, &l, panel, panel_end);
            else
                max_line(v, &l, panel, panel_end);
        }
    }
}

void intonly_window_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    intonly_window s = *(const intonly_window *)step;
    const int codes = s.x_type == INTONLY_U8 && s.y_type == INTONLY_U8;
    if ((s.op == INTONLY_SUM && s.x_type != INTONLY_U8) || (s.op == INTONLY_MAX && (!codes || s.form != 0))) {
        intonly_window_ref(step, bases, part, parts);
        return;
    }
    const narrow_summary any = {.fits = 1, .left = 1};
    window v = {.step = &s,
                .offsets = (const int64_t *)(const void *)intonly_at(bases, s.tap_offsets),
                .x = intonly_at(bases, s.x_ref),
                .packed = intonly_at_or_null(bases, s.packed),
                .y = intonly_at(bases, s.y_ref),
                .bias = intonly_int32_at(bases, s.bias),
                .multiplier = intonly_int32_at(bases, s.multiplier),
                .shift = intonly_int8_at(bases, s.shift),
                .slack = s.x_ref >> INTONLY_SPACE_SHIFT < INTONLY_CALLER};
    if (s.op != INTONLY_SUM_PRODUCTS) s.r_ref = INTONLY_ABSENT;
    if (s.r_ref < 0) s.r_n = s.r_h = s.r_w = 0; /* the walk stays where it is, and nothing is read */
    v.r = s.r_ref < 0 ? v.y : intonly_at(bases, s.r_ref);
    FINISH_OF(&s, s.op == INTONLY_SUM_PRODUCTS ? (const narrow_summary *)(const void *)v.packed : &any, &v.finish);
    int64_t first = 0, end = s.n * s.oh, panel = 0, panel_end = panels_of(s.c);
    if (end >= parts)
        intonly_share(end, part, parts, &first, &end);
    else
        intonly_share(panel_end, part, parts, &panel, &panel_end);
    run_lines(&v, first, end, panel, panel_end);
}
