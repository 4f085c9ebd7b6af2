/* SPDX-License-Identifier: Apache-2.0
 *
 * The epilogue of a step: its numbers are ones that the law has, and its constants are there for every element of y.
 */
#include "exec/checker.h"

static int type_holds(int64_t type, int64_t lo, int64_t hi) {
    switch (type) {
    case INTONLY_S8: return lo >= INT8_MIN && hi <= INT8_MAX;
    case INTONLY_U8: return lo >= 0 && hi <= UINT8_MAX;
    case INTONLY_S16: return lo >= INT16_MIN && hi <= INT16_MAX;
    case INTONLY_U16: return lo >= 0 && hi <= UINT16_MAX;
    case INTONLY_U32: return lo >= 0;
    default: return 1;
    }
}

const char *intonly_check_scalars(const epilogue *e, int64_t y_type) {
    REQUIRE(in_range(e->form, INTONLY_FORM_ACC, INTONLY_FORM_NARROW), "form must be 0, 1 or 2");
    REQUIRE(is_int32(e->zero_point) && is_int32(e->residual_zero), "zero points must fit in int32");
    REQUIRE(is_int32(e->lo) && is_int32(e->hi), "lo and hi must fit in int32");
    if (e->form != INTONLY_FORM_NARROW) REQUIRE(e->fraction_bits == 0, "fraction_bits must be 0 but in form 2");
    if (e->form == INTONLY_FORM_ACC) return NULL;
    REQUIRE(e->lo <= e->hi && type_holds(y_type, e->lo, e->hi), "lo and hi must be in order and fit in the type of y");
    if (e->form == INTONLY_FORM_WIDE) return NULL;
    REQUIRE(in_range(e->fraction_bits, 4, 7), "fraction_bits must be 4..7 in form 2");
    REQUIRE(is_8_bit(y_type) && type_holds(y_type, e->zero_point, e->zero_point),
            "y of form 2 must be of 8 bits, and its type must hold the zero point");
    return NULL;
}

static int shifts_legal(const int8_t *shifts, int64_t count, int64_t form) {
    const int least = form == INTONLY_FORM_WIDE ? 1 : -15, most = form == INTONLY_FORM_WIDE ? 62 : 30;
    for (int64_t i = 0; i < count; ++i)
        if (shifts[i] < least || shifts[i] > most) return 0;
    return 1;
}

/* Of form 2, multipliers have 16 bits. */
static int multipliers_legal(const int32_t *multipliers, int64_t count, int64_t form) {
    if (form == INTONLY_FORM_WIDE) return 1;
    for (int64_t i = 0; i < count; ++i)
        if (multipliers[i] <= INT16_MIN || multipliers[i] > INT16_MAX) return 0;
    return 1;
}

/* Check an array of multipliers and one of shifts, of which the elements of `reach` are read. */
static int constants_legal(checker *c, int64_t multiplier, int64_t shift, intonly_reach reach, int64_t form) {
    const int64_t count = reach.end - reach.least, size = sizeof(int32_t);
    const intonly_reach words = {reach.least * size, reach.end * size};
    const uint8_t *m = constants(c, multiplier, words, size), *s = constants(c, shift, reach, 1);
    if (m == NULL || s == NULL || !count_work(c, count)) return 0;
    return multipliers_legal((const int32_t *)(const void *)(m + words.least), count, form) &&
           shifts_legal((const int8_t *)s + reach.least, count, form);
}

const char *intonly_check_constants(checker *c, const epilogue *e, int joins, intonly_reach reach,
                                    intonly_reach zeros) {
    const int narrow = e->form == INTONLY_FORM_NARROW;
    if (e->form == INTONLY_FORM_ACC) {
        REQUIRE(is_absent(e->multiplier) && is_absent(e->shift) && is_absent(e->x_zero) && !joins,
                "form 0 has no constants and no residual");
    } else {
        REQUIRE(
            constants_legal(c, e->multiplier, e->shift, reach, e->form),
            "multiplier and shift must be constants for all of y, shift 1..62 (form 2: -15..30, |multiplier| < 2^15)");
    }
    if (joins) {
        /* The wide form has one shift for both. */
        REQUIRE(constants_legal(c, e->residual_multiplier, narrow ? e->residual_shift : e->shift, reach, e->form),
                "residual_multiplier and residual_shift must be constants like multiplier and shift");
    } else {
        REQUIRE(is_absent(e->residual_multiplier), "residual_multiplier goes with a residual");
    }
    if (!joins || !narrow) REQUIRE(is_absent(e->residual_shift), "residual_shift goes with a residual in form 2");
    if (!is_absent(e->x_zero)) {
        const int64_t size = sizeof(int32_t);
        REQUIRE(constants(c, e->x_zero, (intonly_reach){zeros.least * size, zeros.end * size}, size) != NULL,
                "x_zero must be constants for all of y");
    }
    return NULL;
}

const char *intonly_check_spread(checker *c, const epilogue *e, int64_t r_ref, int64_t r_type, const int64_t *extent,
                                 const int64_t *r_strides, const int64_t *constant_strides,
                                 const int64_t *zero_strides) {
    const int joins = !is_absent(r_ref);
    intonly_reach reach = intonly_reach_of(1), zeros = intonly_reach_of(1);
    if (joins) {
        REQUIRE(r_type <= INTONLY_U16, "a residual has at most 16 bits");
        REQUIRE(spreads(c, r_ref, r_type, intonly_reach_of(0), extent, r_strides, READ), "r lies outside its space");
    }
    for (int axis = 0; axis < INTONLY_RANK; ++axis)
        REQUIRE(intonly_reach_along(&reach, extent[axis], constant_strides[axis]) &&
                    intonly_reach_along(&zeros, extent[axis], zero_strides[axis]),
                "constant_strides or zero_strides are too large");
    return intonly_check_constants(c, e, joins, reach, zeros);
}
