/* SPDX-License-Identifier: Apache-2.0
 *
 * The rules of steps that work on one element at a time, or move them: map, copy, gather, halo.
 */
#include "exec/checker.h"

/* Return how many operands an operation has. */
static int operands_of(int64_t op) {
    switch (op) {
    case INTONLY_MAP_IDENTITY:
    case INTONLY_MAP_ISQRT: return 1;
    case INTONLY_MAP_SELECT: return 3;
    default: return 2;
    }
}

/* The table of a lookup; its index has at most 32 bits, and so has the difference to the offset, but for one. */
static const char *check_table(const checker *c, const intonly_map *step) {
    const int64_t size = intonly_bytes_of(step->b_type);
    REQUIRE(step->a_type != INTONLY_S64 && is_int32(step->offset), "index and offset of a lookup have at most 32 bits");
    REQUIRE(in_range(step->b_count, 1, INTONLY_MOST_EXTENT), "b_count must be 1 or more");
    REQUIRE(constants(c, step->b_ref, intonly_reach_of(step->b_count * size), size) != NULL,
            "b must be a table of constants");
    return NULL;
}

const char *intonly_check_map(checker *c, const intonly_map *step) {
    const epilogue e = EPILOGUE_OF_STEP;
    const intonly_reach none = intonly_reach_of(0);
    int64_t work = 1;
    REQUIRE(in_range(step->op, 0, INTONLY_MAP_OPS - 1), "there is no such op");
    REQUIRE(is_type(step->a_type) && is_type(step->b_type) && is_type(step->c_type) && is_type(step->y_type) &&
                is_type(step->r_type),
            "there is no such type");
    REQUIRE(extents_multiply(step->extent, INTONLY_RANK, &work) && count_work(c, work),
            "extents must be 1 or more, and not too much work");
    REQUIRE(is_int32(step->a_zero) && is_int32(step->b_zero), "zero points must fit in int32");
    if (step->op == INTONLY_MAP_ADD) REQUIRE(step->sign == 1 || step->sign == -1, "sign must be 1 or -1");
    OBEY(intonly_check_scalars(&e, step->y_type));
    REQUIRE(strides_sane(step->extent, step->b_strides, INTONLY_RANK) &&
                strides_sane(step->extent, step->c_strides, INTONLY_RANK) &&
                strides_sane(step->extent, step->r_strides, INTONLY_RANK),
            "the strides of b, c or r are too large");
    REQUIRE(spreads(c, step->a_ref, step->a_type, none, step->extent, step->a_strides, READ),
            "a lies outside its space");
    if (step->op == INTONLY_MAP_LOOKUP) {
        OBEY(check_table(c, step));
    } else if (operands_of(step->op) >= 2) {
        REQUIRE(spreads(c, step->b_ref, step->b_type, none, step->extent, step->b_strides, READ),
                "b lies outside its space");
    } else {
        REQUIRE(is_absent(step->b_ref), "the op has no second operand");
    }
    if (operands_of(step->op) == 3)
        REQUIRE(spreads(c, step->c_ref, step->c_type, none, step->extent, step->c_strides, READ),
                "c lies outside its space");
    else
        REQUIRE(is_absent(step->c_ref), "the op has no third operand");
    REQUIRE(spreads(c, step->y_ref, step->y_type, none, step->extent, step->y_strides, WRITE),
            "y lies outside what may be written");
    return intonly_check_spread(c, &e, step->r_ref, step->r_type, step->extent, step->r_strides, step->constant_strides,
                                step->zero_strides);
}

const char *intonly_check_copy(checker *c, const intonly_copy *step) {
    const intonly_reach none = intonly_reach_of(0);
    int64_t work = 1;
    REQUIRE(is_type(step->a_type) && is_type(step->y_type), "there is no such type");
    REQUIRE(extents_multiply(step->extent, INTONLY_RANK, &work) && count_work(c, work),
            "extents must be 1 or more, and not too much work");
    REQUIRE(spreads(c, step->a_ref, step->a_type, none, step->extent, step->a_strides, READ),
            "a lies outside its space");
    REQUIRE(spreads(c, step->y_ref, step->y_type, none, step->extent, step->y_strides, WRITE),
            "y lies outside what may be written");
    return NULL;
}

