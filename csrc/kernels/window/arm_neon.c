/* SPDX-License-Identifier: Apache-2.0
 *
 * The window step on NEON: 16 channels at a time, along a row of pixels.
 *
 * Depthwise products are of signed bytes: 128 is subtracted from unsigned codes, and 128 * sum(w) is in the bias. Two
 * products are summed in 16 bits before they are added to 32. Two of -128 and -128 do not fit; where a channel has such
 * weights at two taps that would meet, which our own quantizer does not make, each tap of the layer is paired with
 * nothing. Sums and maxima are of unsigned bytes: 128 is added to signed codes.
 *
 * The packed form is that of packed.h, with weights at the next multiple of 64 bytes, [channels / 16][pairs][2][16];
 * instead of the depth it holds how many taps are in a pair.
 */
#include "kernels/window/arm_neon.h"

#include <string.h>

#include "kernels/arm_neon_epilogue.h"
#include "kernels/elements.h"
#include "kernels/packed.h"
#include "kernels/window/window.h"

enum { WIDTH = 16 };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t blocks_of(int64_t channels) { return (channels + WIDTH - 1) >> 4; }

typedef struct layout {
    intonly_packed at;
    int64_t together; /* taps in a pair */
    int64_t weights;  /* byte offset */
    int64_t block;    /* bytes of the weights of 16 channels */
    int64_t bytes;    /* of all weights, and what aligns them */
} layout;

static layout layout_of(int64_t channels, int64_t taps, int64_t together) {
    layout l = {.together = together, .block = (together == 2 ? (taps + 1) >> 1 : taps) * 2 * WIDTH};
    l.bytes = blocks_of(channels) * l.block + 63;
    l.at = intonly_packed_layout(channels, l.bytes);
    l.weights = (l.at.weights + 63) & ~INT64_C(63);
    return l;
}

/* Return 2, or 1 when two weights of -128 would meet in a pair. */
static layout layout_for(const intonly_weights *w) {
    for (int64_t c = 0; c < w->channels; ++c) {
        const int8_t *taps = w->w + c * w->taps;
        for (int64_t t = 0; t + 1 < w->taps; t += 2)
            if (taps[t] == INT8_MIN && taps[t + 1] == INT8_MIN) return layout_of(w->channels, w->taps, 1);
    }
    return layout_of(w->channels, w->taps, 2);
}

size_t intonly_depthwise_size_neon(const intonly_weights *weights) {
    return weights->acc_limit > INT32_MAX ? 0 : (size_t)layout_for(weights).at.bytes;
}

void intonly_depthwise_pack_neon(const intonly_weights *weights, uint8_t *packed) {
    const layout l = layout_for(weights);
    intonly_packed_begin(weights, l.bytes, packed);
    memcpy(packed, &l.together, sizeof l.together);
    for (int64_t c = 0; c < weights->channels; ++c) {
        const int8_t *w = weights->w + c * weights->taps;
        int8_t *to = (int8_t *)packed + l.weights + (c >> 4) * l.block + (c & (WIDTH - 1));
        int64_t sum = 0;
        for (int64_t t = 0; t < weights->taps; ++t) {
            to[(l.together == 2 ? t : 2 * t) * WIDTH] = w[t];
            sum += w[t];
        }
        const uint32_t bias = (uint32_t)weights->bias[c] + (weights->x_signed ? 0 : (uint32_t)(128 * sum));
        memcpy(packed + l.at.bias + c * (int64_t)sizeof bias, &bias, sizeof bias);
    }
}

static int is_8_bit(int64_t type) { return type == INTONLY_U8 || type == INTONLY_S8; }

int intonly_depthwise_accepts_neon(const intonly_window *step, const uint8_t *packed) {
    const int64_t limit = step->packed_bytes;
    if (!is_8_bit(step->x_type) || !intonly_product_within(step->taps, step->c, limit)) return 0;
    const int64_t together = intonly_packed_depth(packed);
    if (together != 1 && together != 2) return 0;
    const layout l = layout_of(step->c, step->taps, together);
    return l.at.bytes == limit && intonly_packed_constants_hold(packed, &l.at, step->c, step->form, step->r_ref >= 0);
}

typedef struct window {
    const intonly_window *step;
    const uint8_t *x, *r; /* r may be null */
    uint8_t *y;
    const int64_t *offsets;
    const int32_t *bias; /* null = 0 */
    const int8_t *w;     /* op 0 */
    int64_t together, block;
    uint8x16_t flip; /* makes codes signed for op 0, unsigned for the others */
    neon_epilogue epilogue;
    int64_t constant_h, constant_w, constant_c;
} window;

/* The sums of 16 channels. */
typedef struct sums {
    int32x4_t a, b, c, d;
} sums;

