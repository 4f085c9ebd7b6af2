/* SPDX-License-Identifier: Apache-2.0
 *
 * Sums of products of codes of 8 or 16 bits with constant weights of 8 bits: convolution and linear layers
 * (INTONLY_GEMM_FIELDS).
 */
#ifndef INTONLY_GEMM_H
#define INTONLY_GEMM_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Plain C, the reference. It takes every constant whose accumulators fit in 32 bits. */
size_t intonly_gemm_size_ref(const intonly_weights *weights);
void intonly_gemm_pack_ref(const intonly_weights *weights, uint8_t *packed);
int intonly_gemm_accepts_ref(const intonly_gemm *step, const uint8_t *packed);
void intonly_gemm_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
