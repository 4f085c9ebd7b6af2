/* SPDX-License-Identifier: Apache-2.0
 *
 * The window step on 256-bit vectors: the walk over lines, panels and pixels, and the packed form of a depthwise
 * convolution. A file for an instruction set adds how codes are combined.
 *
 * A unit is what fills a vector of codes: 32 channels of one pixel, or 16 of two. The channels are cut into panels of
 * 32; a last panel of at most 16 channels takes two pixels, and has its constants and weights twice.
 *
 * A packed form is a header, then panels, each with the constants of both halves before its weights. The weights of a
 * group of taps are 32 lanes of 32 bits: two int16, or four int8. They stand as the sums do (`columns` of
 * kernels/x86_256.h), to which interleaving the codes of the taps leads without a shuffle.
 */
#ifndef INTONLY_WINDOW_X86_256_H
#define INTONLY_WINDOW_X86_256_H

#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/x86_256.h"
#include "kernels/x86_256_plain.h"

#define WINDOW_HEADER 64 /* bytes of the header: a narrow_summary */
#define WINDOW_GROUP 128 /* bytes of the weights of a group of taps */

static inline int64_t window_panels(int64_t channels) { return (channels + 31) >> 5; }

/* Return the bytes of a panel. in_group: log2 of the taps of a group, 1 or 2. */
static inline int64_t window_panel_bytes(int64_t taps, int64_t in_group) {
    const int64_t groups = (taps + (1 << in_group) - 1) >> in_group;
    return 2 * (int64_t)sizeof(panel_constants) + groups * WINDOW_GROUP;
}

static inline int64_t window_bytes(int64_t channels, int64_t taps, int64_t in_group) {
    return WINDOW_HEADER + window_panels(channels) * window_panel_bytes(taps, in_group);
}

/* Return the size of the packed form of these constants; 0 when it cannot hold them. */
static inline size_t window_size(const intonly_weights *weights, int64_t in_group) {
    if (weights->x_signed || weights->acc_limit > INT32_MAX) return 0;
    return (size_t)window_bytes(weights->channels, weights->taps, in_group);
}

/* Write channel `c` as number `at` of its panel. */
static inline void window_pack_channel(const intonly_weights *weights, int64_t c, int64_t at, int64_t in_group,
                                       uint8_t *panel) {
    const int64_t half = at >> 4, lane = (at & 12) * 2 + half * 4 + (at & 3), last = (1 << in_group) - 1;
    panel_constants *constants = (panel_constants *)(void *)panel;
    panel_pack(weights, c, at & 15, at & 15, constants + half);
    int8_t *bytes = (int8_t *)(constants + 2) + 4 * lane;
    int16_t *words = (int16_t *)(void *)bytes;
    for (int64_t t = 0; t < weights->taps; ++t) {
        const int8_t w = weights->w[c * weights->taps + t];
        if (in_group == 1)
            words[(t >> 1) * 64 + (t & last)] = w;
        else
            bytes[(t >> 2) * 128 + (t & last)] = w;
    }
}

static inline void window_pack(const intonly_weights *weights, int64_t in_group, uint8_t *packed) {
    const narrow_summary summary = narrow_summarize(weights);
    memset(packed, 0, (size_t)window_bytes(weights->channels, weights->taps, in_group));
    memcpy(packed, &summary, sizeof summary);
    for (int64_t c = 0; c < weights->channels; ++c) {
        uint8_t *panel = packed + WINDOW_HEADER + (c >> 5) * window_panel_bytes(weights->taps, in_group);
        window_pack_channel(weights, c, c & 31, in_group, panel);
        if (weights->channels - (c & ~INT64_C(31)) <= 16)
            window_pack_channel(weights, c, (c & 15) + 16, in_group, panel);
    }
}