/* An index that is constant must be right; one that is data is proven by the certificate. */
static const char *check_indices(checker *c, const intonly_gather *step) {
    const int64_t size = intonly_bytes_of(step->index_type);
    REQUIRE(is_aligned(step->index_ref, size) && stands(c, step->index_ref, intonly_reach_of(step->count * size), READ),
            "index lies outside its space");
    if (step->index_ref >> INTONLY_SPACE_SHIFT != INTONLY_CONSTANTS) return NULL;
    const uint8_t *indices = c->spaces->constants + step->index_ref;
    for (int64_t i = 0; i < step->count; ++i) {
        int64_t index = 0;
        intonly_load(indices + i * size, step->index_type, size, 1, &index);
        REQUIRE(in_range(index, 0, step->rows - 1), "an index is not one of the rows");
    }
    return NULL;
}

const char *intonly_check_gather(checker *c, const intonly_gather *step) {
    const int64_t from[] = {step->row_bytes, step->rows, step->outer},
                  to[] = {step->row_bytes, step->count, step->outer};
    int64_t source = 1, target = 1;
    REQUIRE(is_type(step->index_type), "there is no such type");
    REQUIRE(extents_multiply(from, 3, &source) && extents_multiply(to, 3, &target) && count_work(c, target),
            "extents must be 1 or more, and not too much work");
    REQUIRE(stands(c, step->a_ref, intonly_reach_of(source), READ), "a lies outside its space");
    REQUIRE(stands(c, step->y_ref, intonly_reach_of(target), WRITE), "y lies outside what may be written");
    return check_indices(c, step);
}

/* Note what a halo touches: all of the rows above and below the image, and both ends of its own rows. */
static int margin_stands(checker *c, const intonly_halo *step, intonly_reach reach) {
    const int64_t left = -step->left * step->x_w, right = step->w * step->x_w, end = right + step->right * step->x_w;
    const struct {
        int64_t first, rows, from, to;
    } bands[] = {{-step->top, step->top, left, end},
                 {step->h, step->bottom, left, end},
                 {0, step->h, left, 0},
                 {0, step->h, right, end}};
    const int64_t strides[] = {step->x_n, step->x_h};
    if (!inside(c, step->x_ref, reach, WRITE)) return 0;
    for (int i = 0; i < 4; ++i) {
        const int64_t extents[] = {step->n, bands[i].rows};
        const int64_t row = bands[i].first * step->x_h;
        const intonly_reach run = {row + bands[i].from, row + bands[i].to};
        if (bands[i].rows > 0 && run.least < run.end)
            (void)runs_stand(c, step->x_ref, run, 2, extents, strides, WRITE);
    }
    return 1;
}

const char *intonly_check_halo(checker *c, const intonly_halo *step) {
    const int64_t sides[] = {step->top, step->left, step->bottom, step->right};
    for (int i = 0; i < 4; ++i) REQUIRE(in_range(sides[i], 0, INTONLY_MOST_EXTENT), "margins must be 0 or more");
    REQUIRE(in_range(step->h, 1, INTONLY_MOST_EXTENT) && in_range(step->w, 1, INTONLY_MOST_EXTENT),
            "extents must be 1 or more");
    const int64_t height = step->top + step->h + step->bottom, width = step->left + step->w + step->right;
    const int64_t extents[] = {step->n, height, width, step->pixel_bytes};
    int64_t work = 1;
    intonly_reach reach = intonly_reach_of(step->pixel_bytes);
    REQUIRE(extents_multiply(extents, 4, &work) && count_work(c, work),
            "extents must be 1 or more, and not too much work");
    REQUIRE(is_8_bit(step->x_type) && step->x_w == step->pixel_bytes, "x must be dense pixels of 8-bit elements");
    REQUIRE(constants(c, step->pattern, intonly_reach_of(step->pixel_bytes), 1) != NULL, "pattern must be constants");
    REQUIRE(intonly_reach_along(&reach, step->n, step->x_n) &&
                intonly_reach_between(&reach, -step->top, step->h - 1 + step->bottom, step->x_h) &&
                intonly_reach_between(&reach, -step->left, step->w - 1 + step->right, step->x_w) &&
                margin_stands(c, step, reach),
            "x and its margin lie outside what may be written");
    return NULL;
}
