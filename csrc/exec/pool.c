/* SPDX-License-Identifier: Apache-2.0
 *
 * A team of threads that meet at a barrier, and nothing else: between two runs the workers wait at the barrier that
 * begins the next one. Who waits spins for a moment, because the others are usually done within microseconds, and then
 * sleeps. The barrier counts its phases; a thread that waits for the end of one cannot mistake it for another.
 */
#if defined(__linux__)
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "exec/clock.h"

#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include "exec/exec.h"

#define LINE 64        /* bytes of a cache line: what different threads write often is kept apart */
#define PATIENCE 50000 /* nanoseconds of spinning before a thread sleeps */
#define LOOKS_BETWEEN_CLOCKS 64

typedef struct worker {
    intonly_pool *pool;
    unsigned number;
    pthread_t thread;
} worker;

struct intonly_pool {
    alignas(LINE) atomic_uint arrived;
    alignas(LINE) atomic_uint phase;
    alignas(LINE) atomic_uint sleepers;
    unsigned threads;
    int64_t patience;
    intonly_work work; /* null: the team is dismissed */
    void *argument;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    worker workers[];
};

/* Return on how many processors this thread may run. */
static long processors(void) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    return sysconf(_SC_NPROCESSORS_ONLN);
}

/* Tell the processor that this is a loop that waits. */
static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __asm__ volatile("pause");
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Return whether the phase ended while this thread was still awake. */
static int spin(intonly_pool *pool, unsigned phase) {
    const int64_t patience = pool->patience;
    if (patience == 0) return 0;
    int64_t start = 0;
    for (;;) {
        for (int look = 0; look < LOOKS_BETWEEN_CLOCKS; ++look) {
            if (atomic_load_explicit(&pool->phase, memory_order_acquire) != phase) return 1;
            pause_briefly();
        }
        const int64_t time = intonly_now();
        if (start == 0) start = time;
        if (time - start > patience) return 0;
    }
}

/* `phase` and `sleepers` are written and then read crosswise, in the one order that all threads agree on: either the
 * last to arrive sees the sleeper, or the sleeper sees the new phase. */
static void sleep_until_over(intonly_pool *pool, unsigned phase) {
    (void)pthread_mutex_lock(&pool->lock);
    (void)atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->phase) == phase) (void)pthread_cond_wait(&pool->wake, &pool->lock);
    (void)atomic_fetch_sub(&pool->sleepers, 1);
    (void)pthread_mutex_unlock(&pool->lock);
}

void intonly_pool_barrier(intonly_pool *pool) {
    /* The phase cannot end before this thread has arrived. */
    const unsigned phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 < pool->threads) {
        if (!spin(pool, phase)) sleep_until_over(pool, phase);
        return;
    }
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    atomic_store(&pool->phase, phase + 1);
    if (atomic_load(&pool->sleepers) == 0) return;
    /* Whoever holds the lock has not fallen asleep yet, and would miss the call. */
    (void)pthread_mutex_lock(&pool->lock);
    (void)pthread_mutex_unlock(&pool->lock);
    (void)pthread_cond_broadcast(&pool->wake);
}

static void *worker_main(void *argument) {
    const worker *self = argument;
    intonly_pool *pool = self->pool;
    for (;;) {
        intonly_pool_barrier(pool);
        if (pool->work == NULL) return NULL;
        pool->work(pool->argument, pool, self->number);
        intonly_pool_barrier(pool);
    }
}

void intonly_pool_run(intonly_pool *pool, intonly_work work, void *argument) {
    pool->work = work;
    pool->argument = argument;
    intonly_pool_barrier(pool);
    work(argument, pool, 0);
    intonly_pool_barrier(pool);
}

unsigned intonly_pool_threads(const intonly_pool *pool) { return pool->threads; }

size_t intonly_pool_bytes(unsigned threads) {
    if (threads < 1 || threads > INTONLY_MOST_THREADS) return 0;
    return sizeof(intonly_pool) + (threads - 1) * sizeof(worker);
}

/* Dismiss the `workers` that have been started, whatever the size of the team. */
static void dismiss(intonly_pool *pool, unsigned workers) {
    pool->work = NULL;
    intonly_pool_barrier(pool);
    for (unsigned i = 0; i < workers; ++i) (void)pthread_join(pool->workers[i].thread, NULL);
    (void)pthread_cond_destroy(&pool->wake);
    (void)pthread_mutex_destroy(&pool->lock);
}

intonly_status intonly_pool_start(void *memory, unsigned threads, intonly_pool **pool) {
    if (memory == NULL || pool == NULL) return INTONLY_ERROR_NULL;
    if (intonly_pool_bytes(threads) == 0) return INTONLY_ERROR_ARGUMENT;
    intonly_pool *team = memory;
    atomic_init(&team->arrived, 0);
    atomic_init(&team->phase, 0);
    atomic_init(&team->sleepers, 0);
    team->threads = threads;
    /* With more threads than processors, who spins keeps the others from arriving. */
    team->patience = (long)threads > processors() ? 0 : PATIENCE;
    team->work = NULL;
    if (pthread_mutex_init(&team->lock, NULL) != 0) return INTONLY_ERROR_ARGUMENT;
    if (pthread_cond_init(&team->wake, NULL) != 0) {
        (void)pthread_mutex_destroy(&team->lock);
        return INTONLY_ERROR_ARGUMENT;
    }
    for (unsigned i = 0; i + 1 < threads; ++i) {
        worker *w = &team->workers[i];
        w->pool = team;
        w->number = i + 1;
        if (pthread_create(&w->thread, NULL, worker_main, w) == 0) continue;
        /* Those that have started wait for a team that will not be complete: arrive for the missing ones. */
        (void)atomic_fetch_add(&team->arrived, threads - 1 - i);
        dismiss(team, i);
        return INTONLY_ERROR_ARGUMENT;
    }
    *pool = team;
    return INTONLY_OK;
}

void intonly_pool_stop(intonly_pool *pool) {
    if (pool != NULL) dismiss(pool, pool->threads - 1);
}
