/* SPDX-License-Identifier: Apache-2.0
 *
 * attention with AVX-512 VNNI: twelve queries at a time, whose scores and weights never leave the first-level cache.
 *
 * Keys and values of one place are copied as vpdpbusd reads them: groups of four codes, keys unsigned and
 * values signed. A tile of scores is finished while its largest are found, and a tile of means while its sums still are
 * in registers.
 */
#include "kernels/attention/x86_avx512vnni.h"

#include <immintrin.h>

#include "kernels/attention/any.h"
#include "kernels/x86_avx512.h"

enum { BLOCK = 64, ROWS = 12, HALF_ROWS = 6, GROUP = 16, MOST_GROUPS = INTONLY_MOST_DEPTH / GROUP };

/* acc[i] += the sum over four bytes of codes (unsigned) times weights (signed), for 16 groups of four. The statements
 * keep their order, see gemm/x86_avx512vnni_tiles.h. */
#define DOT(acc, codes, weights) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(weights))
#define SPREAD(codes, p) __asm__ volatile("vpbroadcastd %1, %0" : "=v"(codes) : "m"(*(const uint8_t(*)[4])(p)))

typedef struct scratch {
    uint8_t *keys;    /* [keys / 16][depth / 4][16][4] */
    uint8_t *values;  /* [keys / 4][groups][16][4] */
    int32_t *start;   /* of the sums of a key: minus q_zero times the sum of its codes */
    const uint8_t *bias[ROWS]; /* of each query, or null */
    int32_t *scores;  /* [row][pitch] */
    uint8_t *weights; /* [row][pitch] */
    uint8_t queries[ROWS][INTONLY_MOST_DEPTH];
    __m512i largest[ROWS]; /* sixteen scores each, the largest of the row among them */
    int32_t totals[GROUP], reciprocals[GROUP];
} scratch;

/* What all rows of a step share. */
typedef struct attention_512 {
    attention any;
    int64_t depth, keys, blocks, quads, groups; /* depth in fours, keys and their blocks and fours, width in groups */
    int64_t pitch; /* from one row of scores or weights to the next: rows must not all fall into the same cache sets */
} attention_512;

/* Transpose 16 by 16 elements of 32 bits. */
static inline void transpose(__m512i x[16]) {
    __m512i y[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    /* x[4 g + e], lane l: column 4 l + e of the rows 4 g to 4 g + 3 */
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) {
        const __m512i a = _mm512_shuffle_i32x4(x[e], x[e + 4], 0x44), b = _mm512_shuffle_i32x4(x[e], x[e + 4], 0xEE);
        const __m512i c = _mm512_shuffle_i32x4(x[e + 8], x[e + 12], 0x44);
        const __m512i d = _mm512_shuffle_i32x4(x[e + 8], x[e + 12], 0xEE);
        y[e] = _mm512_shuffle_i32x4(a, c, 0x88);
        y[e + 4] = _mm512_shuffle_i32x4(a, c, 0xDD);
        y[e + 8] = _mm512_shuffle_i32x4(b, d, 0x88);
        y[e + 12] = _mm512_shuffle_i32x4(b, d, 0xDD);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) x[i] = y[i];
}

/* Copy the keys of one place, and what their sums begin with. Codes that fill up a key meet codes of 0. */
static void pack_keys(const attention_512 *g, const uint8_t *k, scratch *t) {
    const intonly_attention *s = g->any.step;
    const __m512i flip = _mm512_set1_epi8(s->k_type == INTONLY_S8 ? -128 : 0), ones = _mm512_set1_epi8(1);
    const __m512i from = _mm512_set1_epi32((int32_t)((s->q_type == INTONLY_U8 ? 128 : 0) - s->q_zero));
    uint8_t *to = t->keys;
    for (int64_t key = 0; key < g->keys; key += GROUP) {
        __m512i sum = _mm512_setzero_si512(), row[GROUP];
        for (int64_t c = 0; c < s->depth; c += BLOCK) {
            const int64_t left = s->depth - c, fours = left < BLOCK ? (left + 3) >> 2 : GROUP;
            const __mmask64 mask = first_bytes(left < BLOCK ? left : BLOCK);
            for (int r = 0; r < GROUP; ++r) {
                row[r] = _mm512_setzero_si512();
                if (key + r < g->keys)
                    row[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, k + (key + r) * s->k_key + c), flip);
            }
            transpose(row);
            for (int64_t f = 0; f < fours; ++f, to += BLOCK) {
                _mm512_storeu_si512(to, row[f]);
                sum = _mm512_dpbusd_epi32(sum, row[f], ones);
            }
        }
        const int64_t left = g->keys - key;
        const __mmask16 exist = (__mmask16)(left < GROUP ? (1u << left) - 1 : 0xFFFFu);
        const __m512i never = _mm512_set1_epi32(INT32_MIN / 2); /* is the largest: others are above -2^25 - 2^29 */
        _mm512_storeu_si512(t->start + key, _mm512_mask_mullo_epi32(never, exist, sum, from));
    }
}

