/* SPDX-License-Identifier: Apache-2.0
 *
 * The register tiles of the AVX-512 VNNI gemm: rows (pixels) by 64, 32 or 16 channels, with at most 24 accumulators.
 *
 * One pass over all of K, then the epilogue while the accumulators are still in registers. A unit of rows is what
 * fills four accumulators: 1 row of 64 channels, 2 of 32, 4 of 16; a tile has 1 to 6 units. Rows that complete a unit
 * repeat the last row: they compute and store the same bytes again.
 *
 * Accumulator c<i> lives in register zmm<i>, 8 to 31, and the order of broadcasts and dot products is pinned by
 * volatile statements of one instruction. Left alone, gcc hoists the broadcasts and moves accumulators to the stack,
 * at half the speed. No function may be called while they live, hence ALWAYS_INLINE.
 */
#ifndef INTONLY_GEMM_X86_AVX512VNNI_TILES_H
#define INTONLY_GEMM_X86_AVX512VNNI_TILES_H

#include "kernels/gemm/x86_avx512vnni.h"
#include "kernels/x86_avx512_plain.h"

#ifdef __AVX512VNNI__

/* Most rows of a tile. */
#define GEMM_ROWS 24

/* Consecutive rows: where each begins. Behind the last, at least 3 repeat it, and 8 more may be written. */
typedef struct gemm_rows {
    const uint8_t *x[GEMM_ROWS + 8];
    uint8_t *y[GEMM_ROWS + 8];
    const uint8_t *residual[GEMM_ROWS + 8];
    int64_t count;
} gemm_rows;

/* How a tile ends. In the two most common ways on registers; else on a copy in memory: with any codes of the narrow form,
 * in the wide form with a short join (gemm_head), or by the plain law. */
enum { GEMM_CODES, GEMM_JOINED_CODES, GEMM_ANY_CODES, GEMM_JOINED_WIDE, GEMM_PLAIN };

/* A step on its way: what is the same for all tiles, the present panel, and the present rows. */
typedef struct gemm {
    const intonly_gemm *step;
    const int64_t *taps;
    const uint8_t *packed, *x, *r;
    uint8_t *y;
    __m512i x_eight, y_eight, r_eight; /* offsets of eight neighbours in a line */
    __m512i book; /* of weights in 4 or 2 bits */
    int64_t tap_bytes, tap_count;
    int64_t bits; /* of a stored weight */
    int dense;    /* log2 of the weights in a byte */
    int tiles;    /* the same, or GEMM_WORDS */
    int end;      /* how a tile ends */
    int residual; /* whether there is one */
    int bare;     /* whether a row of y is 16 or 32 bytes, so that several rows may be one stretch of memory */
    narrow_scalars_64 narrow;
    join_scalars wide;
    int64_t residual_zero; /* of residuals as `wide` reads them */
    join_columns join[4]; /* of the present panel, where residuals join in the wide form */
    gemm_panel panel;
    gemm_rows rows;
    const uint8_t *next;              /* of the next layer */
    const uint8_t *ahead, *ahead_end; /* what is to be fetched while the present panel is multiplied */
    int64_t ahead_bytes;              /* for each tile */
} gemm;

typedef void (*gemm_tile)(const gemm *g, int64_t first);

/* Finish `rows` rows of accumulators [rows][16 * vectors] by the plain law. */
static void gemm_finish_plain(const gemm *g, const gemm_panel *p, int64_t first, int64_t rows, const int32_t *acc);

/* acc[i] += the sum over four bytes of codes (unsigned) times weights (signed), for 16 groups of four; where `words`, a
 * constant, over two codes of 16 bits. */
