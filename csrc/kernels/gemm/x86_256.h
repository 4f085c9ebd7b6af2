/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on 256-bit vectors, but for the sums: its packed form, the walk over rows and panels, and the end of a
 * tile. A file for an instruction set adds its tiles.
 *
 * A packed form is a header, then panels of 16 channels, each with its constants before its weights; the last panel is
 * padded with zero weights. Weights: [K / group][16 slots][group], K = the codes of all taps, where a group is what one
 * lane of 32 bits takes: four int8, or two int16. The sums of a row, a pixel of y, stand in two vectors of 8 slots in
 * the order of `rows` in kernels/x86_256.h. Few different weights are places in the book of the header, see book.h.
 */
#ifndef INTONLY_GEMM_X86_256_H
#define INTONLY_GEMM_X86_256_H

#include <stdint.h>
#include <string.h>

#include "kernels/gemm/book.h"
#include "kernels/gemm/rows.h"
#include "kernels/kernels.h"
#include "kernels/x86_256.h"
#include "kernels/x86_256_plain.h"

#define GEMM_ROWS 24       /* rows of a block */
#define GEMM_MOST_ROWS 192 /* the same where weights are looked up for the whole block, see x86_256_book.h */
#define GEMM_PANELS 8      /* panels that a block of rows goes through together */

typedef struct gemm_header {
    narrow_summary narrow;
    int32_t wide;    /* 1: int16 weights and codes, see x86_256_words.h; 0: bytes */
    int32_t chain;   /* bytes only: groups of a tap whose products are summed in 16 bits, see x86_avx2.c */
    int64_t bits;    /* of a stored weight: 16 or 8, or 4 or 2 with a book */
    int8_t book[16]; /* the weight of each place */
} gemm_header;

static inline int64_t gemm_panels(int64_t channels) { return (channels + 15) >> 4; }

/* Return the slot of a channel, or the channel of a slot: bits 2 and 3 change places. */
static inline int64_t slot_of(int64_t channel) { return (channel & 3) | (channel & 4) << 1 | (channel & 8) >> 1; }

/* Return the bytes of a panel with this K, whole cache lines. */
static inline int64_t gemm_panel_bytes(int64_t k, int64_t bits) {
    return (int64_t)sizeof(panel_constants) + ((2 * k * bits + 63) & ~INT64_C(63));
}

static inline int64_t gemm_bytes(int64_t channels, int64_t k, int64_t bits) {
    return (int64_t)sizeof(gemm_header) + gemm_panels(channels) * gemm_panel_bytes(k, bits);
}

/* Return the bits of a stored weight. */
static inline int64_t gemm_bits(const code_book *book, int64_t wide) {
    return book->bits < 8 ? book->bits : wide ? 16 : 8;
}

/* Return K, the codes of all taps. words: whether they have 16 bits. */
static inline int64_t gemm_codes(int64_t taps, int64_t tap_bytes, int words) { return taps * (tap_bytes >> words); }

/* Return the size of a packed form. */
static inline size_t gemm_size(const intonly_weights *weights, int64_t wide) {
    const code_book book = book_of(weights);
    const int64_t k = gemm_codes(weights->taps, weights->tap_bytes, weights->x_words != 0);
    return (size_t)gemm_bytes(weights->channels, k, gemm_bits(&book, wide));
}

/* Write the weights of a channel. */
static inline void gemm_pack_channel(const intonly_weights *weights, const code_book *book, int64_t wide, int64_t c,
                                     uint8_t *to) {
    const int64_t bits = gemm_bits(book, wide), in_group = 4 >> wide, bytes = 2 * in_group * bits;
    const int64_t tap_codes = gemm_codes(1, weights->tap_bytes, weights->x_words != 0);
    const int8_t *w = weights->w + c * weights->taps * weights->depth;
    for (int64_t tap = 0; tap < weights->taps; ++tap, w += weights->depth)
        for (int64_t i = 0; i < tap_codes; ++i) {
            const int8_t weight = i < weights->depth ? w[i] : 0;
            const int64_t at = tap * tap_codes + i;
            const int64_t entry = slot_of(c & 15) * in_group + (at & (in_group - 1));
            uint8_t *group = to + (at >> (2 - wide)) * bytes;
            if (bits < 8)
                book_put(book, weight, entry, bytes, group);
            else if (wide)
                ((int16_t *)(void *)group)[entry] = weight;
            else
                group[entry] = (uint8_t)weight;
        }
}

