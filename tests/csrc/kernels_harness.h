/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of kernels share: random numbers, the memory of one step, the law by an oracle of its own, and the
 * comparison of what a kernel wrote with what it had to write.
 */
#ifndef KERNELS_HARNESS_H
#define KERNELS_HARNESS_H

#include <stddef.h>
#include <stdint.h>

#include "intonly.h"
#include "kernels/kernels.h"

#define TYPES 7
#define MOST_CONSTANTS 512

__extension__ typedef __int128 wide;

void require(int holds, const char *what, const char *file, int line);
#define REQUIRE(condition) require(condition, #condition, __FILE__, __LINE__)

void random_begin(uint64_t seed);
uint64_t random64(void);
int64_t below(int64_t limit);
int64_t between(int64_t lo, int64_t hi);
int one_in(int64_t n);

/* Element types, by their own arithmetic: bytes in little-endian order. */
int64_t type_bytes(int64_t type);
int64_t type_lowest(int64_t type);
int64_t type_highest(int64_t type);
int64_t get(const uint8_t *from, int64_t type);
void put(uint8_t *to, int64_t type, int64_t value);
int64_t random_value(int64_t lo, int64_t hi); /* the limits and their neighbours more often than others */
int64_t type_holding(int64_t lo, int64_t hi, int64_t types); /* one of the first `types` types, at random */

/* The memory of one step. Constants and arena are filled from their ends, so that the first tensor in each is followed
 * by the slack and then by memory that a sanitizer guards; every buffer of the caller is an allocation to the byte. */
extern uint8_t *bases[];
void scene_begin(void);
uint8_t *at(int64_t ref);
int64_t place_scratch(int64_t bytes); /* of the arena, aligned to 64 bytes */
int64_t place_constant(const void *data, int64_t bytes);
/* tail: bytes that a kernel may read behind the tensor, which only the arena's slack gives for nothing. */
int64_t place(int64_t bytes, int64_t tail, int64_t align);

/* An image with gaps between pixels, rows and images. */
typedef struct image {
    int64_t ref, type, n, h, w, c, stride_n, stride_h, stride_w, bytes;
} image;
image new_image(int64_t type, int64_t n, int64_t h, int64_t w, int64_t c, int64_t tail);
int64_t offset_in(const image *m, int64_t n, int64_t h, int64_t w, int64_t c);
void fill_image(const image *m, int64_t lo, int64_t hi);

/* A tensor over the axes of a general step: in any order in memory, with gaps, and broadcast along some. */
typedef struct tensor {
    int64_t ref, type, bytes;
    int64_t strides[INTONLY_RANK], reduced[INTONLY_REDUCED];
} tensor;
tensor new_tensor(int64_t type, const int64_t *extent, const int64_t *reduced, int broadcasts);
void fill_tensor(const tensor *t, int64_t lo, int64_t hi);
void random_extents(int64_t *extent, int axes, int64_t most, int64_t longest);
int next_index(int64_t *index, const int64_t *extent, int axes); /* 0 after the last */
int64_t dot(const int64_t *index, const int64_t *strides, int axes);

/* The constants of an epilogue, and the law. */
typedef struct law {
    int64_t form, fraction_bits, residual_zero, zero_point, lo, hi, count;
    int joins, has_x_zero;
    int32_t multiplier[MOST_CONSTANTS], residual_multiplier[MOST_CONSTANTS], x_zero[MOST_CONSTANTS];
    int8_t shift[MOST_CONSTANTS], residual_shift[MOST_CONSTANTS];
} law;
/* acc_bits: bits of a large accumulator, for shifts that leave something of it. Limits for the narrow form: 8 bits. */
void random_law(law *l, int64_t form, int joins, int64_t r_type, int64_t count, int64_t acc_bits);
int64_t apply_law(const law *l, wide acc, int64_t residual, int64_t constant, int64_t zero);
int64_t modulo64(wide x);
#define SET_LIMITS(step, l)                                                                                            \
    ((step).form = (l)->form, (step).residual_zero = (l)->residual_zero, (step).zero_point = (l)->zero_point,          \
     (step).lo = (l)->lo, (step).hi = (l)->hi, (step).fraction_bits = (l)->fraction_bits)
#define SET_EPILOGUE(step, l)                                                                                          \
    (SET_LIMITS(step, l), (step).multiplier = place_constant((l)->multiplier, (l)->count * 4),                         \
     (step).shift = place_constant((l)->shift, (l)->count),                                                            \
     (step).residual_multiplier = (l)->joins ? place_constant((l)->residual_multiplier, (l)->count * 4) : -1,          \
     (step).residual_shift = (l)->joins ? place_constant((l)->residual_shift, (l)->count) : -1,                        \
     (step).x_zero = (l)->has_x_zero ? place_constant((l)->x_zero, (l)->count * 4) : -1)

/* What a step has to write: the bytes of its output, and which of them it writes at all. */
typedef struct expectation {
    int64_t ref, type, bytes;
    uint8_t *value, *inside;
} expectation;
expectation expect(int64_t ref, int64_t type, int64_t bytes);
void expect_element(expectation *e, int64_t offset, int64_t value);
/* Run the kernel in 1 to 3 parts; every byte inside is written by one part, no other byte changes. */
void check(intonly_kernel kernel, const void *step, expectation *e);
/* The same for a step that uses some memory as it likes. */
void check_beside(intonly_kernel kernel, const void *step, expectation *e, int64_t scratch, int64_t scratch_bytes);

/* How often a result was clamped, and not; how often an accumulator was as large as its channels let it be. */
extern unsigned long comparisons, inside_limits, at_limits, edges;
extern unsigned long matrices; /* how many contractions were products of matrices */

typedef struct outcome {
    unsigned long cases, refused; /* refused: the table has no kernel for these constants */
} outcome;
void test_gemm(const intonly_kernels *table, outcome *o);
void test_depthwise(const intonly_kernels *table, outcome *o);
void test_window(const intonly_kernels *table, outcome *o);
void test_halo(const intonly_kernels *table, outcome *o);
void test_contract(const intonly_kernels *table, outcome *o);
void test_map(const intonly_kernels *table, outcome *o);
void test_copy(const intonly_kernels *table, outcome *o);
void test_gather(const intonly_kernels *table, outcome *o);
void test_attention(const intonly_kernels *table, outcome *o);
void test_norm(const intonly_kernels *table, outcome *o);

#endif