#define DOT(acc, codes, weights)                                                                                       \
    do {                                                                                                               \
        if (words)                                                                                                     \
            __asm__ volatile("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(weights));                            \
        else                                                                                                           \
            __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(weights));                            \
    } while (0)
/* codes = the four bytes at p, 16 times. */
#define SPREAD(codes, p) __asm__ volatile("vpbroadcastd %1, %0" : "=v"(codes) : "m"(*(const uint8_t(*)[4])(p)))

/* The present panel, as the epilogue needs it for each row: a local copy, which the stores to y cannot change. */
typedef struct gemm_columns {
    const narrow_constants *constants;
    int64_t first;
    __mmask64 mask; /* of the channels that exist */
    int joins;      /* whether a residual does */
    int bare;       /* as in gemm */
} gemm_columns;

ALWAYS_INLINE gemm_columns gemm_columns_of(const gemm *g) {
    const gemm_panel *p = &g->panel;
    return (gemm_columns){&p->constants->narrow, p->channel, first_bytes(p->channels), g->residual, g->bare};
}

/* Finish and store one row of 64 channels. */
ALWAYS_INLINE void gemm_finish1(const gemm_rows *rows, const gemm_columns *p, const narrow_scalars_64 *n, int64_t row,
                                __m512i c0, __m512i c1, __m512i c2, __m512i c3) {
    narrow_pair_64 u = narrow_scale_64(n, p->constants, c0, c1, c2, c3);
    if (p->joins)
        u = narrow_join_64(n, p->constants, u, _mm512_maskz_loadu_epi8(p->mask, rows->residual[row] + p->first));
    _mm512_mask_storeu_epi8(rows->y[row] + p->first, p->mask, narrow_codes_64(n, u));
}

/* Finish and store two rows of 32 channels: each lane of the codes holds 8 channels of one row, then of the other. */
ALWAYS_INLINE void gemm_finish2(const gemm_rows *rows, const gemm_columns *p, const narrow_scalars_64 *n, int64_t row,
                                __m512i c00, __m512i c01, __m512i c10, __m512i c11) {
    const __m512i split = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), weave = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const __mmask32 mask = (__mmask32)p->mask;
    uint8_t *const *y = rows->y + row;
    narrow_pair_64 u = narrow_scale_64(n, p->constants, c00, c01, c10, c11);
    if (p->joins) {
        const uint8_t *const *residual = rows->residual + row;
        __m512i r;
        if (p->bare && residual[1] - residual[0] == 32) {
            r = load64(residual[0] + p->first);
        } else {
            r = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(mask, residual[0] + p->first));
            r = _mm512_inserti64x4(r, _mm256_maskz_loadu_epi8(mask, residual[1] + p->first), 1);
        }
        u = narrow_join_64(n, p->constants, u, _mm512_permutexvar_epi64(weave, r));
    }
    const __m512i codes = _mm512_permutexvar_epi64(split, narrow_codes_64(n, u));
    if (p->bare && y[1] - y[0] == 32) {
        _mm512_storeu_si512(y[0] + p->first, codes);
    } else {
        _mm256_mask_storeu_epi8(y[0] + p->first, mask, _mm512_castsi512_si256(codes));
        _mm256_mask_storeu_epi8(y[1] + p->first, mask, _mm512_extracti64x4_epi64(codes, 1));
    }
}

/* Return whether four rows of 16 bytes are one stretch of memory. All three steps count: the last rows of a layer may be
 * repeats, and lines may have a gap between them. */
ALWAYS_INLINE int gemm_in_a_row(const uint8_t *const *rows) {
    const uint8_t *first = rows[0];
    return rows[1] - first == 16 && rows[2] - first == 32 && rows[3] - first == 48;
}

