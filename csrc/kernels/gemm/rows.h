/* SPDX-License-Identifier: Apache-2.0
 *
 * ROWS_n(M): M(r) for the rows of a tile that has all its sums in registers. These are named variables: an array would
 * live in memory.
 */
#ifndef INTONLY_GEMM_ROWS_H
#define INTONLY_GEMM_ROWS_H

#define ROWS_1(M) M(0)
#define ROWS_2(M) ROWS_1(M) M(1)
#define ROWS_3(M) ROWS_2(M) M(2)
#define ROWS_4(M) ROWS_3(M) M(3)
#define ROWS_5(M) ROWS_4(M) M(4)
#define ROWS_6(M) ROWS_5(M) M(5)
#define ROWS_7(M) ROWS_6(M) M(6)
#define ROWS_8(M) ROWS_7(M) M(7)

#endif