/* Write a packed form. */
static inline void gemm_pack(const intonly_weights *weights, int64_t wide, int64_t chain, uint8_t *packed) {
    const int64_t k = gemm_codes(weights->taps, weights->tap_bytes, weights->x_words != 0);
    const code_book book = book_of(weights);
    gemm_header header;
    memset(&header, 0, sizeof header);
    header.narrow = narrow_summarize(weights);
    header.wide = (int32_t)wide;
    header.chain = (int32_t)chain;
    header.bits = gemm_bits(&book, wide);
    memcpy(header.book, book.weight, sizeof header.book);
    memset(packed, 0, (size_t)gemm_bytes(weights->channels, k, header.bits));
    memcpy(packed, &header, sizeof header);
    for (int64_t c = 0; c < weights->channels; ++c) {
        uint8_t *panel = packed + sizeof header + (c >> 4) * gemm_panel_bytes(k, header.bits);
        panel_pack(weights, c, c & 15, slot_of(c & 15), (panel_constants *)(void *)panel);
        gemm_pack_channel(weights, &book, wide, c, panel + sizeof(panel_constants));
    }
}

/* Return whether a packed form is one that gemm_run can read for this step. */
static inline int gemm_accepts(const intonly_gemm *step, const uint8_t *packed) {
    const int64_t limit = step->packed_bytes;
    const int words = step->x_type == INTONLY_S16;
    if (limit < (int64_t)sizeof(gemm_header) || (step->tap_bytes & 3)) return 0;
    if (!intonly_product_within(step->taps, step->tap_bytes, limit)) return 0;
    const int64_t k = gemm_codes(step->taps, step->tap_bytes, words), panels = gemm_panels(step->oc);
    if (!intonly_product_within(k, panels, limit)) return 0;
    const gemm_header *header = (const gemm_header *)(const void *)packed;
    if (step->x_type != INTONLY_U8 && !(words && header->wide)) return 0;
    if (header->wide < 0 || header->wide > 1 || header->chain < 1 || header->chain > 8) return 0;
    if (header->bits != 8 << header->wide && header->bits != 4 && header->bits != 2) return 0;
    if (gemm_bytes(step->oc, k, header->bits) != limit || !narrow_summary_holds(&header->narrow)) return 0;
    for (int64_t i = 0; i < panels; ++i) {
        const int64_t at = (int64_t)sizeof *header + i * gemm_panel_bytes(k, header->bits), left = step->oc - i * 16;
        if (!panel_holds(packed, at, left < 16 ? left : 16, step->form, step->r_ref >= 0)) return 0;
    }
    return 1;
}

#ifdef __AVX2__

typedef struct gemm {
    const intonly_gemm *step;
    const gemm_header *header;
    const int64_t *taps;
    const uint8_t *x, *r;
    uint8_t *y;
    int64_t codes; /* K */
    finish finish;
} gemm;

/* A panel of a packed form. */
typedef struct gemm_panel {
    const panel_constants *constants;
    const int8_t *weights;
    int64_t channel;  /* its first */
    int64_t channels; /* without the padding */
} gemm_panel;

static inline gemm_panel gemm_panel_of(const gemm *g, int64_t index) {
    const int64_t left = g->step->oc - index * 16;
    const uint8_t *at = (const uint8_t *)(g->header + 1) + index * gemm_panel_bytes(g->codes, g->header->bits);
    const panel_constants *constants = (const panel_constants *)(const void *)at;
    return (gemm_panel){constants, (const int8_t *)(constants + 1), index * 16, left < 16 ? left : 16};
}

