/* SPDX-License-Identifier: Apache-2.0 */
#define _DEFAULT_SOURCE
#include "guarded_harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint64_t state = 1;

void random_begin(uint64_t seed) { state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1; }

static uint64_t random_bits(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * UINT64_C(0x2545F4914F6CDD1D) >> 16;
}

int64_t between(int64_t lo, int64_t hi) { return lo + (int64_t)(random_bits() % (uint64_t)(hi - lo + 1)); }
int one_in(int64_t n) { return between(1, n) == 1; }

enum { PAGE = 4096 };

static guarded allocate(int64_t bytes) {
    guarded g;
    g.bytes = (size_t)bytes;
    g.mapped = ((size_t)bytes + 2 * PAGE - 1) / PAGE * PAGE + PAGE;
    g.map = mmap(NULL, g.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED || mprotect(g.map + g.mapped - PAGE, PAGE, PROT_NONE) != 0) abort();
    g.data = g.map + g.mapped - PAGE - bytes;
    return g;
}

void release(guarded g) { (void)munmap(g.map, g.mapped); }

guarded allocate_random(int64_t bytes) {
    guarded g = allocate(bytes);
    for (size_t i = 0; i < g.bytes; ++i) g.data[i] = (uint8_t)random_bits();
    return g;
}

int64_t bytes_of(int64_t type) {
    return type == INTONLY_S32 ? 4 : type == INTONLY_S16 || type == INTONLY_U16 ? 2 : 1;
}

int64_t least_of(int64_t type) {
    return type == INTONLY_S8 ? -128 : type == INTONLY_S16 ? -32768 : type == INTONLY_S32 ? INT32_MIN : 0;
}
int64_t most_of(int64_t type) {
    return type == INTONLY_U8 ? 255 : type == INTONLY_U16 ? 65535 : -1 - least_of(type);
}

static int64_t clamp(int64_t x, int64_t lo, int64_t hi) { return x < lo ? lo : x > hi ? hi : x; }

void put(uint8_t *at, int64_t type, int64_t value) {
    const int32_t whole = (int32_t)value;
    const int16_t half = (int16_t)(uint16_t)(uint64_t)value;
    const uint8_t byte = (uint8_t)(uint64_t)value;
    if (bytes_of(type) == 4) memcpy(at, &whole, 4);
    else if (bytes_of(type) == 2) memcpy(at, &half, 2);
    else *at = byte;
}

static int64_t narrow_operand(int64_t x, int64_t m, int64_t p) {
    const wide moved = p > 0 ? ((wide)x + ((wide)1 << (p - 1))) >> p : (wide)x * (1 << -p);
    const int64_t t = moved < -32768 ? -32768 : moved > 32767 ? 32767 : (int64_t)moved;
    return (t * m + 16384) >> 15;
}

int64_t finish(const constants *c, int64_t channel, int64_t acc, int64_t residual) {
    if (c->form == INTONLY_FORM_ACC) return acc;
    if (c->form == INTONLY_FORM_WIDE) {
        const wide sum = (wide)acc * c->m[channel] + ((wide)1 << (c->p[channel] - 1));
        return clamp((int64_t)(sum >> c->p[channel]) + c->zero_point, c->lo, c->hi);
    }
    int64_t sum = narrow_operand(acc, c->m[channel], c->p[channel]);
    if (c->joins) sum += narrow_operand(residual - c->residual_zero, c->m_r[channel], c->p_r[channel]);
    return clamp((sum + c->zero_point * (1 << c->k) + (1 << (c->k - 1))) >> c->k, c->lo, c->hi);
}

static int32_t sign(void) { return one_in(2) ? -1 : 1; }

constants draw_constants(int64_t channels, int64_t limit) {
    static const int64_t wide_types[] = {INTONLY_S8, INTONLY_U8, INTONLY_S16, INTONLY_U16, INTONLY_S32};
    constants c;
    memset(&c, 0, sizeof c);
    c.form = one_in(6) ? INTONLY_FORM_ACC : one_in(5) ? INTONLY_FORM_WIDE : INTONLY_FORM_NARROW;
    c.y_type = c.form == INTONLY_FORM_ACC    ? INTONLY_S32
               : c.form == INTONLY_FORM_WIDE ? wide_types[between(0, 4)]
                                             : between(INTONLY_S8, INTONLY_U8);
    c.lo = least_of(c.y_type);
    c.hi = most_of(c.y_type);
    c.zero_point = one_in(2) ? 0 : between(c.lo / 2, c.hi / 2);
    if (one_in(2) && c.form != INTONLY_FORM_ACC) {
        c.lo = between(c.lo, c.zero_point);
        c.hi = between(c.zero_point, c.hi);
    }
    c.k = between(4, 7);
    c.joins = c.form == INTONLY_FORM_NARROW && one_in(2);
    c.residual_type = between(0, 1);
    c.residual_zero = one_in(2) ? 0 : between(least_of(c.residual_type), most_of(c.residual_type));
    c.bias = malloc(4 * (size_t)channels);
    c.m = malloc(4 * (size_t)channels);
    c.m_r = malloc(4 * (size_t)channels);
    c.p = malloc((size_t)channels);
    c.p_r = malloc((size_t)channels);
    const int left = one_in(4), far_left = one_in(8), any = one_in(8), right = one_in(8), huge = one_in(8);
    int bits = 0;
    while (limit >> bits > 0 && bits < 30) ++bits;
    for (int64_t i = 0; i < channels; ++i) {
        c.bias[i] = huge ? (int32_t)between(-(15 << 27), 15 << 27) : (int32_t)between(-limit / 2, limit / 2);
        if (c.form == INTONLY_FORM_WIDE) {
            c.m[i] = one_in(20) ? 0 : sign() * (int32_t)between(INT64_C(1) << 30, INT32_MAX);
            c.p[i] = (int8_t)clamp(31 + bits - between(4, 20), 1, 62);
            if (any) c.p[i] = (int8_t)between(1, 62);
        } else {
            c.m[i] = one_in(20) ? 0 : sign() * (int32_t)between(16384, 32767);
            c.p[i] = (int8_t)clamp(bits - between(11, 17), left ? -15 : 0, 30);
            if (any) c.p[i] = (int8_t)between(-15, 30);
            if (far_left) c.p[i] = -15;
        }
        c.m_r[i] = one_in(20) ? 0 : sign() * (int32_t)between(16384, 32767);
        c.p_r[i] = (int8_t)(right ? between(-15, 30) : between(far_left ? -15 : -7, any ? 2 : 0));
    }
    return c;
}

void drop_constants(constants c) {
    free(c.bias);
    free(c.m);
    free(c.m_r);
    free(c.p);
    free(c.p_r);
}

int64_t space(int64_t number) { return number << INTONLY_SPACE_SHIFT; }

int same(const char *what, const uint8_t *got, const uint8_t *want, int64_t bytes, uint64_t seed) {
    for (int64_t i = 0; i < bytes; ++i)
        if (got[i] != want[i]) {
            (void)fprintf(stderr, "%s, seed %llu: byte %lld of %lld is %d, not %d\n", what, (unsigned long long)seed,
                          (long long)i, (long long)bytes, got[i], want[i]);
            return 0;
        }
    return 1;
}

int64_t channels_drawn(void) {
    static const int64_t edges[] = {1, 8, 15, 16, 16, 17, 31, 32, 32, 33, 48, 63, 64, 65, 80, 96, 97, 128, 129, 200};
    return one_in(2) ? edges[between(0, 19)] : between(1, 150);
}
