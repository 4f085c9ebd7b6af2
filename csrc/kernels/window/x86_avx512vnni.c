/* SPDX-License-Identifier: Apache-2.0
 *
 * The window step on AVX-512 VNNI: 64 channels of a pixel at a time, along a line.
 *
 * The codes of four taps are interleaved by byte unpacks, which leaves the accumulators in slot order, and one dot
 * product takes all four. Sums are products with weights of 1. Other steps go to the plain kernel.
 */
#include "kernels/window/x86_avx512vnni.h"

#include <string.h>

#include "kernels/packed.h"
#include "kernels/window/window.h"
#include "kernels/x86_avx512_plain.h"

#define BYTES 64
#include "kernels/window/x86_avx512vnni_areas.h"
#undef BYTES
#define BYTES 32
#include "kernels/window/x86_avx512vnni_areas.h"
#undef BYTES

size_t intonly_depthwise_size_avx512vnni(const intonly_weights *weights) {
    if (weights->x_signed || weights->acc_limit > INT32_MAX) return 0;
    return (size_t)(PACKED_HEAD + window_panels(weights->channels) * window_panel_bytes(weights->taps));
}

void intonly_depthwise_pack_avx512vnni(const intonly_weights *weights, uint8_t *packed) {
    const int64_t taps = weights->taps;
    narrow_summary summary = narrow_summarize(weights);
    memset(packed, 0, intonly_depthwise_size_avx512vnni(weights));
    summary.left = 0;
    for (int64_t c = 0; c < weights->channels; ++c) {
        uint8_t *panel = packed + PACKED_HEAD + (c >> 6) * window_panel_bytes(taps);
        panel_constants *constants = (panel_constants *)(void *)panel;
        int8_t *w = (int8_t *)(constants + 1) + 4 * slot_of_byte(c & 63);
        const int lift = narrow_lift(weights, c);
        narrow_pack(weights, c, lift, c & 63, &constants->narrow);
        plain_pack(weights, c, lift, c & 63, &constants->plain);
        summary.left |= weights->form == INTONLY_FORM_NARROW && constants->plain.shift[c & 63] < 0;
        for (int64_t group = 0; group < window_groups(taps); ++group)
            for (int64_t place = 0; place < 4; ++place) {
                const int64_t tap = window_tap(group, place, taps);
                w[group * 256 + place] = (int8_t)(tap < taps ? weights->w[c * taps + tap] * (1 << lift) : 0);
            }
    }
    memcpy(packed, &summary, sizeof summary);
}

int intonly_depthwise_accepts_avx512vnni(const intonly_window *step, const uint8_t *packed) {
    const int64_t limit = step->packed_bytes, panels = window_panels(step->c), groups = window_groups(step->taps);
    if (step->x_type != INTONLY_U8 || limit < PACKED_HEAD || !intonly_product_within(groups, panels, limit)) return 0;
    if (PACKED_HEAD + panels * window_panel_bytes(step->taps) != limit) return 0;
    if (!narrow_summary_holds((const narrow_summary *)(const void *)packed)) return 0;
    for (int64_t i = 0; i < panels; ++i) {
        const uint8_t *panel = packed + PACKED_HEAD + i * window_panel_bytes(step->taps);
        const panel_constants *constants = (const panel_constants *)(const void *)panel;
        const int64_t left = step->c - i * 64, count = left < 64 ? left : 64;
        if (!plain_constants_hold(&constants->plain, count, step->form, step->r_ref >= 0)) return 0;
    }
    return 1;
}

/* What a step works on. */
typedef struct operands {
    const uint8_t *x, *r, *packed;
    uint8_t *y;
    const int32_t *bias;     /* of a sum; null = 0 */
    intonly_epilogue arrays; /* of a sum: multiplier and shift */
} operands;