/* Return whether a packed form is one that can be read for this step. */
static inline int window_accepts(const intonly_window *step, int64_t in_group, const uint8_t *packed) {
    const int64_t limit = step->packed_bytes, panels = window_panels(step->c);
    if (step->x_type != INTONLY_U8 || limit < WINDOW_HEADER) return 0;
    if (!intonly_product_within(step->taps, panels, limit)) return 0;
    if (window_bytes(step->c, step->taps, in_group) != limit) return 0;
    if (!narrow_summary_holds((const narrow_summary *)(const void *)packed)) return 0;
    for (int64_t i = 0; i < panels; ++i) {
        const int64_t left = step->c - i * 32, first = left < 16 ? left : 16, second = left <= 16 ? left : left - 16;
        const int64_t at = WINDOW_HEADER + i * window_panel_bytes(step->taps, in_group);
        const int64_t then = at + (int64_t)sizeof(panel_constants);
        if (!panel_holds(packed, at, first, step->form, step->r_ref >= 0)) return 0;
        if (!panel_holds(packed, then, second < 16 ? second : 16, step->form, step->r_ref >= 0)) return 0;
    }
    return 1;
}

#ifdef __AVX2__

typedef struct window {
    const intonly_window *step;
    const int64_t *offsets;
    const uint8_t *x, *r;
    uint8_t *y;
    finish finish;
    int slack; /* whether x may be read behind the channels that are there */
} window;

/* A line of y: pointers to its first pixel. */
typedef struct line {
    int64_t i;
    const uint8_t *x, *r;
    uint8_t *y;
} line;

/* Two halves of up to 16 channels: of one pixel when wide, else of two, which may be the same. */
typedef struct unit {
    const uint8_t *x0, *x1, *r0, *r1;
    uint8_t *y0, *y1;
    int64_t first, second; /* channels of the halves */
    int wide, slack;
} unit;

/* Return the unit that begins with pixel j of a panel of a line. */
ALWAYS_INLINE unit unit_at(const window *v, const line *l, int64_t j, int64_t channel, int64_t channels, int wide,
                           int slack) {
    const intonly_window *s = v->step;
    const int64_t x_on = wide ? 16 : s->x_w;
    const int64_t r_on = wide ? 16 * v->finish.r_bytes : s->r_w, y_on = wide ? 16 * v->finish.y_bytes : s->y_w;
    const uint8_t *x = l->x + channel + j * s->x_w, *r = l->r + channel * v->finish.r_bytes + j * s->r_w;
    uint8_t *y = l->y + channel * v->finish.y_bytes + j * s->y_w;
    const int64_t first = wide ? 16 : channels, second = wide ? channels - 16 : channels;
    return (unit){x, x + x_on, r, r + r_on, y, y + y_on, first, second, wide, slack};
}

/* Go on by some pixels. */
ALWAYS_INLINE void unit_move(const intonly_window *s, int64_t pixels, unit *u) {
    u->x0 += pixels * s->x_w, u->x1 += pixels * s->x_w;
    u->r0 += pixels * s->r_w, u->r1 += pixels * s->r_w;
    u->y0 += pixels * s->y_w, u->y1 += pixels * s->y_w;
}

/* Return the unit whose second half is the first one again, for a last pixel without a neighbour. */
ALWAYS_INLINE unit unit_alone(unit u) {
    u.x1 = u.x0, u.r1 = u.r0, u.y1 = u.y0;
    return u;
}

/* Return the codes of a unit at a tap. */
ALWAYS_INLINE __m256i unit_codes(const unit *u, int64_t offset) {
    if (!u->slack) return both(load_some(u->x0 + offset, u->first), load_some(u->x1 + offset, u->second));
    return u->wide ? load32(u->x0 + offset) : load_both(u->x0 + offset, u->x1 + offset);
}

ALWAYS_INLINE void unit_store(const unit *u, __m256i codes) {
    store_some(u->y0, _mm256_castsi256_si128(codes), u->first);
    store_some(u->y1, _mm256_extracti128_si256(codes, 1), u->second);
}

/* Return the sums to begin with. */
ALWAYS_INLINE sums32 unit_bias(const panel_constants *k) {
    const int32_t *b = k->bias, *c = k[1].bias;
    return (sums32){load_both(b, c), load_both(b + 4, c + 4), load_both(b + 8, c + 8), load_both(b + 12, c + 12)};
}