/* Rows on their way: pointers to their first channels. */
typedef struct gemm_block {
    const uint8_t *x[GEMM_MOST_ROWS], *r[GEMM_MOST_ROWS];
    uint8_t *y[GEMM_MOST_ROWS];
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

/* Finish and store rows i and j, which may be the same, from their sums. */
ALWAYS_INLINE void finish_two(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t i, int64_t j, sums32 s) {
    const lanes n = lanes_of_rows(p->constants);
    const int64_t at = p->channel, channels = p->channels;
    __m256i r = _mm256_setzero_si256();
    if (g->finish.joins) r = swap_middle(both(load_some(b->r[i] + at, channels), load_some(b->r[j] + at, channels)));
    const __m256i codes = swap_middle(finish_fast(&g->finish, &n, s, r));
    store_some(b->y[i] + at, _mm256_castsi256_si128(codes), channels);
    store_some(b->y[j] + at, _mm256_extracti128_si256(codes, 1), channels);
}

/* Finish and store rows from `first` on by the law. sums: 16 of each, by slot. */
static inline void finish_by_law(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t first, int64_t rows,
                                 const int32_t *sums) {
    const finish *f = &g->finish;
    for (int64_t row = first; row < first + rows; ++row, sums += 16) {
        int32_t ordered[16];
        for (int64_t c = 0; c < 16; ++c) ordered[c] = sums[slot_of(c)];
        finish_plain(f, p->constants, ordered, b->r[row] + p->channel * f->r_bytes, b->y[row] + p->channel * f->y_bytes,
                     p->channels);
    }
}

/* M(i, j) for two rows at a time. */
#define PAIRS_1(M) M(0, 0)
#define PAIRS_2(M) M(0, 1)
#define PAIRS_3(M) PAIRS_2(M) M(2, 2)
#define PAIRS_4(M) PAIRS_2(M) M(2, 3)
#define PAIRS_5(M) PAIRS_4(M) M(4, 4)
#define PAIRS_6(M) PAIRS_4(M) M(4, 5)

/* With few rows the next sum would wait for the one before: every other group has sums of its own, d<row><vector>. */
#define NONE(r) __m256i d##r##0 = _mm256_setzero_si256(), d##r##1 = _mm256_setzero_si256();
#define JOIN(r) c##r##0 = _mm256_add_epi32(c##r##0, d##r##0), c##r##1 = _mm256_add_epi32(c##r##1, d##r##1);

#define KEEP(r) store32(kept + r * 16, c##r##0), store32(kept + r * 16 + 8, c##r##1);
#define FINISH(i, j) finish_two(g, p, b, first + i, first + j, (sums32){c##i##0, c##i##1, c##j##0, c##j##1});

/* The end of a tile. */
#define FINISH_ROWS(rows)                                                                                              \
    if (g->finish.fast) {                                                                                              \
        PAIRS_##rows(FINISH)                                                                                           \
    } else {                                                                                                           \
        int32_t kept[rows * 16];                                                                                       \
        ROWS_##rows(KEEP) finish_by_law(g, p, b, first, rows, kept);                                                   \
    }

/* Return a group of a row, 8 times. */
ALWAYS_INLINE __m256i spread(const uint8_t *x) {
    int32_t group;
    memcpy(&group, x, 4);
    return _mm256_set1_epi32(group);
}

/* A stretch of K for rows of a block: `bytes` codes of each of some taps. */
typedef struct stretch {
    const int64_t *tap, *last; /* offsets of the taps: the first, and behind the last */
    int64_t at, bytes;         /* of each tap */
    const int8_t *w;
    const int32_t *from; /* 16 sums that every row begins with */
    int32_t *sums;       /* where sums wait between the stretches of K, 16 a row; null when there is only one */
    int adds, keeps;     /* whether there is a stretch before, and behind */
} stretch;

#define ADD_BEFORE(r)                                                                                                  \
    c##r##0 = _mm256_add_epi32(c##r##0, load32(kept + r * 16));                                                        \
    c##r##1 = _mm256_add_epi32(c##r##1, load32(kept + r * 16 + 8));

/* The end of a tile over a stretch. */
#define END_STRETCH(rows, k)                                                                                           \
    if ((k)->sums != NULL) {                                                                                           \
        int32_t *kept = (k)->sums;                                                                                     \
        if ((k)->adds) {                                                                                               \
            ROWS_##rows(ADD_BEFORE)                                                                                    \
        }                                                                                                              \
        if ((k)->keeps) {                                                                                              \
            ROWS_##rows(KEEP) return;                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    FINISH_ROWS(rows)

/* Sum rows from `first` on of a block over a stretch of K, and finish them. */
typedef void (*gemm_tile)(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t first, const stretch *k);

/* Run a block over a stretch of a panel with the tiles for 1 to `most` rows; the last two are of about one size. The
 * stretch goes along with the rows. */
ALWAYS_INLINE void run_tiles(const gemm *g, const gemm_panel *p, const gemm_block *b, stretch *k,
                             const gemm_tile *tiles, int64_t most) {
    for (int64_t first = 0, left = b->rows; left > 0;) {
        const int64_t now = left >= 2 * most ? most : left > most ? (left + 1) >> 1 : left;
        tiles[now - 1](g, p, b, first, k);
        if (k->sums != NULL) k->sums += now * 16;
        first += now;
        left -= now;
    }
}

/* Run a block of rows against panels panel..panel_end-1, at most GEMM_PANELS; each instruction set has its own. */
typedef void (*gemm_work)(const gemm *g, const gemm_block *b, int64_t panel, int64_t panel_end);

/* Rows of the next block: none is left with a row or two, which would wait for their weights. */
static inline int64_t block_rows(int64_t left, int64_t most) {
    return left >= most + (most >> 1) ? most : left > most ? most >> 1 : left;
}

static inline void run_part(const gemm *g, int64_t row, int64_t row_end, int64_t panel, int64_t panel_end,
                            gemm_work work, int64_t rows) {
    const cursor start = go_to_row(g->step, row);
    const int64_t most = g->step->channels_first ? GEMM_PANELS : panel_end - panel;
    gemm_block b;
    for (; panel < panel_end; panel += most) {
        const int64_t end = panel + most < panel_end ? panel + most : panel_end;
        cursor at = start;
        for (int64_t left = row_end - row; left > 0; left -= b.rows) {
            take(g, &at, block_rows(left, rows), &b);
            for (int64_t i = panel; i < end; i += GEMM_PANELS)
                work(g, &b, i, i + GEMM_PANELS < end ? i + GEMM_PANELS : end);
        }
    }
}

/* Run part `part` of a step. rows: of a block, at most GEMM_MOST_ROWS. */
static inline void gemm_run(const intonly_gemm *step, uint8_t *const *bases, unsigned part, unsigned parts,
                            gemm_work work, int64_t rows) {
    intonly_gemm s = *step;
    gemm g = {.step = &s,
              .header = (const gemm_header *)(const void *)intonly_at(bases, s.packed),
              .taps = (const int64_t *)(const void *)intonly_at(bases, s.tap_offsets),
              .x = intonly_at(bases, s.x_ref),
              .y = intonly_at(bases, s.y_ref),
              .codes = gemm_codes(s.taps, s.tap_bytes, s.x_type == INTONLY_S16)};
    FINISH_OF(step, &g.header->narrow, &g.finish);
    if (!g.finish.joins) s.r_n = s.r_h = s.r_w = 0; /* the walk stays where it is, and nothing is read */
    g.r = g.finish.joins ? intonly_at(bases, s.r_ref) : g.y;
    /* With few rows the weights outweigh the pixels: each core then keeps its panels in its own cache. */
    const int64_t all = s.n * s.oh * s.ow, panels = gemm_panels(s.oc);
    int64_t row = 0, row_end = all, panel = 0, panel_end = panels;
    if (all < 48 * (int64_t)parts && panels >= parts)
        intonly_share(panels, part, parts, &panel, &panel_end);
    else
        intonly_share(all, part, parts, &row, &row_end);
    if (row < row_end && panel < panel_end) run_part(&g, row, row_end, panel, panel_end, work, rows);
}

#endif
#endif
