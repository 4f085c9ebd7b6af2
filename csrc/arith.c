/* SPDX-License-Identifier: Apache-2.0
 *
 * The law over arrays: the plain C path that every faster kernel is compared with.
 */
#include "arith.h"

#include "intonly.h"

/* Elements that are widened, rescaled and narrowed at a time; the buffers stay in the first-level cache. */
#define CHUNK 128

int intonly_law_version(void) { return INTONLY_LAW_VERSION; }

const char *intonly_status_text(int status) {
    switch (status) {
    case INTONLY_OK: return "done";
    case INTONLY_ERROR_NULL: return "a pointer that is needed is null";
    case INTONLY_ERROR_ARGUMENT: return "a size, type or constant lies outside its legal range";
    case INTONLY_ERROR_RANGE: return "a code lies outside the limits of its number format";
    case INTONLY_ERROR_DOMAIN: return "a divisor is below 1, or the root of a negative number is asked for";
    default: return "unknown status";
    }
}

static void widen(intonly_type type, const void *source, size_t first, size_t count, int64_t *wide) {
    switch (type) {
    case INTONLY_S8:
        for (size_t i = 0; i < count; ++i) wide[i] = ((const int8_t *)source)[first + i];
        break;
    case INTONLY_U8:
        for (size_t i = 0; i < count; ++i) wide[i] = ((const uint8_t *)source)[first + i];
        break;
    case INTONLY_S16:
        for (size_t i = 0; i < count; ++i) wide[i] = ((const int16_t *)source)[first + i];
        break;
    case INTONLY_U16:
        for (size_t i = 0; i < count; ++i) wide[i] = ((const uint16_t *)source)[first + i];
        break;
    case INTONLY_S32:
        for (size_t i = 0; i < count; ++i) wide[i] = ((const int32_t *)source)[first + i];
        break;
    case INTONLY_U32:
        for (size_t i = 0; i < count; ++i) wide[i] = ((const uint32_t *)source)[first + i];
        break;
    case INTONLY_S64:
        for (size_t i = 0; i < count; ++i) wide[i] = ((const int64_t *)source)[first + i];
        break;
    }
}

/* The values have been clamped into the limits of `type`. */
static void narrow(intonly_type type, const int32_t *values, size_t count, void *target, size_t first) {
    switch (type) {
    case INTONLY_S8:
        for (size_t i = 0; i < count; ++i) ((int8_t *)target)[first + i] = (int8_t)values[i];
        break;
    case INTONLY_U8:
        for (size_t i = 0; i < count; ++i) ((uint8_t *)target)[first + i] = (uint8_t)values[i];
        break;
    case INTONLY_S16:
        for (size_t i = 0; i < count; ++i) ((int16_t *)target)[first + i] = (int16_t)values[i];
        break;
    case INTONLY_U16:
        for (size_t i = 0; i < count; ++i) ((uint16_t *)target)[first + i] = (uint16_t)values[i];
        break;
    case INTONLY_S32:
        for (size_t i = 0; i < count; ++i) ((int32_t *)target)[first + i] = values[i];
        break;
    case INTONLY_U32:
        for (size_t i = 0; i < count; ++i) ((uint32_t *)target)[first + i] = (uint32_t)values[i];
        break;
    case INTONLY_S64:
        for (size_t i = 0; i < count; ++i) ((int64_t *)target)[first + i] = values[i];
        break;
    }
}

static int type_holds(intonly_type type, int32_t lo, int32_t hi) {
    switch (type) {
    case INTONLY_S8: return lo >= INT8_MIN && hi <= INT8_MAX;
    case INTONLY_U8: return lo >= 0 && hi <= UINT8_MAX;
    case INTONLY_S16: return lo >= INT16_MIN && hi <= INT16_MAX;
    case INTONLY_U16: return lo >= 0 && hi <= UINT16_MAX;
    case INTONLY_S32:
    case INTONLY_S64: return 1;
    case INTONLY_U32: return lo >= 0;
    default: return 0;
    }
}

static int is_type(intonly_type type) { return type_holds(type, 0, 0); }

static int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }

