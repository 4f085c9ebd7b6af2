/* SPDX-License-Identifier: Apache-2.0
 *
 * Checking and running a program (exec/program.h). The caller owns all memory; a run allocates nothing.
 */
#ifndef INTONLY_EXEC_H
#define INTONLY_EXEC_H

#include <stddef.h>
#include <stdint.h>

#include "exec/program.h"
#include "intonly.h"
#include "kernels/kernels.h"

/* Return INTONLY_OK when every step is one that a kernel may run: known kind and length, counts and types in range,
 * and every byte that it can read or write inside its space (constants and arena: plus INTONLY_SLACK for reads).
 *
 * space_bytes: size of each space: constants, arena (both without the slack), then the caller's buffers in order.
 * first_output: the space from which on buffers may be written. step: where the number of the first bad step goes. */
intonly_status intonly_program_check(const int64_t *words, size_t count, const size_t *space_bytes, size_t spaces,
                                     size_t first_output, size_t *step);

/* A team of threads that share steps. `threads` counts the one that calls: 1 starts none. */
typedef struct intonly_pool intonly_pool;
size_t intonly_pool_bytes(unsigned threads);
intonly_status intonly_pool_start(void *memory, unsigned threads, intonly_pool **pool);
void intonly_pool_stop(intonly_pool *pool);

/* Run all steps in order. bases: the address of each space. pool: null = on this thread alone. The bytes written do
 * not depend on the number of threads. nanoseconds: null, or an entry for each step, to which its time is added. */
void intonly_program_run(const int64_t *words, size_t count, const intonly_kernels *kernels, uint8_t *const *bases,
                         intonly_pool *pool, int64_t *nanoseconds);

#endif
