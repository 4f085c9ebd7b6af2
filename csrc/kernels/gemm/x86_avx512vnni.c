/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on AVX-512 VNNI: packs the constants, and drives the tiles over rows and panels.
 *
 * x is uint8, the first operand of vpdpbusd; weights are the signed second one. Sums are formed modulo 2^32, and the
 * certificate says that they fit.
 */
#include <string.h>

#include "kernels/elements.h"
#include "kernels/epilogue.h"
#include "kernels/packed.h"
#include "kernels/gemm/x86_avx512vnni_tiles.h"

static int64_t form_bytes(int64_t channels, int64_t k) {
    const int64_t last = gemm_panels(channels) - 1, vectors = gemm_vectors(channels - last * 64);
    return gemm_panel_at(last, k) + (int64_t)sizeof(gemm_constants) + k * 16 * vectors;
}

size_t intonly_gemm_size_avx512vnni(const intonly_weights *weights) {
    if (weights->x_signed || weights->acc_limit > INT32_MAX) return 0;
    return (size_t)form_bytes(weights->channels, weights->taps * weights->tap_bytes);
}

/* Return the byte, after the packs, of channel `c` of a panel: each lane holds 4 * vectors channels of a row. */
static int64_t byte_of_channel(int64_t c, int64_t vectors) {
    const int64_t lane = vectors == 4 ? c >> 4 : vectors == 2 ? c >> 3 : c >> 2;
    return 16 * lane + (c & (4 * vectors - 1));
}

/* Write the constants of channel c of a panel; each row of a unit of rows has its copy. */
static void pack_constants(const intonly_weights *weights, int64_t channel, int64_t c, int64_t vectors,
                           gemm_constants *to) {
    for (int64_t copy = 0; copy < 16; copy += 4 * vectors)
        narrow_pack(weights, channel, byte_of_channel(c, vectors) + copy, &to->narrow);
    law_pack(weights, channel, c, &to->law);
}

/* Write the weights of one channel: groups of four codes, 64 * vectors bytes apart. */
static void pack_weights(const intonly_weights *weights, int64_t channel, int64_t c, int64_t vectors, int8_t *to) {
    const int8_t *w = weights->w + channel * weights->taps * weights->depth;
    to += 4 * narrow_slot_of_byte(byte_of_channel(c, vectors));
    for (int64_t tap = 0; tap < weights->taps; ++tap, w += weights->depth, to += 16 * vectors * weights->tap_bytes)
        for (int64_t i = 0; i < weights->depth; ++i) to[(i >> 2) * 64 * vectors + (i & 3)] = w[i];
}

void intonly_gemm_pack_avx512vnni(const intonly_weights *weights, uint8_t *packed) {
    const int64_t k = weights->taps * weights->tap_bytes;
    const narrow_summary summary = narrow_summarize(weights);
    memset(packed, 0, intonly_gemm_size_avx512vnni(weights));
    memcpy(packed, &summary, sizeof summary);
    for (int64_t channel = 0; channel < weights->channels; ++channel) {
        const int64_t panel = channel >> 6, vectors = gemm_vectors(weights->channels - panel * 64);
        gemm_constants *constants = (gemm_constants *)(void *)(packed + gemm_panel_at(panel, k));
        pack_constants(weights, channel, channel & 63, vectors, constants);
        pack_weights(weights, channel, channel & 63, vectors, (int8_t *)(constants + 1));
    }
}

int intonly_gemm_accepts_avx512vnni(const intonly_gemm *step, const uint8_t *packed) {
    const int64_t limit = step->packed_bytes;
    if (!intonly_product_within(step->taps, step->tap_bytes, limit) || (step->tap_bytes & 3)) return 0;
    const int64_t k = step->taps * step->tap_bytes;
    if (!intonly_product_within(k, step->oc, limit) || form_bytes(step->oc, k) != limit) return 0;
    if (!narrow_summary_holds((const narrow_summary *)(const void *)packed)) return 0;
    for (int64_t i = 0; i < gemm_panels(step->oc); ++i) {
        const gemm_panel p = gemm_panel_of(packed, i, step->oc, k);
        for (int64_t c = 0; c < p.channels; ++c)
            if (!law_constants_hold(&p.constants->law, c, step->form, step->r_ref >= 0)) return 0;
    }
    return 1;
}

static void gemm_finish_plain(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t first, int64_t rows,
                              const int32_t *acc) {
    const intonly_gemm *s = g->step;
    const int64_t y_bytes = intonly_bytes_of(s->y_type);
    intonly_epilogue e = law_epilogue(&p->constants->law, g->residual);
    INTONLY_READ_LIMITS(s, &e);
    for (int64_t row = first; row < first + rows && row < b->rows; ++row, acc += 16 * p->vectors) {
        int64_t values[64], residual[64];
        for (int64_t c = 0; c < p->channels; ++c) {
            const int32_t sum = acc[narrow_slot_of_byte(byte_of_channel(c, p->vectors))];
            const uint32_t rounding = s->form == INTONLY_FORM_NARROW ? narrow_rounding(e.shift[c]) : 0;
            values[c] = narrow_signed((uint32_t)sum - rounding);
        }
        if (g->residual) intonly_load(b->residual[row] + p->channel, s->r_type, 1, p->channels, residual);
        intonly_finish(&e, 0, 1, 0, 0, residual, p->channels, values);
        intonly_store(values, p->channels, b->y[row] + p->channel * y_bytes, s->y_type, y_bytes);
    }
}

/* A place in a walk over the rows, the pixels of y: offsets of the pixel, of its line and of its image. */
typedef struct cursor {
    int64_t i, j;
    int64_t x_image, x_line, x, y_image, y_line, y, r_image, r_line, r;
} cursor;

