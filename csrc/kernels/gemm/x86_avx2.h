/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm step on AVX2 and on AVX-VNNI.
 */
#ifndef INTONLY_GEMM_X86_AVX2_H
#define INTONLY_GEMM_X86_AVX2_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Both take codes of uint8 or int16. */
size_t intonly_gemm_size_avx2(const intonly_weights *weights);
void intonly_gemm_pack_avx2(const intonly_weights *weights, uint8_t *packed);
int intonly_gemm_accepts_avx2(const intonly_gemm *step, const uint8_t *packed);
void intonly_gemm_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

size_t intonly_gemm_size_avxvnni(const intonly_weights *weights);
void intonly_gemm_pack_avxvnni(const intonly_weights *weights, uint8_t *packed);
int intonly_gemm_accepts_avxvnni(const intonly_gemm *step, const uint8_t *packed);
void intonly_gemm_avxvnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
