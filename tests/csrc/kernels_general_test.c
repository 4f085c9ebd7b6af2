/* SPDX-License-Identifier: Apache-2.0
 *
 * contract, map, copy and gather against plain loops.
 */
#include <string.h>

#include "kernels/contract/matrices.h"
#include "kernels_harness.h"

enum { MOST_OUTPUTS = 2400, MOST_MATRICES = 6400 };

static int64_t results[MOST_MATRICES];

static int64_t product(const int64_t *extent, int axes) {
    int64_t elements = 1;
    for (int i = 0; i < axes; ++i) elements *= extent[i];
    return elements;
}

static int64_t bits_of(int64_t type) { return 8 * type_bytes(type) - !(type & 1); }

/* Strides in elements of constants that vary along some axes; returns how many constants there are. */
static int64_t random_constants(const int64_t *extent, int64_t *strides) {
    int64_t count = 1;
    for (int axis = INTONLY_RANK - 1; axis >= 0; --axis) {
        strides[axis] = 0;
        if (one_in(2) || count * extent[axis] > MOST_CONSTANTS) continue;
        strides[axis] = count;
        count *= extent[axis];
    }
    return count;
}

/* The epilogue of a general step, with constants along random axes, and its residual. */
typedef struct finish {
    law l;
    int64_t constant[INTONLY_RANK], zero[INTONLY_RANK];
    tensor residual;
} finish;

static void random_finish(finish *f, const int64_t *extent, int64_t form, int64_t acc_bits) {
    const int64_t constants = random_constants(extent, f->constant), zeros = random_constants(extent, f->zero);
    const int64_t r_type = below(INTONLY_U16 + 1);
    random_law(&f->l, form, form != INTONLY_FORM_ACC && one_in(2), r_type, constants > zeros ? constants : zeros, acc_bits);
    f->l.has_x_zero = one_in(2);
    f->residual = new_tensor(r_type, extent, NULL, 1);
    fill_tensor(&f->residual, type_lowest(r_type), type_highest(r_type));
}

static int64_t finished(const finish *f, const int64_t *index, wide acc) {
    const int64_t residual = get(at(f->residual.ref) + dot(index, f->residual.strides, INTONLY_RANK), f->residual.type);
    return apply_law(&f->l, acc, residual, dot(index, f->constant, INTONLY_RANK), dot(index, f->zero, INTONLY_RANK));
}

#define SET_FINISH(step, f)                                                                                            \
    do {                                                                                                               \
        SET_EPILOGUE(step, &(f)->l);                                                                                   \
        memcpy((step).constant_strides, (f)->constant, sizeof(f)->constant);                                           \
        memcpy((step).zero_strides, (f)->zero, sizeof(f)->zero);                                                       \
        memcpy((step).r_strides, (f)->residual.strides, sizeof(f)->residual.strides);                                  \
        (step).r_ref = (f)->l.joins ? (f)->residual.ref : INTONLY_ABSENT, (step).r_type = (f)->residual.type;          \
    } while (0)