static void go_to_line(const intonly_gemm *s, cursor *at, int64_t i) {
    at->i = i;
    at->j = 0;
    at->x = at->x_line = at->x_image + i * s->x_h;
    at->y = at->y_line = at->y_image + i * s->y_h;
    at->r = at->r_line = at->r_image + i * s->r_h;
}

static cursor go_to_row(const intonly_gemm *s, int64_t row) {
    const int64_t line = (int64_t)intonly_quotient((uint64_t)row, (uint64_t)s->ow), j = row - line * s->ow;
    const int64_t n = (int64_t)intonly_quotient((uint64_t)line, (uint64_t)s->oh);
    cursor at = {.x_image = n * s->x_n, .y_image = n * s->y_n, .r_image = n * s->r_n};
    go_to_line(s, &at, line - n * s->oh);
    at.j = j;
    at.x += j * s->x_w;
    at.y += j * s->y_w;
    at.r += j * s->r_w;
    return at;
}

static void go_to_next_line(const intonly_gemm *s, cursor *at) {
    if (at->i + 1 < s->oh) {
        go_to_line(s, at, at->i + 1);
    } else {
        at->x_image += s->x_n;
        at->y_image += s->y_n;
        at->r_image += s->r_n;
        go_to_line(s, at, 0);
    }
}

/* Take the next `rows` rows. */
static void take(const gemm *g, cursor *at, int64_t rows, gemm_block *b) {
    const intonly_gemm *s = g->step;
    b->rows = rows;
    for (int64_t row = 0; row < rows; ++row) {
        b->x[row] = g->x + at->x;
        b->y[row] = g->y + at->y;
        b->residual[row] = g->residual ? g->r + at->r : NULL;
        at->x += s->x_w;
        at->y += s->y_w;
        at->r += s->r_w;
        if (++at->j == s->ow) go_to_next_line(s, at);
    }
    for (int64_t row = rows; row & 3; ++row) {
        b->x[row] = b->x[rows - 1];
        b->y[row] = b->y[rows - 1];
        b->residual[row] = b->residual[rows - 1];
    }
}

/* Rows of the next block: 24, and less before the end, so that no tile is left with a row or two: such a tile waits
 * for its weights. */
static int64_t block_rows(int64_t left) { return left > 36 ? GEMM_ROWS : left > 24 ? 12 : left; }

/* Run a block of rows against a panel; the last two tiles are of about one size. */
static void run_block(const gemm *g, const gemm_panel *p, const gemm_block *b) {
    const int64_t log2 = p->vectors >> 1, per = 4 >> log2;
    int64_t units = (b->rows + per - 1) >> (2 - log2);
    for (int64_t first = 0; units > 0;) {
        const int64_t now = units >= 12 ? 6 : units > 6 ? (units + 1) >> 1 : units;
        gemm_tiles[log2][now - 1](g, p, b, first);
        first += now * per;
        units -= now;
    }
}

static void run_part(const gemm *g, int64_t row, int64_t row_end, int64_t panel, int64_t panel_end) {
    const intonly_gemm *s = g->step;
    const int64_t k = s->taps * s->tap_bytes;
    const cursor start = go_to_row(s, row);
    gemm_block b;
    if (s->channels_first) {
        for (; panel < panel_end; ++panel) {
            const gemm_panel p = gemm_panel_of(g->packed, panel, s->oc, k);
            cursor at = start;
            for (int64_t left = row_end - row; left > 0; left -= b.rows) {
                take(g, &at, block_rows(left), &b);
                run_block(g, &p, &b);
            }
        }
    } else {
        cursor at = start;
        for (int64_t left = row_end - row; left > 0; left -= b.rows) {
            take(g, &at, block_rows(left), &b);
            for (int64_t i = panel; i < panel_end; ++i) {
                const gemm_panel p = gemm_panel_of(g->packed, i, s->oc, k);
                run_block(g, &p, &b);
            }
        }
    }
}

void intonly_gemm_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_gemm *s = step;
    const int64_t rows = s->n * s->oh * s->ow, panels = gemm_panels(s->oc);
    const int64_t residual_type = s->r_ref < 0 ? -1 : s->r_type;
    gemm g = {.step = s,
              .taps = (const int64_t *)(const void *)intonly_at(bases, s->tap_offsets),
              .packed = intonly_at(bases, s->packed),
              .x = intonly_at(bases, s->x_ref),
              .y = intonly_at(bases, s->y_ref),
              .r = intonly_at_or_null(bases, s->r_ref),
              .residual = s->r_ref >= 0};
    const narrow_summary *summary = (const narrow_summary *)(const void *)g.packed;
    g.fast = s->form == INTONLY_FORM_NARROW &&
             narrow_fits(summary, s->y_type, s->zero_point, s->fraction_bits, residual_type, s->residual_zero);
    if (g.fast)
        g.narrow = narrow_of(summary, s->y_type, s->zero_point, s->lo, s->hi, s->fraction_bits, residual_type,
                             s->residual_zero);
    /* With few rows the weights outweigh the pixels: each core then keeps its panels in its own cache. */
    int64_t row = 0, row_end = rows, panel = 0, panel_end = panels;
    if (rows < 96 * (int64_t)parts && panels >= parts) {
        intonly_share(panels, part, parts, &panel, &panel_end);
    } else {
        int64_t first, end;
        intonly_share((rows + 5) / 6, part, parts, &first, &end);
        row = first * 6;
        row_end = end * 6 < rows ? end * 6 : rows;
    }
    if (row < row_end && panel < panel_end) run_part(&g, row, row_end, panel, panel_end);
}
