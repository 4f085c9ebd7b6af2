/* SPDX-License-Identifier: Apache-2.0
 *
 * The rules of steps that work on whole rows: attention, norm.
 */
#include "exec/checker.h"
#include "kernels/attention/scratch.h"

/* Round up to what vector kernels take at a time. */
static int64_t padded(int64_t count) { return (count + 15) & ~INT64_C(15); }

/* The clamp at the end: limits that the type of y holds. */
static const char *check_limits(int64_t y_type, int64_t zero_point, int64_t lo, int64_t hi) {
    const epilogue e = {.form = INTONLY_FORM_WIDE, .zero_point = zero_point, .lo = lo, .hi = hi};
    return intonly_check_scalars(&e, y_type);
}

const char *intonly_check_attention(checker *c, const intonly_attention *s) {
    const int64_t inner[] = {s->keys, s->depth, s->width};
    int64_t work = 1;
    intonly_reach k = intonly_reach_of(s->depth), v = intonly_reach_of(s->width), mask = intonly_reach_of(1);
    REQUIRE(is_type(s->q_type) && is_type(s->k_type) && is_type(s->v_type) && is_type(s->y_type),
            "there is no such type");
    REQUIRE(is_8_bit(s->q_type) && is_8_bit(s->k_type) && is_8_bit(s->v_type), "q, k and v have 8 bits");
    REQUIRE(s->y_type != INTONLY_S64, "y has at most 32 bits");
    REQUIRE(extents_multiply(s->extent, INTONLY_RANK, &work) && extents_multiply(inner, 3, &work) && count_work(c, work),
            "extents must be 1 or more, and not too much work");
    REQUIRE(s->keys <= INTONLY_MOST_KEYS && s->depth <= INTONLY_MOST_DEPTH && s->width <= INTONLY_MOST_DEPTH &&
                padded(s->keys) * padded(s->depth) <= INTONLY_MOST_KEY_BYTES &&
                padded(s->keys) * padded(s->width) <= INTONLY_MOST_KEY_BYTES,
            "keys, depth or width is too large");
    REQUIRE(in_range(s->q_zero, -256, 256) && in_range(s->v_zero, -256, 256), "zero points must be those of 8 bits");
    REQUIRE(in_range(s->shift, -13, 29) && in_range(s->weight_multiplier, 0, INT16_MAX),
            "shift must be -13..29, weight_multiplier 0..32767");
    REQUIRE(s->shift >= 0 || s->weight_multiplier >= 1 << 14, "a shift to the left goes with a multiplier of 2^14 or more");
    REQUIRE(is_int32(s->multiplier) && in_range(s->y_shift, 1, 62), "multiplier must fit in int32, y_shift be 1..62");
    OBEY(check_limits(s->y_type, s->zero_point, s->lo, s->hi));
    REQUIRE(strides_sane(s->extent, s->bias_strides, INTONLY_RANK) && strides_sane(s->extent, s->mask_strides, INTONLY_RANK),
            "the strides of the bias or the mask are too large");
    REQUIRE(s->k_strides[INTONLY_RANK - 1] == 0 && s->v_strides[INTONLY_RANK - 1] == 0, "queries share their keys");
    REQUIRE(intonly_reach_along(&k, s->keys, s->k_key) && intonly_reach_along(&v, s->keys, s->v_key) &&
                intonly_reach_along(&mask, s->keys, s->mask_key),
            "k_key, v_key or mask_key is too large");
    REQUIRE(runs_stand(c, s->q_ref, intonly_reach_of(s->depth), INTONLY_RANK, s->extent, s->q_strides, READ),
            "q lies outside its space");
    REQUIRE(runs_stand(c, s->k_ref, k, INTONLY_RANK, s->extent, s->k_strides, READ), "k lies outside its space");
    REQUIRE(runs_stand(c, s->v_ref, v, INTONLY_RANK, s->extent, s->v_strides, READ), "v lies outside its space");
    if (!is_absent(s->bias_ref))
        REQUIRE(spreads(c, s->bias_ref, INTONLY_S32, intonly_reach_of((s->keys - 1) * (int64_t)sizeof(int32_t)), s->extent,
                        s->bias_strides, READ),
                "the bias lies outside its space");
    if (!is_absent(s->mask_ref))
        REQUIRE(runs_stand(c, s->mask_ref, mask, INTONLY_RANK, s->extent, s->mask_strides, READ),
                "the mask lies outside its space");
    REQUIRE(spreads(c, s->y_ref, s->y_type, intonly_reach_of((s->width - 1) * intonly_bytes_of(s->y_type)), s->extent,
                    s->y_strides, WRITE),
            "y lies outside what may be written");
    REQUIRE(s->scratch >> INTONLY_SPACE_SHIFT == INTONLY_ARENA && s->scratch_bytes < INTONLY_MOST_REACH && is_aligned(s->scratch | s->scratch_bytes, 64) &&
                s->scratch_bytes >= intonly_attention_scratch(s->keys, s->depth, s->width),
            "scratch must stand in the arena, aligned to 64 bytes, and be large enough");
    REQUIRE(runs_stand(c, s->scratch, intonly_reach_of(s->scratch_bytes), 1, &s->parts, &s->scratch_bytes, WRITE),
            "scratch lies outside what may be written");
    return NULL;
}

