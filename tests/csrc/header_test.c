/* SPDX-License-Identifier: Apache-2.0
 *
 * Compiled as C11 and as C++17: the public header needs nothing before it, and every function links from both.
 */
#include "intonly.h"

#include "intonly.h" /* a second time: the guard holds */

int main(void) {
    static const int32_t multiplier[1] = {1 << 30};
    static const int8_t shift[1] = {30};
    static const int32_t acc[3] = {-5, 0, 300};
    static const int64_t dividend[1] = {-7}, divisor[1] = {2}, radicand[1] = {99};
    const uint8_t codes[3] = {1, 2, 3};
    intonly_rescale rescale;
    int8_t y[3];
    int64_t quotient[1], root[1];
    uint8_t packed[1], back[3];

    rescale.multiplier = multiplier;
    rescale.shift = shift;
    rescale.residual_multiplier = NULL;
    rescale.residual_shift = NULL;
    rescale.x_zero = NULL;
    rescale.period = rescale.width = rescale.x_zero_width = 1;
    rescale.fraction_bits = 0;
    rescale.residual_zero = rescale.zero_point = 0;
    rescale.lo = -128;
    rescale.hi = 127;
    if (intonly_requantize(&rescale, acc, INTONLY_S32, NULL, INTONLY_S8, 1, 3, y, INTONLY_S8) != INTONLY_OK) return 1;
    if (y[0] != -5 || y[1] != 0 || y[2] != 127) return 2;
    if (intonly_floor_div(dividend, 1, divisor, 1, quotient) != INTONLY_OK || quotient[0] != -4) return 3;
    if (intonly_isqrt(radicand, 1, root) != INTONLY_OK || root[0] != 9) return 4;
    if (intonly_packed_size(3, 2) != 1) return 5;
    if (intonly_pack(codes, 3, 2, 0, 3, packed, 1) != INTONLY_OK || packed[0] != 0x39) return 6;
    if (intonly_unpack(packed, 1, 3, 2, 0, 3, back) != INTONLY_OK || back[0] != 1 || back[1] != 2 || back[2] != 3) return 7;
    if (intonly_law_version() != INTONLY_LAW_VERSION) return 8;
    for (int status = -1; status <= 5; ++status) {
        if (intonly_status_text(status) == NULL) return 9;
    }
    return 0;
}
