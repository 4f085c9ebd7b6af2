/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of the NEON kernels with dotprod: what they do better than those of plain NEON.
 */
#include "kernels/gemm/arm_neon.h"
#include "kernels/kernels.h"

void intonly_kernels_neon_dotprod(intonly_kernels *table) {
    intonly_kernels_neon(table);
    table->isa = "neon_dotprod";
    table->run[INTONLY_KIND_gemm] = intonly_gemm_neon_dotprod;
    table->gemm_pack = intonly_gemm_pack_neon_dotprod;
    table->gemm_accepts = intonly_gemm_accepts_neon_dotprod;
}
