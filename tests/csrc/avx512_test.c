/* SPDX-License-Identifier: Apache-2.0
 *
 * The AVX-512 kernels against sums written out in 64 bits: random shapes with every tail, every form of epilogue,
 * random division into parts. Each buffer ends at a page that may not be touched, and what a kernel must not write is
 * compared, too. Prints the number of steps that agreed.
 */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arith.h"
#include "exec/program.h"
#include "intonly.h"
#include "kernels/kernels.h"

static uint64_t state = 1;

static uint64_t random_bits(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * UINT64_C(0x2545F4914F6CDD1D) >> 16;
}

static int64_t between(int64_t lo, int64_t hi) { return lo + (int64_t)(random_bits() % (uint64_t)(hi - lo + 1)); }
static int one_in(int64_t n) { return between(1, n) == 1; }

/* Memory whose last byte is the last before a page that faults. */
typedef struct guarded {
    uint8_t *map, *data;
    size_t mapped, bytes;
} guarded;

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

static void release(guarded g) { (void)munmap(g.map, g.mapped); }

static guarded allocate_random(int64_t bytes) {
    guarded g = allocate(bytes);
    for (size_t i = 0; i < g.bytes; ++i) g.data[i] = (uint8_t)random_bits();
    return g;
}

static int64_t bytes_of(int64_t type) {
    return type == INTONLY_S32 ? 4 : type == INTONLY_S16 || type == INTONLY_U16 ? 2 : 1;
}

static int64_t least_of(int64_t type) {
    return type == INTONLY_S8 ? -128 : type == INTONLY_S16 ? -32768 : type == INTONLY_S32 ? INT32_MIN : 0;
}
static int64_t most_of(int64_t type) {
    return type == INTONLY_U8 ? 255 : type == INTONLY_U16 ? 65535 : -1 - least_of(type);
}

static int64_t clamp(int64_t x, int64_t lo, int64_t hi) { return x < lo ? lo : x > hi ? hi : x; }

static void put(uint8_t *at, int64_t type, int64_t value) {
    const int32_t wide = (int32_t)value;
    const int16_t half = (int16_t)(uint16_t)(uint64_t)value;
    const uint8_t byte = (uint8_t)(uint64_t)value;
    if (bytes_of(type) == 4) memcpy(at, &wide, 4);
    else if (bytes_of(type) == 2) memcpy(at, &half, 2);
    else *at = byte;
}

/* The constants of an epilogue. */
typedef struct constants {
    int64_t form, joins, residual_type, residual_zero, y_type, zero_point, lo, hi, k;
    int32_t *bias, *m, *m_r;
    int8_t *p, *p_r;
} constants;

static int64_t narrow_operand(int64_t x, int64_t m, int64_t p) {
    const __int128 moved = p > 0 ? ((__int128)x + ((__int128)1 << (p - 1))) >> p : (__int128)x * (1 << -p);
    const int64_t t = moved < -32768 ? -32768 : moved > 32767 ? 32767 : (int64_t)moved;
    return (t * m + 16384) >> 15;
}

static int64_t finish(const constants *c, int64_t channel, int64_t acc, int64_t residual) {
    if (c->form == INTONLY_FORM_ACC) return acc;
    if (c->form == INTONLY_FORM_WIDE) {
        const __int128 sum = (__int128)acc * c->m[channel] + ((__int128)1 << (c->p[channel] - 1));
        return clamp((int64_t)(sum >> c->p[channel]) + c->zero_point, c->lo, c->hi);
    }
    int64_t sum = narrow_operand(acc, c->m[channel], c->p[channel]);
    if (c->joins) sum += narrow_operand(residual - c->residual_zero, c->m_r[channel], c->p_r[channel]);
    return clamp((sum + c->zero_point * (1 << c->k) + (1 << (c->k - 1))) >> c->k, c->lo, c->hi);
}

static int32_t sign(void) { return one_in(2) ? -1 : 1; }

