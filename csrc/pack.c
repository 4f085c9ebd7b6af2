/* SPDX-License-Identifier: Apache-2.0
 *
 * Bit packing of codes of 1 to 8 bits, to the byte as NumberFormat.pack and NumberFormat.unpack.
 *
 * Eight codes of b bits take exactly b bytes, so the stream is worked off in groups of eight through one 64-bit word.
 */
#include "intonly.h"

#define GROUP 8

static int limits_fit(unsigned bits, int qmin, int qmax) {
    if (bits < 1 || bits > 8 || qmin > qmax) return 0;
    if (qmin < 0) return qmin >= -(1 << (bits - 1)) && qmax < 1 << (bits - 1);
    return qmax < 1 << bits;
}

/* Return the integer that the low `bits` bits stand for: (c ^ 2^(bits-1)) - 2^(bits-1) extends the sign. */
static int value_of(unsigned code, unsigned bits, int is_signed) {
    const int sign = is_signed ? 1 << (bits - 1) : 0;
    return ((int)code ^ sign) - sign;
}

size_t intonly_packed_size(size_t count, unsigned bits) {
    return (count >> 3) * bits + (((count & 7) * bits + 7) >> 3);
}

intonly_status intonly_pack(const uint8_t *codes, size_t count, unsigned bits, int qmin, int qmax, uint8_t *packed,
                            size_t packed_size) {
    if (!limits_fit(bits, qmin, qmax) || packed_size != intonly_packed_size(count, bits)) return INTONLY_ERROR_ARGUMENT;
    if (count == 0) return INTONLY_OK;
    if (codes == NULL || packed == NULL) return INTONLY_ERROR_NULL;
    const unsigned mask = (1U << bits) - 1;
    for (size_t first = 0; first < count; first += GROUP) {
        const size_t here = count - first < GROUP ? count - first : GROUP;
        uint64_t word = 0;
        for (size_t i = 0; i < here; ++i) {
            const int value = value_of(codes[first + i], 8, qmin < 0);
            if (value < qmin || value > qmax) return INTONLY_ERROR_RANGE;
            word |= (uint64_t)((unsigned)value & mask) << (i * bits);
        }
        const size_t bytes = intonly_packed_size(here, bits);
        for (size_t i = 0; i < bytes; ++i) *packed++ = (uint8_t)(word >> (8 * i));
    }
    return INTONLY_OK;
}

intonly_status intonly_unpack(const uint8_t *packed, size_t packed_size, size_t count, unsigned bits, int qmin,
                              int qmax, uint8_t *codes) {
    if (!limits_fit(bits, qmin, qmax) || packed_size != intonly_packed_size(count, bits)) return INTONLY_ERROR_ARGUMENT;
    if (count == 0) return INTONLY_OK;
    if (codes == NULL || packed == NULL) return INTONLY_ERROR_NULL;
    const unsigned mask = (1U << bits) - 1;
    for (size_t first = 0; first < count; first += GROUP) {
        const size_t here = count - first < GROUP ? count - first : GROUP;
        const size_t bytes = intonly_packed_size(here, bits);
        uint64_t word = 0;
        for (size_t i = 0; i < bytes; ++i) word |= (uint64_t)*packed++ << (8 * i);
        for (size_t i = 0; i < here; ++i) {
            const int value = value_of((unsigned)(word >> (i * bits)) & mask, bits, qmin < 0);
            if (value < qmin || value > qmax) return INTONLY_ERROR_RANGE;
            codes[first + i] = (uint8_t)value;
        }
    }
    return INTONLY_OK;
}
