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

/* The spaces of a program. Constants and arena are aligned to 64 bytes and have INTONLY_SLACK readable bytes behind
 * them; the caller's buffers are aligned to their elements. */
typedef struct intonly_spaces {
    const size_t *bytes;      /* [count]: constants and arena without the slack, then the caller's buffers in order */
    size_t count;             /* at least 2 */
    size_t first_output;      /* the space from which on the caller's buffers may be written */
    const uint8_t *constants; /* tables of offsets, shifts and indices are read while checking */
} intonly_spaces;

/* The first step that breaks a rule, and the rule. */
typedef struct intonly_fault {
    size_t step;
    const char *what;
} intonly_fault;

/* Return INTONLY_OK when `kernels` may run every step: whatever the words and the constants are, and whatever data the
 * inputs hold, no kernel then leaves a space, has undefined behaviour, or runs practically for ever, and steps that run
 * beside each other have no byte in common that one of them writes.
 *
 * All bytes that a step names lie inside their spaces; only the x of a gemm, whose taps are rounded up to 4 bytes, may
 * run into the slack of constants or arena. Reading further, a kernel stays within that slack, too. An index that is
 * data (lookup, gather) is proven by the certificate; kernels take the last entry for one that lies outside, so it need
 * not be trusted. */
intonly_status intonly_program_check(const int64_t *words, size_t count, const intonly_kernels *kernels,
                                     const intonly_spaces *spaces, intonly_fault *fault);

/* Check the same, and let each step run beside those before it wherever none of them touches a byte that the other
 * writes. What `beside` was before does not matter. */
intonly_status intonly_program_loosen(int64_t *words, size_t count, const intonly_kernels *kernels,
                                      const intonly_spaces *spaces, intonly_fault *fault);

/* A team of threads that share steps. `threads` counts the one that calls: 1 starts none. A team serves one run at a
 * time, called from any thread. While it waits for work it sleeps, after about 50 microseconds. */
typedef struct intonly_pool intonly_pool;
enum { INTONLY_MOST_THREADS = 64 };

/* Return the bytes of memory that a team takes, 0 when `threads` is not 1..INTONLY_MOST_THREADS. */
size_t intonly_pool_bytes(unsigned threads);

/* Start a team in memory aligned to 64 bytes, which must stay until it has stopped. On failure none of it runs. */
intonly_status intonly_pool_start(void *memory, unsigned threads, intonly_pool **pool);
void intonly_pool_stop(intonly_pool *pool);

unsigned intonly_pool_threads(const intonly_pool *pool);

/* Call work(argument, pool, thread) once on each thread of the team, 0 being the caller's; return when all are done. */
typedef void (*intonly_work)(void *argument, intonly_pool *pool, unsigned thread);
void intonly_pool_run(intonly_pool *pool, intonly_work work, void *argument);

/* Inside work: return when every thread of the team has come here; what they wrote before is then visible to all. */
void intonly_pool_barrier(intonly_pool *pool);

/* Run all steps in order. bases: the address of each space. pool: null = on this thread alone. The bytes written do
 * not depend on the number of threads. nanoseconds: null, or an entry for each step, to which its time is added. */
void intonly_program_run(const int64_t *words, size_t count, const intonly_kernels *kernels, uint8_t *const *bases,
                         intonly_pool *pool, int64_t *nanoseconds);

#endif
