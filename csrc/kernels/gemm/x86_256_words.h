/* SPDX-License-Identifier: Apache-2.0
 *
 * Sums of int16 products on 256-bit vectors, for any weights: two products of codes and widened weights are added in 32
 * bits (add_pair). Codes of 16 bits go this way, and with AVX2 codes of 8 bits whose products do not fit in 16.
 *
 * The rows of a block are gathered together, a block of K at a time, into a buffer that stays in the first-level cache,
 * codes of 8 bits widened; all panels read it from there, with constant distances between the rows. Those are 8 bytes
 * more than whole cache lines: broadcasts from rows that begin in the same bank of the cache would wait for each other.
 * Between blocks of K the sums wait in memory.
 *
 * Weights of 4 or 2 bits (book.h) are looked up and widened once for a block of rows, which then is three times as
 * large: its codes are read from the second-level cache, and the look-ups cost about a twentieth of the products.
 */
#ifndef INTONLY_GEMM_X86_256_WORDS_H
#define INTONLY_GEMM_X86_256_WORDS_H

#include "kernels/gemm/x86_256.h"

#define WORDS_ROWS 12      /* rows of a block */
#define WORDS_MOST_ROWS 36 /* the same where weights are looked up */
#define WORDS_BLOCK 512    /* codes of a row in the buffer: a block of K */
#define WORDS_STRIDE 548   /* int16: 17 cache lines and 8 bytes */

#ifdef __AVX2__

/* Widen `count` codes, a multiple of 4. No byte behind them is read. */
ALWAYS_INLINE void widen(const uint8_t *x, int64_t count, int16_t *a) {
    int64_t i = 0;
    if (count < 16) {
        for (; i < count; i += 4) {
            int32_t codes;
            memcpy(&codes, x + i, 4);
            _mm_storel_epi64((__m128i *)(void *)(a + i), _mm_cvtepu8_epi16(_mm_cvtsi32_si128(codes)));
        }
        return;
    }
    for (; i < count - 16; i += 16) store32(a + i, _mm256_cvtepu8_epi16(load16(x + i)));
    store32(a + count - 16, _mm256_cvtepu8_epi16(load16(x + count - 16)));
}

/* Gather codes first..end of K of all rows. words: whether they have 16 bits. */
ALWAYS_INLINE void gather_rows(const gemm *g, const gemm_block *b, int64_t first, int64_t end, int words, int16_t *a) {
    const int64_t tap_codes = gemm_codes(1, g->step->tap_bytes, words);
    int64_t tap = 0, at = first;
    if (first > 0) {
        tap = (int64_t)intonly_quotient((uint64_t)first, (uint64_t)tap_codes);
        at -= tap * tap_codes;
    }
    for (int64_t done = 0, all = end - first; done < all; ++tap, at = 0) {
        const int64_t count = tap_codes - at < all - done ? tap_codes - at : all - done;
        const int64_t offset = g->taps[tap] + at * (1 + words);
        for (int64_t row = 0; row < b->rows; ++row, a += WORDS_STRIDE) {
            if (words)
                memcpy(a + done, b->x[row] + offset, (size_t)(2 * count));
            else
                widen(b->x[row] + offset, count, a + done);
        }
        a -= b->rows * WORDS_STRIDE;
        done += count;
    }
}

/* Look up `pairs` pairs of int16 for 16 channels. */
ALWAYS_INLINE void look_up_words(const int8_t *from, int64_t pairs, int64_t bits, __m128i book, int16_t *to) {
    const __m128i field = _mm_set1_epi8(bits == 4 ? 15 : 3);
    for (int64_t i = 0; i < pairs; ++i, from += 4 * bits, to += 32) {
        __m128i low, high;
        if (bits == 4) {
            low = load16(from);
            high = _mm_srli_epi16(low, 4);
        } else {
            int64_t all8;
            memcpy(&all8, from, 8);
            const __m128i all = _mm_set1_epi64x(all8);
            low = _mm_srlv_epi64(all, _mm_set_epi64x(2, 0));
            high = _mm_srlv_epi64(all, _mm_set_epi64x(6, 4));
        }
        store32(to, _mm256_cvtepi8_epi16(_mm_shuffle_epi8(book, _mm_and_si128(low, field))));
        store32(to + 16, _mm256_cvtepi8_epi16(_mm_shuffle_epi8(book, _mm_and_si128(high, field))));
    }
}

/* One block of K for some rows. a: their codes. w: the weights. from: the sums to begin with, `step` apart by row. */
typedef struct words {
    const int16_t *a;
    const int8_t *w;
    int64_t pairs;
    const int32_t *from;
    int64_t step;
    int32_t *kept; /* where the sums go when more of K follows, else null */
} words;

typedef void (*words_tile)(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t first, const words *k);

#define WORDS_BEGIN(r) __m256i c##r##0 = load32(from + r * step), c##r##1 = load32(from + r * step + 8);
#define WORDS_ADD(c, r)                                                                                                \
    x = spread(a + r * WORDS_STRIDE * 2);                                                                              \
    c##r##0 = add_pair(c##r##0, x, w0);                                                                                \
    c##r##1 = add_pair(c##r##1, x, w1);
#define WORDS_ADD_C(r) WORDS_ADD(c, r)
#define WORDS_ADD_D(r) WORDS_ADD(d, r)
#define WORDS_PAIR(rows, M)                                                                                            \
    do {                                                                                                               \
        const __m256i w0 = load32(w), w1 = load32(w + 32);                                                             \
        __m256i x;                                                                                                     \
        ROWS_##rows(M) a += 4;                                                                                         \
        w += 64;                                                                                                       \
    } while (0)

