/* SPDX-License-Identifier: Apache-2.0
 *
 * contract in plain C.
 */
#include "kernels/contract/any.h"
#include "kernels/contract/contract.h"

void intonly_contract_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts) {
    contract_any(step, bases, part, parts);
}