static void pack_values(const attention_512 *g, const uint8_t *v, scratch *t) {
    const intonly_attention *s = g->any.step;
    const __m128i flip = _mm_set1_epi8(s->v_type == INTONLY_U8 ? -128 : 0);
    uint8_t *to = t->values;
    for (int64_t quad = 0; quad < g->quads; ++quad) {
        for (int64_t group = 0; group < g->groups; ++group, to += BLOCK) {
            const int64_t left = s->width - group * GROUP;
            const __mmask16 mask = (__mmask16)(left < GROUP ? (1u << left) - 1 : 0xFFFFu);
            __m128i row[4];
            for (int64_t r = 0; r < 4; ++r) {
                const int64_t key = quad * 4 + r;
                row[r] = _mm_setzero_si128();
                if (key < g->keys) row[r] = _mm_xor_si128(_mm_maskz_loadu_epi8(mask, v + key * s->v_key + group * GROUP), flip);
            }
            const __m128i ab = _mm_unpacklo_epi8(row[0], row[1]), cd = _mm_unpacklo_epi8(row[2], row[3]);
            const __m128i ef = _mm_unpackhi_epi8(row[0], row[1]), gh = _mm_unpackhi_epi8(row[2], row[3]);
            _mm_storeu_si128((__m128i *)(void *)to, _mm_unpacklo_epi16(ab, cd));
            _mm_storeu_si128((__m128i *)(void *)(to + 16), _mm_unpackhi_epi16(ab, cd));
            _mm_storeu_si128((__m128i *)(void *)(to + 32), _mm_unpacklo_epi16(ef, gh));
            _mm_storeu_si128((__m128i *)(void *)(to + 48), _mm_unpackhi_epi16(ef, gh));
        }
    }
}

/* Scores of `rows` queries and of `vectors` vectors of keys, from vector `at` on; both are constants, 24 products at
 * most. Sixteen scores of each row are raised to the largest that they meet. */
ALWAYS_INLINE void scores_tile(const attention_512 *g, int row, int rows, int64_t at, int vectors, scratch *t) {
    const uint8_t *keys = t->keys + at * BLOCK * g->depth;
    const int64_t next = BLOCK * g->depth;
    __m512i acc[ROWS][4], four;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) acc[r][v] = load64(t->start + (at + v) * GROUP);
    if (t->bias[0] != NULL) {
        const int64_t left = g->keys - (at + vectors - 1) * GROUP;
        const __mmask16 last = (__mmask16)(left < GROUP ? (1u << left) - 1 : 0xFFFFu);
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                const uint8_t *bias = t->bias[row + r] + (at + v) * BLOCK;
                acc[r][v] = _mm512_add_epi32(acc[r][v], _mm512_maskz_loadu_epi32(v + 1 < vectors ? 0xFFFF : last, bias));
            }
    }
    for (int64_t c = 0; c < g->depth; ++c, keys += BLOCK) {
        __m512i key[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) key[v] = load64(keys + v * next);
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
            SPREAD(four, t->queries[row + r] + 4 * c);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) DOT(acc[r][v], key[v], four);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
        int32_t *scores = t->scores + (row + r) * g->pitch + at * GROUP;
        __m512i most = t->largest[row + r];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            _mm512_storeu_si512(scores + v * GROUP, acc[r][v]);
            most = _mm512_max_epi32(most, acc[r][v]);
        }
        t->largest[row + r] = most;
    }
}

