/* SPDX-License-Identifier: Apache-2.0
 *
 * contract as products of matrices (matrices.h says of which steps), for vectors.
 *
 * Codes minus their zero points are copied to the stack as 16-bit pairs along the summed axis: a panel of COLUMNS
 * outputs, and TILE_ROWS rows at a time. So an instruction set has to bring one function, PRODUCT_TILE, which
 * multiplies pairs and sums in 32 bits. What it sums at once is so short that no sum overflows, whatever the codes are;
 * in between, sums are kept in 64 bits, modulo 2^64 as the step says.
 *
 * Where 16 bits do not hold the codes minus their zero point, a rest p of it is left for the sums, and q for the other
 * operand: the sum of (a - p) * (b - q) is that of a * b, minus p * (sum(b) - count * q), minus q * sum(a).
 *
 * Define PRODUCT_TILE and TILE_ROWS before including this; without them it holds nothing.
 */
#if !defined(INTONLY_CONTRACT_PRODUCTS_H) && defined(PRODUCT_TILE)
#define INTONLY_CONTRACT_PRODUCTS_H

#include <stdint.h>
#include <string.h>

#include "kernels/contract/any.h"
#include "kernels/contract/matrices.h"

enum { ROWS = 64 };

/* sums[r][c] = sum over pairs p of left[r][2p] * panel[p][c][0] + left[r][2p + 1] * panel[p][c][1] */
static void PRODUCT_TILE(int16_t left[TILE_ROWS][DEPTH], int16_t panel[DEPTH / 2][COLUMNS][2], int64_t pairs,
                         int32_t sums[TILE_ROWS][COLUMNS]);

/* Read a run of codes minus their zero point. */
static inline void load_words(const uint8_t *x, int64_t type, int64_t stride, int64_t zero, int64_t count,
                              int16_t *words) {
    const int32_t from = (int32_t)zero;
    switch (type) {
#define LOAD_WORDS(name, element)                                                                                      \
    case name:                                                                                                         \
        if (stride == (int64_t)sizeof(element)) {                                                                      \
            LOAD_RUN(element, (int64_t)sizeof(element))                                                                \
        } else {                                                                                                       \
            LOAD_RUN(element, stride)                                                                                  \
        }                                                                                                              \
        break;
#define LOAD_RUN(element, by)                                                                                          \
    for (int64_t i = 0; i < count; ++i) {                                                                              \
        element code;                                                                                                  \
        memcpy(&code, x + i * (by), sizeof code);                                                                      \
        words[i] = (int16_t)(code - from);                                                                             \
    }
        LOAD_WORDS(INTONLY_S8, int8_t)
        LOAD_WORDS(INTONLY_U8, uint8_t)
        LOAD_WORDS(INTONLY_S16, int16_t)
        LOAD_WORDS(INTONLY_U16, uint16_t)
#undef LOAD_RUN
#undef LOAD_WORDS
    default: break;
    }
}

typedef struct scratch {
    int16_t panel[DEPTH / 2][COLUMNS][2];
    int16_t left[TILE_ROWS][DEPTH];
    int32_t tile[TILE_ROWS][COLUMNS];
    int64_t sums[ROWS][COLUMNS];
    fitted a, b;
    int has_rests;
    int64_t of_column[COLUMNS]; /* a.rest * (the sum of what the panel has of a column - depth * b.rest) */
} scratch;

/* Copy `depth` codes of each of `columns` columns; what is missing is 0. */
static inline void fill_panel(const intonly_contract *s, const uint8_t *b, int64_t depth, int64_t columns, scratch *t) {
    const int64_t along = s->b_reduced[LAST_SUMMED], across = s->b_strides[INNER];
    const int64_t pairs = (depth + 1) >> 1;
    if (columns < COLUMNS) memset(t->panel, 0, (size_t)pairs * sizeof *t->panel);
    if (along == intonly_bytes_of(s->b_type)) {
        int16_t words[DEPTH] = {0};
        for (int64_t c = 0; c < columns; ++c) {
            load_words(b + c * across, s->b_type, along, t->b.base, depth, words);
            for (int64_t p = 0; p < pairs; ++p) memcpy(t->panel[p][c], words + 2 * p, 2 * sizeof *words);
        }
        return;
    }
    for (int64_t p = 0; p < pairs; ++p) {
        int16_t even[COLUMNS], odd[COLUMNS] = {0};
        load_words(b + 2 * p * along, s->b_type, across, t->b.base, columns, even);
        if (2 * p + 1 < depth) load_words(b + (2 * p + 1) * along, s->b_type, across, t->b.base, columns, odd);
        for (int64_t c = 0; c < columns; ++c) {
            t->panel[p][c][0] = even[c];
            t->panel[p][c][1] = odd[c];
        }
    }
}

/* Fill in of_column. */
static inline void sum_columns(int64_t depth, scratch *t) {
    int32_t sums[COLUMNS] = {0};
    for (int64_t p = 0; p < (depth + 1) >> 1; ++p)
        for (int64_t c = 0; c < COLUMNS; ++c) sums[c] += t->panel[p][c][0] + t->panel[p][c][1];
    for (int64_t c = 0; c < COLUMNS; ++c)
        t->of_column[c] = multiply(t->a.rest, subtract(sums[c], multiply(depth, t->b.rest)));
}

