/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on NEON: packing, gathering, and the walk over rows and channels. gemm/arm_neon_dotprod.c shares all of
 * it but the tile.
 */
#include <string.h>

#include "kernels/gemm/arm_neon_tile.h"
#include "kernels/packed.h"

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t panels_of(int64_t channels) { return (channels + NEON_CHANNELS - 1) >> 3; }
static int64_t blocks_of(int64_t codes) { return (codes + NEON_BLOCK - 1) >> 4; }

/* The depth that packed.h writes at 0 is not needed here; the mark takes its place. */
typedef struct layout {
    intonly_packed at;
    int64_t weights, panel; /* byte offset, and bytes of a panel of 8 channels */
} layout;

static layout layout_of(int64_t channels, int64_t codes) {
    layout l = {.panel = blocks_of(codes) * NEON_BLOCK * NEON_CHANNELS};
    l.at = intonly_packed_layout(channels, panels_of(channels) * l.panel + 63);
    l.weights = (l.at.weights + 63) & ~INT64_C(63);
    return l;
}

size_t intonly_gemm_size_neon(const intonly_weights *weights) {
    if (weights->acc_limit > INT32_MAX) return 0;
    return (size_t)layout_of(weights->channels, weights->taps * weights->tap_bytes).at.bytes;
}

/* Write the weights of a channel; return whether two of -128 meet (gemm/arm_neon_tile.h). */
static int64_t pack_channel(const intonly_weights *weights, int64_t c, int log2, int8_t *to, int64_t *sum) {
    const int8_t *w = weights->w + c * weights->taps * weights->depth;
    int64_t careful = 0;
    for (int64_t tap = 0; tap < weights->taps; ++tap) {
        for (int64_t i = 0; i < weights->depth; ++i, ++w) {
            const int64_t k = tap * weights->tap_bytes + i, inside = (c & 7) << log2 | (k & ((1 << log2) - 1));
            int8_t *at = to + ((k >> log2) << (log2 + 3)) + inside;
            *at = *w;
            *sum += *w;
            careful |= log2 == 4 && (k & 8) && *w == INT8_MIN && at[-8] == INT8_MIN;
        }
    }
    return careful;
}

void intonly_gemm_pack_neon_width(const intonly_weights *weights, int log2, uint8_t *packed) {
    const layout l = layout_of(weights->channels, weights->taps * weights->tap_bytes);
    intonly_packed_begin(weights, panels_of(weights->channels) * l.panel + 63, packed);
    int64_t careful = 0;
    for (int64_t c = 0; c < weights->channels; ++c) {
        int64_t sum = 0;
        careful |= pack_channel(weights, c, log2, (int8_t *)packed + l.weights + (c >> 3) * l.panel, &sum);
        const uint32_t bias = (uint32_t)weights->bias[c] + (weights->x_signed ? 0 : (uint32_t)(128 * sum));
        memcpy(packed + l.at.bias + c * (int64_t)sizeof bias, &bias, sizeof bias);
    }
    memcpy(packed, &careful, sizeof careful);
}

void intonly_gemm_pack_neon(const intonly_weights *weights, uint8_t *packed) {
    intonly_gemm_pack_neon_width(weights, 4, packed);
}

int intonly_gemm_accepts_neon(const intonly_gemm *step, const uint8_t *packed) {
    const int64_t limit = step->packed_bytes;
    if (!intonly_product_within(step->taps, step->tap_bytes, limit)) return 0;
    const int64_t codes = step->taps * step->tap_bytes;
    if (!intonly_product_within(codes, step->oc, limit)) return 0;
    const layout l = layout_of(step->oc, codes);
    return l.at.bytes == limit &&
           intonly_packed_constants_hold(packed, &l.at, step->oc, step->form, step->r_ref >= 0);
}

typedef struct gemm {
    const intonly_gemm *step;
    const uint8_t *x, *r; /* r may be null */
    uint8_t *y;
    const int64_t *offsets;
    const uint8_t *packed;
    layout layout;
    int careful;
    uint8_t flip; /* what makes a code signed */
    neon_epilogue epilogue;
    neon_multiply multiply;
} gemm;

/* A row: a pixel of y, by image, line and column. */
typedef struct pixel {
    int64_t n, i, j;
} pixel;

static int64_t offset(pixel at, int64_t n, int64_t h, int64_t w) { return at.n * n + at.i * h + at.j * w; }

/* Point the tile to the rows from a pixel on; return the pixel behind them. */
static pixel take(const gemm *g, neon_tile *t, pixel at, int64_t rows) {
    const intonly_gemm *s = g->step;
    t->rows = rows;
    for (int64_t row = 0; row < rows; ++row) {
        t->x[row] = g->x + offset(at, s->x_n, s->x_h, s->x_w);
        t->y[row] = g->y + offset(at, s->y_n, s->y_h, s->y_w);
        t->r[row] = g->r == NULL ? t->x[row] : g->r + offset(at, s->r_n, s->r_h, s->r_w);
        if (++at.j == s->ow) at = at.i + 1 < s->oh ? (pixel){at.n, at.i + 1, 0} : (pixel){at.n + 1, 0, 0};
    }
    return at;
}

/* A code among the K of a row. */
typedef struct place {
    int64_t tap, byte;
} place;

