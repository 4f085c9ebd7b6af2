/* SPDX-License-Identifier: Apache-2.0
 *
 * A map from one byte to one byte, with constants that are the same everywhere, is a table of 256 bytes, whatever its
 * operation and epilogue: any.h fills the table, and four registers hold it. Other maps are those of any.h on vectors.
 */
#include "kernels/map/x86_avx512vnni.h"

#include <immintrin.h>

#include "intonly.h"
#include "kernels/map/any.h"

enum { BYTES = 256, WORTH_A_TABLE = 2048 }; /* to fill the table takes as long as a few hundred elements */

typedef struct table {
    __m512i quarter[4];
} table;

static int is_zero(const int64_t *strides) {
    int64_t any = 0;
    for (int axis = 0; axis < INTONLY_RANK; ++axis) any |= strides[axis];
    return any == 0;
}

static int is_table(const intonly_map *s) {
    const int looks_up = s->op == INTONLY_MAP_LOOKUP, has_b = s->b_ref >= 0;
    const int one_operand = looks_up || ((s->op == INTONLY_MAP_IDENTITY || s->op == INTONLY_MAP_ISQRT) && !has_b);
    const int bytes = s->a_type <= INTONLY_U8 && s->y_type <= INTONLY_U8, same = is_zero(s->constant_strides);
    return one_operand && bytes && same && is_zero(s->zero_strides) && s->c_ref < 0 && s->r_ref < 0;
}

/* Return whether the step is a look-up in a table of bytes that has an entry for each byte, in the order of codes. */
static int has_table(const intonly_map *s) {
    const int whole = s->b_count == BYTES && s->b_type <= INTONLY_U8 && s->offset == (s->a_type == INTONLY_S8 ? -128 : 0);
    return s->op == INTONLY_MAP_LOOKUP && s->form == INTONLY_FORM_ACC && whole;
}

/* Return that table by bytes: negative codes are the bytes from 128 on. */
static table given(const intonly_map *s, uint8_t *const *bases) {
    const uint8_t *b = intonly_at(bases, s->b_ref);
    const int first = s->a_type == INTONLY_S8 ? 128 : 0;
    table t;
    for (int k = 0; k < 4; ++k) t.quarter[k] = _mm512_loadu_si512(b + ((first + 64 * k) & (BYTES - 1)));
    return t;
}

/* Let the plain kernel map all bytes. Its spaces: constants, the bytes, the table, and that of the operand b. */
static table filled(const intonly_map *s, uint8_t *const *bases) {
    enum { INPUT = 1, OUTPUT = 2, OPERAND = 3 };
    uint8_t input[BYTES], output[BYTES], no_operand = 0;
    uint8_t *const b = s->b_ref < 0 ? &no_operand : intonly_at(bases, s->b_ref);
    uint8_t *const own[] = {bases[INTONLY_CONSTANTS], input, output, b};
    intonly_map all = *s;
    for (int i = 0; i < BYTES; ++i) input[i] = (uint8_t)i;
    for (int axis = 0; axis < INTONLY_RANK; ++axis) all.extent[axis] = 1;
    all.extent[INTONLY_LAST] = BYTES;
    all.a_strides[INTONLY_LAST] = all.y_strides[INTONLY_LAST] = 1;
    all.a_ref = (int64_t)INPUT << INTONLY_SPACE_SHIFT;
    all.y_ref = (int64_t)OUTPUT << INTONLY_SPACE_SHIFT;
    if (s->b_ref >= 0) all.b_ref = (int64_t)OPERAND << INTONLY_SPACE_SHIFT;
    map_any(&all, own, 0, 1);
    table t;
    for (int k = 0; k < 4; ++k) t.quarter[k] = _mm512_loadu_si512(output + 64 * k);
    return t;
}

static inline __m512i looked_up(const table *t, __m512i bytes) {
    const __m512i lower = _mm512_permutex2var_epi8(t->quarter[0], bytes, t->quarter[1]);
    const __m512i upper = _mm512_permutex2var_epi8(t->quarter[2], bytes, t->quarter[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), lower, upper);
}

static void contiguous(const table *t, const uint8_t *a, uint8_t *y, int64_t count) {
    for (; count >= 64; count -= 64, a += 64, y += 64) _mm512_storeu_si512(y, looked_up(t, _mm512_loadu_si512(a)));
    const __mmask64 rest = (UINT64_C(1) << count) - 1;
    if (rest != 0) _mm512_mask_storeu_epi8(y, rest, looked_up(t, _mm512_maskz_loadu_epi8(rest, a)));
}

static void strided(const table *t, const uint8_t *a, int64_t a_stride, uint8_t *y, int64_t y_stride, int64_t count) {
    uint8_t entries[BYTES];
    for (int k = 0; k < 4; ++k) _mm512_storeu_si512(entries + 64 * k, t->quarter[k]);
    for (; count > 0; --count, a += a_stride, y += y_stride) *y = entries[*a];
}

void intonly_map_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_map *s = (const intonly_map *)step;
    int64_t elements = 1;
    for (int axis = 0; axis < INTONLY_RANK; ++axis) elements *= s->extent[axis];
    const int at_hand = has_table(s);
    if (!is_table(s) || (!at_hand && elements < (int64_t)parts * WORTH_A_TABLE)) {
        map_any(step, bases, part, parts);
        return;
    }
    const table t = at_hand ? given(s, bases) : filled(s, bases);
    const uint8_t *a = intonly_at(bases, s->a_ref);
    uint8_t *y = intonly_at(bases, s->y_ref);
    const int64_t a_stride = s->a_strides[INTONLY_LAST], y_stride = s->y_strides[INTONLY_LAST];
    intonly_walk walk;
    walk.extent = s->extent;
    walk.operands = 0;
    intonly_walk_operand(&walk, s->a_strides);
    intonly_walk_operand(&walk, s->y_strides);
    for (intonly_walk_start(&walk, part, parts); walk.rows > 0; intonly_walk_next(&walk)) {
        const uint8_t *from = a + walk.offset[0] + walk.first * a_stride;
        uint8_t *to = y + walk.offset[1] + walk.first * y_stride;
        if (a_stride == 1 && y_stride == 1)
            contiguous(&t, from, to, walk.end - walk.first);
        else
            strided(&t, from, a_stride, to, y_stride, walk.end - walk.first);
    }
}
