/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of the AVX-512 VNNI kernels (with F, BW, VL, DQ and VBMI).
 */
#include "kernels/attention/x86_avx512vnni.h"
#include "kernels/contract/x86_avx512vnni.h"
#include "kernels/copy/x86_avx512vnni.h"
#include "kernels/gemm/x86_avx512vnni.h"
#include "kernels/kernels.h"
#include "kernels/map/x86_avx512vnni.h"
#include "kernels/norm/x86_avx512vnni.h"
#include "kernels/window/x86_avx512vnni.h"

void intonly_kernels_avx512vnni(intonly_kernels *table) {
    table->isa = "avx512vnni";
    table->wants_signed = 0;
    table->run[INTONLY_KIND_gemm] = intonly_gemm_avx512vnni;
    table->gemm_size = intonly_gemm_size_avx512vnni;
    table->gemm_pack = intonly_gemm_pack_avx512vnni;
    table->gemm_accepts = intonly_gemm_accepts_avx512vnni;
    table->run[INTONLY_KIND_copy] = intonly_copy_avx512vnni;
    table->run[INTONLY_KIND_contract] = intonly_contract_avx512vnni;
    table->run[INTONLY_KIND_map] = intonly_map_avx512vnni;
    table->look_up = intonly_look_up_avx512vnni;
    table->run[INTONLY_KIND_window] = intonly_window_avx512vnni;
    table->depthwise_size = intonly_depthwise_size_avx512vnni;
    table->depthwise_pack = intonly_depthwise_pack_avx512vnni;
    table->depthwise_accepts = intonly_depthwise_accepts_avx512vnni;
    table->run[INTONLY_KIND_attention] = intonly_attention_avx512vnni;
    table->run[INTONLY_KIND_norm] = intonly_norm_avx512vnni;
}