/* Finish and store four rows of 16 channels: each lane of the codes holds 4 channels of each row. */
ALWAYS_INLINE void gemm_finish4(const gemm_rows *rows, const gemm_columns *p, const narrow_scalars_64 *n, int64_t row,
                                __m512i c0, __m512i c1, __m512i c2, __m512i c3) {
    const __m512i transpose = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __mmask16 mask = (__mmask16)p->mask;
    uint8_t *const *y = rows->y + row;
    narrow_pair_64 u = narrow_scale_64(n, p->constants, c0, c1, c2, c3);
    if (p->joins) {
        const uint8_t *const *residual = rows->residual + row;
        __m512i r;
        if (p->bare && gemm_in_a_row(residual)) {
            r = load64(residual[0] + p->first);
        } else {
            r = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(mask, residual[0] + p->first));
            r = _mm512_inserti32x4(r, _mm_maskz_loadu_epi8(mask, residual[1] + p->first), 1);
            r = _mm512_inserti32x4(r, _mm_maskz_loadu_epi8(mask, residual[2] + p->first), 2);
            r = _mm512_inserti32x4(r, _mm_maskz_loadu_epi8(mask, residual[3] + p->first), 3);
        }
        u = narrow_join_64(n, p->constants, u, _mm512_permutexvar_epi32(transpose, r));
    }
    const __m512i codes = _mm512_permutexvar_epi32(transpose, narrow_codes_64(n, u));
    if (p->bare && gemm_in_a_row((const uint8_t *const *)y)) {
        _mm512_storeu_si512(y[0] + p->first, codes);
    } else {
        _mm_mask_storeu_epi8(y[0] + p->first, mask, _mm512_castsi512_si128(codes));
        _mm_mask_storeu_epi8(y[1] + p->first, mask, _mm512_extracti32x4_epi32(codes, 1));
        _mm_mask_storeu_epi8(y[2] + p->first, mask, _mm512_extracti32x4_epi32(codes, 2));
        _mm_mask_storeu_epi8(y[3] + p->first, mask, _mm512_extracti32x4_epi32(codes, 3));
    }
}

/* Finish and store one row of up to 64 channels, with a short join. */
static void gemm_join(const gemm *g, const gemm_columns *p, const join_scalars *n, int64_t row, const int32_t *acc) {
    const uint8_t *const residual = g->rows.residual[row] + (n->words ? 2 * p->first : p->first);
    uint8_t *const y = g->rows.y[row] + 2 * p->first;
    for (int v = 0; v < g->panel.vectors; ++v) {
        const __mmask16 mask = (__mmask16)(p->mask >> (16 * v));
        const __m256i r = n->words ? _mm256_maskz_loadu_epi16(mask, residual + 32 * v)
                                   : _mm256_cvtepi8_epi16(_mm_maskz_loadu_epi8(mask, residual + 16 * v));
        const __m512i joining = _mm512_cvtepi16_epi32(_mm256_xor_si256(r, n->flip));
        const __m512i codes = join_sixteen(&g->join[v], load64(acc + 16 * v), joining);
        const __m512i limited = _mm512_min_epi32(_mm512_max_epi32(codes, n->lo), n->hi);
        _mm256_mask_storeu_epi16(y + 32 * v, mask, _mm512_cvtepi32_epi16(limited));
    }
}

/* Finish and store the rows of a tile of `units` whose accumulators are kept in memory. Repeats of the last row are left
 * out of a join: y may stand in the place of the residual. */
static void gemm_finish_kept(const gemm *g, int64_t first, int64_t units, const int32_t *kept) {
    const int64_t vectors = g->panel.vectors, per = 4 >> (vectors >> 1), rows = units * per;
    const gemm_columns p = gemm_columns_of(g);
    if (g->end == GEMM_JOINED_WIDE) {
        const int64_t end = first + rows < g->rows.count ? first + rows : g->rows.count;
        for (int64_t row = first; row < end; ++row, kept += 16 * vectors) gemm_join(g, &p, &g->wide, row, kept);
    } else if (g->end == GEMM_PLAIN) {
        gemm_finish_plain(g, &g->panel, first, rows, kept);
    } else {
        for (int64_t row = first; row < first + rows; row += per, kept += 64) {
            const __m512i c0 = load64(kept), c1 = load64(kept + 16), c2 = load64(kept + 32), c3 = load64(kept + 48);
            if (vectors == 4)
                gemm_finish1(&g->rows, &p, &g->narrow, row, c0, c1, c2, c3);
            else if (vectors == 2)
                gemm_finish2(&g->rows, &p, &g->narrow, row, c0, c1, c2, c3);
            else
                gemm_finish4(&g->rows, &p, &g->narrow, row, c0, c1, c2, c3);
        }
    }
}

