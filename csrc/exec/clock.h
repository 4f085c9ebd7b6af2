/* SPDX-License-Identifier: Apache-2.0
 *
 * The clock of the executor: how long steps take, and how long a thread has waited. Included before any system header,
 * so that those declare it.
 */
#ifndef INTONLY_CLOCK_H
#define INTONLY_CLOCK_H

#if !defined(_POSIX_C_SOURCE) && !defined(_GNU_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#include <stdint.h>
#include <time.h>

/* Return nanoseconds since some moment; they never go back. */
static inline int64_t intonly_now(void) {
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

#endif