/* Whether every magnitude is 0 or has exactly `bits` bits; `other` may be null. */
static int multipliers_fit(const int32_t *m, const int32_t *other, size_t count, unsigned bits) {
    for (size_t i = 0; i < count; ++i) {
        int64_t largest = magnitude(m[i]);
        if (other != NULL && magnitude(other[i]) > largest) largest = magnitude(other[i]);
        if (largest != 0 && (largest < INT64_C(1) << (bits - 1) || largest >= INT64_C(1) << bits)) return 0;
    }
    return 1;
}

static int shifts_fit(const int8_t *shift, size_t count, int lo, int hi) {
    for (size_t i = 0; i < count; ++i) {
        if (shift[i] < lo || shift[i] > hi) return 0;
    }
    return 1;
}

static int check_wide(const intonly_rescale *rescale, size_t constants) {
    return rescale->residual_shift == NULL && shifts_fit(rescale->shift, constants, 1, 62) &&
           multipliers_fit(rescale->multiplier, rescale->residual_multiplier, constants, 31);
}

static int check_narrow(const intonly_rescale *rescale, size_t constants) {
    const int32_t zero = rescale->zero_point, *joining = rescale->residual_multiplier;
    if (rescale->fraction_bits < 4 || rescale->fraction_bits > 7) return 0;
    if (!(zero >= INT8_MIN && zero <= INT8_MAX && rescale->lo >= INT8_MIN && rescale->hi <= INT8_MAX) &&
        !(zero >= 0 && zero <= UINT8_MAX && rescale->lo >= 0 && rescale->hi <= UINT8_MAX))
        return 0;
    if (!multipliers_fit(rescale->multiplier, NULL, constants, 15) || !shifts_fit(rescale->shift, constants, -15, 30))
        return 0;
    return joining == NULL || (multipliers_fit(joining, NULL, constants, 15) &&
                               shifts_fit(rescale->residual_shift, constants, -15, 30));
}

static intonly_status check_rescale(const intonly_rescale *rescale, size_t rows, size_t channels) {
    const size_t constants = rescale->period * rescale->width;
    if (constants == 0 && rows != 0 && channels != 0) return INTONLY_ERROR_ARGUMENT;
    if (constants != 0 && (rescale->multiplier == NULL || rescale->shift == NULL)) return INTONLY_ERROR_NULL;
    if (rescale->width != 1 && rescale->width != channels) return INTONLY_ERROR_ARGUMENT;
    if (rescale->x_zero != NULL && rescale->x_zero_width != 1 && rescale->x_zero_width != channels)
        return INTONLY_ERROR_ARGUMENT;
    if (rescale->lo > rescale->hi) return INTONLY_ERROR_ARGUMENT;
    if (rescale->fraction_bits == 0) return check_wide(rescale, constants) ? INTONLY_OK : INTONLY_ERROR_ARGUMENT;
    if (rescale->residual_multiplier == NULL && rescale->residual_shift != NULL) return INTONLY_ERROR_ARGUMENT;
    if (rescale->residual_multiplier != NULL && rescale->residual_shift == NULL) return INTONLY_ERROR_NULL;
    return check_narrow(rescale, constants) ? INTONLY_OK : INTONLY_ERROR_ARGUMENT;
}

static int32_t wide_one(const intonly_rescale *rescale, size_t k, int64_t x, int32_t zero, int64_t residual) {
    uint64_t sum = intonly_product(x, zero, rescale->multiplier[k]);
    if (rescale->residual_multiplier != NULL)
        sum += intonly_product(residual, rescale->residual_zero, rescale->residual_multiplier[k]);
    return intonly_round_clamp(sum, (uint64_t)rescale->shift[k], rescale->zero_point, rescale->lo, rescale->hi);
}

static int32_t narrow_one(const intonly_rescale *rescale, size_t k, int64_t centered, int64_t joining) {
    int32_t sum = intonly_narrow_operand(centered, rescale->multiplier[k], rescale->shift[k]);
    if (rescale->residual_multiplier != NULL)
        sum += intonly_narrow_operand(joining, rescale->residual_multiplier[k], rescale->residual_shift[k]);
    return intonly_narrow_clamp(sum, rescale->fraction_bits, rescale->zero_point, rescale->lo, rescale->hi);
}

