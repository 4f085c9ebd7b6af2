/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of the NEON kernels. They take signed and unsigned codes, so the planner changes neither.
 */
#include "kernels/attention/arm_neon.h"
#include "kernels/contract/arm_neon.h"
#include "kernels/gemm/arm_neon.h"
#include "kernels/kernels.h"
#include "kernels/map/arm_neon.h"
#include "kernels/norm/arm_neon.h"
#include "kernels/window/arm_neon.h"

void intonly_kernels_neon(intonly_kernels *table) {
    table->isa = "neon";
    table->wants_signed = -1;
    table->run[INTONLY_KIND_gemm] = intonly_gemm_neon;
    table->gemm_size = intonly_gemm_size_neon;
    table->gemm_pack = intonly_gemm_pack_neon;
    table->gemm_accepts = intonly_gemm_accepts_neon;
    table->run[INTONLY_KIND_contract] = intonly_contract_neon;
    table->run[INTONLY_KIND_map] = intonly_map_neon;
    table->look_up = intonly_look_up_neon;
    table->run[INTONLY_KIND_window] = intonly_window_neon;
    table->depthwise_size = intonly_depthwise_size_neon;
    table->depthwise_pack = intonly_depthwise_pack_neon;
    table->depthwise_accepts = intonly_depthwise_accepts_neon;
    table->run[INTONLY_KIND_attention] = intonly_attention_neon;
    table->run[INTONLY_KIND_norm] = intonly_norm_neon;
}