/* M(i, j, k, l) with the accumulators of each of n units. */
#define UNITS_1(M) M(8, 9, 10, 11)
#define UNITS_2(M) UNITS_1(M) M(12, 13, 14, 15)
#define UNITS_3(M) UNITS_2(M) M(16, 17, 18, 19)
#define UNITS_4(M) UNITS_3(M) M(20, 21, 22, 23)
#define UNITS_5(M) UNITS_4(M) M(24, 25, 26, 27)
#define UNITS_6(M) UNITS_5(M) M(28, 29, 30, 31)

/* The row of an accumulator, where a row has 4, 2 or 1 of them. A row is named by its first accumulator. */
#define ROW(i, vectors) (first + (i - 8) / vectors)

#define BEGIN_ACC(i, bias) register __m512i c##i __asm__("zmm" #i) = bias;
#define BEGIN_ROW(i, vectors) const uint8_t *const x##i = g->rows.x[ROW(i, vectors)];
#define BEGIN_4(i, j, k, l)                                                                                            \
    BEGIN_ROW(i, 4) BEGIN_ACC(i, bias0) BEGIN_ACC(j, bias1) BEGIN_ACC(k, bias2) BEGIN_ACC(l, bias3)
#define BEGIN_2(i, j, k, l)                                                                                            \
    BEGIN_ROW(i, 2) BEGIN_ACC(i, bias0) BEGIN_ACC(j, bias1) BEGIN_ROW(k, 2) BEGIN_ACC(k, bias0) BEGIN_ACC(l, bias1)
#define BEGIN_1(i, j, k, l)                                                                                            \
    BEGIN_ROW(i, 1) BEGIN_ACC(i, bias0) BEGIN_ROW(j, 1) BEGIN_ACC(j, bias0)                                            \
    BEGIN_ROW(k, 1) BEGIN_ACC(k, bias0) BEGIN_ROW(l, 1) BEGIN_ACC(l, bias0)

#define DOT_4(i, j, k, l)                                                                                              \
    SPREAD(codes, x##i + at); DOT(c##i, codes, w0); DOT(c##j, codes, w1); DOT(c##k, codes, w2); DOT(c##l, codes, w3);
#define DOT_2(i, j, k, l)                                                                                              \
    SPREAD(codes, x##i + at); DOT(c##i, codes, w0); DOT(c##j, codes, w1);                                              \
    SPREAD(codes, x##k + at); DOT(c##k, codes, w0); DOT(c##l, codes, w1);
#define DOT_1(i, j, k, l)                                                                                              \
    SPREAD(codes, x##i + at); DOT(c##i, codes, w0); SPREAD(codes, x##j + at); DOT(c##j, codes, w0);                    \
    SPREAD(codes, x##k + at); DOT(c##k, codes, w0); SPREAD(codes, x##l + at); DOT(c##l, codes, w0);

#define FINISH_4(i, j, k, l) gemm_finish1(&g->rows, &p, &n, ROW(i, 4), c##i, c##j, c##k, c##l);
#define FINISH_2(i, j, k, l) gemm_finish2(&g->rows, &p, &n, ROW(i, 2), c##i, c##j, c##k, c##l);
#define FINISH_1(i, j, k, l) gemm_finish4(&g->rows, &p, &n, ROW(i, 1), c##i, c##j, c##k, c##l);
#define KEEP(i) _mm512_storeu_si512(kept + 16 * (i - 8), c##i);
#define KEEP_UNIT(i, j, k, l) KEEP(i) KEEP(j) KEEP(k) KEEP(l)

#define LOAD_1(name, p) const __m512i name##0 = load64(p);
#define LOAD_2(name, p) LOAD_1(name, p) const __m512i name##1 = load64((p) + 64);
#define LOAD_4(name, p) LOAD_2(name, p) const __m512i name##2 = load64((p) + 128), name##3 = load64((p) + 192);

/* Bytes of the weights of a vector of channels and a group of codes. */
enum { GROUP_16 = 64, GROUP_8 = 64, GROUP_4 = 32, GROUP_2 = 16 };

/* w0, w1, ...: the weights of one group of codes, from 16, 8, 4 or 2 bits. */
#define BOOK_16(g)
#define BOOK_8(g)
#define BOOK_4(g) const __m512i book = g->book, field = _mm512_set1_epi8(15);
#define BOOK_2(g) const __m512i book = g->book, field = _mm512_set1_epi8(3);
#define WEIGHT(name, fields) const __m512i name = _mm512_shuffle_epi8(book, _mm512_and_si512(fields, field));
#define WEIGHTS_16_1(from) LOAD_1(w, from)
#define WEIGHTS_16_2(from) LOAD_2(w, from)
#define WEIGHTS_16_4(from) LOAD_4(w, from)
#define WEIGHTS_8_1(from) LOAD_1(w, from)
#define WEIGHTS_8_2(from) LOAD_2(w, from)
#define WEIGHTS_8_4(from) LOAD_4(w, from)
#define WEIGHTS_4_1(from)                                                                                              \
    const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)(from)));                             \
    WEIGHT(w0, _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4)))
