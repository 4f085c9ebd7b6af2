/* SPDX-License-Identifier: Apache-2.0
 *
 * Stress of the team of threads, for the thread sanitizer: runs that follow each other at once and after a pause, teams
 * larger than the machine, teams of different callers at the same time, steps of one part among steps of many, steps
 * beside each other.
 * Prints how many runs it made.
 */
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "exec/exec.h"

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

enum { MOST = 8, STEPS = 12, CELLS = 64 };

static void pause_for(long microseconds) {
    const struct timespec time = {0, microseconds * 1000};
    (void)nanosleep(&time, NULL);
}

static double cpu_seconds(void) {
    struct timespec time;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static intonly_pool *start(unsigned threads, void **memory) {
    intonly_pool *pool = NULL;
    *memory = aligned_alloc(64, (intonly_pool_bytes(threads) + 63) & ~(size_t)63);
    REQUIRE(*memory != NULL && intonly_pool_start(*memory, threads, &pool) == INTONLY_OK);
    REQUIRE(intonly_pool_threads(pool) == threads);
    return pool;
}

static void stop(intonly_pool *pool, void *memory) {
    intonly_pool_stop(pool);
    memset(memory, 0xEE, 64);
    free(memory);
}

/* Every thread adds to its cell, and reads all cells after a barrier. Nothing is atomic: the barrier must order it. */
typedef struct cells {
    unsigned threads;
    uint64_t cell[MOST], sum[MOST];
} cells;

static void add_up(void *argument, intonly_pool *pool, unsigned thread) {
    cells *c = argument;
    for (uint64_t round = 0; round < 4; ++round) {
        c->cell[thread] += thread + 1 + round;
        intonly_pool_barrier(pool);
        uint64_t sum = 0;
        for (unsigned i = 0; i < c->threads; ++i) sum += c->cell[i];
        c->sum[thread] = sum;
        intonly_pool_barrier(pool);
    }
}

static unsigned long stress_barrier(unsigned threads, unsigned runs) {
    void *memory;
    intonly_pool *pool = start(threads, &memory);
    cells c = {.threads = threads};
    uint64_t expected = 0;
    for (unsigned i = 0; i < runs; ++i) {
        intonly_pool_run(pool, add_up, &c);
        for (uint64_t round = 0; round < 4; ++round) expected += threads * (threads + 1) / 2 + round * threads;
        for (unsigned t = 0; t < threads; ++t) REQUIRE(c.sum[t] == expected);
        if (i % 64 == 0) pause_for(i % 128 == 0 ? 200 : 40); /* asleep, or about to be */
    }
    stop(pool, memory);
    return runs;
}

/* A kernel for tests: part p of a copy step fills its cells with what another step has left in all of its own. */
static void mix(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    const intonly_copy *s = step;
    const uint64_t *from = (const uint64_t *)(const void *)intonly_at(bases, s->a_ref);
    uint64_t *to = (uint64_t *)(void *)intonly_at(bases, s->y_ref);
    int64_t first, end;
    intonly_share(CELLS, part, parts, &first, &end);
    uint64_t sum = 0;
    for (int i = 0; i < CELLS; ++i) sum = sum * 31 + from[i];
    for (int64_t i = first; i < end; ++i) to[i] = sum + (uint64_t)i;
}

typedef struct program {
    int64_t words[STEPS * (sizeof(intonly_copy) / sizeof(int64_t))];
    intonly_kernels kernels;
} program;

static void make_program(program *p) {
    memset(p, 0, sizeof *p);
    p->kernels.run[INTONLY_KIND_copy] = mix;
    /* Each step reads what an earlier one has written (0: nobody), and may run beside those that do not read it. */
    static const struct {
        int64_t parts, beside, reads;
    } steps[STEPS] = {{1, 0, 0}, {1, 1, 1},  {64, 0, 2}, {2, 0, 3}, {1, 1, 2},  {3, 1, 3},
                      {64, 0, 5}, {64, 1, 6}, {1, 1, 4},  {1, 1, 9}, {2, 0, 10}, {64, 0, 11}};
    const int64_t length = sizeof(intonly_copy) / sizeof(int64_t);
    for (int64_t i = 0; i < STEPS; ++i) {
        intonly_copy *step = (intonly_copy *)(void *)(p->words + i * length);
        step->kind = INTONLY_KIND_copy;
        step->words = length;
        step->parts = steps[i].parts;
        step->beside = steps[i].beside;
        step->a_ref = (INT64_C(1) << INTONLY_SPACE_SHIFT) + steps[i].reads * CELLS * 8;
        step->y_ref = (INT64_C(1) << INTONLY_SPACE_SHIFT) + (i + 1) * CELLS * 8;
    }
}

static void run(const program *p, intonly_pool *pool, int64_t *nanoseconds, uint64_t *cell) {
    uint8_t *bases[] = {NULL, (uint8_t *)cell};
    memset(cell, 0, (STEPS + 1) * CELLS * sizeof *cell);
    intonly_program_run(p->words, sizeof p->words / sizeof *p->words, &p->kernels, bases, pool, nanoseconds);
}

static unsigned long stress_program(unsigned threads, unsigned runs) {
    static program p;
    static uint64_t expected[(STEPS + 1) * CELLS];
    uint64_t got[(STEPS + 1) * CELLS];
    void *memory;
    intonly_pool *pool = start(threads, &memory);
    if (p.kernels.run[INTONLY_KIND_copy] == NULL) make_program(&p);
    run(&p, NULL, NULL, expected);
    REQUIRE(expected[CELLS] != expected[2 * CELLS]);
    for (unsigned i = 0; i < runs; ++i) {
        int64_t nanoseconds[STEPS] = {0};
        run(&p, pool, i % 2 ? nanoseconds : NULL, got);
        REQUIRE(memcmp(got, expected, sizeof got) == 0);
        for (int k = 0; k < STEPS; ++k) REQUIRE(nanoseconds[k] >= 0 && (i % 2 || nanoseconds[k] == 0));
    }
    stop(pool, memory);
    return runs;
}

static void *caller(void *argument) {
    (void)stress_barrier(2, *(const unsigned *)argument);
    return NULL;
}

/* A team of one caller must not disturb that of another. */
static unsigned long stress_callers(unsigned runs) {
    pthread_t threads[3];
    for (int i = 0; i < 3; ++i) REQUIRE(pthread_create(&threads[i], NULL, caller, &runs) == 0);
    for (int i = 0; i < 3; ++i) (void)pthread_join(threads[i], NULL);
    return 3 * (unsigned long)runs;
}

/* A team that waits for work must not use the processor. */
static void rest(void) {
    void *memory;
    intonly_pool *pool = start(4, &memory);
    cells c = {.threads = 4};
    intonly_pool_run(pool, add_up, &c);
    pause_for(20000);
    const double before = cpu_seconds();
    pause_for(200000);
    REQUIRE(cpu_seconds() - before < 0.05);
    stop(pool, memory);
}

static void refuse(void) {
    intonly_pool *pool = NULL;
    REQUIRE(intonly_pool_bytes(0) == 0 && intonly_pool_bytes(INTONLY_MOST_THREADS + 1) == 0);
    REQUIRE(intonly_pool_bytes(INTONLY_MOST_THREADS) > intonly_pool_bytes(1));
    REQUIRE(intonly_pool_start(NULL, 1, &pool) == INTONLY_ERROR_NULL);
    REQUIRE(intonly_pool_start(&pool, 0, &pool) == INTONLY_ERROR_ARGUMENT && pool == NULL);
    intonly_pool_stop(NULL);
}

int main(int count, char **arguments) {
    const unsigned runs = count > 1 ? (unsigned)atoi(arguments[1]) : 1000;
    unsigned long made = 0;
    refuse();
    rest();
    for (unsigned threads = 1; threads <= 4; ++threads)
        made += stress_barrier(threads, runs) + stress_program(threads, runs);
    made += stress_barrier(MOST, runs / 4) + stress_callers(runs / 4);
    for (unsigned i = 0; i < 50; ++i) made += stress_barrier(1 + i % 4, i % 3);
    printf("%lu\n", made);
    return 0;
}