/* Rescale one chunk that starts at channel `channel` of a row whose constants start at `row`. */
static void rescale_chunk(const intonly_rescale *rescale, size_t row, size_t channel, const int64_t *x,
                          const int64_t *residual, size_t count, int32_t *y) {
    for (size_t i = 0; i < count; ++i) {
        const size_t k = row + (rescale->width > 1 ? channel + i : 0);
        int32_t zero = 0;
        if (rescale->x_zero != NULL) zero = rescale->x_zero[rescale->x_zero_width > 1 ? channel + i : 0];
        y[i] = rescale->fraction_bits != 0
                   ? narrow_one(rescale, k, x[i] - zero, residual[i] - rescale->residual_zero)
                   : wide_one(rescale, k, x[i], zero, residual[i]);
    }
}

intonly_status intonly_requantize(const intonly_rescale *rescale, const void *x, intonly_type x_type,
                                  const void *residual, intonly_type residual_type, size_t rows, size_t channels,
                                  void *y, intonly_type y_type) {
    if (rescale == NULL) return INTONLY_ERROR_NULL;
    const intonly_status status = check_rescale(rescale, rows, channels);
    if (status != INTONLY_OK) return status;
    const int joins = rescale->residual_multiplier != NULL;
    if (rescale->fraction_bits != 0 && x_type > INTONLY_S32) return INTONLY_ERROR_ARGUMENT;
    if (!is_type(x_type) || !type_holds(y_type, rescale->lo, rescale->hi)) return INTONLY_ERROR_ARGUMENT;
    if (joins ? !is_type(residual_type) || residual_type > INTONLY_U16 : residual != NULL)
        return INTONLY_ERROR_ARGUMENT;
    if (rows == 0 || channels == 0) return INTONLY_OK;
    if (x == NULL || y == NULL || (joins && residual == NULL)) return INTONLY_ERROR_NULL;
    const int one_zero = rescale->x_zero == NULL || rescale->x_zero_width == 1;
    if (rescale->period == 1 && rescale->width == 1 && one_zero) { /* without channels the array is one long row */
        channels *= rows;
        rows = 1;
    }
    int64_t wide[CHUNK], joining[CHUNK] = {0};
    int32_t values[CHUNK];
    size_t phase = 0;
    for (size_t row = 0; row < rows; ++row) {
        for (size_t channel = 0; channel < channels; channel += CHUNK) {
            const size_t first = row * channels + channel;
            const size_t count = channels - channel < CHUNK ? channels - channel : CHUNK;
            widen(x_type, x, first, count, wide);
            if (joins) widen(residual_type, residual, first, count, joining);
            rescale_chunk(rescale, phase * rescale->width, channel, wide, joining, count, values);
            narrow(y_type, values, count, y, first);
        }
        phase = phase + 1 == rescale->period ? 0 : phase + 1;
    }
    return INTONLY_OK;
}

intonly_status intonly_floor_div(const int64_t *a, size_t count, const int64_t *b, size_t b_count, int64_t *y) {
    if (b_count != 1 && b_count != count) return INTONLY_ERROR_ARGUMENT;
    if (count == 0) return INTONLY_OK;
    if (a == NULL || b == NULL || y == NULL) return INTONLY_ERROR_NULL;
    for (size_t i = 0; i < b_count; ++i) {
        if (b[i] < 1) return INTONLY_ERROR_DOMAIN;
    }
    for (size_t i = 0; i < count; ++i) y[i] = intonly_floor_div_one(a[i], b[b_count > 1 ? i : 0]);
    return INTONLY_OK;
}

intonly_status intonly_isqrt(const int64_t *a, size_t count, int64_t *y) {
    if (count == 0) return INTONLY_OK;
    if (a == NULL || y == NULL) return INTONLY_ERROR_NULL;
    for (size_t i = 0; i < count; ++i) {
        if (a[i] < 0) return INTONLY_ERROR_DOMAIN;
    }
    for (size_t i = 0; i < count; ++i) y[i] = intonly_isqrt_one(a[i]);
    return INTONLY_OK;
}
