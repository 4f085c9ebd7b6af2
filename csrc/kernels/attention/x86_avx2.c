/* SPDX-License-Identifier: Apache-2.0
 *
 * attention with AVX2: the loops of any.h on vectors.
 */
#include "kernels/attention/x86_avx2.h"

#include "kernels/attention/any.h"

void intonly_attention_avx2(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    attention_any(step, bases, part, parts);
}