/* Write the constants of a panel of a sum, those at index `constant` for its first channel. */
static void gather_constants(const intonly_window *s, const operands *o, int64_t constant, int64_t channel,
                             int64_t count, panel_constants *to) {
    const int64_t step = s->form == INTONLY_FORM_ACC ? 0 : s->constant_c, last = constant + (count - 1) * step;
    memset(to, 0, sizeof *to);
    for (int64_t c = 0; o->bias != NULL && c < count; ++c) to->narrow.bias[slot_of_byte(c)] = o->bias[channel + c];
    for (int64_t c = 0; s->form != INTONLY_FORM_ACC && c < 64; ++c, constant += constant < last ? step : 0) {
        to->plain.multiplier[c] = o->arrays.multiplier[constant];
        to->plain.shift[c] = o->arrays.shift[constant];
    }
    for (int64_t c = 0; s->form == INTONLY_FORM_NARROW && c < 64; ++c) {
        const int64_t slot = slot_of_byte(c);
        const int shift = to->plain.shift[c];
        to->narrow.bias[slot] = narrow_signed((uint32_t)to->narrow.bias[slot] + narrow_rounding(shift));
        to->narrow.right[slot] = shift > 0 ? shift : 0;
        to->narrow.left[slot] = shift < 0 ? -shift : 0;
        to->narrow.multiplier[place_of_byte(c)] = (int16_t)to->plain.multiplier[c];
    }
}

/* Return the largest magnitude that a sum can have. */
static int64_t largest_sum(const intonly_window *s, const int32_t *bias) {
    int64_t most = 0;
    for (int64_t c = 0; bias != NULL && c < s->c; ++c) {
        const int64_t size = bias[c] < 0 ? -(int64_t)bias[c] : bias[c];
        if (most < size) most = size;
    }
    return most + 255 * s->taps;
}

/* Return what the constants of a sum have in common, as narrow_summarize does. */
static narrow_summary summarize_sum(const intonly_window *s, const operands *o) {
    /* Every index of a constant that occurs; the strides are 0 where there is only one. */
    const int64_t last = (s->oh - 1) * s->constant_h + (s->ow - 1) * s->constant_w + (s->c - 1) * s->constant_c;
    const int64_t limit = largest_sum(s, o->bias);
    narrow_summary all;
    memset(&all, 0, sizeof all);
    all.fits = s->form == INTONLY_FORM_NARROW;
    for (int64_t i = 0; all.fits && i <= last; ++i) {
        const int p = o->arrays.shift[i];
        if (p < 0) all.left = 1;
        all.fits = p >= -15 && p <= 30 &&
                   (p < 0 ? limit * (1 << -p) <= INT32_MAX : limit + narrow_rounding(p) <= INT32_MAX);
    }
    return all;
}

/* Return whether the step is one for these kernels. Products are: their packed form is. */
static int is_ours(const intonly_window *s, const operands *o) {
    if (s->op == INTONLY_SUM_PRODUCTS) return 1;
    if (s->x_type != INTONLY_U8) return 0;
    if (s->op == INTONLY_MAX) return s->form == INTONLY_FORM_ACC && s->y_type == INTONLY_U8;
    return largest_sum(s, o->bias) <= INT32_MAX;
}

/* Pixels whose epilogue vectors cannot run: their sums go through memory. */
static void window_plain(const window *v, const window_area *a) {
    const intonly_window *s = v->step;
    plain_end end = {.y_type = s->y_type, .residual_type = s->r_type};
    INTONLY_READ_LIMITS(s, &end.law);
    plain_end_constants(&end, &a->constants->plain, v->joins);
    for (int64_t i = 0; i < a->lines; ++i) {
        for (int64_t j = 0; j < a->pixels; ++j) {
            const quad_64 acc = add_taps_64(v, a, a->x + i * s->x_h + j * s->x_w, a->channels);
            int32_t kept[64];
            _mm512_storeu_si512(kept, acc.a);
            _mm512_storeu_si512(kept + 16, acc.b);
            _mm512_storeu_si512(kept + 32, acc.c);
            _mm512_storeu_si512(kept + 48, acc.d);
            plain_finish(&end, kept, 4, a->channels, v->joins ? a->residual + i * s->r_h + j * s->r_w : NULL,
                         a->y + i * s->y_h + j * s->y_w);
        }
    }
}