/* Scores of up to twelve queries and all keys. */
static void scores_of_rows(const attention_512 *g, int64_t exist, scratch *t) {
    const int64_t vectors = (g->keys + GROUP - 1) >> 4;
    for (int r = 0; r < ROWS; ++r) t->largest[r] = _mm512_set1_epi32(INT32_MIN);
    for (int64_t at = 0; at < vectors;) {
        const int64_t left = vectors - at;
        if (left >= 3) {
            for (int row = 0; row < ROWS && row < exist; row += HALF_ROWS) {
                if (left >= 4)
                    scores_tile(g, row, HALF_ROWS, at, 4, t);
                else
                    scores_tile(g, row, HALF_ROWS, at, 3, t);
            }
            at += left >= 4 ? 4 : 3;
        } else if (left == 2) {
            scores_tile(g, 0, ROWS, at, 2, t);
            at += 2;
        } else {
            scores_tile(g, 0, ROWS, at, 1, t);
            at += 1;
        }
    }
}

/* Return the keys of a block that count. */
static inline uint64_t keys_of_block(const attention_512 *g, const uint8_t *mask, int64_t block) {
    const int64_t left = g->keys - block * BLOCK, stride = g->any.step->mask_key;
    const uint64_t exist = left < BLOCK ? (UINT64_C(1) << left) - 1 : ~UINT64_C(0);
    if (mask == NULL) return exist;
    mask += block * BLOCK * stride;
    if (stride == 1) {
        const __m512i bytes = _mm512_maskz_loadu_epi8(exist, mask);
        return _mm512_test_epi8_mask(bytes, bytes);
    }
    uint64_t counts = 0;
    for (int64_t i = 0; i < BLOCK && i < left; ++i) counts |= (uint64_t)(mask[i * stride] != 0) << i;
    return counts;
}

/* Return the largest of sixteen, in all of them. */
ALWAYS_INLINE __m512i largest_of(__m512i most) {
    most = _mm512_max_epi32(most, _mm512_shuffle_i64x2(most, most, 0x4E));
    most = _mm512_max_epi32(most, _mm512_shuffle_i64x2(most, most, 0xB1));
    most = _mm512_max_epi32(most, _mm512_shuffle_epi32(most, 0x4E));
    return _mm512_max_epi32(most, _mm512_shuffle_epi32(most, 0xB1));
}

/* Return sixteen scores, the largest of those that count among them. */
static __m512i largest_counting(const attention_512 *g, const int32_t *scores, const uint64_t *counts) {
    __m512i most = _mm512_set1_epi32(INT32_MIN);
    for (int64_t block = 0; block < g->blocks; ++block)
        for (int v = 0; v < 4; ++v, scores += GROUP)
            most = _mm512_mask_max_epi32(most, (__mmask16)(counts[block] >> (16 * v)), most, load64(scores));
    return most;
}

static inline int32_t sum_of_lanes(__m512i x) {
    x = _mm512_add_epi32(x, _mm512_shuffle_i64x2(x, x, 0x4E));
    x = _mm512_add_epi32(x, _mm512_shuffle_i64x2(x, x, 0xB1));
    x = _mm512_add_epi32(x, _mm512_shuffle_epi32(x, 0x4E));
    return _mm512_cvtsi512_si32(_mm512_add_epi32(x, _mm512_shuffle_epi32(x, 0xB1)));
}

typedef struct weighing {
    __m512i top, half; /* the largest score with the rounding of the shift, and that alone */
    __m128i right, left;
    __m512i near, multiplier, octave, fine, order; /* order: that of keys, after two packs */
} weighing;

