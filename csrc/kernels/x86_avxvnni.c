/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of the AVX-VNNI kernels.
 */
#include "kernels/gemm/x86_avx2.h"
#include "kernels/kernels.h"
#include "kernels/window/x86_avx2.h"

void intonly_kernels_avxvnni(intonly_kernels *table) {
    table->isa = "avxvnni";
    table->wants_signed = 0;
    table->run[INTONLY_KIND_gemm] = intonly_gemm_avxvnni;
    table->gemm_size = intonly_gemm_size_avxvnni;
    table->gemm_pack = intonly_gemm_pack_avxvnni;
    table->gemm_accepts = intonly_gemm_accepts_avxvnni;
    table->run[INTONLY_KIND_window] = intonly_window_avxvnni;
    table->depthwise_size = intonly_depthwise_size_avxvnni;
    table->depthwise_pack = intonly_depthwise_pack_avxvnni;
    table->depthwise_accepts = intonly_depthwise_accepts_avxvnni;
}
