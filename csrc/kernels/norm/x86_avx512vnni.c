/* SPDX-License-Identifier: Apache-2.0
 *
 * norm with AVX-512: the loops of any.h on vectors.
 */
#include "kernels/norm/x86_avx512vnni.h"

#include "kernels/norm/any.h"

void intonly_norm_avx512vnni(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    norm_any(step, bases, part, parts);
}