ALWAYS_INLINE uint8x16_t load16(const uint8_t *p, int64_t count) {
    return count == WIDTH ? vld1q_u8(p) : vcombine_u8(neon_load(p, count), neon_load(p + 8, count - 8));
}

ALWAYS_INLINE uint8x16_t codes(const window *v, const uint8_t *x, int64_t tap, int64_t count) {
    return veorq_u8(load16(x + v->offsets[tap], count), v->flip);
}

ALWAYS_INLINE sums bias_of(const window *v, int64_t first) {
    const int32x4_t none = vdupq_n_s32(0);
    if (v->bias == NULL) return (sums){none, none, none, none};
    const int32_t *bias = v->bias + first;
    return (sums){vld1q_s32(bias), vld1q_s32(bias + 4), vld1q_s32(bias + 8), vld1q_s32(bias + 12)};
}

ALWAYS_INLINE sums sum_of_products(const window *v, const uint8_t *x, int64_t first, int64_t count) {
    const int64_t taps = v->step->taps;
    const int8_t *w = v->w + (first >> 4) * v->block;
    sums s = bias_of(v, first);
    for (int64_t t = 0; t < taps; t += v->together, w += 2 * WIDTH) {
        const int8x16_t x0 = vreinterpretq_s8_u8(codes(v, x, t, count)), w0 = vld1q_s8(w), w1 = vld1q_s8(w + WIDTH);
        const int8x16_t x1 = vreinterpretq_s8_u8(codes(v, x, t + 1 < taps ? t + 1 : t, count));
        const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(x0), vget_low_s8(w0)), vget_low_s8(x1), vget_low_s8(w1));
        const int16x8_t high = vmlal_high_s8(vmull_high_s8(x0, w0), x1, w1);
        s.a = neon_add(s.a, vmovl_s16(vget_low_s16(low)));
        s.b = neon_add(s.b, vmovl_high_s16(low));
        s.c = neon_add(s.c, vmovl_s16(vget_low_s16(high)));
        s.d = neon_add(s.d, vmovl_high_s16(high));
    }
    return s;
}

ALWAYS_INLINE int32x4_t add_wide(int32x4_t sum, uint16x4_t x) {
    return vreinterpretq_s32_u32(vaddw_u16(vreinterpretq_u32_s32(sum), x));
}

/* Sums of up to 256 bytes fit in 16 bits. */
ALWAYS_INLINE sums sum_of_codes(const window *v, const uint8_t *x, int64_t first, int64_t count) {
    const int64_t taps = v->step->taps;
    const int32x4_t flipped = vdupq_n_s32((int32_t)(v->step->x_type == INTONLY_S8 ? -128 * taps : 0));
    sums s = bias_of(v, first);
    for (int64_t t = 0; t < taps;) {
        uint16x8_t low = vdupq_n_u16(0), high = low;
        for (const int64_t end = smaller(t + 256, taps); t < end; ++t) {
            const uint8x16_t c = codes(v, x, t, count);
            low = vaddw_u8(low, vget_low_u8(c));
            high = vaddw_high_u8(high, c);
        }
        s.a = add_wide(s.a, vget_low_u16(low));
        s.b = add_wide(s.b, vget_high_u16(low));
        s.c = add_wide(s.c, vget_low_u16(high));
        s.d = add_wide(s.d, vget_high_u16(high));
    }
    return (sums){neon_add(s.a, flipped), neon_add(s.b, flipped), neon_add(s.c, flipped), neon_add(s.d, flipped)};
}

ALWAYS_INLINE uint8x16_t maximum(const window *v, const uint8_t *x, int64_t count) {
    uint8x16_t y = codes(v, x, 0, count);
    for (int64_t t = 1; t < v->step->taps; ++t) y = vmaxq_u8(y, codes(v, x, t, count));
    return veorq_u8(y, v->flip);
}

/* Finish and store `count` channels that the registers cannot finish. */
static void finish_memory(const window *v, const sums *s, int64_t at, const uint8_t *r, uint8_t *y, int64_t count) {
    const int64_t y_bytes = intonly_bytes_of(v->step->y_type), r_bytes = intonly_bytes_of(v->step->r_type);
    int32_t acc[WIDTH];
    vst1q_s32(acc, s->a);
    vst1q_s32(acc + 4, s->b);
    vst1q_s32(acc + 8, s->c);
    vst1q_s32(acc + 12, s->d);
    neon_finish_memory(&v->epilogue, acc, at, v->constant_c, r, y, smaller(count, 8));
    if (count <= 8) return;
    at += 8 * v->constant_c;
    neon_finish_memory(&v->epilogue, acc + 8, at, v->constant_c, r + 8 * r_bytes, y + 8 * y_bytes, count - 8);
}