/* Subtract from the sums of a row what the rests of the zero points make of them. left: its codes. */
static inline void subtract_rests(const scratch *t, const int16_t *left, int64_t depth, int64_t *sums) {
    int64_t of_row = 0;
    for (int64_t k = 0; k < depth; ++k) of_row += left[k];
    of_row = multiply(of_row, t->b.rest);
    for (int64_t c = 0; c < COLUMNS; ++c) sums[c] = subtract(sums[c], add(of_row, t->of_column[c]));
}

/* Multiply the panel by rows, and add to their sums. */
static inline void multiply_rows(const intonly_contract *s, const uint8_t *a, int64_t depth, int64_t rows,
                                 scratch *t) {
    const int64_t pairs = (depth + 1) >> 1;
    for (int64_t row = 0; row < rows; row += TILE_ROWS) {
        const int64_t count = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
        for (int64_t r = 0; r < count; ++r) {
            const uint8_t *codes = a + (row + r) * s->a_strides[OUTER];
            load_words(codes, s->a_type, s->a_reduced[LAST_SUMMED], t->a.base, depth, t->left[r]);
            if (depth & 1) t->left[r][depth] = 0;
        }
        PRODUCT_TILE(t->left, t->panel, pairs, t->tile);
        for (int64_t r = 0; r < count; ++r) {
            for (int64_t c = 0; c < COLUMNS; ++c) t->sums[row + r][c] += t->tile[r][c];
            if (t->has_rests) subtract_rests(t, t->left[r], depth, t->sums[row + r]);
        }
    }
}

/* The places of the operands at a row and a column. */
static inline void move_places(const int64_t *const *strides, const int64_t *from, int64_t row, int64_t column,
                               int64_t *places) {
    for (int k = 0; k < OPERANDS; ++k) places[k] = from[k] + row * strides[k][OUTER] + column * strides[k][INNER];
}

/* Up to ROWS by COLUMNS outputs. has_panel: the panel holds all of these columns already. */
static inline void product_block(const contract *g, const int64_t *const *strides, const int64_t *from, int64_t rows,
                                 int64_t columns, int has_panel, scratch *t) {
    const intonly_contract *s = g->step;
    const int64_t most = depth_of(s), length = s->reduced[LAST_SUMMED];
    int64_t places[OPERANDS];
    for (int64_t r = 0; r < rows; ++r) {
        move_places(strides, from, r, 0, places);
        begin_run(g, places, columns, t->sums[r]);
    }
    for (int64_t k = 0; k < s->reduced[0]; ++k) {
        for (int64_t l = 0; l < s->reduced[1]; ++l) {
            for (int64_t m = 0; m < s->reduced[2]; ++m) {
                const uint8_t *a = g->a + from[A] + k * s->a_reduced[0] + l * s->a_reduced[1] + m * s->a_reduced[2];
                const uint8_t *b = g->b + from[B] + k * s->b_reduced[0] + l * s->b_reduced[1] + m * s->b_reduced[2];
                for (int64_t d = 0; d < length; d += most) {
                    const int64_t depth = length - d < most ? length - d : most;
                    if (!has_panel) {
                        fill_panel(s, b + d * s->b_reduced[LAST_SUMMED], depth, columns, t);
                        if (t->has_rests) sum_columns(depth, t);
                    }
                    multiply_rows(s, a + d * s->a_reduced[LAST_SUMMED], depth, rows, t);
                }
            }
        }
    }
    for (int64_t r = 0; r < rows; ++r) {
        move_places(strides, from, r, 0, places);
        finish_run(g, places, columns, t->sums[r]);
    }
}

static inline void contract_products(const intonly_contract *s, uint8_t *const *bases, unsigned part, unsigned parts) {
    const int64_t *const strides[OPERANDS] = CONTRACT_STRIDES(s);
    const int one_panel = s->reduced[0] * s->reduced[1] * s->reduced[2] == 1 && s->reduced[LAST_SUMMED] <= depth_of(s);
    _Alignas(64) scratch t;
    memset(t.left, 0, sizeof t.left);
    t.a = fitted_of(s->a_type, s->a_zero);
    t.b = fitted_of(s->b_type, s->b_zero);
    t.has_rests = t.a.rest != 0 || t.b.rest != 0;
    contract g;
    contract_begin(&g, s, bases);

    /* The walk goes over all axes but the last two; its own last axis is that of the rows. */
    int64_t extent[INTONLY_RANK] = {1}, outer[OPERANDS][INTONLY_RANK] = {{0}};
    memcpy(extent + 1, s->extent, sizeof extent - sizeof *extent);
    g.walk.extent = extent;
    g.walk.operands = 0;
    for (int k = 0; k < OPERANDS; ++k) {
        memcpy(outer[k] + 1, strides[k], sizeof extent - sizeof *extent);
        intonly_walk_operand(&g.walk, outer[k]);
    }
    for (intonly_walk_start(&g.walk, part, parts); g.walk.rows > 0; intonly_walk_next(&g.walk)) {
        for (int64_t column = 0; column < s->extent[INNER]; column += COLUMNS) {
            const int64_t columns = s->extent[INNER] - column < COLUMNS ? s->extent[INNER] - column : COLUMNS;
            for (int64_t row = g.walk.first; row < g.walk.end; row += ROWS) {
                const int64_t rows = g.walk.end - row < ROWS ? g.walk.end - row : ROWS;
                int64_t from[OPERANDS];
                move_places(strides, g.walk.offset, row, column, from);
                product_block(&g, strides, from, rows, columns, one_panel && row > g.walk.first, &t);
            }
        }
    }
}

#endif
