/* SPDX-License-Identifier: Apache-2.0
 *
 * What these tests of kernels share: memory that ends at a page which may not be touched, and the law by 128
 * bits. Sanitizers do not see masked loads and loads in assembly; a page that faults does.
 */
#ifndef GUARDED_HARNESS_H
#define GUARDED_HARNESS_H

#include <stddef.h>
#include <stdint.h>

#include "exec/program.h"
#include "intonly.h"
#include "kernels/kernels.h"

__extension__ typedef __int128 wide;

void random_begin(uint64_t seed);
int64_t between(int64_t lo, int64_t hi);
int one_in(int64_t n);

/* Memory whose last byte is the last before a page that faults. */
typedef struct guarded {
    uint8_t *map, *data;
    size_t mapped, bytes;
} guarded;
guarded allocate_random(int64_t bytes);
void release(guarded g);

int64_t bytes_of(int64_t type);
int64_t least_of(int64_t type);
int64_t most_of(int64_t type);
void put(uint8_t *at, int64_t type, int64_t value);

/* The constants of an epilogue. */
typedef struct constants {
    int64_t form, joins, residual_type, residual_zero, y_type, zero_point, lo, hi, k;
    int32_t *bias, *m, *m_r;
    int8_t *p, *p_r;
} constants;

/* Draw an epilogue whose results spread over the range of y. limit: of the accumulators, about. */
constants draw_constants(int64_t channels, int64_t limit);
void drop_constants(constants c);

/* Return what the law makes of an accumulator. */
int64_t finish(const constants *c, int64_t channel, int64_t acc, int64_t residual);

/* Copy the scalars of an epilogue to a step. */
#define SET_SCALARS(step, c)                                                                                           \
    ((step).form = (c).form, (step).residual_zero = (c).residual_zero, (step).zero_point = (c).zero_point,             \
     (step).lo = (c).lo, (step).hi = (c).hi, (step).fraction_bits = (c).k)

int64_t space(int64_t number); /* a reference to the beginning of a space */
int64_t channels_drawn(void);

/* Compare the whole of y with what it should be; say what differs. */
int same(const char *what, const uint8_t *got, const uint8_t *want, int64_t bytes, uint64_t seed);

/* One random step; 0 when a byte is wrong. */
int check_gemm(const intonly_kernels *table, uint64_t seed);
int check_depthwise(const intonly_kernels *table, uint64_t seed);
int check_pooling(const intonly_kernels *table, uint64_t seed);

#endif
