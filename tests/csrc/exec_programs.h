/* SPDX-License-Identifier: Apache-2.0
 *
 * Random sound programs for the test of the executor, and the memory in which they run: constants, arena, two inputs
 * and two outputs, each with a forbidden page before and behind.
 */
#ifndef EXEC_PROGRAMS_H
#define EXEC_PROGRAMS_H

#include <stddef.h>
#include <stdint.h>

#include "exec/exec.h"

enum { INPUT = INTONLY_CALLER, OUTPUT = INPUT + 2, SPACES = OUTPUT + 2, MOST_WORDS = 4000 };

void fail(const char *what, const char *file, int line);
#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) fail(#condition, __FILE__, __LINE__);                                                        \
    } while (0)

extern uint64_t random_state;
uint64_t random64(void);
int64_t below(int64_t limit);
int64_t between(int64_t lo, int64_t hi);
int one_in(int64_t n);

/* Spaces, and the pages in which they stand. */
extern const size_t space_bytes[SPACES];
extern uint8_t *bases[SPACES], *region[SPACES];
extern size_t region_bytes[SPACES];
size_t with_slack(int space);
int64_t ref_of(int64_t space, int64_t offset);
void map_spaces(void);
void place_spaces(int high); /* at the upper or at the lower forbidden page */
void protect(int fixed);     /* forbid or allow writing to constants and inputs */
uint64_t digest(uint64_t sum, const uint8_t *from, size_t bytes);

/* The program at hand, and whose packed forms it holds. */
extern int64_t words[MOST_WORDS];
extern size_t word_count;
extern int64_t constants_used;
extern const intonly_kernels *kernels;

/* Make the program of a seed: the same steps and numbers for all tables, packed as each wants it. */
void make_program(uint64_t seed, const intonly_kernels *table);

#endif
