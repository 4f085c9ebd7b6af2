/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of the plain C kernels.
 */
#include "kernels/attention/attention.h"
#include "kernels/contract/contract.h"
#include "kernels/copy/copy.h"
#include "kernels/gather/gather.h"
#include "kernels/gemm/gemm.h"
#include "kernels/halo/halo.h"
#include "kernels/kernels.h"
#include "kernels/map/map.h"
#include "kernels/map/table.h"
#include "kernels/norm/norm.h"
#include "kernels/window/window.h"

void intonly_kernels_scalar(intonly_kernels *table) {
    table->isa = "scalar";
#define INTONLY_REFERENCE(kind) table->run[INTONLY_KIND_##kind] = intonly_##kind##_ref;
    INTONLY_STEPS(INTONLY_REFERENCE)
#undef INTONLY_REFERENCE
    table->look_up = intonly_look_up_ref;
    table->wants_signed = -1;
    table->gemm_size = intonly_gemm_size_ref;
    table->gemm_pack = intonly_gemm_pack_ref;
    table->gemm_accepts = intonly_gemm_accepts_ref;
    table->depthwise_size = intonly_depthwise_size_ref;
    table->depthwise_pack = intonly_depthwise_pack_ref;
    table->depthwise_accepts = intonly_depthwise_accepts_ref;
}
