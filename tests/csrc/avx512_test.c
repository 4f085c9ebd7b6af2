/* SPDX-License-Identifier: Apache-2.0
 *
 * Random steps for the AVX-512 kernels, in 1 to 3 parts, on memory that ends at a page which faults; what a kernel must
 * not write is compared, too. Arguments: the number of rounds, and the seed of the first. Prints how many steps agreed.
 */
#include <stdio.h>
#include <stdlib.h>

#include "avx512_harness.h"

int main(int count, char **arguments) {
    const int64_t rounds = count > 1 ? atoll(arguments[1]) : 2000;
    const uint64_t first = count > 2 ? strtoull(arguments[2], NULL, 10) : 1;
    const intonly_kernels *table = intonly_kernels_of(INTONLY_ISA_AVX512VNNI);
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
