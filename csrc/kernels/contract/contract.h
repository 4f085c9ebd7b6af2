/* SPDX-License-Identifier: Apache-2.0
 *
 * Any sum of products, sum or maximum, of any types (INTONLY_CONTRACT_FIELDS).
 */
#ifndef INTONLY_CONTRACT_H
#define INTONLY_CONTRACT_H

#include <stdint.h>

void intonly_contract_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