#define WEIGHTS_4_2(from)                                                                                              \
    const __m512i both = load64(from);                                                                                 \
    WEIGHT(w0, both) WEIGHT(w1, _mm512_srli_epi16(both, 4))
#define WEIGHTS_4_4(from)                                                                                              \
    const __m512i lower = load64(from), upper = load64((from) + 64);                                                   \
    WEIGHT(w0, lower) WEIGHT(w1, upper) WEIGHT(w2, _mm512_srli_epi16(lower, 4)) WEIGHT(w3, _mm512_srli_epi16(upper, 4))
#define WEIGHTS_2_1(from)                                                                                              \
    const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(from)));                                 \
    WEIGHT(w0, _mm512_srlv_epi64(all, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6)))
#define WEIGHTS_2_2(from)                                                                                              \
    const __m512i all = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)(from)));                              \
    WEIGHT(w0, _mm512_srlv_epi64(all, _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2)))                                      \
    WEIGHT(w1, _mm512_srlv_epi64(all, _mm512_setr_epi64(4, 4, 4, 4, 6, 6, 6, 6)))
#define WEIGHTS_2_4(from)                                                                                              \
    const __m512i all = load64(from);                                                                                  \
    WEIGHT(w0, all) WEIGHT(w1, _mm512_srli_epi16(all, 2)) WEIGHT(w2, _mm512_srli_epi16(all, 4))                        \
    WEIGHT(w3, _mm512_srli_epi16(all, 6))

/* The tile. What is not needed while the loops run is kept in memory by force: gcc would park it in vector registers,
 * from which the way back is so long that the epilogue starts late. */
