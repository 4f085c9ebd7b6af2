/* SPDX-License-Identifier: Apache-2.0
 *
 * Running a program: every thread of a team walks over the steps, does its part, and meets the others before a step
 * that may need what another thread has written.
 */
#include "exec/clock.h"

#include <stddef.h>
#include <stdint.h>

#include "exec/exec.h"

typedef struct run {
    const int64_t *words;
    size_t count;
    const intonly_kernels *kernels;
    uint8_t *const *bases;
    int64_t *nanoseconds;
    unsigned threads;
} run;

static const intonly_head *head_at(const run *r, size_t at) {
    return (const intonly_head *)(const void *)(r->words + at);
}

/* The begin and the end of the team's work are barriers by themselves. When steps are timed, each waits for the one
 * before. */
static void walk(void *argument, intonly_pool *pool, unsigned thread) {
    const run *r = argument;
    int64_t *const clock = thread == 0 ? r->nanoseconds : NULL;
    int64_t before = clock != NULL ? intonly_now() : 0;
    for (size_t at = 0, step = 0; at < r->count; ++step) {
        const intonly_head *head = head_at(r, at);
        const unsigned parts = head->parts < (int64_t)r->threads ? (unsigned)head->parts : r->threads;
        if (r->threads > 1 && at > 0 && !head->beside && r->nanoseconds == NULL) intonly_pool_barrier(pool);
        if (thread < parts) r->kernels->run[head->kind](head, r->bases, thread, parts);
        if (r->threads > 1 && r->nanoseconds != NULL) intonly_pool_barrier(pool);
        at += (size_t)head->words;
        if (clock != NULL) {
            const int64_t after = intonly_now();
            clock[step] += after - before;
            before = after;
        }
    }
}

void intonly_program_run(const int64_t *words, size_t count, const intonly_kernels *kernels, uint8_t *const *bases,
                         intonly_pool *pool, int64_t *nanoseconds) {
    run r = {words, count, kernels, bases, nanoseconds, pool != NULL ? intonly_pool_threads(pool) : 1};
    if (r.threads > 1)
        intonly_pool_run(pool, walk, &r);
    else
        walk(&r, NULL, 0);
}