/* Draw an epilogue whose results spread over the range of y. limit: of the accumulators, about. */
static constants draw_constants(int64_t channels, int64_t limit) {
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
        c.bias[i] = huge ? (int32_t)between(-(1 << 29), 1 << 29) : (int32_t)between(-limit / 2, limit / 2);
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

static void drop_constants(constants c) {
    free(c.bias);
    free(c.m);
    free(c.m_r);
    free(c.p);
    free(c.p_r);
}

static int64_t ref(int64_t space) { return space << INTONLY_SPACE_SHIFT; }

/* Compare the whole of y with what it should be; say what differs. */
static int same(const char *what, const uint8_t *got, const uint8_t *want, int64_t bytes, uint64_t seed) {
    for (int64_t i = 0; i < bytes; ++i)
        if (got[i] != want[i]) {
            (void)fprintf(stderr, "%s, seed %llu: byte %lld of %lld is %d, not %d\n", what, (unsigned long long)seed,
                          (long long)i, (long long)bytes, got[i], want[i]);
            return 0;
        }
    return 1;
}

static int64_t channels_drawn(void) {
    static const int64_t edges[] = {1, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 80, 96, 97, 128, 129, 200};
    return one_in(2) ? edges[between(0, 17)] : between(1, 150);
}

/* One gemm: a convolution of random taps, strides and margins, or a linear layer. */
static int check_gemm(const intonly_kernels *table, uint64_t seed) {
    const int linear = one_in(4);
    intonly_gemm s;
    memset(&s, 0, sizeof s);
    s.kind = INTONLY_KIND_gemm;
    s.n = linear ? 1 : between(1, 3);
    s.oh = linear ? 1 : between(1, 7);
    s.ow = linear && one_in(2) ? 1 : between(1, one_in(4) ? 60 : 12);
    s.oc = channels_drawn();
    s.taps = linear ? 1 : between(1, 9);
    const int slack = one_in(2);
    const int64_t depth = slack ? between(1, 70) : 4 * between(1, one_in(3) ? 80 : 12);
    const int64_t tap_bytes = (depth + 3) & ~INT64_C(3);
    s.tap_bytes = tap_bytes;
    s.channels_first = between(0, 1);

    /* x: pixel strides that overlap or leave gaps; the last tap of the last pixel ends the buffer. */
    s.x_type = INTONLY_U8;
    s.x_w = between(1, depth + 8);
    s.x_h = s.ow * s.x_w + between(0, 30);
    s.x_n = s.oh * s.x_h + between(0, 30);
    int64_t offsets[9], furthest = 0;
    for (int64_t t = 0; t < s.taps; ++t) {
        offsets[t] = between(0, 300);
        if (offsets[t] > furthest) furthest = offsets[t];
    }
    const int64_t last = (s.n - 1) * s.x_n + (s.oh - 1) * s.x_h + (s.ow - 1) * s.x_w;
    const int64_t x_bytes = last + furthest + depth + (slack ? INTONLY_SLACK : 0);
    guarded x = allocate_random(x_bytes);
    const int extreme = one_in(6);
    if (extreme) memset(x.data, 255, (size_t)x_bytes);

    int8_t *w = malloc((size_t)(s.oc * s.taps * depth));
    const int weight = one_in(3) ? 128 : one_in(2) ? (int)between(1, 4) : (int)between(1, 40);
    for (int64_t i = 0; i < s.oc * s.taps * depth; ++i)
        w[i] = (int8_t)(extreme ? (one_in(2) ? 127 : -128) : between(-weight, weight - 1));
    constants c = draw_constants(s.oc, s.taps * depth * weight * 20);

    s.y_type = c.y_type;
    const int64_t y_size = bytes_of(c.y_type);
    s.y_w = (s.oc + (one_in(2) ? 0 : between(0, 70))) * y_size;
    s.y_h = s.ow * s.y_w + between(0, 3) * s.y_w;
    s.y_n = s.oh * s.y_h + between(0, 3) * s.y_w;
    const int64_t y_bytes = (s.n - 1) * s.y_n + (s.oh - 1) * s.y_h + (s.ow - 1) * s.y_w + s.oc * y_size;
    guarded y = allocate_random(y_bytes);
    uint8_t *want = malloc((size_t)y_bytes), *before = malloc((size_t)y_bytes);
    memcpy(want, y.data, (size_t)y_bytes);
    memcpy(before, y.data, (size_t)y_bytes);

    /* The residual has its own strides, or is y itself. */
    const int in_place = c.joins && c.residual_type == c.y_type && one_in(3);
    s.r_type = c.residual_type;
    s.r_w = in_place ? s.y_w : s.oc + between(0, 9);
    s.r_h = in_place ? s.y_h : s.ow * s.r_w + between(0, 9);
    s.r_n = in_place ? s.y_n : s.oh * s.r_h + between(0, 9);
    guarded r = allocate_random((s.n - 1) * s.r_n + (s.oh - 1) * s.r_h + (s.ow - 1) * s.r_w + s.oc);
    const uint8_t *residual = in_place ? before : r.data;

    int64_t limit = 0;
    for (int64_t n = 0; n < s.n; ++n)
        for (int64_t i = 0; i < s.oh; ++i)
            for (int64_t j = 0; j < s.ow; ++j)
                for (int64_t o = 0; o < s.oc; ++o) {
                    const uint8_t *at = x.data + n * s.x_n + i * s.x_h + j * s.x_w;
                    int64_t acc = c.bias[o], code = 0;
                    for (int64_t t = 0; t < s.taps; ++t)
                        for (int64_t d = 0; d < depth; ++d) acc += at[offsets[t] + d] * w[(o * s.taps + t) * depth + d];
                    if (c.joins) {
                        code = residual[n * s.r_n + i * s.r_h + j * s.r_w + o];
                        if (c.residual_type == INTONLY_S8 && code > 127) code -= 256;
                    }
                    if (llabs(acc) > limit) limit = llabs(acc);
                    put(want + n * s.y_n + i * s.y_h + j * s.y_w + o * y_size, c.y_type, finish(&c, o, acc, code));
                }

    const intonly_weights weights = {s.oc, s.taps, depth, tap_bytes, w, c.bias, c.form,
                                     c.form == INTONLY_FORM_ACC ? NULL : c.m, c.form == INTONLY_FORM_ACC ? NULL : c.p,
                                     c.joins ? c.m_r : NULL, c.joins ? c.p_r : NULL, c.k, limit, 0};
    const size_t packed_bytes = table->gemm_size(&weights);
    uint8_t *packed = aligned_alloc(64, packed_bytes + 64);
    if (packed_bytes == 0 || packed_bytes % 64 != 0 || packed == NULL) abort();
    table->gemm_pack(&weights, packed);

    uint8_t *bases[] = {packed, (uint8_t *)offsets, x.data, r.data, y.data};
    s.packed = ref(0);
    s.packed_bytes = (int64_t)packed_bytes;
    s.tap_offsets = ref(1);
    s.x_ref = ref(2);
    s.r_ref = !c.joins ? INTONLY_ABSENT : in_place ? ref(4) : ref(3);
    s.y_ref = ref(4);
    s.form = c.form;
    s.residual_zero = c.residual_zero;
    s.zero_point = c.zero_point;
    s.lo = c.lo;
    s.hi = c.hi;
    s.fraction_bits = c.k;
    int good = table->gemm_accepts(&s, packed);
    if (!good) (void)fprintf(stderr, "gemm, seed %llu: packed form not accepted\n", (unsigned long long)seed);
    for (unsigned parts = 1; good && parts <= 3; ++parts) {
        memcpy(y.data, before, (size_t)y_bytes);
        for (unsigned part = parts; part-- > 0;) table->run[INTONLY_KIND_gemm](&s, bases, part, parts);
        good = same("gemm", y.data, want, y_bytes, seed);
    }
    free(w);
    free(want);
    free(before);
    free(packed);
    drop_constants(c);
    release(x);
    release(y);
    release(r);
    return good;
}

int main(int count, char **arguments) {
    const int64_t rounds = count > 1 ? atoll(arguments[1]) : 2000;
    const uint64_t first = count > 2 ? strtoull(arguments[2], NULL, 10) : 1;
    const intonly_kernels *table = intonly_kernels_of(INTONLY_ISA_AVX512VNNI);
    if (table == NULL) {
        (void)puts("0");
        return 0;
    }
    int64_t agreed = 0;
    for (uint64_t seed = first; seed < first + (uint64_t)rounds; ++seed) {
        state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
        if (!check_gemm(table, seed)) return 1;
        ++agreed;
    }
    (void)printf("%lld\n", (long long)agreed);
    return 0;
}