#define GEMM_TILE(units, vectors, bits)                                                                                \
    static void gemm_tile_##bits##_##vectors##_##units(const gemm *step, int64_t row) {                                \
        enum { words = bits == 16 };                                                                                   \
        const gemm *volatile step_kept = step;                                                                         \
        volatile int64_t row_kept = row;                                                                               \
        const gemm *g = step;                                                                                          \
        int64_t first = row;                                                                                           \
        const uint8_t *bias = (const uint8_t *)g->panel.constants->narrow.bias, *w = g->panel.weights;                 \
        const int64_t *tap = g->taps, *const last = tap + g->tap_count, tap_bytes = g->tap_bytes;                      \
        BOOK_##bits(g)                                                                                                 \
        LOAD_##vectors(bias, bias)                                                                                     \
        UNITS_##units(BEGIN_##vectors)                                                                                 \
        do {                                                                                                           \
            int64_t at = *tap;                                                                                         \
            const int64_t end = at + tap_bytes;                                                                        \
            do {                                                                                                       \
                __m512i codes;                                                                                         \
                WEIGHTS_##bits##_##vectors(w)                                                                          \
                UNITS_##units(DOT_##vectors)                                                                           \
                w += vectors * GROUP_##bits;                                                                           \
                at += 4;                                                                                               \
            } while (at < end);                                                                                        \
        } while (++tap < last);                                                                                        \
        g = step_kept;                                                                                                 \
        first = row_kept;                                                                                              \
        narrow_scalars_64 n = g->narrow;                                                                               \
        gemm_columns p = gemm_columns_of(g);                                                                           \
        if (g->end == GEMM_CODES) {                                                                                    \
            narrow_most_common_64(&n);                                                                                 \
            p.joins = 0;                                                                                               \
            UNITS_##units(FINISH_##vectors)                                                                            \
        } else if (g->end == GEMM_JOINED_CODES) {                                                                      \
            narrow_most_common_64(&n);                                                                                 \
            p.joins = 1;                                                                                               \
            UNITS_##units(FINISH_##vectors)                                                                            \
        } else {                                                                                                       \
            int32_t kept[64 * units];                                                                                  \
            UNITS_##units(KEEP_UNIT)                                                                                   \
            gemm_finish_kept(g, first, units, kept);                                                                   \
        }                                                                                                              \
    }
#define GEMM_TILES(bits)                                                                                               \
    GEMM_TILE(1, 4, bits)                                                                                              \
    GEMM_TILE(2, 4, bits)                                                                                              \
    GEMM_TILE(3, 4, bits)                                                                                              \
    GEMM_TILE(4, 4, bits)                                                                                              \
    GEMM_TILE(5, 4, bits)                                                                                              \
    GEMM_TILE(6, 4, bits)                                                                                              \
    GEMM_TILE(1, 2, bits)                                                                                              \
    GEMM_TILE(2, 2, bits)                                                                                              \
    GEMM_TILE(3, 2, bits)                                                                                              \
    GEMM_TILE(1, 1, bits)                                                                                              \
    GEMM_TILE(2, 1, bits)                                                                                              \
    GEMM_TILE(3, 1, bits)
GEMM_TILES(16)
GEMM_TILES(8)
GEMM_TILES(4)
GEMM_TILES(2)

/* One row by two panels of 64 channels, `stride` bytes apart; the first is the present one. Where there is only one
 * row, reading the weights is all the time it takes: two streams at once, and the epilogues overlap. */
#define ROW_ACC(i, at) BEGIN_ACC(i, load64(bias + at))
#define ROW_ACCS                                                                                                       \
    ROW_ACC(8, 0) ROW_ACC(9, 64) ROW_ACC(10, 128) ROW_ACC(11, 192)                                                     \
    ROW_ACC(12, stride) ROW_ACC(13, stride + 64) ROW_ACC(14, stride + 128) ROW_ACC(15, stride + 192)