/* Channels first.. of row i of an image; `count` is 16, or what is left. */
ALWAYS_INLINE void row(const window *v, int64_t n, int64_t i, int64_t first, int64_t count) {
    const intonly_window *s = v->step;
    const uint8_t *x = v->x + n * s->x_n + i * s->x_h + first;
    const int64_t r_bytes = intonly_bytes_of(s->r_type), y_bytes = intonly_bytes_of(s->y_type);
    const uint8_t *r = v->r == NULL ? x : v->r + n * s->r_n + i * s->r_h + first * r_bytes;
    const int64_t r_w = v->r == NULL ? 0 : s->r_w;
    uint8_t *y = v->y + n * s->y_n + i * s->y_h + first * y_bytes;
    int64_t at = i * v->constant_h + first * v->constant_c;
    neon_channels low = {.multiplier = vdupq_n_s16(0)}, high = low;
    for (int64_t j = 0; j < s->ow; ++j, x += s->x_w, y += s->y_w, r += r_w, at += v->constant_w) {
        if (s->op == INTONLY_MAX) {
            const uint8x16_t codes = maximum(v, x, count);
            neon_store(y, vget_low_u8(codes), count);
            neon_store(y + 8, vget_high_u8(codes), count - 8);
            continue;
        }
        const sums sum =
            s->op == INTONLY_SUM ? sum_of_codes(v, x, first, count) : sum_of_products(v, x, first, count);
        if (v->epilogue.in_registers) {
            if (j == 0 || v->constant_w != 0) {
                low = neon_channels_at(&v->epilogue, at, v->constant_c);
                high = neon_channels_at(&v->epilogue, at + 8 * v->constant_c, v->constant_c);
            }
            neon_finish(&v->epilogue, &low, sum.a, sum.b, r, y, count);
            neon_finish(&v->epilogue, &high, sum.c, sum.d, r + 8, y + 8, count - 8);
        } else {
            finish_memory(v, &sum, at, r, y, count);
        }
    }
}

static void rows(const window *v, int64_t from, int64_t to, int64_t first, int64_t end) {
    for (int64_t n = 0, top = 0; n < v->step->n; ++n, top += v->step->oh) {
        for (int64_t i = from > top ? from - top : 0; i < smaller(to - top, v->step->oh); ++i) {
            int64_t c = first;
            for (; c + WIDTH <= end; c += WIDTH) row(v, n, i, c, WIDTH);
            if (end - c == 8) row(v, n, i, c, 8);
            else if (c < end) row(v, n, i, c, end - c);
        }
    }
}

/* Whether the functions above do this step. */
static int is_ours(const intonly_window *s) {
    if (!is_8_bit(s->x_type)) return 0;
    return s->op != INTONLY_MAX || (s->form == INTONLY_FORM_ACC && s->y_type == s->x_type);
}

void intonly_window_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_window *s = step;
    if (!is_ours(s)) {
        intonly_window_ref(step, bases, part, parts);
        return;
    }
    window v = {.step = s,
                .x = intonly_at(bases, s->x_ref),
                .r = intonly_at_or_null(bases, s->r_ref),
                .y = intonly_at(bases, s->y_ref),
                .offsets = (const int64_t *)(const void *)intonly_at(bases, s->tap_offsets),
                .flip = vdupq_n_u8((s->x_type == INTONLY_U8) == (s->op == INTONLY_SUM_PRODUCTS) ? 128 : 0)};
    INTONLY_READ_EPILOGUE(s, bases, &v.epilogue.law);
    v.epilogue.law.x_zero = NULL; /* the bias holds it */
    if (s->op == INTONLY_SUM_PRODUCTS) {
        const uint8_t *packed = intonly_at(bases, s->packed);
        const layout l = layout_of(s->c, s->taps, intonly_packed_depth(packed));
        v.bias = intonly_packed_int32(packed, l.at.bias);
        v.w = intonly_packed_int8(packed, l.weights);
        v.together = l.together;
        v.block = l.block;
        v.constant_c = 1;
        intonly_packed_constants(packed, &l.at, v.r != NULL, &v.epilogue.law);
    } else {
        v.bias = intonly_int32_at(bases, s->bias);
        v.constant_h = s->constant_h;
        v.constant_w = s->constant_w;
        v.constant_c = s->constant_c;
        v.epilogue.law.residual_multiplier = NULL;
    }
    neon_prepare(&v.epilogue, s->y_type, s->r_type, s->op == INTONLY_SUM_PRODUCTS ? s->c : 0);
    if (v.constant_c != 0 && v.constant_c != 1) v.epilogue.in_registers = 0;

    int64_t from = 0, to = s->n * s->oh, first = 0, end = blocks_of(s->c);
    if (to >= parts)
        intonly_share(to, part, parts, &from, &to);
    else
        intonly_share(end, part, parts, &first, &end);
    rows(&v, from, to, first * WIDTH, smaller(end * WIDTH, s->c));
}