/* Return the weights of 32 scores, in the order of a pack. */
ALWAYS_INLINE __m512i weights_of(const weighing *w, const int32_t *scores) {
    const __m512i a = _mm512_sra_epi32(_mm512_sub_epi32(w->top, load64(scores)), w->right);
    const __m512i b = _mm512_sra_epi32(_mm512_sub_epi32(w->top, load64(scores + GROUP)), w->right);
    const __m512i near = _mm512_sll_epi16(_mm512_min_epi16(_mm512_packs_epi32(a, b), w->near), w->left);
    const __m512i farthest = _mm512_set1_epi16(WEIGHT_FARTHEST), to_8_bits = _mm512_set1_epi16(1 << 8);
    const __m512i distance = _mm512_min_epi16(_mm512_mulhrs_epi16(near, w->multiplier), farthest);
    const __m512i place = _mm512_srli_epi16(distance, 5), octaves = _mm512_srli_epi16(distance, 10);
    const __m512i coarse = _mm512_srlv_epi16(_mm512_permutexvar_epi16(place, w->octave), octaves);
    const __m512i fine = _mm512_permutexvar_epi16(distance, w->fine);
    return _mm512_mulhrs_epi16(_mm512_mulhrs_epi16(coarse, fine), to_8_bits);
}

static weighing weighing_of(const intonly_attention *s) {
    const int right = s->shift > 0 ? (int)s->shift : 0, left = s->shift < 0 ? (int)-s->shift : 0;
    /* A distance cut before it is shifted left is beyond the farthest all the same: the check asks for 2^14 or more. */
    const weighing w = {.half = _mm512_set1_epi32((1 << right) >> 1),
                        .right = _mm_cvtsi32_si128(right),
                        .left = _mm_cvtsi32_si128(left),
                        .near = _mm512_set1_epi16((int16_t)(WEIGHT_NEAR >> left)),
                        .multiplier = _mm512_set1_epi16((int16_t)s->weight_multiplier),
                        .octave = load64(weight_octave),
                        .fine = load64(weight_fine),
                        .order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)};
    return w;
}

/* Weigh the keys of one query; return the sum of the weights. */
ALWAYS_INLINE int32_t weigh(const attention_512 *g, weighing w, __m512i largest, const int32_t *scores,
                            const uint64_t *counts, uint8_t *weights) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sum = _mm512_setzero_si512();
    w.top = _mm512_add_epi32(largest_of(largest), w.half);
    for (int64_t block = 0; block < g->blocks; ++block, scores += BLOCK, weights += BLOCK) {
        __m512i first = weights_of(&w, scores), second = _mm512_setzero_si512();
        if (g->keys - block * BLOCK > 2 * GROUP) second = weights_of(&w, scores + 2 * GROUP);
        __m512i bytes = _mm512_permutexvar_epi32(w.order, _mm512_packus_epi16(first, second));
        if (counts[block] != ~UINT64_C(0)) bytes = _mm512_maskz_mov_epi8(counts[block], bytes);
        sum = _mm512_dpbusd_epi32(sum, bytes, ones);
        _mm512_storeu_si512(weights, bytes);
    }
    return sum_of_lanes(sum);
}

/* Set reciprocals[r] = floor(2^38 / totals[r]) for sixteen totals of 255 to 2^31, by restoring division side by side. The
 * difference that is too small wraps, so the lesser of both is the rest. */
static void reciprocals_of(const int32_t *totals, int32_t *reciprocals) {
    const __m512i total = load64(totals), one = _mm512_set1_epi32(1);
    __m512i rest = _mm512_set1_epi32(1 << (RECIPROCAL_BITS - 31)), quotient = _mm512_setzero_si512();
    for (int bit = 0; bit < 31; ++bit) {
        const __m512i twice = _mm512_add_epi32(rest, rest);
        quotient = _mm512_add_epi32(quotient, quotient);
        quotient = _mm512_mask_add_epi32(quotient, _mm512_cmpge_epu32_mask(twice, total), quotient, one);
        rest = _mm512_min_epu32(twice, _mm512_sub_epi32(twice, total));
    }
    _mm512_storeu_si512(reciprocals, quotient);
}

typedef struct finishing {
    __m512i multiplier, half, zero_point, lo, hi;
    __m128i shift;
} finishing;