/* Copy `count` codes of a row, from a place on, to the buffer; 0 fills up the last block. Return the place behind. */
static place gather(const gemm *g, const uint8_t *x, place at, int64_t count, uint8_t *to) {
    const uint8x16_t flip = vdupq_n_u8(g->flip);
    const uint32_t flip4 = g->flip * UINT32_C(0x01010101);
    vst1q_u8(to + ((count - 1) & ~INT64_C(15)), vdupq_n_u8(0));
    while (count > 0) {
        const uint8_t *from = x + g->offsets[at.tap] + at.byte;
        const int64_t run = smaller(g->step->tap_bytes - at.byte, count);
        int64_t i = 0;
        for (; i + 16 <= run; i += 16) vst1q_u8(to + i, veorq_u8(vld1q_u8(from + i), flip));
        for (; i < run; i += 4) {
            uint32_t four;
            memcpy(&four, from + i, sizeof four);
            four ^= flip4;
            memcpy(to + i, &four, sizeof four);
        }
        to += run;
        count -= run;
        at.byte += run;
        if (at.byte == g->step->tap_bytes) at = (place){at.tap + 1, 0};
    }
    return at;
}

/* Multiply the rows of a tile with a panel of channels; is_first: of those that share what is gathered. */
static void run_panel(const gemm *g, neon_tile *t, int64_t panel, int is_first) {
    const intonly_gemm *s = g->step;
    const int64_t depth = s->taps * s->tap_bytes, y_bytes = intonly_bytes_of(s->y_type);
    const int64_t r_bytes = intonly_bytes_of(s->r_type);
    t->channel = panel * NEON_CHANNELS;
    t->channels = smaller(s->oc - t->channel, NEON_CHANNELS);
    t->w = intonly_packed_int8(g->packed, g->layout.weights) + panel * g->layout.panel;
    t->start = intonly_packed_int32(g->packed, g->layout.at.bias) + t->channel;
    t->start_step = 0;
    place next = {0, 0};
    for (int64_t done = 0; done < depth;) {
        const int64_t count = smaller(depth - done, NEON_DEPTH);
        const place from = next;
        if (is_first || depth > NEON_DEPTH)
            for (int64_t row = 0; row < t->rows; ++row)
                next = gather(g, t->x[row], from, count, (uint8_t *)t->codes[row]);
        done += count;
        t->blocks = blocks_of(count);
        t->finish = done == depth && g->epilogue.in_registers ? &g->epilogue : NULL;
        g->multiply(t, g->careful);
        t->w += t->blocks * NEON_BLOCK * NEON_CHANNELS;
        t->start = t->sums[0];
        t->start_step = NEON_CHANNELS;
    }
    if (g->epilogue.in_registers) return;
    for (int64_t row = 0; row < t->rows; ++row)
        neon_finish_memory(&g->epilogue, t->sums[row], t->channel, 1, t->r[row] + t->channel * r_bytes,
                           t->y[row] + t->channel * y_bytes, t->channels);
}

/* Rows of the next tile: 8, or half of what is left before a tile of a row or two would be, which waits for weights. */
static int64_t tile_rows(int64_t left) {
    return left > NEON_ROWS && left < 2 * NEON_ROWS ? (left + 1) >> 1 : smaller(left, NEON_ROWS);
}

void intonly_gemm_neon_walk(const intonly_gemm *s, uint8_t *const *bases, unsigned part, unsigned parts,
                            neon_multiply multiply) {
    gemm g = {.step = s,
              .x = intonly_at(bases, s->x_ref),
              .r = intonly_at_or_null(bases, s->r_ref),
              .y = intonly_at(bases, s->y_ref),
              .offsets = (const int64_t *)(const void *)intonly_at(bases, s->tap_offsets),
              .packed = intonly_at(bases, s->packed),
              .layout = layout_of(s->oc, s->taps * s->tap_bytes),
              .flip = s->x_type == INTONLY_U8 ? 128 : 0,
              .multiply = multiply};
    g.careful = g.packed[0];
    INTONLY_READ_LIMITS(s, &g.epilogue.law);
    intonly_packed_constants(g.packed, &g.layout.at, g.r != NULL, &g.epilogue.law);
    neon_prepare(&g.epilogue, s->y_type, s->r_type, s->oc);

    /* With few rows the weights outweigh the pixels: each core then keeps its panels in its own cache. */
    const int64_t rows = s->n * s->oh * s->ow, tiles = (rows + NEON_ROWS - 1) >> 3;
    int64_t tile = 0, tile_end = tiles, panel = 0, panel_end = panels_of(s->oc);
    if (tiles < 4 * (int64_t)parts && panel_end >= (int64_t)parts)
        intonly_share(panel_end, part, parts, &panel, &panel_end);
    else
        intonly_share(tiles, part, parts, &tile, &tile_end);

    const int64_t row = tile * NEON_ROWS, row_end = smaller(tile_end * NEON_ROWS, rows);
    const int64_t line = (int64_t)intonly_quotient((uint64_t)row, (uint64_t)s->ow);
    const int64_t n = (int64_t)intonly_quotient((uint64_t)line, (uint64_t)s->oh);
    const pixel start = {n, line - n * s->oh, row - line * s->ow};
    /* Channels first: 64 channels at a time, so that rows are gathered once for as many. */
    const int64_t stride = s->channels_first ? 8 : panel_end - panel;
    neon_tile t;
    for (int64_t end; panel < panel_end; panel = end) {
        pixel at = start;
        end = smaller(panel + stride, panel_end);
        for (int64_t left = row_end - row; left > 0; left -= t.rows) {
            at = take(&g, &t, at, tile_rows(left));
            for (int64_t p = panel; p < end; ++p) run_panel(&g, &t, p, p == panel);
        }
    }
}

static void multiply(neon_tile *t, int careful) {
    if (careful)
        multiply_rows(t, 1);
    else
        multiply_rows(t, 0);
}

void intonly_gemm_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    intonly_gemm_neon_walk(step, bases, part, parts, multiply);
}
