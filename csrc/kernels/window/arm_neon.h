/* SPDX-License-Identifier: Apache-2.0
 *
 * The NEON kernels of window. x may be of either sign: wants_signed is -1.
 */
#ifndef INTONLY_WINDOW_ARM_NEON_H
#define INTONLY_WINDOW_ARM_NEON_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

size_t intonly_depthwise_size_neon(const intonly_weights *weights);
void intonly_depthwise_pack_neon(const intonly_weights *weights, uint8_t *packed);
int intonly_depthwise_accepts_neon(const intonly_window *step, const uint8_t *packed);
void intonly_window_neon(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
