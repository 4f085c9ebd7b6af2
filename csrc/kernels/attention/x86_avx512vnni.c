/* SPDX-License-Identifier: Apache-2.0
 *
 * attention with AVX-512 VNNI: twelve queries at a time, whose scores and weights never leave the first-level cache.
 *
 * Keys and values of one place are copied to the stack as vpdpbusd reads them: groups of four codes, keys unsigned and
 * values signed. Scores stand in blocks of 64 keys, as four vectors: lane l, element e of vector v is key
 * 16 l + 4 v + e of the block, so that two packs bring weights into the order of keys.
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
    uint8_t keys[INTONLY_MOST_KEY_BYTES + BLOCK * INTONLY_MOST_DEPTH]; /* [block][depth / 4][64][4] */
    uint8_t values[INTONLY_MOST_KEY_BYTES + BLOCK * INTONLY_MOST_DEPTH]; /* [keys / 4][groups][16][4] */
    int32_t start[INTONLY_MOST_KEYS]; /* of the sums of a key: minus q_zero times the sum of its codes */
    int32_t scores[ROWS][INTONLY_MOST_KEYS];
    uint8_t weights[ROWS][INTONLY_MOST_KEYS];
    uint8_t queries[ROWS][INTONLY_MOST_DEPTH];
    int32_t totals[ROWS], reciprocals[ROWS];
} scratch;

/* What all rows of a step share. */
typedef struct attention_512 {
    attention any;
    int64_t depth, keys, blocks, quads, groups; /* depth in fours, keys and their blocks and fours, width in groups */
} attention_512;

/* Return the slot of a block in which a key stands: lane and vector change places. */
static inline int64_t slot_of_key(int64_t key) { return (key & 12) * 4 + (key >> 4) * 4 + (key & 3); }

