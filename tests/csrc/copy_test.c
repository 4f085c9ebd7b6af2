/* SPDX-License-Identifier: Apache-2.0
 *
 * The copy of bytes with AVX-512 against plain loops: images of planes and of pixels, rows, broadcasts, any strides,
 * with gaps in the output that must stay as they are. Run under the address and undefined-behaviour sanitizers; every
 * tensor is allocated to the exact byte. Prints the number of cases of each form.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "intonly.h"
#include "kernels/copy/x86_avx512vnni.h"
#include "kernels/walk.h"

enum { FORMS = 6, GAP = 0xA5 };

static uint64_t state = UINT64_C(0x9E3779B97F4A7C15);

static uint64_t random64(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}

static int64_t below(int64_t limit) { return (int64_t)(random64() % (uint64_t)limit); }

/* Give the axes strides, in this order from the innermost, with gaps. Return the bytes up to the last element. */
static int64_t lay_out(const int64_t *extent, const int *order, int64_t gap, int64_t *strides) {
    int64_t step = 1, last = 0;
    for (int k = 0; k < INTONLY_RANK; ++k) {
        const int axis = order[k];
        strides[axis] = step;
        last += (extent[axis] - 1) * step;
        step = (step * extent[axis]) + (k < 5 && gap ? below(gap + 1) : 0);
    }
    return last + 1;
}

static int64_t offset_of(int64_t place, const int64_t *extent, const int64_t *strides) {
    int64_t offset = 0;
    for (int axis = INTONLY_RANK - 1; axis >= 0; --axis) {
        offset += place % extent[axis] * strides[axis];
        place /= extent[axis];
    }
    return offset;
}

static void require(int holds, const char *what, int form) {
    if (holds) return;
    fprintf(stderr, "copy_test.c: form %d: %s\n", form, what);
    exit(1);
}

static void test_round(int form) {
    const int natural[INTONLY_RANK] = {7, 6, 5, 4, 3, 2, 1, 0}, planes_first[INTONLY_RANK] = {6, 5, 7, 4, 3, 2, 1, 0};
    const int turned[INTONLY_RANK] = {6, 7, 5, 4, 3, 2, 1, 0}, odd[INTONLY_RANK] = {5, 7, 6, 4, 3, 2, 1, 0};
    intonly_copy s = {.kind = INTONLY_KIND_copy, .words = sizeof s / 8, .parts = 1};
    const int64_t widths[] = {1, 5, 15, 16, 17, 63, 64, 65, 128, 200};
    for (int axis = 0; axis < 4; ++axis) s.extent[axis] = 1;
    s.extent[4] = 1 + below(2);
    s.extent[5] = 1 + below(4);
    s.extent[6] = below(2) ? widths[below(10)] : 1 + below(150);
    s.extent[7] = form == 0 ? 3 : form == 1 ? 4 : 1 + below(form == 2 ? 40 : 70);
    s.a_type = below(2) ? INTONLY_U8 : INTONLY_S8;
    s.y_type = below(2) ? INTONLY_U8 : INTONLY_S8;
    const int *a_order = form <= 2 ? planes_first : form == 3 ? natural : form == 4 ? turned : odd;
    const int *y_order = form == 3 ? turned : natural;
    const int64_t a_bytes = lay_out(s.extent, a_order, below(2) ? 5 : 0, s.a_strides);
    if (form == 5 && below(2)) s.a_strides[INTONLY_LAST] = 0;
    const int64_t y_bytes = lay_out(s.extent, y_order, below(2) ? 5 : 0, s.y_strides);
    if (form == 4 && below(2)) s.a_strides[INTONLY_LAST - 1] = 0;

    int64_t places = 1;
    for (int axis = 0; axis < INTONLY_RANK; ++axis) places *= s.extent[axis];
    uint8_t *a = malloc((size_t)a_bytes), *y = malloc((size_t)y_bytes), *expected = malloc((size_t)y_bytes);
    for (int64_t i = 0; i < a_bytes; ++i) a[i] = (uint8_t)random64();
    memset(y, GAP, (size_t)y_bytes);
    memset(expected, GAP, (size_t)y_bytes);
    for (int64_t i = 0; i < places; ++i)
        expected[offset_of(i, s.extent, s.y_strides)] = a[offset_of(i, s.extent, s.a_strides)];

    uint8_t *const bases[] = {NULL, NULL, a, y};
    s.a_ref = INT64_C(2) << INTONLY_SPACE_SHIFT;
    s.y_ref = INT64_C(3) << INTONLY_SPACE_SHIFT;
    const unsigned parts = 1 + (unsigned)below(7);
    for (unsigned part = parts; part-- > 0;) intonly_copy_avx512vnni(&s, bases, part, parts);
    require(memcmp(expected, y, (size_t)y_bytes) == 0, "other bytes than plain loops move", form);

    /* A part leaves alone what belongs to another. */
    if (parts > 1) {
        memset(y, GAP, (size_t)y_bytes);
        intonly_copy_avx512vnni(&s, bases, 0, parts);
        uint8_t *first = malloc((size_t)y_bytes);
        memcpy(first, y, (size_t)y_bytes);
        for (unsigned part = 1; part < parts; ++part) {
            memset(y, GAP, (size_t)y_bytes);
            intonly_copy_avx512vnni(&s, bases, part, parts);
            for (int64_t i = 0; i < y_bytes; ++i)
                require(y[i] == GAP || first[i] == GAP || expected[i] == GAP, "two parts write one byte", form);
        }
        free(first);
    }
    free(a), free(y), free(expected);
}

int main(void) {
    for (int form = 0; form < FORMS; ++form) {
        for (int round = 0; round < 400; ++round) test_round(form);
        printf("%d 400\n", form);
    }
    return 0;
}