const char *intonly_check_norm(checker *c, const intonly_norm *s) {
    int64_t work = 1;
    REQUIRE(is_type(s->x_type) && is_type(s->y_type), "there is no such type");
    REQUIRE(s->x_type <= INTONLY_U16, "x has at most 16 bits");
    REQUIRE(s->y_type != INTONLY_S64, "y has at most 32 bits");
    REQUIRE(extents_multiply(s->extent, INTONLY_RANK, &work) && extents_multiply(&s->count, 1, &work) &&
                count_work(c, work),
            "extents must be 1 or more, and not too much work");
    REQUIRE(in_range(s->count, 1, INT32_MAX >> 16), "a row has at most 32767 elements");
    REQUIRE(in_range(s->middle, -65536, 65536), "middle must be a code of 16 bits");
    REQUIRE(in_range(s->centered, 0, 1), "centered must be 0 or 1");
    REQUIRE(in_range(s->root_bits, 0, 31) && in_range(s->reciprocal_bits, 0, 62) && in_range(s->result_bits, 0, 30) &&
                s->root_bits + s->result_bits <= s->reciprocal_bits,
            "root_bits and result_bits must be at most reciprocal_bits, and that 62");
    REQUIRE(in_range(s->least_root, 1, INT64_C(1) << 62) && s->eps_code >= 1, "least_root must be 1..2^62, eps_code 1 or more");
    OBEY(check_limits(s->y_type, s->zero_point, s->lo, s->hi));
    const epilogue e = {.form = INTONLY_FORM_WIDE,
                        .multiplier = s->multiplier,
                        .shift = s->shift,
                        .residual_multiplier = INTONLY_ABSENT,
                        .residual_shift = INTONLY_ABSENT,
                        .x_zero = INTONLY_ABSENT};
    OBEY(intonly_check_constants(c, &e, 0, intonly_reach_of(s->count), intonly_reach_of(0)));
    REQUIRE(constants(c, s->offset, intonly_reach_of(s->count * (int64_t)sizeof(int64_t)), sizeof(int64_t)) != NULL,
            "offset must be int64 constants for a row");
    REQUIRE(spreads(c, s->x_ref, s->x_type, intonly_reach_of((s->count - 1) * intonly_bytes_of(s->x_type)), s->extent,
                    s->x_strides, READ),
            "x lies outside its space");
    REQUIRE(spreads(c, s->y_ref, s->y_type, intonly_reach_of((s->count - 1) * intonly_bytes_of(s->y_type)), s->extent,
                    s->y_strides, WRITE),
            "y lies outside what may be written");
    return NULL;
}