/* Finish and store the sums of a unit by the law. */
static inline void unit_finish_plain(const finish *f, const panel_constants *k, const unit *u, sums32 s) {
    int32_t all[4][8], half[2][16];
    store32(all[0], s.s0), store32(all[1], s.s1), store32(all[2], s.s2), store32(all[3], s.s3);
    for (int i = 0; i < 16; ++i) {
        half[0][i] = all[i >> 2][i & 3];
        half[1][i] = all[i >> 2][4 + (i & 3)];
    }
    finish_plain(f, k, half[0], u->r0, u->y0, u->first);
    if (u->y1 != u->y0) finish_plain(f, k + 1, half[1], u->r1, u->y1, u->second);
}

/* Finish and store the sums of a unit. */
ALWAYS_INLINE void unit_finish(const finish *f, const lanes *n, const panel_constants *k, const unit *u, sums32 s) {
    if (f->fast) {
        __m256i r = _mm256_setzero_si256();
        if (f->joins) r = both(load_some(u->r0, u->first), load_some(u->r1, u->second));
        unit_store(u, finish_fast(f, n, s, r));
    } else {
        unit_finish_plain(f, k, u, s);
    }
}

/* What an instruction set does with a panel of a line. data: its own. */
typedef void (*window_work)(const window *v, const line *l, int64_t channel, int64_t channels, const void *data);

/* Do the work on panels panel..panel_end of lines first..end, counted over all images. */
static inline void run_lines(const window *v, int64_t first, int64_t end, int64_t panel, int64_t panel_end,
                             window_work work, const void *data) {
    const intonly_window *s = v->step;
    for (int64_t n = 0, top = 0; n < s->n; ++n, top += s->oh) {
        const int64_t to = end - top < s->oh ? end - top : s->oh;
        for (int64_t i = first > top ? first - top : 0; i < to; ++i) {
            const line l = {.i = i,
                            .x = v->x + n * s->x_n + i * s->x_h,
                            .r = v->r + n * s->r_n + i * s->r_h,
                            .y = v->y + n * s->y_n + i * s->y_h};
            for (int64_t p = panel; p < panel_end; ++p) {
                const int64_t left = s->c - p * 32;
                work(v, &l, p * 32, left < 32 ? left : 32, data);
            }
        }
    }
}

/* Run part `part` of a step. summary: of its constants. A residual joins when `joins`. */
static inline void window_run(const intonly_window *step, uint8_t *const *bases, unsigned part, unsigned parts,
                              int joins, const narrow_summary *summary, window_work work, const void *data) {
    intonly_window s = *step;
    if (!joins) s.r_ref = INTONLY_ABSENT;
    if (s.r_ref < 0) s.r_n = s.r_h = s.r_w = 0; /* the walk stays where it is, and nothing is read */
    window v = {.step = &s,
                .offsets = (const int64_t *)(const void *)intonly_at(bases, s.tap_offsets),
                .x = intonly_at(bases, s.x_ref),
                .y = intonly_at(bases, s.y_ref),
                .slack = s.x_ref >> INTONLY_SPACE_SHIFT < INTONLY_CALLER};
    v.r = s.r_ref < 0 ? v.y : intonly_at(bases, s.r_ref);
    FINISH_OF(&s, summary, &v.finish);
    int64_t first = 0, end = s.n * s.oh, panel = 0, panel_end = window_panels(s.c);
    if (end >= parts)
        intonly_share(end, part, parts, &first, &end);
    else
        intonly_share(panel_end, part, parts, &panel, &panel_end);
    run_lines(&v, first, end, panel, panel_end, work, data);
}

/* Run part `part` of a depthwise convolution. The data of its work is the first panel. */
static inline void window_run_packed(const intonly_window *step, uint8_t *const *bases, unsigned part, unsigned parts,
                                     window_work work) {
    const uint8_t *packed = intonly_at(bases, step->packed);
    const narrow_summary *summary = (const narrow_summary *)(const void *)packed;
    window_run(step, bases, part, parts, 1, summary, work, packed + WINDOW_HEADER);
}

