/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on 256-bit vectors, but for the sums: its packed form, and the walk over rows, panels and blocks of K.
 * A file for an instruction set adds its tiles.
 *
 * A packed form is a header, then panels of 16 channels, each with its constants before its weights; the last panel is
 * padded with zero weights. Weights: [K / group][16 slots][group], K = taps * tap_bytes, where a group is what one lane
 * of 32 bits takes: four int8, or two int16. A row is a pixel of y.
 *
 * Rows are gathered 12 at a time, a block of K at a time, into a buffer that stays in the first-level cache, as bytes
 * or widened to int16. All panels then read it with constant distances between the rows. Those are 8 bytes more than
 * whole cache lines: broadcasts from rows that begin in the same bank of the cache would wait for each other.
 */
#ifndef INTONLY_GEMM_X86_256_H
#define INTONLY_GEMM_X86_256_H

#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/x86_256.h"

#define GEMM_ROWS 12         /* rows gathered together */
#define GEMM_ROW_BYTES 1024  /* of a row in the buffer: a block of K */
#define GEMM_ROW_STRIDE 1096 /* 17 cache lines and 8 bytes */
#define GEMM_PANELS 8        /* panels whose sums are kept between blocks of K */

typedef struct gemm_header {
    narrow_summary narrow;
    int64_t wide;  /* 1: int16 weights and codes; 0: bytes */
    int64_t chain; /* bytes only: groups whose products are summed in 16 bits */
    int64_t unused[2];
} gemm_header;

static inline int64_t gemm_panels(int64_t channels) { return (channels + 15) >> 4; }

/* Return the slot of a channel, or the channel of a slot: bits 2 and 3 change places. */
static inline int64_t slot_of(int64_t channel) { return (channel & 3) | (channel & 4) << 1 | (channel & 8) >> 1; }

/* Return the bytes of a panel with this K. */
static inline int64_t gemm_panel_bytes(int64_t k, int64_t wide) {
    return (int64_t)sizeof(panel_constants) + (k * 16 << wide);
}

static inline int64_t gemm_bytes(int64_t channels, int64_t k, int64_t wide) {
    return (int64_t)sizeof(gemm_header) + gemm_panels(channels) * gemm_panel_bytes(k, wide);
}

/* Write a packed form. */
static inline void gemm_pack(const intonly_weights *weights, int64_t wide, int64_t chain, uint8_t *packed) {
    const int64_t k = weights->taps * weights->tap_bytes, in_group = 4 >> wide;
    gemm_header header;
    memset(&header, 0, sizeof header);
    header.narrow = narrow_summarize(weights);
    header.wide = wide;
    header.chain = chain;
    memset(packed, 0, (size_t)gemm_bytes(weights->channels, k, wide));
    memcpy(packed, &header, sizeof header);
    for (int64_t c = 0; c < weights->channels; ++c) {
        uint8_t *panel = packed + sizeof header + (c >> 4) * gemm_panel_bytes(k, wide);
        panel_pack(weights, c, c & 15, slot_of(c & 15), (panel_constants *)(void *)panel);
        int8_t *bytes = (int8_t *)panel + sizeof(panel_constants) + 4 * slot_of(c & 15);
        int16_t *words = (int16_t *)(void *)bytes;
        const int8_t *w = weights->w + c * weights->taps * weights->depth;
        for (int64_t tap = 0; tap < weights->taps; ++tap)
            for (int64_t i = 0; i < weights->depth; ++i, ++w) {
                const int64_t at = tap * weights->tap_bytes + i, group = at >> (2 - wide), place = at & (in_group - 1);
                if (wide)
                    words[group * 32 + place] = *w;
                else
                    bytes[group * 64 + place] = *w;
            }
    }
}

