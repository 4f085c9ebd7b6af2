/* SPDX-License-Identifier: Apache-2.0
 *
 * copy of bytes. An image whose channels are planes becomes one whose pixels hold the channels, as most networks need
 * it of their input: three or four planes are woven together, 64 pixels at a time. Where there are more, or pixels
 * become planes, tiles of 16 by 16 bytes are transposed. Other bytes go one by one, along the longer of the last two
 * axes.
 */
#include "kernels/copy/x86_avx512vnni.h"

#include <immintrin.h>
#include <string.h>

#include "intonly.h"
#include "kernels/copy/copy.h"
#include "kernels/walk.h"

enum { A, Y };
enum { OUTER = INTONLY_LAST - 1, INNER = INTONLY_LAST }; /* the last two axes */
enum { WORTH_A_TILE = 8 };

#define TIMES4(M, n) M(n), M((n) + 1), M((n) + 2), M((n) + 3)
#define TIMES16(M, n) TIMES4(M, n), TIMES4(M, (n) + 4), TIMES4(M, (n) + 8), TIMES4(M, (n) + 12)
#define TIMES64(M, n) TIMES16(M, n), TIMES16(M, (n) + 16), TIMES16(M, (n) + 32), TIMES16(M, (n) + 48)

/* Where byte n of the pixels comes from: its pixel, plus 64 when it is the second channel of a pair of planes. */
#define OF3(n) (uint8_t)((n) / 3 + (n) % 3 % 2 * 64)
#define OF4(n) (uint8_t)((n) / 4 + (n) % 2 * 64)
static const uint8_t of3[3][64] = {{TIMES64(OF3, 0)}, {TIMES64(OF3, 64)}, {TIMES64(OF3, 128)}};
static const uint8_t of4[4][64] = {{TIMES64(OF4, 0)}, {TIMES64(OF4, 64)}, {TIMES64(OF4, 128)}, {TIMES64(OF4, 192)}};

/* The bytes of each 64 that belong to the third of three channels, to the last two of four, the first three of four. */
static const __mmask64 third_of3[3] = {0x4924924924924924, 0x2492492492492492, 0x9249249249249249};
static const __mmask64 last_two_of4 = 0xCCCCCCCCCCCCCCCC, first_three_of4 = 0x7777777777777777;

/* Planes, `stride` bytes apart, and the pixels that they are woven into. */
typedef struct planes {
    const uint8_t *a;
    int64_t stride;
    uint8_t *y;
    int64_t pixels;
} planes;

static inline __mmask64 first_bytes(int64_t count) {
    return count >= 64 ? ~UINT64_C(0) : count <= 0 ? 0 : (UINT64_C(1) << count) - 1;
}

static inline __m512i plane(const planes *p, int64_t channel, __mmask64 inside) {
    return _mm512_maskz_loadu_epi8(inside, p->a + channel * p->stride);
}

/* Masked stores are slow on some processors. */
static inline void put(uint8_t *y, __mmask64 inside, __m512i bytes) {
    if (inside == ~UINT64_C(0))
        _mm512_storeu_si512(y, bytes);
    else
        _mm512_mask_storeu_epi8(y, inside, bytes);
}

static void weave3(planes p) {
    for (; p.pixels > 0; p.pixels -= 64, p.a += 64, p.y += 3 * 64) {
        const __mmask64 inside = first_bytes(p.pixels);
        const __m512i a = plane(&p, 0, inside), b = plane(&p, 1, inside), c = plane(&p, 2, inside);
        for (int k = 0; k < 3; ++k) {
            const __m512i from = _mm512_loadu_si512(of3[k]);
            const __m512i first_two = _mm512_permutex2var_epi8(a, from, b);
            put(p.y + 64 * k, first_bytes(3 * p.pixels - 64 * k),
                _mm512_mask_permutexvar_epi8(first_two, third_of3[k], from, c));
        }
    }
}

/* channels: 3 leaves every fourth byte as it is. */
static void weave4(planes p, int64_t channels) {
    const __mmask64 written = channels == 3 ? first_three_of4 : ~UINT64_C(0);
    for (; p.pixels > 0; p.pixels -= 64, p.a += 64, p.y += 4 * 64) {
        const __mmask64 inside = first_bytes(p.pixels);
        const __m512i a = plane(&p, 0, inside), b = plane(&p, 1, inside), c = plane(&p, 2, inside);
        const __m512i d = channels == 3 ? c : plane(&p, 3, inside);
        for (int k = 0; k < 4; ++k) {
            const __m512i from = _mm512_loadu_si512(of4[k]);
            const __m512i first_two = _mm512_permutex2var_epi8(a, from, b);
            const __m512i last_two = _mm512_permutex2var_epi8(c, from, d);
            put(p.y + 64 * k, first_bytes(4 * p.pixels - 64 * k) & written,
                _mm512_mask_blend_epi8(last_two_of4, first_two, last_two));
        }
    }
}

