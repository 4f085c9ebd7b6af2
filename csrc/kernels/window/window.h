/* SPDX-License-Identifier: Apache-2.0
 *
 * Depthwise convolution, and sums and maxima of windows, channel by channel (INTONLY_WINDOW_FIELDS).
 */
#ifndef INTONLY_WINDOW_H
#define INTONLY_WINDOW_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* Plain C, the reference. It takes every constant whose accumulators fit in 32 bits. */
size_t intonly_depthwise_size_ref(const intonly_weights *weights);
void intonly_depthwise_pack_ref(const intonly_weights *weights, uint8_t *packed);
int intonly_depthwise_accepts_ref(const intonly_window *step, const uint8_t *packed);
void intonly_window_ref(const void *step, uint8_t *const *bases, unsigned part, unsigned parts);

#endif