/* Return whether a packed form is one that gemm_run can read for this step. */
static inline int gemm_accepts(const intonly_gemm *step, const uint8_t *packed) {
    const int64_t limit = step->packed_bytes;
    if (step->x_type != INTONLY_U8 || limit < (int64_t)sizeof(gemm_header) || (step->tap_bytes & 3)) return 0;
    if (!intonly_product_within(step->taps, step->tap_bytes, limit)) return 0;
    const int64_t k = step->taps * step->tap_bytes, panels = gemm_panels(step->oc);
    if (!intonly_product_within(k, panels, limit)) return 0;
    const gemm_header *header = (const gemm_header *)(const void *)packed;
    if (header->wide < 0 || header->wide > 1 || header->chain < 1 || header->chain > 8) return 0;
    if (gemm_bytes(step->oc, k, header->wide) != limit || !narrow_summary_holds(&header->narrow)) return 0;
    for (int64_t i = 0; i < panels; ++i) {
        const int64_t at = (int64_t)sizeof *header + i * gemm_panel_bytes(k, header->wide), left = step->oc - i * 16;
        if (!panel_holds(packed, at, left < 16 ? left : 16, step->form, step->r_ref >= 0)) return 0;
    }
    return 1;
}

#ifdef __AVX2__

/* Sum a number of rows over `groups` groups of K. a: the rows in the buffer. w: weights. from: the 16 sums of each row
 * to begin with, `step` apart. sums: where they go, 16 apart; it may be `from`. */
typedef void (*gemm_tile)(const uint8_t *a, const int8_t *w, int64_t groups, int64_t chain, const int32_t *from,
                          int64_t step, int32_t *sums);

/* Tiles for 1 to `most` rows. */
typedef struct gemm_tiles {
    int64_t most;
    const gemm_tile *of_rows;
} gemm_tiles;

/* M(r) for the rows of a tile. Sums are named variables, c<row><vector>: an array of them would live in memory. */
#define ROWS_1(M) M(0)
#define ROWS_2(M) ROWS_1(M) M(1)
#define ROWS_3(M) ROWS_2(M) M(2)
#define ROWS_4(M) ROWS_3(M) M(3)
#define ROWS_5(M) ROWS_4(M) M(4)
#define ROWS_6(M) ROWS_5(M) M(5)

#define BEGIN(r) __m256i c##r##0 = load32(from + r * step), c##r##1 = load32(from + r * step + 8);
#define KEEP(r) store32(sums + r * 16, c##r##0), store32(sums + r * 16 + 8, c##r##1);

/* Return a group of a row, 8 times. */
ALWAYS_INLINE __m256i spread(const uint8_t *a) {
    int32_t group;
    memcpy(&group, a, 4);
    return _mm256_set1_epi32(group);
}

typedef struct gemm {
    const intonly_gemm *step;
    const gemm_header *header;
    const gemm_tiles *tiles;
    const int64_t *taps;
    const uint8_t *x, *r;
    uint8_t *y;
    finish finish;
} gemm;

/* Rows on their way: pointers to their first channels. */
typedef struct gemm_block {
    const uint8_t *x[GEMM_ROWS], *r[GEMM_ROWS];
    uint8_t *y[GEMM_ROWS];
    int64_t rows;
} gemm_block;

/* A place in a walk over the rows: offsets of the pixel, of its line and of its image. */
typedef struct cursor {
    int64_t i, j;
    int64_t x_image, x, y_image, y, r_image, r;
} cursor;

static inline void go_to(const intonly_gemm *s, int64_t i, int64_t j, cursor *at) {
    at->i = i;
    at->j = j;
    at->x = at->x_image + i * s->x_h + j * s->x_w;
    at->y = at->y_image + i * s->y_h + j * s->y_w;
    at->r = at->r_image + i * s->r_h + j * s->r_w;
}

static inline cursor go_to_row(const intonly_gemm *s, int64_t row) {
    const int64_t line = (int64_t)intonly_quotient((uint64_t)row, (uint64_t)s->ow);
    const int64_t n = (int64_t)intonly_quotient((uint64_t)line, (uint64_t)s->oh);
    cursor at = {.x_image = n * s->x_n, .y_image = n * s->y_n, .r_image = n * s->r_n};
    go_to(s, line - n * s->oh, row - line * s->ow, &at);
    return at;
}

/* Take the next `rows` rows. */
static inline void take(const gemm *g, cursor *at, int64_t rows, gemm_block *b) {
    const intonly_gemm *s = g->step;
    b->rows = rows;
    for (int64_t row = 0; row < rows; ++row) {
        b->x[row] = g->x + at->x;
        b->y[row] = g->y + at->y;
        b->r[row] = g->r + at->r;
        at->x += s->x_w;
        at->y += s->y_w;
        at->r += s->r_w;
        if (++at->j < s->ow) continue;
        if (at->i + 1 < s->oh) {
            go_to(s, at->i + 1, 0, at);
        } else {
            at->x_image += s->x_n;
            at->y_image += s->y_n;
            at->r_image += s->r_n;
            go_to(s, 0, 0, at);
        }
    }
}

