/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of every instruction set that this build and this processor have, against plain loops over exact integers.
 * Run under the address and undefined-behaviour sanitizers. Arguments: the number of rounds of each test, and a seed.
 * Prints a line for each table and test: how many cases ran, and how many the table has no kernel for.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels_harness.h"

static const struct {
    const char *name;
    void (*run)(const intonly_kernels *table, outcome *o);
    int kind;
} tests[] = {
    {"gemm", test_gemm, INTONLY_KIND_gemm},          {"depthwise", test_depthwise, INTONLY_KIND_window},
    {"window", test_window, INTONLY_KIND_window},    {"halo", test_halo, INTONLY_KIND_halo},
    {"contract", test_contract, INTONLY_KIND_contract}, {"map", test_map, INTONLY_KIND_map},
    {"copy", test_copy, INTONLY_KIND_copy},          {"gather", test_gather, INTONLY_KIND_gather},
    {"attention", test_attention, INTONLY_KIND_attention}, {"norm", test_norm, INTONLY_KIND_norm},
};

/* The shares of a division are whole, in order, and differ by at most one. */
static void test_share(void) {
    const int64_t units = below(one_in(2) ? 20 : 1000000);
    const unsigned parts = 1 + (unsigned)below(64);
    int64_t last = 0;
    for (unsigned part = 0; part < parts; ++part) {
        int64_t first = -1, end = -1;
        intonly_share(units, part, parts, &first, &end);
        REQUIRE(first == last && end - first >= units / parts && end - first <= units / parts + 1);
        last = end;
    }
    REQUIRE(last == units);
}

static void test_table(const intonly_kernels *table, long rounds) {
    const intonly_kernels *plain = intonly_kernels_of(INTONLY_ISA_SCALAR);
    for (size_t t = 0; t < sizeof tests / sizeof *tests; ++t) {
        if (table != plain && table->run[tests[t].kind] == plain->run[tests[t].kind]) continue;
        outcome o = {0};
        inside_limits = at_limits = edges = matrices = 0;
        for (long round = 0; round < rounds; ++round) tests[t].run(table, &o);
        REQUIRE(o.cases > 0 && o.cases + o.refused == (unsigned long)rounds);
        REQUIRE(inside_limits + at_limits == 0 || (inside_limits > (inside_limits + at_limits) / 32 && at_limits > 0));
        REQUIRE((tests[t].run != test_gemm && tests[t].run != test_depthwise) || edges > (unsigned long)rounds / 16);
        REQUIRE(tests[t].run != test_contract || matrices > (unsigned long)rounds / 32);
        printf("%s %s %lu %lu\n", table->isa, tests[t].name, o.cases, o.refused);
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    const long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 200;
    random_begin(argc > 2 ? strtoul(argv[2], NULL, 10) : 0);
    for (int round = 0; round < 1000; ++round) test_share();
    for (int isa = 0; isa < INTONLY_ISAS; ++isa) {
        const intonly_kernels *table = intonly_kernels_of((intonly_isa)isa);
        REQUIRE(table != NULL || isa != INTONLY_ISA_SCALAR);
        if (table == NULL) continue;
        REQUIRE(strcmp(table->isa, intonly_isa_name(isa)) == 0);
        test_table(table, rounds);
    }
    scene_begin();
    for (int space = 0; space < INTONLY_CALLER; ++space) free(bases[space]);
    printf("comparisons %lu\n", comparisons);
    return 0;
}
