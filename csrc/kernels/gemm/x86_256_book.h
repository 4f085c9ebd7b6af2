/* SPDX-License-Identifier: Apache-2.0
 *
 * Looking up weights of 4 or 2 bits on 256-bit vectors (book.h).
 *
 * A block of one or two rows looks them up in its tile: it waits for memory, and reads half or a quarter of it. More
 * rows share the work: a stretch of a panel is looked up once, into a buffer that stays in the first-level cache, and up
 * to GEMM_MOST_ROWS rows meet it there. For one tile after another the look-ups would cost a third of the products, for
 * so many rows it is a few percent of them at most. The sums wait in memory between stretches.
 */
#ifndef INTONLY_GEMM_X86_256_BOOK_H
#define INTONLY_GEMM_X86_256_BOOK_H

#include "kernels/gemm/x86_256.h"

#define BOOK_STRETCH 1024 /* most codes of a stretch, a multiple of the longest chain */
#define BOOK_FEW 2        /* rows that look up for themselves */

#ifdef __AVX2__

/* The book of a layer, once in each lane. */
ALWAYS_INLINE __m256i book_at(const gemm *g) { return _mm256_broadcastsi128_si256(load16(g->header->book)); }

/* The weights of a group. */
typedef struct group_weights {
    __m256i w0, w1;
} group_weights;

/* Return the weights of a group of bytes; 16 * bits bytes are read. */
ALWAYS_INLINE group_weights look_up(const int8_t *from, int64_t bits, __m256i book) {
    if (bits == 8) return (group_weights){load32(from), load32(from + 32)};
    __m256i low, high;
    if (bits == 4) {
        low = load32(from);
        high = _mm256_srli_epi16(low, 4);
    } else {
        const __m256i all = _mm256_broadcastsi128_si256(load16(from));
        low = _mm256_srlv_epi64(all, _mm256_setr_epi64x(0, 0, 2, 2));
        high = _mm256_srlv_epi64(all, _mm256_setr_epi64x(4, 4, 6, 6));
    }
    const __m256i field = _mm256_set1_epi8(bits == 4 ? 15 : 3);
    return (group_weights){_mm256_shuffle_epi8(book, _mm256_and_si256(low, field)),
                           _mm256_shuffle_epi8(book, _mm256_and_si256(high, field))};
}

/* Look up `groups` groups of bytes. */
ALWAYS_INLINE void look_up_bytes(const int8_t *from, int64_t groups, int64_t bits, __m256i book, int8_t *to) {
    for (int64_t i = 0; i < groups; ++i, from += 8 * bits, to += 64) {
        const group_weights w = look_up(from, bits, book);
        store32(to, w.w0);
        store32(to + 32, w.w1);
    }
}

/* Run a block against a panel, with the tiles for weights of 8 bits. taps: of a stretch, as many as fit, but at
 * least one. */
static inline void run_looked_up(const gemm *g, const gemm_panel *p, const gemm_block *b, const gemm_tile *tiles,
                                 int64_t most, int64_t taps) {
    static const int32_t none[16];
    const intonly_gemm *s = g->step;
    const int64_t bits = g->header->bits;
    const __m256i book = book_at(g);
    const int8_t *from = p->weights;
    int8_t weights[16 * BOOK_STRETCH];
    int32_t sums[16 * GEMM_MOST_ROWS];
    stretch k = {.w = weights, .from = p->constants->bias};
    for (int64_t tap = 0; tap < s->taps;) {
        const int64_t left = s->tap_bytes - k.at, many = taps < s->taps - tap ? taps : s->taps - tap;
        k.bytes = left < BOOK_STRETCH ? left : BOOK_STRETCH;
        k.tap = g->taps + tap;
        k.last = k.tap + many;
        const int64_t codes = many * k.bytes;
        if (bits == 4)
            look_up_bytes(from, codes >> 2, 4, book, weights);
        else
            look_up_bytes(from, codes >> 2, 2, book, weights);
        from += 2 * bits * codes;
        if (k.bytes == left) tap += many;
        k.keeps = tap < s->taps;
        k.sums = k.adds || k.keeps ? sums : NULL;
        run_tiles(g, p, b, &k, tiles, most);
        k.at = k.bytes == left ? 0 : k.at + k.bytes;
        k.from = none;
        k.adds = 1;
    }
}

/* The tiles of an instruction set: for weights of 8 bits, and for one or two rows by 4 and 2 bits. */
typedef struct gemm_tiles {
    gemm_tile bytes[6], few[2][BOOK_FEW];
} gemm_tiles;

/* Return the rows of a block. */
static inline int64_t bytes_rows(const gemm_header *header) { return header->bits == 8 ? GEMM_ROWS : GEMM_MOST_ROWS; }

/* Run a block against panels of bytes. most: rows of a tile. */
ALWAYS_INLINE void run_bytes(const gemm *g, const gemm_block *b, int64_t panel, int64_t panel_end,
                             const gemm_tiles *tiles, int64_t most) {
    const int64_t bits = g->header->bits;
    const int looked_up = bits < 8 && b->rows > BOOK_FEW;
    int64_t taps = 1;
    if (looked_up && g->step->tap_bytes < BOOK_STRETCH)
        taps = (int64_t)intonly_quotient(BOOK_STRETCH, (uint64_t)g->step->tap_bytes);
    stretch all = {.tap = g->taps, .last = g->taps + g->step->taps, .bytes = g->step->tap_bytes};
    for (; panel < panel_end; ++panel) {
        const gemm_panel p = gemm_panel_of(g, panel);
        if (looked_up) {
            run_looked_up(g, &p, b, tiles->bytes, most, taps);
            continue;
        }
        all.w = p.weights;
        all.from = p.constants->bias;
        run_tiles(g, &p, b, &all, bits == 8 ? tiles->bytes : tiles->few[bits == 2], bits == 8 ? most : BOOK_FEW);
    }
}

#endif
#endif
