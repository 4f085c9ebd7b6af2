/* SPDX-License-Identifier: Apache-2.0
 *
 * A map from one byte to one byte, with constants that are the same everywhere, is a table of 256 bytes, whatever its
 * operation and epilogue: the general kernel fills the table, unless the step brings one along. Other maps are its own.
 */
#include "kernels/map/table.h"

#include <string.h>

#include "intonly.h"
#include "kernels/walk.h"

enum { A, Y };
enum { BYTES = 256, WORTH_A_TABLE = 2048 }; /* to fill the table takes as long as a few hundred elements */

void intonly_look_up_ref(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count) {
    for (int64_t i = 0; i < count; ++i) y[i] = table[x[i]];
}

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

/* Write that table in the order of bytes: negative codes are the bytes from 128 on. */
static void given(const intonly_map *s, uint8_t *const *bases, uint8_t *table) {
    const uint8_t *b = intonly_at(bases, s->b_ref);
    const int first = s->a_type == INTONLY_S8 ? BYTES / 2 : 0;
    memcpy(table, b + first, (size_t)(BYTES - first));
    memcpy(table + BYTES - first, b, (size_t)first);
}

/* Let the general kernel map all bytes. Its spaces: constants, the bytes, the table, and that of the operand b. */
static void fill(const intonly_map *s, uint8_t *const *bases, uint8_t *table, intonly_kernel any) {
    enum { INPUT = 1, OUTPUT = 2, OPERAND = 3 };
    uint8_t input[BYTES], no_operand = 0;
    uint8_t *const b = s->b_ref < 0 ? &no_operand : intonly_at(bases, s->b_ref);
    uint8_t *const own[] = {bases[INTONLY_CONSTANTS], input, table, b};
    intonly_map all = *s;
    for (int i = 0; i < BYTES; ++i) input[i] = (uint8_t)i;
    for (int axis = 0; axis < INTONLY_RANK; ++axis) all.extent[axis] = 1;
    all.extent[INTONLY_LAST] = BYTES;
    all.a_strides[INTONLY_LAST] = all.y_strides[INTONLY_LAST] = 1;
    all.a_ref = (int64_t)INPUT << INTONLY_SPACE_SHIFT;
    all.y_ref = (int64_t)OUTPUT << INTONLY_SPACE_SHIFT;
    if (s->b_ref >= 0) all.b_ref = (int64_t)OPERAND << INTONLY_SPACE_SHIFT;
    any(&all, own, 0, 1);
}

static void strided(const uint8_t *table, const uint8_t *a, int64_t a_stride, uint8_t *y, int64_t y_stride,
                    int64_t count) {
    for (; count > 0; --count, a += a_stride, y += y_stride) *y = table[*a];
}

void intonly_map_by_table(const intonly_map *s, uint8_t *const *bases, unsigned part, unsigned parts,
                          intonly_look_up look_up, intonly_kernel any) {
    int64_t elements = 1;
    for (int axis = 0; axis < INTONLY_RANK; ++axis) elements *= s->extent[axis];
    const int at_hand = has_table(s);
    if (!is_table(s) || (!at_hand && elements < (int64_t)parts * WORTH_A_TABLE)) {
        any(s, bases, part, parts);
        return;
    }
    uint8_t table[BYTES];
    if (at_hand)
        given(s, bases, table);
    else
        fill(s, bases, table, any);
    const uint8_t *a = intonly_at(bases, s->a_ref);
    uint8_t *y = intonly_at(bases, s->y_ref);
    const int64_t a_stride = s->a_strides[INTONLY_LAST], y_stride = s->y_strides[INTONLY_LAST];
    intonly_walk walk;
    walk.extent = s->extent;
    walk.operands = 0;
    intonly_walk_operand(&walk, s->a_strides); /* A */
    intonly_walk_operand(&walk, s->y_strides); /* Y */
    for (intonly_walk_start(&walk, part, parts); walk.rows > 0; intonly_walk_next(&walk)) {
        const uint8_t *from = a + walk.offset[A] + walk.first * a_stride;
        uint8_t *to = y + walk.offset[Y] + walk.first * y_stride;
        if (a_stride == 1 && y_stride == 1)
            look_up(table, from, to, walk.end - walk.first);
        else
            strided(table, from, a_stride, to, y_stride, walk.end - walk.first);
    }
}
