/* SPDX-License-Identifier: Apache-2.0
 *
 * The public C interface of intonly. It compiles alone as C11 and as C++.
 *
 * The caller owns all memory: nothing here allocates, prints, aborts, or keeps state, so every function may be called
 * from any thread. Arrays are contiguous and aligned as their element type asks. Functions that can fail return a
 * status; on any status but INTONLY_OK the contents of the output are unspecified. No function uses a floating-point
 * number or a division instruction.
 */
#ifndef INTONLY_H
#define INTONLY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of the arithmetic law that these functions follow; artifacts name the version they were made for. */
#define INTONLY_LAW_VERSION 2

typedef enum intonly_status {
    INTONLY_OK = 0,
    INTONLY_ERROR_NULL = 1,     /* a pointer that is needed is null */
    INTONLY_ERROR_ARGUMENT = 2, /* a size, type or constant outside its legal range */
    INTONLY_ERROR_RANGE = 3,    /* a code that the number format does not have */
    INTONLY_ERROR_DOMAIN = 4    /* a divisor below 1, or the root of a negative number */
} intonly_status;

/* Return the sentence for a status; never null, whatever the number. */
const char *intonly_status_text(int status);

/* Return INTONLY_LAW_VERSION of the library that is linked. */
int intonly_law_version(void);

/* Element type of an array of codes or accumulators. */
typedef enum intonly_type {
    INTONLY_S8 = 0,
    INTONLY_U8 = 1,
    INTONLY_S16 = 2,
    INTONLY_U16 = 3,
    INTONLY_S32 = 4,
    INTONLY_U32 = 5,
    INTONLY_S64 = 6
} intonly_type;

/* The law's change of units; ties go up, shifts are arithmetic. Wide form (fraction_bits 0), one rounding:
 *
 *   y = clamp(zero_point + (((x - x_zero) * m + (r - residual_zero) * mr + 2^(s-1)) >> s), lo, hi)
 *
 * Narrow form (fraction_bits k), for x of at most 32 bits and y of at most 8, on 16-bit products:
 *
 *   t  = sat16((x - x_zero + 2^(s-1)) >> s), or sat16((x - x_zero) * 2^-s) where s <= 0
 *   u  = (t * m + 2^14) >> 15, and ur likewise from r - residual_zero, mr and sr
 *   y  = clamp((u + ur + (zero_point << k) + 2^(k-1)) >> k, lo, hi)
 *
 * multiplier, shift, residual_multiplier and residual_shift are arrays [period][width]: row i of the operand uses row
 * i mod period, so constants of shape () have period 1 and width 1, (C,) have width C, and (H, W, 1) have period H * W
 * and width 1.
 */
typedef struct intonly_rescale {
    const int32_t *multiplier; /* wide: |m| is 0 or in [2^30, 2^31), with a residual the larger of |m|, |mr| is;
                                * narrow: |m| and |mr| are each 0 or in [2^14, 2^15) */
    const int8_t *shift;       /* wide: 1 to 62; narrow: -15 to 30, residual_shift too */
    const int32_t *residual_multiplier; /* null when no residual joins */
    const int8_t *residual_shift;       /* narrow form with a residual; otherwise null */
    const int32_t *x_zero;              /* [x_zero_width]; null = 0 */
    size_t period;                      /* at least 1 (0 when there are no rows) */
    size_t width;                       /* 1 or the number of channels */
    size_t x_zero_width;                /* 1 or the number of channels; not read when x_zero is null */
    int32_t fraction_bits;              /* 0: wide form; 4 to 7: narrow form */
    int32_t residual_zero;
    int32_t zero_point; /* narrow: it, lo and hi all lie in -128..127 or in 0..255 */
    int32_t lo;         /* lo <= hi, both within the output type */
    int32_t hi;
} intonly_rescale;

/* Write the rescaled integers of x[rows][channels] to y[rows][channels].
 *
 * x: accumulators or codes, in the narrow form of any type but U32 and S64. residual: codes of at most 16 bits, same
 * shape; null when the rescale has none. y must not overlap x or residual. Exactness: bit-exact. A certificate proves
 * that the wide form's sum before the shift stays within 64 bits (one that does not is taken modulo 2^64), and that the
 * narrow form's sums before a shift stay within 32, which only faster kernels need.
 */
intonly_status intonly_requantize(const intonly_rescale *rescale, const void *x, intonly_type x_type,
                                  const void *residual, intonly_type residual_type, size_t rows, size_t channels,
                                  void *y, intonly_type y_type);

/* Write floor(a / b) of the true quotient; b has one entry, or `count`, each 1 or more. y may be a. */
intonly_status intonly_floor_div(const int64_t *a, size_t count, const int64_t *b, size_t b_count, int64_t *y);

/* Write floor(sqrt(a)) of the true root; each a is 0 or more. y may be a. */
intonly_status intonly_isqrt(const int64_t *a, size_t count, int64_t *y);

/* Return ceil(count * bits / 8), the bytes that `count` codes of `bits` bits take. */
size_t intonly_packed_size(size_t count, unsigned bits);

/* Pack codes of 1 to 8 bits into a little-endian bit stream: code i fills bits i*bits .. i*bits+bits-1, bit k of the
 * stream is bit k % 8 of byte k / 8, and unused bits at the end are 0.
 *
 * codes: one byte each, two's complement when qmin < 0. qmin, qmax: inclusive limits of the format, which fit in
 * `bits` bits. packed_size: exactly intonly_packed_size(count, bits).
 */
intonly_status intonly_pack(const uint8_t *codes, size_t count, unsigned bits, int qmin, int qmax, uint8_t *packed,
                            size_t packed_size);

/* Undo intonly_pack, same arguments. A stored code outside qmin..qmax gives INTONLY_ERROR_RANGE. */
intonly_status intonly_unpack(const uint8_t *packed, size_t packed_size, size_t count, unsigned bits, int qmin,
                              int qmax, uint8_t *codes);

#ifdef __cplusplus
}
#endif

#endif
