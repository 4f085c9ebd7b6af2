/* SPDX-License-Identifier: Apache-2.0
 *
 * The window step on AVX2 and on AVX-VNNI.
 */
#ifndef INTONLY_WINDOW_X86_AVX2_H
#define INTONLY_WINDOW_X86_AVX2_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Depthwise convolution of unsigned codes. */
size_t intonly_depthwise_size_avx2(const intonly_weights *weights);
void intonly_depthwise_pack_avx2(const intonly_weights *weights, uint8_t *packed);
int intonly_depthwise_accepts_avx2(const intonly_window *step, const uint8_t *packed);

size_t intonly_depthwise_size_avxvnni(const intonly_weights *weights);
void intonly_depthwise_pack_avxvnni(const intonly_weights *weights, uint8_t *packed);
int intonly_depthwise_accepts_avxvnni(const intonly_window *step, const uint8_t *packed);

/* It and sums and maxima of unsigned codes; the plain C kernel does the other sums and maxima. */
void intonly_window_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);
void intonly_window_avxvnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
