/* SPDX-License-Identifier: Apache-2.0
 *
 * attention in plain C.
 */
#include "kernels/attention/any.h"
#include "kernels/attention/attention.h"

void intonly_attention_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    attention_any(step, bases, part, parts);
}