#define WORDS_SUM(rows)                                                                                                \
    for (; pairs > 0; --pairs) WORDS_PAIR(rows, WORDS_ADD_C);
#define WORDS_SUM_OF_FEW(rows)                                                                                         \
    ROWS_##rows(NONE)                                                                                                  \
    for (; pairs > 1; pairs -= 2) {                                                                                    \
        WORDS_PAIR(rows, WORDS_ADD_C);                                                                                 \
        WORDS_PAIR(rows, WORDS_ADD_D);                                                                                 \
    }                                                                                                                  \
    if (pairs > 0) WORDS_PAIR(rows, WORDS_ADD_C);                                                                      \
    ROWS_##rows(JOIN)

#define WORDS_TILE(rows, SUM)                                                                                          \
    static void words_##rows(const gemm *g, const gemm_panel *p, const gemm_block *b, int64_t first, const words *k) { \
        const uint8_t *a = (const uint8_t *)k->a;                                                                      \
        const int8_t *w = k->w;                                                                                        \
        const int32_t *from = k->from;                                                                                 \
        const int64_t step = k->step;                                                                                  \
        int64_t pairs = k->pairs;                                                                                      \
        ROWS_##rows(WORDS_BEGIN)                                                                                       \
        SUM(rows)                                                                                                      \
        if (k->kept == NULL) {                                                                                         \
            FINISH_ROWS(rows)                                                                                          \
        } else {                                                                                                       \
            int32_t *kept = k->kept;                                                                                   \
            ROWS_##rows(KEEP)                                                                                          \
        }                                                                                                              \
    }
WORDS_TILE(1, WORDS_SUM_OF_FEW)
WORDS_TILE(2, WORDS_SUM_OF_FEW)
WORDS_TILE(3, WORDS_SUM_OF_FEW)
WORDS_TILE(4, WORDS_SUM)
WORDS_TILE(5, WORDS_SUM)
WORDS_TILE(6, WORDS_SUM)

/* Run a block of rows against a panel, over one block of K. */
static inline void words_panel(const gemm *g, const gemm_panel *p, const gemm_block *b, words k) {
    static const words_tile tiles[] = {words_1, words_2, words_3, words_4, words_5, words_6};
    for (int64_t first = 0, left = b->rows; left > 0;) {
        const int64_t now = left >= 12 ? 6 : left > 6 ? (left + 1) >> 1 : left;
        tiles[now - 1](g, p, b, first, &k);
        k.a += now * WORDS_STRIDE;
        k.from += now * k.step;
        if (k.kept != NULL) k.kept += now * 16;
        first += now;
        left -= now;
    }
}

/* Return the weights of codes first..end of K: those of the panel, or looked up in a buffer. */
static inline const int8_t *words_weights(const gemm *g, const gemm_panel *p, int64_t first, int64_t end,
                                          int16_t *buffer) {
    const int64_t bits = g->header->bits, pairs = (end - first) >> 1;
    const int8_t *w = p->weights + first * 2 * bits;
    const __m128i book = load16(g->header->book);
    if (bits == 16) return w;
    if (bits == 4)
        look_up_words(w, pairs, 4, book, buffer);
    else
        look_up_words(w, pairs, 2, book, buffer);
    return (const int8_t *)buffer;
}

static void words_run_panels(const gemm *g, const gemm_block *b, int64_t panel, int64_t panel_end) {
    const int64_t all = g->codes;
    int16_t a[WORDS_MOST_ROWS * WORDS_STRIDE], buffer[16 * WORDS_BLOCK];
    int32_t sums[GEMM_PANELS * WORDS_MOST_ROWS * 16];
    for (int64_t at = 0; at < all; at += WORDS_BLOCK) {
        const int64_t end = at + WORDS_BLOCK < all ? at + WORDS_BLOCK : all;
        if (g->step->x_type == INTONLY_S16)
            gather_rows(g, b, at, end, 1, a);
        else
            gather_rows(g, b, at, end, 0, a);
        for (int64_t i = panel; i < panel_end; ++i) {
            const gemm_panel p = gemm_panel_of(g, i);
            int32_t *own = sums + (i - panel) * WORDS_MOST_ROWS * 16;
            words_panel(g, &p, b,
                        (words){.a = a,
                                .w = words_weights(g, &p, at, end, buffer),
                                .pairs = (end - at) >> 1,
                                .from = at == 0 ? p.constants->bias : own,
                                .step = at == 0 ? 0 : 16,
                                .kept = end < all ? own : NULL});
        }
    }
}

/* Few rows wait for their weights, which are read one panel after another then, in the order in which they stand. */
static void words_run(const gemm *g, const gemm_block *b, int64_t panel, int64_t panel_end) {
    const int64_t together = b->rows <= 2 ? 1 : GEMM_PANELS;
    for (; panel < panel_end; panel += together)
        words_run_panels(g, b, panel, panel + together < panel_end ? panel + together : panel_end);
}

/* Run a part of a step whose form is wide. */
static inline void words_gemm(const intonly_gemm *step, uint8_t *const *bases, unsigned part, unsigned parts,
                              const gemm_header *header) {
    gemm_run(step, bases, part, parts, words_run, header->bits == 16 ? WORDS_ROWS : WORDS_MOST_ROWS);
}

#endif
#endif