#define ROW_DOTS(i, j, k, l) DOT(c##i, codes, w0); DOT(c##j, codes, w1); DOT(c##k, codes, w2); DOT(c##l, codes, w3);
#define KEEP_ROW(at, i, j, k, l)                                                                                       \
    _mm512_storeu_si512(kept + at, c##i);                                                                              \
    _mm512_storeu_si512(kept + at + 16, c##j);                                                                         \
    _mm512_storeu_si512(kept + at + 32, c##k);                                                                         \
    _mm512_storeu_si512(kept + at + 48, c##l);
#define GEMM_ROW_BY_2(bits)                                                                                            \
    static void gemm_row_by_2_##bits(const gemm *g, int64_t stride) {                                                  \
        enum { words = bits == 16 };                                                                                   \
        const uint8_t *bias = (const uint8_t *)g->panel.constants->narrow.bias, *w = g->panel.weights;                 \
        const int64_t *tap = g->taps, *const last = tap + g->tap_count, tap_bytes = g->tap_bytes;                      \
        const uint8_t *const x = g->rows.x[0];                                                                         \
        BOOK_##bits(g)                                                                                                 \
        ROW_ACCS                                                                                                       \
        do {                                                                                                           \
            int64_t at = *tap;                                                                                         \
            const int64_t end = at + tap_bytes;                                                                        \
            do {                                                                                                       \
                __m512i codes;                                                                                         \
                SPREAD(codes, x + at);                                                                                 \
                {                                                                                                      \
                    WEIGHTS_##bits##_4(w)                                                                              \
                    ROW_DOTS(8, 9, 10, 11)                                                                             \
                }                                                                                                      \
                {                                                                                                      \
                    const uint8_t *const other = w + stride;                                                           \
                    WEIGHTS_##bits##_4(other)                                                                          \
                    ROW_DOTS(12, 13, 14, 15)                                                                           \
                }                                                                                                      \
                w += 4 * GROUP_##bits;                                                                                 \
                at += 4;                                                                                               \
            } while (at < end);                                                                                        \
        } while (++tap < last);                                                                                        \
        if (g->end >= GEMM_JOINED_WIDE) {                                                                              \
            gemm_panel next = g->panel;                                                                                \
            int32_t kept[128];                                                                                         \
            KEEP_ROW(0, 8, 9, 10, 11)                                                                                  \
            KEEP_ROW(64, 12, 13, 14, 15)                                                                               \
            gemm_finish_plain(g, &next, 0, 1, kept);                                                                   \
            next.constants = (const panel_constants *)(const void *)((const uint8_t *)next.constants + stride);        \
            next.channel += 64;                                                                                        \
            gemm_finish_plain(g, &next, 0, 1, kept + 64);                                                              \
            return;                                                                                                    \
        }                                                                                                              \
        const narrow_scalars_64 n = g->narrow;                                                                         \
        gemm_columns p = gemm_columns_of(g);                                                                           \
        gemm_finish1(&g->rows, &p, &n, 0, c8, c9, c10, c11);                                                           \
        p.constants = (const narrow_constants *)(const void *)((const uint8_t *)p.constants + stride);                 \
        p.first += 64;                                                                                                 \
        gemm_finish1(&g->rows, &p, &n, 0, c12, c13, c14, c15);                                                         \
    }
GEMM_ROW_BY_2(16)
GEMM_ROW_BY_2(8)
GEMM_ROW_BY_2(4)
GEMM_ROW_BY_2(2)

/* By log2 of the weights in a byte, log2 of the vectors: the most units of a tile, and the tiles of 1, 2, ... units.
 * Wide panels are read from the second-level cache, as rarely as registers allow; narrow ones do better with tiles whose
 * epilogue is short. */
static const int64_t gemm_most_units[3] = {3, 3, 6};
#define GEMM_TILES_OF(b)                                                                                               \
    {{gemm_tile_##b##_1_1, gemm_tile_##b##_1_2, gemm_tile_##b##_1_3, NULL, NULL, NULL},                                \
     {gemm_tile_##b##_2_1, gemm_tile_##b##_2_2, gemm_tile_##b##_2_3, NULL, NULL, NULL},                                \
     {gemm_tile_##b##_4_1, gemm_tile_##b##_4_2, gemm_tile_##b##_4_3, gemm_tile_##b##_4_4, gemm_tile_##b##_4_5,         \
      gemm_tile_##b##_4_6}}
enum { GEMM_WORDS = 3 }; /* in the place of the first, with int16 x */
static const gemm_tile gemm_tiles[4][3][6] = {GEMM_TILES_OF(8), GEMM_TILES_OF(4), GEMM_TILES_OF(2), GEMM_TILES_OF(16)};
static void (*const gemm_rows_by_2[4])(const gemm *g, int64_t stride) = {gemm_row_by_2_8, gemm_row_by_2_4,
                                                                         gemm_row_by_2_2, gemm_row_by_2_16};

#endif
#endif