/* Copy `count` codes, a multiple of 4. No byte behind them is read. */
ALWAYS_INLINE void gather_bytes(const uint8_t *x, int64_t count, uint8_t *a) {
    if (count < 16) {
        for (int64_t i = 0; i < count; i += 4) memcpy(a + i, x + i, 4);
        return;
    }
    for (int64_t i = 0; i < count - 16; i += 16) store16(a + i, load16(x + i));
    store16(a + count - 16, load16(x + count - 16));
}

/* The same, widened to int16. */
ALWAYS_INLINE void gather_words(const uint8_t *x, int64_t count, uint8_t *a) {
    if (count < 16) {
        for (int64_t i = 0; i < count; i += 4) {
            int32_t codes;
            memcpy(&codes, x + i, 4);
            _mm_storel_epi64((__m128i *)(void *)(a + 2 * i), _mm_cvtepu8_epi16(_mm_cvtsi32_si128(codes)));
        }
        return;
    }
    for (int64_t i = 0; i < count - 16; i += 16) store32(a + 2 * i, _mm256_cvtepu8_epi16(load16(x + i)));
    store32(a + 2 * (count - 16), _mm256_cvtepu8_epi16(load16(x + count - 16)));
}

/* Gather codes first..end of K of all rows. */
static inline void gather(const gemm *g, const gemm_block *b, int64_t first, int64_t end, uint8_t *a) {
    const int64_t tap_bytes = g->step->tap_bytes, wide = g->header->wide;
    int64_t tap = 0, at = first;
    if (first > 0) {
        tap = (int64_t)intonly_quotient((uint64_t)first, (uint64_t)tap_bytes);
        at -= tap * tap_bytes;
    }
    for (int64_t done = 0, all = end - first; done < all; ++tap, at = 0) {
        const int64_t count = tap_bytes - at < all - done ? tap_bytes - at : all - done, offset = g->taps[tap] + at;
        uint8_t *to = a + (done << wide);
        for (int64_t row = 0; row < b->rows; ++row, to += GEMM_ROW_STRIDE) {
            if (wide)
                gather_words(b->x[row] + offset, count, to);
            else
                gather_bytes(b->x[row] + offset, count, to);
        }
        done += count;
    }
}

/* Sum all gathered rows; the last two tiles are of about one size. */
static inline void sum_rows(const gemm *g, const uint8_t *a, const int8_t *w, int64_t groups, int64_t rows,
                            const int32_t *from, int64_t step, int32_t *sums) {
    const int64_t most = g->tiles->most;
    while (rows > 0) {
        const int64_t now = rows >= 2 * most ? most : rows > most ? (rows + 1) >> 1 : rows;
        g->tiles->of_rows[now - 1](a, w, groups, g->header->chain, from, step, sums);
        a += now * GEMM_ROW_STRIDE;
        from += now * step;
        sums += now * 16;
        rows -= now;
    }
}

/* Finish and store 16 channels of all rows. */
static inline void finish_rows(const gemm *g, const panel_constants *k, const gemm_block *b, int64_t channel,
                               const int32_t *all) {
    const finish *f = &g->finish;
    const int64_t left = g->step->oc - channel, channels = left < 16 ? left : 16;
    const int64_t y_at = channel * f->y_bytes, r_at = channel * f->r_bytes;
    if (!f->fast) {
        for (int64_t row = 0; row < b->rows; ++row, all += 16) {
            int32_t ordered[16];
            for (int64_t c = 0; c < 16; ++c) ordered[c] = all[slot_of(c)];
            finish_plain(f, k, ordered, b->r[row] + r_at, b->y[row] + y_at, channels);
        }
        return;
    }
    const lanes n = lanes_of_rows(f, k);
    for (int64_t row = 0; row < b->rows; row += 2) {
        const int64_t next = row + 1 < b->rows ? row + 1 : row;
        const int32_t *s = all + row * 16, *t = all + next * 16;
        const sums32 two = {load32(s), load32(s + 8), load32(t), load32(t + 8)};
        __m256i r = _mm256_setzero_si256();
        if (n.joins)
            r = swap_middle(both(load_some(b->r[row] + r_at, channels), load_some(b->r[next] + r_at, channels)));
        const __m256i codes = swap_middle(lanes_finish(&n, two, r));
        store_some(b->y[row] + y_at, _mm256_castsi256_si128(codes), channels);
        store_some(b->y[next] + y_at, _mm256_extracti128_si256(codes, 1), channels);
    }
}

