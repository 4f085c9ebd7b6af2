/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of the AVX2 kernels.
 */
#include "kernels/attention/x86_avx2.h"
#include "kernels/contract/x86_avx2.h"
#include "kernels/gemm/x86_avx2.h"
#include "kernels/kernels.h"
#include "kernels/map/x86_avx2.h"
#include "kernels/norm/x86_avx2.h"
#include "kernels/window/x86_avx2.h"

void intonly_kernels_avx2(intonly_kernels *table) {
    table->isa = "avx2";
    table->wants_signed = 0;
    table->run[INTONLY_KIND_gemm] = intonly_gemm_avx2;
    table->gemm_size = intonly_gemm_size_avx2;
    table->gemm_pack = intonly_gemm_pack_avx2;
    table->gemm_accepts = intonly_gemm_accepts_avx2;
    table->run[INTONLY_KIND_contract] = intonly_contract_avx2;
    table->run[INTONLY_KIND_map] = intonly_map_avx2;
    table->look_up = intonly_look_up_avx2;
    table->run[INTONLY_KIND_window] = intonly_window_avx2;
    table->depthwise_size = intonly_depthwise_size_avx2;
    table->depthwise_pack = intonly_depthwise_pack_avx2;
    table->depthwise_accepts = intonly_depthwise_accepts_avx2;
    table->run[INTONLY_KIND_attention] = intonly_attention_avx2;
    table->run[INTONLY_KIND_norm] = intonly_norm_avx2;
}