static void pack_keys(const attention_512 *g, const uint8_t *k, scratch *t) {
    const intonly_attention *s = g->any.step;
    const uint32_t flip = s->k_type == INTONLY_S8 ? 0x80808080u : 0;
    memset(t->keys, 0, (size_t)(g->blocks * BLOCK * g->depth * 4));
    for (int64_t key = 0; key < g->keys; ++key, k += s->k_key) {
        uint8_t *to = t->keys + (key >> 6) * BLOCK * g->depth * 4 + slot_of_key(key & 63) * 4;
        uint8_t row[INTONLY_MOST_DEPTH] = {0};
        memcpy(row, k, (size_t)s->depth);
        for (int64_t c = 0; c < g->depth; ++c) {
            uint32_t four;
            memcpy(&four, row + 4 * c, 4);
            four ^= flip;
            memcpy(to + c * BLOCK * 4, &four, 4);
        }
    }
    /* What the last codes are filled up with meets codes of 0. */
    const __m512i ones = _mm512_set1_epi8(1), zero = _mm512_set1_epi32((int32_t)-s->q_zero);
    const int64_t flipped = s->q_type == INTONLY_U8 ? 128 : 0;
    const __m512i from = _mm512_add_epi32(zero, _mm512_set1_epi32((int32_t)flipped));
    for (int64_t block = 0; block < g->blocks; ++block) {
        for (int64_t v = 0; v < 4; ++v) {
            __m512i sum = _mm512_setzero_si512();
            const uint8_t *at = t->keys + block * BLOCK * g->depth * 4 + v * BLOCK;
            for (int64_t c = 0; c < g->depth; ++c) sum = _mm512_dpbusd_epi32(sum, load64(at + c * BLOCK * 4), ones);
            _mm512_storeu_si512(t->start + block * BLOCK + v * GROUP, _mm512_mullo_epi32(sum, from));
        }
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

/* Scores of six queries and a block of keys. */
static void scores_of_block(const attention_512 *g, const uint8_t (*q)[INTONLY_MOST_DEPTH], int64_t block,
                            const scratch *t, int32_t (*scores)[INTONLY_MOST_KEYS]) {
    const uint8_t *keys = t->keys + block * BLOCK * g->depth * 4;
    __m512i acc[HALF_ROWS][4], four;
#pragma GCC unroll 6
    for (int r = 0; r < HALF_ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) acc[r][v] = load64(t->start + block * BLOCK + v * GROUP);
    for (int64_t c = 0; c < g->depth; ++c, keys += 4 * BLOCK) {
        const __m512i k0 = load64(keys), k1 = load64(keys + 64), k2 = load64(keys + 128), k3 = load64(keys + 192);
#pragma GCC unroll 6
        for (int r = 0; r < HALF_ROWS; ++r) {
            SPREAD(four, q[r] + 4 * c);
            DOT(acc[r][0], k0, four);
            DOT(acc[r][1], k1, four);
            DOT(acc[r][2], k2, four);
            DOT(acc[r][3], k3, four);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < HALF_ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) _mm512_storeu_si512(scores[r] + block * BLOCK + v * GROUP, acc[r][v]);
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

/* Return which elements of vector v of a block stand for keys of a set. */
static inline __mmask16 slots_of_vector(uint64_t keys, int v) {
    const uint64_t nibbles = keys >> (4 * v) & UINT64_C(0x000F000F000F000F);
    return (__mmask16)(nibbles | nibbles >> 12 | nibbles >> 24 | nibbles >> 36);
}

static inline __m512i largest_score(const attention_512 *g, const int32_t *scores, const uint64_t *counts) {
    __m512i most = _mm512_set1_epi32(INT32_MIN);
    for (int64_t block = 0; block < g->blocks; ++block, scores += BLOCK) {
        const uint64_t keys = counts[block];
        if (keys == ~UINT64_C(0)) {
            const __m512i a = _mm512_max_epi32(load64(scores), load64(scores + 16));
            const __m512i b = _mm512_max_epi32(load64(scores + 32), load64(scores + 48));
            most = _mm512_max_epi32(most, _mm512_max_epi32(a, b));
            continue;
        }
        for (int v = 0; v < 4; ++v)
            most = _mm512_mask_max_epi32(most, slots_of_vector(keys, v), most, load64(scores + v * GROUP));
    }
    most = _mm512_max_epi32(most, _mm512_shuffle_i64x2(most, most, 0x4E));
    most = _mm512_max_epi32(most, _mm512_shuffle_i64x2(most, most, 0xB1));
    most = _mm512_max_epi32(most, _mm512_shuffle_epi32(most, 0x4E));
    return _mm512_max_epi32(most, _mm512_shuffle_epi32(most, 0xB1));
}

static inline int32_t sum_of_lanes(__m512i x) {
    x = _mm512_add_epi32(x, _mm512_shuffle_i64x2(x, x, 0x4E));
    x = _mm512_add_epi32(x, _mm512_shuffle_i64x2(x, x, 0xB1));
    x = _mm512_add_epi32(x, _mm512_shuffle_epi32(x, 0x4E));
    return _mm512_cvtsi512_si32(_mm512_add_epi32(x, _mm512_shuffle_epi32(x, 0xB1)));
}

typedef struct weighing {
    __m512i top; /* the largest score, and the rounding of the shift */
    __m128i right, left;
    __m512i near, multiplier, octave, fine;
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

/* Weigh the keys of one query; return the sum of the weights. */
static int32_t weigh(const attention_512 *g, const int32_t *scores, const uint64_t *counts, uint8_t *weights) {
    const intonly_attention *s = g->any.step;
    const int right = s->shift > 0 ? (int)s->shift : 0, left = s->shift < 0 ? (int)-s->shift : 0;
    const __m512i half = _mm512_set1_epi32((1 << right) >> 1), ones = _mm512_set1_epi8(1);
    /* A distance cut before it is shifted left is beyond the farthest all the same: the check asks for 2^14 or more. */
    const weighing w = {.top = _mm512_add_epi32(largest_score(g, scores, counts), half),
                        .right = _mm_cvtsi32_si128(right),
                        .left = _mm_cvtsi32_si128(left),
                        .near = _mm512_set1_epi16((int16_t)(WEIGHT_NEAR >> left)),
                        .multiplier = _mm512_set1_epi16((int16_t)s->weight_multiplier),
                        .octave = load64(weight_octave),
                        .fine = load64(weight_fine)};
    __m512i sum = _mm512_setzero_si512();
    for (int64_t block = 0; block < g->blocks; ++block, scores += BLOCK, weights += BLOCK) {
        __m512i bytes = _mm512_packus_epi16(weights_of(&w, scores), weights_of(&w, scores + 2 * GROUP));
        if (counts[block] != ~UINT64_C(0)) bytes = _mm512_maskz_mov_epi8(counts[block], bytes);
        sum = _mm512_dpbusd_epi32(sum, bytes, ones);
        _mm512_storeu_si512(weights, bytes);
    }
    return sum_of_lanes(sum);
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
            SPREAD(four, t->weights[row + r] + 4 * quad);
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
    for (int64_t block = 0; block < g->blocks; ++block)
        for (int64_t r = 0; r < exist; r += HALF_ROWS)
            scores_of_block(g, (const uint8_t(*)[INTONLY_MOST_DEPTH])t->queries + r, block, t, t->scores + r);
    for (int64_t r = 0; r < exist; ++r) {
        if (r == 0 || mask_row != 0) {
            const uint8_t *mask = g->any.mask == NULL ? NULL : g->any.mask + offset[COUNTS] + (row + r) * mask_row;
            for (int64_t block = 0; block < g->blocks; ++block) counts[block] = keys_of_block(g, mask, block);
        }
        t->totals[r] = weigh(g, t->scores[r], counts, t->weights[r]);
    }
    int32_t divisors[ROWS];
    for (int64_t r = 0; r < ROWS; ++r)
        divisors[r] = r < exist && t->totals[r] > WEIGHT_LARGEST ? t->totals[r] : WEIGHT_LARGEST;
    weight_reciprocals(divisors, ROWS, t->reciprocals);
    means_of_rows(g, f, exist, t, y);
}

void intonly_attention_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_attention *s = (const intonly_attention *)step;
    _Alignas(64) scratch t;
    attention_512 g = {.depth = (s->depth + 3) >> 2,
                       .keys = s->keys,
                       .blocks = (s->keys + BLOCK - 1) >> 6,
                       .quads = (s->keys + 3) >> 2,
                       .groups = (s->width + GROUP - 1) >> 4};
    const finishing f = {.multiplier = _mm512_set1_epi64(s->multiplier),
                         .half = _mm512_set1_epi64(INT64_C(1) << (s->y_shift - 1)),
                         .zero_point = _mm512_set1_epi64(s->zero_point),
                         .lo = _mm512_set1_epi64(s->lo),
                         .hi = _mm512_set1_epi64(s->hi),
                         .shift = _mm_cvtsi64_si128(s->y_shift)};
    for (attention_begin(&g.any, s, bases, part, parts); g.any.walk.rows > 0; intonly_walk_next(&g.any.walk)) {
        if (g.any.walk.first == g.any.walk.end) continue;
        pack_keys(&g, g.any.k + g.any.walk.offset[KEY], &t);
        pack_values(&g, g.any.v + g.any.walk.offset[VALUE], &t);
        for (int64_t row = g.any.walk.first; row < g.any.walk.end; row += ROWS)
            rows_at(&g, &f, row, g.any.walk.end - row < ROWS ? g.any.walk.end - row : ROWS, &t);
    }
}
