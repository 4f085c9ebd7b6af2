/* SPDX-License-Identifier: Apache-2.0
 *
 * Random steps for the kernels of a table that takes unsigned codes, in 1 to 3 parts, on memory that ends at a page which faults; what a kernel must
 * not write is compared, too. Arguments: the instruction set, the number of rounds, and the seed of the first. Prints
 * how many steps agreed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guarded_harness.h"

int main(int count, char **arguments) {
    const char *isa = count > 1 ? arguments[1] : "avx512vnni";
    const int64_t rounds = count > 2 ? atoll(arguments[2]) : 2000;
    const uint64_t first = count > 3 ? strtoull(arguments[3], NULL, 10) : 1;
    const intonly_kernels *table = NULL;
    for (int i = 0; i < INTONLY_ISAS && table == NULL; ++i) {
        table = intonly_kernels_of((intonly_isa)i);
        if (table != NULL && strcmp(table->isa, isa) != 0) table = NULL;
    }
    if (table == NULL) {
        (void)puts("0");
        return 0;
    }
    int64_t agreed = 0;
    for (uint64_t seed = first; seed < first + (uint64_t)rounds; ++seed) {
        random_begin(seed);
        if (!check_gemm(table, seed) || !check_depthwise(table, seed) || !check_pooling(table, seed)) return 1;
        agreed += 3;
    }
    (void)printf("%lld\n", (long long)agreed);
    return 0;
}
