/* SPDX-License-Identifier: Apache-2.0 */
#define _DEFAULT_SOURCE /* mmap with MAP_ANONYMOUS */

#include "exec_programs.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

void fail(const char *what, const char *file, int line) {
    fprintf(stderr, "%s:%d: %s\n", file, line, what);
    exit(1);
}

uint64_t random_state = 1;

uint64_t random64(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * UINT64_C(2685821657736338717);
}

int64_t below(int64_t limit) { return (int64_t)((random64() >> 1) % (uint64_t)limit); }

int64_t between(int64_t lo, int64_t hi) { return lo + below(hi - lo + 1); }

int one_in(int64_t n) { return below(n) == 0; }

const size_t space_bytes[SPACES] = {1 << 20, 1 << 17, 4096, 2056, 3000, 1032};
uint8_t *bases[SPACES], *region[SPACES];
size_t region_bytes[SPACES];

size_t with_slack(int space) { return space_bytes[space] + (space < INTONLY_CALLER ? INTONLY_SLACK : 0); }

void map_spaces(void) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int s = 0; s < SPACES; ++s) {
        region_bytes[s] = (with_slack(s) + page - 1) & ~(page - 1);
        uint8_t *all = mmap(NULL, region_bytes[s] + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(all != MAP_FAILED);
        region[s] = all + page;
        REQUIRE(mprotect(region[s], region_bytes[s], PROT_READ | PROT_WRITE) == 0);
    }
}

void place_spaces(int high) {
    for (int s = 0; s < SPACES; ++s) bases[s] = region[s] + (high ? region_bytes[s] - with_slack(s) : 0);
}

void protect(int fixed) {
    for (int s = 0; s < OUTPUT; ++s)
        if (s != INTONLY_ARENA)
            REQUIRE(mprotect(region[s], region_bytes[s], fixed ? PROT_READ : PROT_READ | PROT_WRITE) == 0);
}

uint64_t digest(uint64_t sum, const uint8_t *from, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) sum = (sum ^ from[i]) * UINT64_C(0x100000001B3);
    return sum;
}

int64_t ref_of(int64_t space, int64_t offset) { return (space << INTONLY_SPACE_SHIFT) + offset; }