/* Some panels, at most GEMM_PANELS, of a block of rows. */
static inline void run_block(const gemm *g, const gemm_block *b, int64_t panel, int64_t panel_end) {
    const int64_t k = g->step->taps * g->step->tap_bytes, wide = g->header->wide, most = GEMM_ROW_BYTES >> wide;
    const int64_t panel_bytes = gemm_panel_bytes(k, wide);
    uint8_t a[GEMM_ROWS * GEMM_ROW_STRIDE];
    int32_t all[GEMM_PANELS * GEMM_ROWS * 16];
    for (int64_t first = 0; first < k; first += most) {
        const int64_t end = first + most < k ? first + most : k;
        gather(g, b, first, end, a);
        for (int64_t i = panel; i < panel_end; ++i) {
            const uint8_t *at = (const uint8_t *)(g->header + 1) + i * panel_bytes;
            const panel_constants *constants = (const panel_constants *)(const void *)at;
            const int8_t *w = (const int8_t *)(constants + 1) + (first * 16 << wide);
            int32_t *own = all + (i - panel) * GEMM_ROWS * 16;
            const int64_t groups = (end - first) >> (2 - wide);
            sum_rows(g, a, w, groups, b->rows, first == 0 ? constants->bias : own, first == 0 ? 0 : 16, own);
            if (end == k) finish_rows(g, constants, b, i * 16, own);
        }
    }
}

/* Rows of the next block: no block is left with a row or two, which would wait for their weights. */
static inline int64_t block_rows(int64_t left) { return left >= 18 ? GEMM_ROWS : left > 12 ? 6 : left; }

static inline void run_part(const gemm *g, int64_t row, int64_t row_end, int64_t panel, int64_t panel_end) {
    const cursor start = go_to_row(g->step, row);
    const int64_t most = g->step->channels_first ? GEMM_PANELS : panel_end - panel;
    gemm_block b;
    for (; panel < panel_end; panel += most) {
        const int64_t end = panel + most < panel_end ? panel + most : panel_end;
        cursor at = start;
        for (int64_t left = row_end - row; left > 0; left -= b.rows) {
            take(g, &at, block_rows(left), &b);
            for (int64_t i = panel; i < end; i += GEMM_PANELS)
                run_block(g, &b, i, i + GEMM_PANELS < end ? i + GEMM_PANELS : end);
        }
    }
}

/* Run part `part` of a step with the tiles for its packed form. */
static inline void gemm_run(const intonly_gemm *step, uint8_t *const *bases, unsigned part, unsigned parts,
                            const gemm_tiles *tiles) {
    intonly_gemm s = *step;
    gemm g = {.step = &s,
              .header = (const gemm_header *)(const void *)intonly_at(bases, s.packed),
              .tiles = tiles,
              .taps = (const int64_t *)(const void *)intonly_at(bases, s.tap_offsets),
              .x = intonly_at(bases, s.x_ref),
              .y = intonly_at(bases, s.y_ref)};
    FINISH_OF(step, &g.header->narrow, &g.finish);
    if (!g.finish.joins) s.r_n = s.r_h = s.r_w = 0; /* the walk stays where it is, and nothing is read */
    g.r = g.finish.joins ? intonly_at(bases, s.r_ref) : g.y;
    /* With few rows the weights outweigh the pixels: each core then keeps its panels in its own cache. */
    const int64_t rows = s.n * s.oh * s.ow, panels = gemm_panels(s.oc);
    int64_t row = 0, row_end = rows, panel = 0, panel_end = panels;
    if (rows < 48 * (int64_t)parts && panels >= parts)
        intonly_share(panels, part, parts, &panel, &panel_end);
    else
        intonly_share(rows, part, parts, &row, &row_end);
    if (row < row_end && panel < panel_end) run_part(&g, row, row_end, panel, panel_end);
}

#endif
#endif
