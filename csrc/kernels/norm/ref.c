/* SPDX-License-Identifier: Apache-2.0
 *
 * norm in plain C.
 */
#include "kernels/norm/any.h"
#include "kernels/norm/norm.h"

void intonly_norm_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    norm_any(step, bases, part, parts);
}
