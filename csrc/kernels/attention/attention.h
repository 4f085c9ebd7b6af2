/* SPDX-License-Identifier: Apache-2.0
 *
 * Means of values under weights that are exponentials of products of queries and keys (INTONLY_ATTENTION_FIELDS).
 */
#ifndef INTONLY_ATTENTION_H
#define INTONLY_ATTENTION_H

#include <stdint.h>

void intonly_attention_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