ALWAYS_INLINE const panel_constants *panel_at(const window *v, const uint8_t *first, int64_t channel,
                                              int64_t in_group) {
    const uint8_t *panel = first + (channel >> 5) * window_panel_bytes(v->step->taps, in_group);
    return (const panel_constants *)(const void *)panel;
}

/* A group of taps of a unit: the codes of as many taps as it has. */
typedef struct tap_group {
    __m256i t0, t1, t2, t3;
} tap_group;

/* Return sums with the products of a group of taps added; each instruction set has its own. */
ALWAYS_INLINE sums32 add_group(sums32 s, tap_group x, const uint8_t *w);

/* Return the codes of the group that begins with tap t. full: whether it has all its taps; else the last one stands in
 * for those that it lacks, whose weights are 0. */
ALWAYS_INLINE tap_group group_at(const unit *u, const int64_t *offsets, int64_t t, int64_t taps, int64_t in_group,
                                 int full) {
    tap_group x;
    const int64_t last = taps - 1;
    x.t0 = unit_codes(u, offsets[t]);
    x.t1 = unit_codes(u, offsets[full || t + 1 <= last ? t + 1 : last]);
    x.t2 = x.t3 = x.t1;
    if (in_group == 1) return x;
    x.t2 = unit_codes(u, offsets[full || t + 2 <= last ? t + 2 : last]);
    x.t3 = unit_codes(u, offsets[full || t + 3 <= last ? t + 3 : last]);
    return x;
}

/* Weigh one or two units. */
ALWAYS_INLINE void weigh_units(const window *v, const finish *f, const lanes *n, const panel_constants *k,
                               sums32 bias, const unit *a, const unit *b, int64_t in_group, int two) {
    const int64_t taps = v->step->taps, *const offsets = v->offsets;
    const uint8_t *w = (const uint8_t *)(k + 2);
    sums32 s = bias, q = bias;
    int64_t t = 0;
    for (; t + (1 << in_group) <= taps; t += 1 << in_group, w += WINDOW_GROUP) {
        s = add_group(s, group_at(a, offsets, t, taps, in_group, 1), w);
        if (two) q = add_group(q, group_at(b, offsets, t, taps, in_group, 1), w);
    }
    if (t < taps) {
        s = add_group(s, group_at(a, offsets, t, taps, in_group, 0), w);
        if (two) q = add_group(q, group_at(b, offsets, t, taps, in_group, 0), w);
    }
    unit_finish(f, n, k, a, s);
    if (two) unit_finish(f, n, k, b, q);
}

/* Weigh the pixels of a panel of a line. */
ALWAYS_INLINE void weigh_pixels(const window *v, const line *l, int64_t channel, int64_t channels,
                                const panel_constants *k, int64_t in_group, int wide, int slack) {
    const intonly_window *s = v->step;
    const int64_t ow = s->ow, per = wide ? 1 : 2;
    const sums32 bias = unit_bias(k);
    const finish f = v->finish; /* no store to y can change it */
    const lanes n = lanes_of_columns(k, k + 1);
    int64_t j = 0;
    unit a = unit_at(v, l, 0, channel, channels, wide, slack), b = a;
    for (; j + 2 * per <= ow; j += 2 * per) {
        b = a;
        unit_move(s, per, &b);
        weigh_units(v, &f, &n, k, bias, &a, &b, in_group, 1);
        a = b;
        unit_move(s, per, &a);
    }
    for (; j < ow; j += per) {
        b = !wide && j + 1 == ow ? unit_alone(a) : a;
        weigh_units(v, &f, &n, k, bias, &b, &b, in_group, 0);
        unit_move(s, per, &a);
    }
}

/* Weigh a panel of a line. first: the first panel of the packed form. */
ALWAYS_INLINE void weigh_panel(const window *v, const line *l, int64_t channel, int64_t channels, const uint8_t *first,
                               int64_t in_group) {
    const panel_constants *k = panel_at(v, first, channel, in_group);
    if (channels == 32 || (v->slack && channels > 16))
        weigh_pixels(v, l, channel, channels, k, in_group, 1, 1);
    else
        weigh_pixels(v, l, channel, channels, k, in_group, channels > 16, channels == 16 || v->slack);
}

#endif
#endif