#define SET_OPERAND(step, name, t)                                                                                     \
    ((step).name##_ref = (t).ref, (step).name##_type = (t).type,                                                       \
     memcpy((step).name##_strides, (t).strides, sizeof(t).strides))

/* A tensor of a type that holds what has been computed in the order of the axes, and what it has to hold. */
static tensor output_of(const int64_t *extent, expectation *e) {
    const int64_t count = product(extent, INTONLY_RANK);
    int64_t index[INTONLY_RANK] = {0}, lo = results[0], hi = results[0], k = 0;
    for (int64_t i = 1; i < count; ++i) {
        if (results[i] < lo) lo = results[i];
        if (results[i] > hi) hi = results[i];
    }
    const tensor y = new_tensor(type_holding(lo, hi, TYPES), extent, NULL, 0);
    *e = expect(y.ref, y.type, y.bytes);
    do expect_element(e, dot(index, y.strides, INTONLY_RANK), results[k++]);
    while (next_index(index, extent, INTONLY_RANK));
    return y;
}

/* A tensor that does not vary along one axis. */
static tensor new_tensor_without(int axis, int64_t type, const int64_t *extent, const int64_t *reduced) {
    int64_t rest[INTONLY_RANK];
    memcpy(rest, extent, sizeof rest);
    rest[axis] = 1;
    tensor t = new_tensor(type, rest, reduced, one_in(4));
    t.strides[axis] = 0;
    return t;
}

/* The extents of a product of matrices: more than a kernel holds at a time of rows, of columns, or of summed places. */
static void matrix_extents(int64_t *extent, int64_t *reduced) {
    const int which = (int)below(3);
    random_extents(extent, INTONLY_RANK - 2, 3, 3);
    extent[OUTER] = 2 + below(which == 0 ? 139 : 13);
    extent[INNER] = 7 + below(which == 1 ? 139 : 9);
    random_extents(reduced, INTONLY_REDUCED - 1, 4, 4);
    reduced[INTONLY_REDUCED - 1] = 1 + below(which == 2 ? 600 : 40);
}

void test_contract(const intonly_kernels *table, outcome *o) {
    static finish f;
    intonly_contract step = {.kind = INTONLY_KIND_contract, .words = sizeof step / 8, .parts = 3};
    const int is_matrix = one_in(3), maximum = !is_matrix && one_in(4);
    const int64_t form = below(3), bytes_or_words = one_in(2) ? INTONLY_U16 + 1 : is_matrix ? INTONLY_U8 + 1 : TYPES;
    const int64_t types = form == INTONLY_FORM_NARROW ? INTONLY_U8 + 1 : bytes_or_words;
    const int64_t a_type = below(types), b_type = below(types);
    const int has_b = is_matrix || (!maximum && !one_in(3)), has_bias = !maximum && one_in(2);
    scene_begin();
    const int long_sum = one_in(16); /* more than a kernel widens at a time */
    random_extents(step.reduced, INTONLY_REDUCED, long_sum ? 300 : 60, long_sum ? 300 : 50);
    random_extents(step.extent, INTONLY_RANK, long_sum ? 30 : 300, one_in(4) && !long_sum ? 300 : 20);
    if (is_matrix) matrix_extents(step.extent, step.reduced);
    const int64_t count = product(step.reduced, INTONLY_REDUCED);
    int64_t acc_bits = bits_of(a_type) + (has_b ? bits_of(b_type) : 0);
    for (int64_t k = count; !maximum && k > 1; k /= 4) ++acc_bits;
    random_finish(&f, step.extent, form, acc_bits > 62 ? 62 : acc_bits);
    const tensor a = is_matrix ? new_tensor_without(INNER, a_type, step.extent, step.reduced)
                               : new_tensor(a_type, step.extent, step.reduced, 1);
    const tensor b = is_matrix ? new_tensor_without(OUTER, b_type, step.extent, step.reduced)
                               : new_tensor(b_type, step.extent, step.reduced, 1);
    const tensor bias = new_tensor(INTONLY_S32, step.extent, NULL, 1);
    fill_tensor(&a, type_lowest(a_type), type_highest(a_type));
    fill_tensor(&b, type_lowest(b_type), type_highest(b_type));
    fill_tensor(&bias, form == INTONLY_FORM_NARROW ? -100000 : INT32_MIN, form == INTONLY_FORM_NARROW ? 100000 : INT32_MAX);
    step.op = maximum ? INTONLY_MAX : INTONLY_SUM_PRODUCTS;
    step.a_zero = maximum || one_in(2) ? 0 : random_value(type_lowest(a_type), type_highest(a_type));
    step.b_zero = one_in(2) ? 0 : random_value(type_lowest(b_type), type_highest(b_type));
    if (is_matrix && one_in(8)) step.a_zero = random_value(INT32_MIN, INT32_MAX);
    if (is_matrix && one_in(8)) step.b_zero = random_value(INT32_MIN, INT32_MAX);
    SET_OPERAND(step, a, a);
    SET_OPERAND(step, b, b);
    memcpy(step.a_reduced, a.reduced, sizeof a.reduced);
    memcpy(step.b_reduced, b.reduced, sizeof b.reduced);
    memcpy(step.bias_strides, bias.strides, sizeof bias.strides);
    step.bias = has_bias ? bias.ref : INTONLY_ABSENT;
    if (!has_b) step.b_ref = INTONLY_ABSENT;
    SET_FINISH(step, &f);
    matrices += (unsigned long)is_product(&step);

    int64_t index[INTONLY_RANK] = {0}, place = 0;
    do {
        int64_t k[INTONLY_REDUCED] = {0};
        wide acc = maximum ? INT64_MIN : has_bias ? get(at(bias.ref) + dot(index, bias.strides, INTONLY_RANK), INTONLY_S32) : 0;
        do {
            const int64_t x = get(at(a.ref) + dot(index, a.strides, INTONLY_RANK) + dot(k, a.reduced, INTONLY_REDUCED), a_type);
            const int64_t w = get(at(b.ref) + dot(index, b.strides, INTONLY_RANK) + dot(k, b.reduced, INTONLY_REDUCED), b_type);
            if (maximum)
                acc = x > acc ? x : acc;
            else
                acc = modulo64(acc + ((wide)x - step.a_zero) * (has_b ? modulo64((wide)w - step.b_zero) : 1));
        } while (next_index(k, step.reduced, INTONLY_REDUCED));
        results[place++] = finished(&f, index, acc);
    } while (next_index(index, step.extent, INTONLY_RANK));
    expectation e;
    const tensor y = output_of(step.extent, &e);
    SET_OPERAND(step, y, y);
    check(table->run[INTONLY_KIND_contract], &step, &e);
    ++o->cases;
}

static wide floor_quotient(wide a, wide b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

static int64_t root(int64_t a) {
    int64_t lo = 0, hi = INT64_C(3037000500); /* lo^2 <= a < hi^2 */
    while (hi - lo > 1) {
        const int64_t middle = (lo + hi) / 2;
        if ((wide)middle * middle <= a)
            lo = middle;
        else
            hi = middle;
    }
    return lo;
}

static int64_t mapped(const intonly_map *s, int64_t a, int64_t b, int64_t c, const uint8_t *table_of_b) {
    switch (s->op) {
    case INTONLY_MAP_ADD: return modulo64((wide)a - s->a_zero + ((wide)b - s->b_zero) * s->sign);
    case INTONLY_MAP_MUL: return modulo64((wide)modulo64((wide)a - s->a_zero) * modulo64((wide)b - s->b_zero));
    case INTONLY_MAP_LOOKUP: {
        const wide index = (wide)a - s->offset; /* the last entry stands for those that do not exist */
        const int64_t entry = (int64_t)(index < 0 || index >= s->b_count ? s->b_count - 1 : index);
        return get(table_of_b + entry * type_bytes(s->b_type), s->b_type);
    }
    case INTONLY_MAP_FLOOR_DIV: return (int64_t)floor_quotient(a, b);
    case INTONLY_MAP_ISQRT: return root(a);
    case INTONLY_MAP_MINIMUM: return a < b ? a : b;
    case INTONLY_MAP_MAXIMUM: return a < b ? b : a;
    case INTONLY_MAP_LESS: return a < b;
    case INTONLY_MAP_LESS_EQUAL: return a <= b;
    case INTONLY_MAP_EQUAL: return a == b;
    case INTONLY_MAP_GREATER_EQUAL: return a >= b;
    case INTONLY_MAP_GREATER: return a > b;
    case INTONLY_MAP_SELECT: return a != 0 ? b : c;
    default: return a;
    }
}

void test_map(const intonly_kernels *table, outcome *o) {
    static finish f;
    intonly_map step = {.kind = INTONLY_KIND_map, .words = sizeof step / 8, .parts = 3};
    const int64_t form = below(3), op = below(INTONLY_MAP_OPS);
    const int64_t narrow_types = op == INTONLY_MAP_MUL ? INTONLY_U8 + 1 : INTONLY_U16 + 1;
    const int64_t types = form == INTONLY_FORM_NARROW ? narrow_types : one_in(2) ? INTONLY_U8 + 1 : TYPES;
    const int64_t a_type = below(types), b_type = below(types), c_type = below(types);
    const int zeros = op == INTONLY_MAP_ADD || op == INTONLY_MAP_MUL;
    scene_begin();
    random_extents(step.extent, INTONLY_RANK, MOST_OUTPUTS, one_in(4) ? 600 : 100);
    const int64_t acc_bits = op >= INTONLY_MAP_LESS && op <= INTONLY_MAP_GREATER ? 1
                             : op == INTONLY_MAP_MUL                             ? bits_of(a_type) + bits_of(b_type)
                                                                                 : bits_of(one_in(2) ? a_type : b_type);
    random_finish(&f, step.extent, form, acc_bits > 62 ? 62 : acc_bits);
    step.op = op, step.sign = one_in(2) ? 1 : -1;
    if (zeros) step.a_zero = random_value(type_lowest(a_type), type_highest(a_type));
    if (zeros) step.b_zero = random_value(type_lowest(b_type), type_highest(b_type));

    const tensor a = new_tensor(a_type, step.extent, NULL, 1), b = new_tensor(b_type, step.extent, NULL, 1);
    const tensor c = new_tensor(c_type, step.extent, NULL, 1);
    fill_tensor(&a, op == INTONLY_MAP_ISQRT ? 0 : type_lowest(a_type), type_highest(a_type));
    fill_tensor(&b, op == INTONLY_MAP_FLOOR_DIV ? 1 : type_lowest(b_type), type_highest(b_type));
    fill_tensor(&c, type_lowest(c_type), type_highest(c_type));
    if (op == INTONLY_MAP_SELECT && one_in(2)) fill_tensor(&a, 0, 1);
    if (op == INTONLY_MAP_EQUAL) fill_tensor(&a, 0, 2), fill_tensor(&b, 0, 2);
    SET_OPERAND(step, a, a);
    SET_OPERAND(step, b, b);
    SET_OPERAND(step, c, c);
    if (op == INTONLY_MAP_IDENTITY || op == INTONLY_MAP_ISQRT) step.b_ref = INTONLY_ABSENT;
    if (op != INTONLY_MAP_SELECT) step.c_ref = INTONLY_ABSENT;
    if (op == INTONLY_MAP_LOOKUP) { /* for 8-bit codes the whole range or a part of it */
        int64_t entries[256];
        uint8_t bytes[256 * 8];
        const int whole = a_type <= INTONLY_U8 && !one_in(3);
        step.b_count = whole ? 256 : 1 + below(256);
        step.offset = whole ? type_lowest(a_type) : random_value(-20, 20);
        for (int64_t i = 0; i < step.b_count; ++i) {
            entries[i] = random_value(type_lowest(b_type), type_highest(b_type));
            put(bytes + i * type_bytes(b_type), b_type, entries[i]);
        }
        step.b_ref = place_constant(bytes, step.b_count * type_bytes(b_type));
        memset(step.b_strides, 0, sizeof step.b_strides);
        if (!one_in(4)) { /* indices inside, as the certificate proves them */
            const int64_t lo = step.offset < type_lowest(a_type) ? type_lowest(a_type) : step.offset;
            const int64_t end = step.offset + step.b_count - 1, hi = end > type_highest(a_type) ? type_highest(a_type) : end;
            fill_tensor(&a, lo > hi ? hi : lo, hi < type_lowest(a_type) ? type_lowest(a_type) : hi);
        } else if (step.offset + step.b_count <= type_highest(a_type)) { /* or a step outside, among others */
            put(at(a.ref), a_type, step.offset + step.b_count);
        }
    }
    SET_FINISH(step, &f);

    int64_t index[INTONLY_RANK] = {0}, place = 0;
    do {
        const int64_t left = get(at(a.ref) + dot(index, a.strides, INTONLY_RANK), a_type);
        const int64_t right = get(at(b.ref) + dot(index, b.strides, INTONLY_RANK), b_type);
        const int64_t other = get(at(c.ref) + dot(index, c.strides, INTONLY_RANK), c_type);
        const uint8_t *entries = op == INTONLY_MAP_LOOKUP ? at(step.b_ref) : NULL;
        results[place++] = finished(&f, index, mapped(&step, left, right, other, entries));
    } while (next_index(index, step.extent, INTONLY_RANK));
    expectation e;
    const tensor y = output_of(step.extent, &e);
    SET_OPERAND(step, y, y);
    check(table->run[INTONLY_KIND_map], &step, &e);
    ++o->cases;
}

void test_copy(const intonly_kernels *table, outcome *o) {
    intonly_copy step = {.kind = INTONLY_KIND_copy, .words = sizeof step / 8, .parts = 3};
    const int64_t a_type = below(TYPES), y_type = one_in(2) ? a_type : below(TYPES);
    scene_begin();
    random_extents(step.extent, INTONLY_RANK, MOST_OUTPUTS, one_in(4) ? 600 : 100);
    const tensor a = new_tensor(a_type, step.extent, NULL, one_in(3)), y = new_tensor(y_type, step.extent, NULL, 0);
    const int64_t lo = type_lowest(a_type) > type_lowest(y_type) ? type_lowest(a_type) : type_lowest(y_type);
    const int64_t hi = type_highest(a_type) < type_highest(y_type) ? type_highest(a_type) : type_highest(y_type);
    fill_tensor(&a, lo, hi);
    SET_OPERAND(step, a, a);
    SET_OPERAND(step, y, y);
    expectation e = expect(y.ref, y.type, y.bytes);
    int64_t index[INTONLY_RANK] = {0};
    do {
        const int64_t value = get(at(a.ref) + dot(index, a.strides, INTONLY_RANK), a_type);
        expect_element(&e, dot(index, y.strides, INTONLY_RANK), value);
    } while (next_index(index, step.extent, INTONLY_RANK));
    check(table->run[INTONLY_KIND_copy], &step, &e);
    ++o->cases;
}

void test_gather(const intonly_kernels *table, outcome *o) {
    intonly_gather step = {.kind = INTONLY_KIND_gather, .words = sizeof step / 8, .parts = 3};
    const int64_t outer = 1 + below(4), rows = 1 + below(9), count = 1 + below(12), row_bytes = 1 + below(100);
    const int64_t type = below(TYPES);
    scene_begin();
    const int64_t a = place(outer * rows * row_bytes, 0, 1), y = place(outer * count * row_bytes, 0, 1);
    const int64_t indices = place(count * type_bytes(type), 0, type_bytes(type));
    for (int64_t i = 0; i < outer * rows * row_bytes; ++i) at(a)[i] = (uint8_t)random64();
    for (int64_t k = 0; k < count; ++k) {
        const int64_t outside = one_in(2) ? rows : random_value(type_lowest(type), type_highest(type));
        put(at(indices) + k * type_bytes(type), type, one_in(16) ? outside : below(rows));
    }
    step.a_ref = a, step.y_ref = y, step.index_ref = indices, step.index_type = type;
    step.outer = outer, step.rows = rows, step.count = count, step.row_bytes = row_bytes;
    expectation e = expect(y, INTONLY_U8, outer * count * row_bytes);
    for (int64_t i = 0; i < outer; ++i) {
        for (int64_t k = 0; k < count; ++k) {
            const int64_t index = get(at(indices) + k * type_bytes(type), type);
            const int64_t row = index < 0 || index >= rows ? rows - 1 : index; /* the last stands for those outside */
            for (int64_t b = 0; b < row_bytes; ++b)
                expect_element(&e, (i * count + k) * row_bytes + b, at(a)[(i * rows + row) * row_bytes + b]);
        }
    }
    check(table->run[INTONLY_KIND_gather], &step, &e);
    ++o->cases;
}
