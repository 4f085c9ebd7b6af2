/* SPDX-License-Identifier: Apache-2.0
 *
 * Maps of one byte with AVX2 and AVX-512 against the plain kernel: lookups in tables of any type and offset, rescales in both
 * forms, roots, along contiguous and strided axes, in place, and in parts. Run under the address and
 * undefined-behaviour sanitizers. Prints how many cases were large enough for a table.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "intonly.h"
#include "kernels/map/map.h"
#include "kernels/map/x86_avx2.h"
#include "kernels/map/x86_avx512vnni.h"
#include "kernels/walk.h"

enum { GAP = 0xA5, ENTRIES = 300, TABLE = 1024 };

static uint64_t state = UINT64_C(0x9E3779B97F4A7C15);

static uint64_t random64(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}

static int64_t below(int64_t limit) { return (int64_t)(random64() % (uint64_t)limit); }

static void require(int holds, const char *what, int round) {
    if (holds) return;
    fprintf(stderr, "table_test.c: round %d: %s\n", round, what);
    exit(1);
}

/* A rescale of one byte to one byte; the constants stand at the start of space 0. */
static void random_epilogue(intonly_map *s, uint8_t *constants) {
    const int32_t x_zero = (int32_t)below(256) - 128;
    s->form = below(2) ? INTONLY_FORM_WIDE : INTONLY_FORM_NARROW;
    const int narrow = s->form == INTONLY_FORM_NARROW;
    const int64_t least = narrow ? 1 << 14 : 1 << 30, size = least + below(least);
    const int32_t multiplier = (int32_t)(below(4) ? size : -size);
    const int8_t shift = (int8_t)(narrow ? below(8) - 5 : 28 + below(6));
    memcpy(constants, &multiplier, sizeof multiplier);
    memcpy(constants + 4, &x_zero, sizeof x_zero);
    memcpy(constants + 8, &shift, sizeof shift);
    s->multiplier = 0;
    s->x_zero = below(4) ? 4 : INTONLY_ABSENT;
    s->shift = 8;
    s->fraction_bits = narrow ? 4 + below(4) : 0;
    s->lo = s->y_type == INTONLY_S8 ? -128 + below(20) : below(20);
    s->hi = s->y_type == INTONLY_S8 ? 127 - below(20) : 255 - below(20);
    s->zero_point = s->lo + below(s->hi - s->lo + 1);
}

static intonly_map random_step(uint8_t *constants) {
    intonly_map s = {.kind = INTONLY_KIND_map, .words = sizeof s / 8, .parts = 1, .sign = 1};
    s.b_ref = s.c_ref = s.r_ref = INTONLY_ABSENT;
    s.multiplier = s.shift = s.residual_multiplier = s.residual_shift = s.x_zero = INTONLY_ABSENT;
    s.a_type = below(2) ? INTONLY_U8 : INTONLY_S8;
    s.y_type = below(2) ? INTONLY_U8 : INTONLY_S8;
    for (size_t i = 0; i < TABLE + 8 * ENTRIES; ++i) constants[i] = (uint8_t)random64();
    if (below(2)) {
        s.op = INTONLY_MAP_LOOKUP;
        s.b_ref = (INT64_C(4) << INTONLY_SPACE_SHIFT) + TABLE;
        s.b_type = below(7);
        s.b_count = 1 + below(ENTRIES);
        s.offset = below(2) ? (s.a_type == INTONLY_S8 ? -128 : 0) : below(400) - 200;
    } else {
        s.op = below(4) ? INTONLY_MAP_IDENTITY : INTONLY_MAP_ISQRT;
        if (s.op == INTONLY_MAP_ISQRT) s.a_type = INTONLY_U8;
    }
    if (below(3)) random_epilogue(&s, constants);
    return s;
}

static int test_round(int round) {
    static uint8_t constants[TABLE + 8 * ENTRIES];
    intonly_map s = random_step(constants);
    for (int axis = 0; axis < INTONLY_RANK; ++axis) s.extent[axis] = 1;
    s.extent[INTONLY_LAST] = below(3) ? 1 + below(9000) : 1 + below(70);
    s.extent[INTONLY_LAST - 1] = 1 + below(s.extent[INTONLY_LAST] > 100 ? 4 : 400);
    s.a_strides[INTONLY_LAST] = below(3) ? 1 : below(4);
    s.y_strides[INTONLY_LAST] = below(3) ? 1 : 1 + below(3);
    s.a_strides[INTONLY_LAST - 1] = s.a_strides[INTONLY_LAST] * s.extent[INTONLY_LAST] + below(3);
    s.y_strides[INTONLY_LAST - 1] = s.y_strides[INTONLY_LAST] * s.extent[INTONLY_LAST] + below(3);
    const int64_t rows = s.extent[INTONLY_LAST - 1] - 1, columns = s.extent[INTONLY_LAST] - 1;
    const size_t a_bytes = (size_t)(rows * s.a_strides[INTONLY_LAST - 1] + columns * s.a_strides[INTONLY_LAST] + 1);
    const size_t y_bytes = (size_t)(rows * s.y_strides[INTONLY_LAST - 1] + columns * s.y_strides[INTONLY_LAST] + 1);
    const int in_place = a_bytes == y_bytes && memcmp(s.a_strides, s.y_strides, sizeof s.a_strides) == 0 && below(2);
    s.a_ref = (int64_t)(in_place ? 3 : 2) << INTONLY_SPACE_SHIFT;
    s.y_ref = INT64_C(3) << INTONLY_SPACE_SHIFT;

    uint8_t *a = malloc(a_bytes), *expected = malloc(y_bytes), *y = malloc(y_bytes);
    for (size_t i = 0; i < a_bytes; ++i) a[i] = (uint8_t)random64();
    memset(expected, GAP, y_bytes);
    memset(y, GAP, y_bytes);
    if (in_place) memcpy(expected, a, a_bytes), memcpy(y, a, a_bytes);
    uint8_t *const plain[] = {constants, NULL, a, expected, constants};
    uint8_t *const fast[] = {constants, NULL, a, y, constants};
    const unsigned parts = 1 + (unsigned)below(4);
    intonly_map_ref(&s, plain, 0, 1);
    for (unsigned part = parts; part-- > 0;) (round & 1 ? intonly_map_avx2 : intonly_map_avx512vnni)(&s, fast, part, parts);
    require(memcmp(expected, y, y_bytes) == 0, "other bytes than the plain kernel", round);
    free(a), free(expected), free(y);
    return s.extent[INTONLY_LAST] * s.extent[INTONLY_LAST - 1] >= 2048 * (int64_t)parts;
}

int main(void) {
    int tables = 0;
    for (int round = 0; round < 2000; ++round) tables += test_round(round);
    printf("%d\n", tables);
    return 0;
}
