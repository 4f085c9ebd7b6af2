/* SPDX-License-Identifier: Apache-2.0
 *
 * norm with AVX2.
 */
#ifndef INTONLY_NORM_X86_AVX2_H
#define INTONLY_NORM_X86_AVX2_H

#include <stdint.h>

void intonly_norm_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