/* Return clamped codes of eight sums in the even elements, in 64 bits each. */
ALWAYS_INLINE __m512i finished(const finishing *f, __m512i sums, __m512i reciprocal) {
    const __m512i mean = _mm512_srai_epi64(_mm512_mul_epi32(sums, reciprocal), RECIPROCAL_BITS - MEAN_BITS);
    const __m512i product = _mm512_add_epi64(_mm512_mul_epi32(mean, f->multiplier), f->half);
    const __m512i code = _mm512_add_epi64(_mm512_sra_epi64(product, f->shift), f->zero_point);
    return _mm512_min_epi64(_mm512_max_epi64(code, f->lo), f->hi);
}

static inline void store_codes(uint8_t *y, int64_t type, __mmask16 mask, __m512i codes) {
    if (type <= INTONLY_U8)
        _mm512_mask_cvtepi32_storeu_epi8(y, mask, codes);
    else if (type <= INTONLY_U16)
        _mm512_mask_cvtepi32_storeu_epi16(y, mask, codes);
    else
        _mm512_mask_storeu_epi32(y, mask, codes);
}

/* Finish and store the sums of one query and one group. */
ALWAYS_INLINE void finish_group(const attention_512 *g, const finishing *f, __m512i acc, int64_t row, int64_t group,
                                const scratch *t, uint8_t *y) {
    const intonly_attention *s = g->any.step;
    const int64_t left = s->width - group * GROUP;
    const __mmask16 mask = (__mmask16)(left < GROUP ? (1u << left) - 1 : 0xFFFFu);
    const int64_t zero = s->v_zero - (s->v_type == INTONLY_U8 ? 128 : 0);
    const __m512i reciprocal = _mm512_set1_epi64(t->reciprocals[row]);
    const __m512i sums = _mm512_sub_epi32(acc, _mm512_set1_epi32((int32_t)(zero * t->totals[row])));
    const __m512i even = finished(f, sums, reciprocal), odd = finished(f, _mm512_srli_epi64(sums, 32), reciprocal);
    const __m512i codes = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    store_codes(y + group * GROUP * intonly_bytes_of(s->y_type), s->y_type, mask, codes);
}

/* Means of `rows` queries from `row` on, and of `groups` groups from `group` on; both are constants, 24 products at
 * most. exist: the queries that there are. */
