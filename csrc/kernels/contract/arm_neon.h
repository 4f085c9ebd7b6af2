/* SPDX-License-Identifier: Apache-2.0
 *
 * contract with NEON.
 */
#ifndef INTONLY_CONTRACT_ARM_NEON_H
#define INTONLY_CONTRACT_ARM_NEON_H

#include <stdint.h>

void intonly_contract_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