/* Return by how many columns pixels are apart whose taps are 3 x 3 neighbours; 0 where that is not 1 or 2. */
static int columns_apart(const intonly_window *s, const int64_t *offsets) {
    const int64_t down = offsets[3] - offsets[0], right = offsets[1] - offsets[0];
    for (int64_t i = 0; i < 9; ++i) {
        const int64_t row = i < 3 ? 0 : i < 6 ? 1 : 2;
        if (offsets[i] != offsets[0] + row * down + (i - 3 * row) * right) return 0;
    }
    return s->x_w == right ? 1 : s->x_w == 2 * right ? 2 : 0;
}

/* The kernels for more than 32 channels, and for less. */
typedef struct kernels {
    window_kernel whole, half;
} kernels;

/* Taps in the order of their weights, and the weights of a sum. */
typedef struct tap_groups {
    int64_t offsets[12];
    int8_t ones[256], last_ones[256];
} tap_groups;

/* Set up the groups of taps, and return what runs them. */
static kernels begin_taps(window *v, const int64_t *offsets, tap_groups *t) {
    const intonly_window *s = v->step;
    v->offsets = offsets;
    v->groups = s->taps >> 2;
    v->has_last_group = (s->taps & 3) != 0;
    v->weights_step = 256;
    if (s->op == INTONLY_MAX) return (kernels){window_maxima_64, window_maxima_32};
    if (s->op == INTONLY_SUM) {
        v->weights_step = 0;
        memset(t->ones, 1, sizeof t->ones);
        for (int i = 0; i < 256; ++i) t->last_ones[i] = (i & 3) < (s->taps & 3);
    } else if (s->taps == 9) {
        for (int64_t i = 0; i < 12; ++i) {
            const int64_t tap = window_tap(i >> 2, i & 3, 9);
            t->offsets[i] = offsets[tap < 9 ? tap : 0];
        }
        v->offsets = t->offsets;
        v->groups = 3;
        v->has_last_group = 0;
        const int columns = v->fast && !v->joins ? columns_apart(s, offsets) : 0;
        if (columns == 1) return (kernels){window_3x3_by_1_64, window_3x3_by_1_32};
        if (columns == 2) return (kernels){window_3x3_by_2_64, window_3x3_by_2_32};
    }
    for (int64_t i = 0; i < 4; ++i) {
        const int64_t tap = 4 * v->groups + i;
        v->last_group[i] = offsets[tap < s->taps ? tap : 0];
    }
    return v->fast ? (kernels){window_any_64, window_any_32} : (kernels){window_plain, window_plain};
}

/* Run lines first..end, counted over all images, of one panel; its constants and weights are there. */
static void run_lines(const window *v, const operands *o, window_kernel run, window_area *a, int64_t channel,
                      int64_t first, int64_t end) {
    const intonly_window *s = v->step;
    const int64_t y_channel = channel * intonly_bytes_of(s->y_type);
    int64_t n = (int64_t)intonly_quotient((uint64_t)first, (uint64_t)s->oh), i = first - n * s->oh;
    for (; first < end; first += a->lines, i = 0, ++n) {
        a->lines = end - first < s->oh - i ? end - first : s->oh - i;
        a->pixels = s->ow;
        a->x = o->x + n * s->x_n + i * s->x_h + channel;
        a->y = o->y + n * s->y_n + i * s->y_h + y_channel;
        a->residual = v->joins ? o->r + n * s->r_n + i * s->r_h + channel : NULL;
        run(v, a);
    }
}