ALWAYS_INLINE void means(const attention_512 *g, const finishing *f, int row, int rows, int64_t group, int groups,
                         int64_t exist, const scratch *t, uint8_t *const *y) {
    __m512i acc[ROWS][4], four;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < groups; ++v) acc[r][v] = _mm512_setzero_si512();
    const uint8_t *values = t->values + group * BLOCK;
    for (int64_t quad = 0; quad < g->quads; ++quad, values += g->groups * BLOCK) {
        __m512i value[4];
#pragma GCC unroll 4
        for (int v = 0; v < groups; ++v) value[v] = load64(values + v * BLOCK);
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
            SPREAD(four, t->weights + (row + r) * g->pitch + 4 * quad);
#pragma GCC unroll 4
            for (int v = 0; v < groups; ++v) DOT(acc[r][v], four, value[v]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
        if (row + r < exist)
#pragma GCC unroll 4
            for (int v = 0; v < groups; ++v) finish_group(g, f, acc[r][v], row + r, group + v, t, y[row + r]);
}

/* All groups of up to twelve queries. */
static void means_of_rows(const attention_512 *g, const finishing *f, int64_t exist, const scratch *t,
                          uint8_t *const *y) {
    for (int64_t group = 0; group < g->groups;) {
        const int64_t left = g->groups - group;
        if (left >= 3) {
            for (int row = 0; row < ROWS && row < exist; row += HALF_ROWS) {
                if (left >= 4)
                    means(g, f, row, HALF_ROWS, group, 4, exist, t, y);
                else
                    means(g, f, row, HALF_ROWS, group, 3, exist, t, y);
            }
            group += left >= 4 ? 4 : 3;
        } else if (left == 2) {
            means(g, f, 0, ROWS, group, 2, exist, t, y);
            group += 2;
        } else {
            means(g, f, 0, ROWS, group, 1, exist, t, y);
            group += 1;
        }
    }
}

/* Up to twelve queries at a place, from `row` on. */
static void rows_at(const attention_512 *g, const finishing *f, int64_t row, int64_t exist, scratch *t) {
    const intonly_attention *s = g->any.step;
    const int64_t *offset = g->any.walk.offset;
    const int64_t q_row = s->q_strides[INTONLY_LAST], y_row = s->y_strides[INTONLY_LAST];
    const int64_t mask_row = s->mask_strides[INTONLY_LAST];
    uint64_t counts[INTONLY_MOST_KEYS / BLOCK];
    uint8_t *y[ROWS];
    memset(t->queries, 0, sizeof t->queries);
    for (int64_t r = 0; r < exist; ++r) {
        y[r] = g->any.y + offset[MEAN] + (row + r) * y_row;
        memcpy(t->queries[r], g->any.q + offset[QUERY] + (row + r) * q_row, (size_t)s->depth);
        if (s->q_type == INTONLY_U8)
            for (int64_t c = 0; c < s->depth; ++c) t->queries[r][c] ^= 0x80;
    }
    for (int64_t r = 0; r < ROWS; ++r) t->bias[r] = attention_bias(&g->any, row + (r < exist ? r : 0));
    scores_of_rows(g, exist, t);
    const weighing w = weighing_of(s);
    const int all = g->any.mask == NULL;
    for (int64_t r = 0; r < exist; ++r) {
        if (r == 0 || mask_row != 0) {
            const uint8_t *mask = g->any.mask == NULL ? NULL : g->any.mask + offset[COUNTS] + (row + r) * mask_row;
            for (int64_t block = 0; block < g->blocks; ++block) counts[block] = keys_of_block(g, mask, block);
        }
        const int32_t *scores = t->scores + r * g->pitch;
        const __m512i largest = all ? t->largest[r] : largest_counting(g, scores, counts);
        t->totals[r] = weigh(g, w, largest, scores, counts, t->weights + r * g->pitch);
    }
    int32_t divisors[GROUP];
    for (int64_t r = 0; r < GROUP; ++r)
        divisors[r] = r < exist && t->totals[r] > WEIGHT_LARGEST ? t->totals[r] : WEIGHT_LARGEST;
    reciprocals_of(divisors, t->reciprocals);
    means_of_rows(g, f, exist, t, y);
}

void intonly_attention_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_attention *s = (const intonly_attention *)step;
    attention_512 g = {.depth = (s->depth + 3) >> 2,
                       .keys = s->keys,
                       .blocks = (s->keys + BLOCK - 1) >> 6,
                       .pitch = ((s->keys + BLOCK - 1) & -BLOCK) + GROUP,
                       .quads = (s->keys + 3) >> 2,
                       .groups = (s->width + GROUP - 1) >> 4};
    const finishing f = {.multiplier = _mm512_set1_epi64(s->multiplier),
                         .half = _mm512_sll_epi64(_mm512_set1_epi64(1), _mm_cvtsi64_si128(s->y_shift - 1)),
                         .zero_point = _mm512_set1_epi64(s->zero_point),
                         .lo = _mm512_set1_epi64(s->lo),
                         .hi = _mm512_set1_epi64(s->hi),
                         .shift = _mm_cvtsi64_si128(s->y_shift)};
    _Alignas(64) scratch t;
    t.keys = intonly_at(bases, s->scratch) + part * s->scratch_bytes;
    t.values = t.keys + attention_padded(s->keys, 64) * attention_padded(s->depth, 32);
    t.weights = t.values + attention_padded(s->keys, 64) * attention_padded(s->width, 32);
    t.start = (int32_t *)(void *)(t.weights + ROWS * g.pitch);
    t.scores = t.start + attention_padded(s->keys, 64);
    for (attention_begin(&g.any, s, bases, part, parts); g.any.walk.rows > 0; intonly_walk_next(&g.any.walk)) {
        if (g.any.walk.first == g.any.walk.end) continue;
        pack_keys(&g, g.any.k + g.any.walk.offset[KEY], &t);
        pack_values(&g, g.any.v + g.any.walk.offset[VALUE], &t);
        for (int64_t row = g.any.walk.first; row < g.any.walk.end; row += ROWS)
            rows_at(&g, &f, row, g.any.walk.end - row < ROWS ? g.any.walk.end - row : ROWS, &t);
    }
}