static void move(const uint8_t *a, int64_t a_stride, uint8_t *y, int64_t y_stride, int64_t count) {
    if (y_stride == 1 && a_stride == 1) {
        memmove(y, a, (size_t)count);
    } else if (y_stride == 1 && a_stride == 0) {
        memset(y, *a, (size_t)count);
    } else {
        for (; count >= 4; count -= 4, a += 4 * a_stride, y += 4 * y_stride) {
            y[0] = a[0];
            y[y_stride] = a[a_stride];
            y[2 * y_stride] = a[2 * a_stride];
            y[3 * y_stride] = a[3 * a_stride];
        }
        for (; count > 0; --count, a += a_stride, y += y_stride) *y = *a;
    }
}

/* Transpose up to 16 rows of up to 16 bytes. Four times, the first eight vectors are shuffled into the last eight, as
 * one shuffles cards: each time the eight bits of a byte's place, row before column, turn by one. */
static void transpose_tile(const uint8_t *a, int64_t a_row, uint8_t *y, int64_t y_row, int64_t rows, int64_t columns) {
    const __mmask16 read = (__mmask16)first_bytes(columns), written = (__mmask16)first_bytes(rows);
    __m128i x[16], t[16];
    for (int i = 0; i < 16; ++i) x[i] = i < rows ? _mm_maskz_loadu_epi8(read, a + i * a_row) : _mm_setzero_si128();
    for (int round = 0; round < 4; ++round) {
        for (int i = 0; i < 8; ++i) {
            t[2 * i] = _mm_unpacklo_epi8(x[i], x[i + 8]);
            t[2 * i + 1] = _mm_unpackhi_epi8(x[i], x[i + 8]);
        }
        memcpy(x, t, sizeof x);
    }
    if (rows == 16) {
        for (int j = 0; j < columns; ++j) _mm_storeu_si128((__m128i *)(void *)(y + j * y_row), x[j]);
    } else {
        for (int j = 0; j < columns; ++j) _mm_mask_storeu_epi8(y + j * y_row, written, x[j]);
    }
}

/* y[j][i] = a[i][j] */
static void transpose(const uint8_t *a, int64_t a_row, uint8_t *y, int64_t y_row, int64_t rows, int64_t columns) {
    for (int64_t j = 0; j < columns; j += 16)
        for (int64_t i = 0; i < rows; i += 16)
            transpose_tile(a + i * a_row + j, a_row, y + j * y_row + i, y_row, rows - i < 16 ? rows - i : 16,
                           columns - j < 16 ? columns - j : 16);
}

/* Move `count` places of the last axis but one, with all of the last. */
static void move_both(const intonly_copy *s, const uint8_t *a, uint8_t *y, int64_t count) {
    const int64_t *as = s->a_strides, *ys = s->y_strides;
    const int64_t channels = s->extent[INNER];
    if (channels >= WORTH_A_TILE && count >= WORTH_A_TILE) {
        if (as[OUTER] == 1 && ys[INNER] == 1) {
            transpose(a, as[INNER], y, ys[OUTER], channels, count);
            return;
        }
        if (as[INNER] == 1 && ys[OUTER] == 1) {
            transpose(a, as[OUTER], y, ys[INNER], count, channels);
            return;
        }
    }
    const int inner_is_longer = channels >= count || (channels >= 16 && as[INNER] == 1 && ys[INNER] == 1);
    const int along = inner_is_longer ? INNER : OUTER, across = inner_is_longer ? OUTER : INNER;
    const int64_t length = inner_is_longer ? channels : count;
    for (int64_t left = inner_is_longer ? count : channels; left > 0; --left, a += as[across], y += ys[across])
        move(a, as[along], y, ys[along], length);
}

void intonly_copy_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_copy *s = (const intonly_copy *)step;
    if (s->a_type > INTONLY_U8 || s->y_type > INTONLY_U8) {
        intonly_copy_ref(step, bases, part, parts);
        return;
    }
    const uint8_t *a = intonly_at(bases, s->a_ref);
    uint8_t *y = intonly_at(bases, s->y_ref);
    const int64_t channels = s->extent[INNER], pixel = s->y_strides[OUTER];
    const int weaves = s->a_strides[OUTER] == 1 && s->y_strides[INNER] == 1 && (channels == 3 || channels == 4) &&
                       (pixel == channels || pixel == 4);

    /* The walk goes over all axes but the last two; its own last axis is the last but one. */
    int64_t extent[INTONLY_RANK] = {1}, a_strides[INTONLY_RANK] = {0}, y_strides[INTONLY_RANK] = {0};
    memcpy(extent + 1, s->extent, sizeof extent - sizeof *extent);
    memcpy(a_strides + 1, s->a_strides, sizeof extent - sizeof *extent);
    memcpy(y_strides + 1, s->y_strides, sizeof extent - sizeof *extent);
    intonly_walk walk;
    walk.extent = extent;
    walk.operands = 0;
    intonly_walk_operand(&walk, a_strides); /* A */
    intonly_walk_operand(&walk, y_strides); /* Y */
    for (intonly_walk_start(&walk, part, parts); walk.rows > 0; intonly_walk_next(&walk)) {
        const uint8_t *from = a + walk.offset[A] + walk.first * s->a_strides[OUTER];
        uint8_t *to = y + walk.offset[Y] + walk.first * pixel;
        const int64_t count = walk.end - walk.first;
        const planes p = {from, s->a_strides[INNER], to, count};
        if (!weaves)
            move_both(s, from, to, count);
        else if (pixel == 3)
            weave3(p);
        else
            weave4(p, channels);
    }
}