/* Run a sum whose constants differ from pixel to pixel. */
static void run_pixels(const window *v, const operands *o, window_kernel run, panel_constants *gathered,
                       window_area *a, int64_t channel, int64_t first, int64_t end) {
    const intonly_window *s = v->step;
    const int64_t y_channel = channel * intonly_bytes_of(s->y_type);
    int64_t n = (int64_t)intonly_quotient((uint64_t)first, (uint64_t)s->oh), i = first - n * s->oh;
    a->lines = a->pixels = 1;
    for (; first < end; ++first) {
        for (int64_t j = 0; j < s->ow; ++j) {
            const int64_t constant = i * s->constant_h + j * s->constant_w + channel * s->constant_c;
            gather_constants(s, o, constant, channel, a->channels, gathered);
            a->x = o->x + n * s->x_n + i * s->x_h + j * s->x_w + channel;
            a->y = o->y + n * s->y_n + i * s->y_h + j * s->y_w + y_channel;
            run(v, a);
        }
        if (++i == s->oh) i = 0, ++n;
    }
}

static void run_panels(const window *v, const operands *o, const tap_groups *t, kernels run, int64_t line,
                       int64_t line_end, int64_t panel, int64_t panel_end) {
    const intonly_window *s = v->step;
    panel_constants gathered;
    for (; panel < panel_end; ++panel) {
        const int64_t channel = 64 * panel, left = s->c - channel;
        const window_kernel kernel = left > 32 ? run.whole : run.half;
        window_area a = {.channels = left < 64 ? left : 64, .weights = t->ones, .last_weights = t->last_ones};
        a.constants = &gathered;
        if (s->op == INTONLY_SUM_PRODUCTS) {
            a.constants = (const panel_constants *)(const void *)(o->packed + panel * window_panel_bytes(s->taps));
            a.weights = (const int8_t *)(a.constants + 1);
            a.last_weights = a.weights + 256 * v->groups;
        } else if (s->op == INTONLY_SUM && (s->constant_h | s->constant_w) != 0 && s->form != INTONLY_FORM_ACC) {
            run_pixels(v, o, kernel, &gathered, &a, channel, line, line_end);
            continue;
        } else if (s->op == INTONLY_SUM) {
            gather_constants(s, o, channel * s->constant_c, channel, a.channels, &gathered);
        }
        run_lines(v, o, kernel, &a, channel, line, line_end);
    }
}

void intonly_window_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_window *s = step;
    const int64_t lines = s->n * s->oh, panels = window_panels(s->c);
    const int64_t residual_type = s->r_ref < 0 ? -1 : s->r_type;
    operands o = {.x = intonly_at(bases, s->x_ref),
                  .y = intonly_at(bases, s->y_ref),
                  .r = intonly_at_or_null(bases, s->r_ref)};
    window v;
    tap_groups t;
    memset(&v, 0, sizeof v);
    INTONLY_READ_EPILOGUE(s, bases, &o.arrays);
    o.bias = s->op == INTONLY_SUM ? intonly_int32_at(bases, s->bias) : NULL;
    if (!is_ours(s, &o)) {
        intonly_window_ref(step, bases, part, parts);
        return;
    }
    if (s->op == INTONLY_SUM_PRODUCTS) {
        const uint8_t *packed = intonly_at(bases, s->packed);
        memcpy(&v.summary, packed, sizeof v.summary);
        o.packed = packed + PACKED_HEAD;
    } else if (s->op == INTONLY_SUM) {
        v.summary = summarize_sum(s, &o);
    }
    v.step = s;
    v.joins = s->op == INTONLY_SUM_PRODUCTS && s->r_ref >= 0;
    v.fast = s->form == INTONLY_FORM_NARROW && narrow_fits(&v.summary, s->y_type, s->zero_point, s->fraction_bits,
                                                           residual_type, s->residual_zero);
    const kernels run = begin_taps(&v, (const int64_t *)(const void *)intonly_at(bases, s->tap_offsets), &t);

    int64_t line = 0, line_end = lines, panel = 0, panel_end = panels;
    if (lines >= parts)
        intonly_share(lines, part, parts, &line, &line_end);
    else
        intonly_share(panels, part, parts, &panel, &panel_end);
    run_panels(&v, &o, &t, run, line, line_end, panel, panel_end);
}
