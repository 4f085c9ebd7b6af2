/* SPDX-License-Identifier: Apache-2.0
 *
 * The rules of steps that multiply, sum or take the largest: gemm, window, contract.
 */
#include "exec/checker.h"

/* What the kernels of a table do with 8-bit codes. */
static int takes_sign(const checker *c, int64_t type) {
    const int wanted = c->kernels->wants_signed;
    return wanted < 0 || type == (wanted ? INTONLY_S8 : INTONLY_U8);
}

/* Return the packed constants; null when they are none. */
static const uint8_t *packed(const checker *c, int64_t ref, int64_t bytes) {
    return in_range(bytes, 1, INTONLY_MOST_REACH) ? constants(c, ref, intonly_reach_of(bytes), 64) : NULL;
}

const char *intonly_check_gemm(checker *c, const intonly_gemm *step) {
    const int64_t extents[] = {step->n, step->oh, step->ow}, inner[] = {step->oc, step->taps, step->tap_bytes};
    const image x = IMAGE(step, x), y = IMAGE(step, y), r = IMAGE(step, r);
    const epilogue e = EPILOGUE_OF_GEMM;
    int64_t work = 1;
    intonly_reach taps;
    REQUIRE(is_type(x.type) && is_type(y.type) && is_type(r.type), "there is no such type");
    REQUIRE(extents_multiply(extents, 3, &work) && extents_multiply(inner, 3, &work) && count_work(c, work),
            "extents must be 1 or more, and not too much work");
    REQUIRE((is_8_bit(x.type) && takes_sign(c, x.type)) || x.type == INTONLY_S16,
            "x must be of 8 bits, with the sign that the kernels want, or int16");
    REQUIRE(is_aligned(step->tap_bytes, 4), "tap_bytes must be a multiple of 4");
    REQUIRE(in_range(step->channels_first, 0, 1), "channels_first must be 0 or 1");
    OBEY(intonly_check_scalars(&e, y.type));
    REQUIRE(e.form != INTONLY_FORM_ACC || y.type == INTONLY_S32, "y of form 0 must be int32");
    REQUIRE(y.type != INTONLY_S64, "y has at most 32 bits");
    REQUIRE(image_sane(r, extents), "the strides of r are too large");
    REQUIRE(taps_reach(c, step->tap_offsets, step->taps, intonly_bytes_of(x.type), &taps),
            "tap_offsets must be int64 constants, multiples of a code");
    REQUIRE(pixels_stand(c, x, extents, step->tap_bytes >> (x.type == INTONLY_S16), taps, READ_TAPS), "x lies outside its space");
    REQUIRE(pixels_stand(c, y, extents, step->oc, intonly_reach_of(0), WRITE), "y lies outside what may be written");
    if (!is_absent(r.ref)) {
        REQUIRE((e.form == INTONLY_FORM_NARROW && is_8_bit(r.type)) || (e.form == INTONLY_FORM_WIDE && r.type <= INTONLY_U16),
                "a residual goes with form 2 and has 8 bits, or with form 1 and has at most 16");
        REQUIRE(pixels_stand(c, r, extents, step->oc, intonly_reach_of(0), READ), "r lies outside its space");
    }
    REQUIRE(step->ahead_bytes >= 0 && step->ahead_bytes < INTONLY_MOST_REACH &&
                constants(c, step->ahead, intonly_reach_of(step->ahead_bytes), 1) != NULL,
            "ahead must be constants");
    const uint8_t *form = packed(c, step->packed, step->packed_bytes);
    REQUIRE(form != NULL, "packed must be constants at a multiple of 64 bytes");
    REQUIRE(c->kernels->gemm_accepts != NULL && c->kernels->gemm_accepts(step, form),
            "packed is not what the kernels can read");
    return NULL;
}

/* op 0 of a window: the constants are packed. */
static const char *check_depthwise(checker *c, const intonly_window *step, const epilogue *e, const int64_t *extents) {
    const image x = IMAGE(step, x), y = IMAGE(step, y), r = IMAGE(step, r);
    REQUIRE(is_8_bit(x.type) && takes_sign(c, x.type), "x must be of 8 bits, with the sign that the kernels want");
    REQUIRE(e->form != INTONLY_FORM_ACC || y.type == INTONLY_S32, "y of form 0 must be int32");
    REQUIRE(is_absent(step->bias) && is_absent(e->multiplier) && is_absent(e->shift) &&
                is_absent(e->residual_multiplier) && is_absent(e->residual_shift),
            "the constants of op 0 are packed, and not named");
    if (!is_absent(r.ref)) {
        REQUIRE(e->form == INTONLY_FORM_NARROW && is_8_bit(r.type), "a residual has 8 bits and goes with form 2");
        REQUIRE(pixels_stand(c, r, extents, step->c, intonly_reach_of(0), READ), "r lies outside its space");
    }
    const uint8_t *form = packed(c, step->packed, step->packed_bytes);
    REQUIRE(form != NULL, "packed must be constants at a multiple of 64 bytes");
    REQUIRE(c->kernels->depthwise_accepts != NULL && c->kernels->depthwise_accepts(step, form),
            "packed is not what the kernels can read");
    return NULL;
}

/* ops 1 and 2 of a window. */
static const char *check_pool(checker *c, const intonly_window *step, const epilogue *e, intonly_reach reach) {
    REQUIRE(is_absent(step->packed) && is_absent(step->r_ref), "only op 0 has packed constants and a residual");
    if (!is_absent(step->bias))
        REQUIRE(constants(c, step->bias, intonly_reach_of(step->c * (int64_t)sizeof(int32_t)), sizeof(int32_t)) != NULL,
                "bias must be int32 constants");
    return intonly_check_constants(c, e, 0, reach, reach);
}

const char *intonly_check_window(checker *c, const intonly_window *step) {
    const int64_t extents[] = {step->n, step->oh, step->ow}, inner[] = {step->c, step->taps};
    const image x = IMAGE(step, x), y = IMAGE(step, y), r = IMAGE(step, r);
    const epilogue e = EPILOGUE_OF_STEP;
    int64_t work = 1;
    intonly_reach taps, index = intonly_reach_of(1);
    REQUIRE(in_range(step->op, INTONLY_SUM_PRODUCTS, INTONLY_MAX), "op must be 0, 1 or 2");
    REQUIRE(is_type(x.type) && is_type(y.type) && is_type(r.type), "there is no such type");
    REQUIRE(extents_multiply(extents, 3, &work) && extents_multiply(inner, 2, &work) && count_work(c, work),
            "extents must be 1 or more, and not too much work");
    REQUIRE(x.type != INTONLY_S64 && y.type != INTONLY_S64, "x and y have at most 32 bits");
    REQUIRE(is_absent(e.x_zero), "the zero points of a window are in its bias");
    REQUIRE(image_sane(r, extents), "the strides of r are too large");
    OBEY(intonly_check_scalars(&e, y.type));
    REQUIRE(taps_reach(c, step->tap_offsets, step->taps, intonly_bytes_of(x.type), &taps),
            "tap_offsets must be int64 constants");
    REQUIRE(pixels_stand(c, x, extents, step->c, taps, READ), "x lies outside its space");
    REQUIRE(pixels_stand(c, y, extents, step->c, intonly_reach_of(0), WRITE), "y lies outside what may be written");
    REQUIRE(intonly_reach_along(&index, step->oh, step->constant_h) &&
                intonly_reach_along(&index, step->ow, step->constant_w) &&
                intonly_reach_along(&index, step->c, step->constant_c),
            "constant_h, constant_w or constant_c is too large");
    return step->op == INTONLY_SUM_PRODUCTS ? check_depthwise(c, step, &e, extents) : check_pool(c, step, &e, index);
}

const char *intonly_check_contract(checker *c, const intonly_contract *step) {
    const epilogue e = EPILOGUE_OF_STEP;
    int64_t work = 1;
    intonly_reach a = intonly_reach_of(0), b = intonly_reach_of(0);
    int64_t a_bits = 0, b_bits = 0;
    REQUIRE(step->op == INTONLY_SUM_PRODUCTS || step->op == INTONLY_MAX, "op must be 0 or 2");
    REQUIRE(is_type(step->a_type) && is_type(step->b_type) && is_type(step->y_type) && is_type(step->r_type),
            "there is no such type");
    REQUIRE(extents_multiply(step->extent, INTONLY_RANK, &work) &&
                extents_multiply(step->reduced, INTONLY_REDUCED, &work) && count_work(c, work),
            "extents must be 1 or more, and not too much work");
    REQUIRE(is_int32(step->a_zero) && is_int32(step->b_zero), "zero points must fit in int32");
    if (step->op == INTONLY_MAX)
        REQUIRE(is_absent(step->b_ref) && is_absent(step->bias), "a maximum has no second factor and no bias");
    OBEY(intonly_check_scalars(&e, step->y_type));
    REQUIRE(strides_sane(step->extent, step->b_strides, INTONLY_RANK) &&
                strides_sane(step->extent, step->bias_strides, INTONLY_RANK) &&
                strides_sane(step->extent, step->r_strides, INTONLY_RANK),
            "the strides of b, bias or r are too large");
    for (int axis = 0; axis < INTONLY_REDUCED; ++axis) {
        REQUIRE(intonly_reach_along(&a, step->reduced[axis], step->a_reduced[axis]) &&
                    intonly_reach_along(&b, step->reduced[axis], step->b_reduced[axis]),
                "a_reduced or b_reduced is too large");
        a_bits |= step->a_reduced[axis];
        b_bits |= step->b_reduced[axis];
    }
    REQUIRE(spreads(c, step->a_ref, step->a_type, a, step->extent, step->a_strides, READ) &&
                is_aligned(a_bits, intonly_bytes_of(step->a_type)),
            "a lies outside its space");
    if (!is_absent(step->b_ref))
        REQUIRE(spreads(c, step->b_ref, step->b_type, b, step->extent, step->b_strides, READ) &&
                    is_aligned(b_bits, intonly_bytes_of(step->b_type)),
                "b lies outside its space");
    if (!is_absent(step->bias))
        REQUIRE(spreads(c, step->bias, INTONLY_S32, intonly_reach_of(0), step->extent, step->bias_strides, READ),
                "bias lies outside its space");
    REQUIRE(spreads(c, step->y_ref, step->y_type, intonly_reach_of(0), step->extent, step->y_strides, WRITE),
            "y lies outside what may be written");
    return intonly_check_spread(c, &e, step->r_ref, step->r_type, step->extent, step->r_strides, step->constant_strides,
                                step->zero_strides);
}
