/* SPDX-License-Identifier: Apache-2.0
 *
 * The gemm of a table against sums written out in 64 bits: random shapes with every tail, every form of epilogue.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guarded_harness.h"

static int64_t code_at(const uint8_t *x, int words) {
    int16_t word;
    if (!words) return *x;
    memcpy(&word, x, sizeof word);
    return word;
}

/* One gemm: a convolution of random taps, strides and margins, or a linear layer. */
int check_gemm(const intonly_kernels *table, uint64_t seed) {
    const int linear = one_in(4);
    intonly_gemm s;
    memset(&s, 0, sizeof s);
    s.kind = INTONLY_KIND_gemm;
    s.n = linear ? 1 : between(1, 3);
    s.oh = linear ? 1 : between(1, 7);
    s.ow = linear && one_in(2) ? 1 : between(1, one_in(4) ? 60 : 12);
    s.oc = channels_drawn();
    s.taps = linear ? 1 : between(1, 9);
    const int slack = one_in(2), words = one_in(3);
    const int64_t depth = slack ? between(1, 70) : 4 * between(1, one_in(3) ? 80 : 12), item = 1 + words;
    const int64_t tap_bytes = (depth * item + 3) & ~INT64_C(3);
    s.tap_bytes = tap_bytes;
    s.channels_first = between(0, 1);

    /* x: pixel strides that overlap or leave gaps; the last tap of the last pixel ends the buffer. */
    s.x_type = words ? INTONLY_S16 : INTONLY_U8;
    s.x_w = between(1, depth + 8) * item;
    s.x_h = s.ow * s.x_w + between(0, 30) * item;
    s.x_n = s.oh * s.x_h + between(0, 30) * item;
    int64_t offsets[9], furthest = 0;
    for (int64_t t = 0; t < s.taps; ++t) {
        offsets[t] = between(0, 300) * item;
        if (offsets[t] > furthest) furthest = offsets[t];
    }
    const int64_t last = (s.n - 1) * s.x_n + (s.oh - 1) * s.x_h + (s.ow - 1) * s.x_w;
    const int64_t x_bytes = last + furthest + depth * item + (slack ? INTONLY_SLACK : 0);
    guarded x = allocate_random(x_bytes);
    const int64_t codes = s.taps * depth, most = words ? 4000 / codes : 128; /* of a weight: sums stay below 2^27 */
    const int extreme = one_in(6) && most >= 128;
    if (extreme) memset(x.data, 255, (size_t)x_bytes);
    for (int64_t i = 1; extreme && words && i < x_bytes; i += 2) x.data[i] = 127;

    int8_t *w = malloc((size_t)(s.oc * codes));
    const int drawn = one_in(3) ? 128 : one_in(2) ? (int)between(1, 4) : (int)between(1, 40);
    const int weight = drawn <= most ? drawn : most > 1 ? (int)most : 1;
    const int step = weight <= 4 && weight * 31 <= most ? (int)between(1, 31) : 1; /* between few levels, which may be stored in fewer bits */
    for (int64_t i = 0; i < s.oc * codes; ++i)
        w[i] = (int8_t)(extreme ? (one_in(2) ? 127 : -128) : step * between(-weight, weight - 1));
    constants c = draw_constants(s.oc, codes * weight * step * (words ? 5000 : 20));

    s.y_type = c.y_type;
    const int64_t y_size = bytes_of(c.y_type);
    s.y_w = (s.oc + (one_in(2) ? 0 : between(0, 70))) * y_size;
    s.y_h = s.ow * s.y_w + between(0, 3) * (one_in(2) ? s.y_w : y_size);
    s.y_n = s.oh * s.y_h + between(0, 3) * (one_in(2) ? s.y_w : y_size);
    const int64_t y_bytes = (s.n - 1) * s.y_n + (s.oh - 1) * s.y_h + (s.ow - 1) * s.y_w + s.oc * y_size;
    guarded y = allocate_random(y_bytes);
    uint8_t *want = malloc((size_t)y_bytes), *before = malloc((size_t)y_bytes);
    memcpy(want, y.data, (size_t)y_bytes);
    memcpy(before, y.data, (size_t)y_bytes);

    /* The residual has its own strides, or is y itself. */
    const int in_place = c.joins && c.residual_type == c.y_type && one_in(3);
    s.r_type = c.residual_type;
    s.r_w = in_place ? s.y_w : one_in(4) ? 0 : s.oc + (one_in(2) ? 0 : between(0, 9));
    s.r_h = in_place ? s.y_h : one_in(4) ? 0 : s.ow * s.r_w + between(0, 9);
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
                        for (int64_t d = 0; d < depth; ++d)
                            acc += code_at(at + offsets[t] + d * item, words) * w[(o * s.taps + t) * depth + d];
                    if (c.joins) {
                        code = residual[n * s.r_n + i * s.r_h + j * s.r_w + o];
                        if (c.residual_type == INTONLY_S8 && code > 127) code -= 256;
                    }
                    if (llabs(acc) > limit) limit = llabs(acc);
                    put(want + n * s.y_n + i * s.y_h + j * s.y_w + o * y_size, c.y_type, finish(&c, o, acc, code));
                }

    const intonly_weights weights = {s.oc, s.taps, depth, tap_bytes, w, c.bias, c.form,
                                     c.form == INTONLY_FORM_ACC ? NULL : c.m, c.form == INTONLY_FORM_ACC ? NULL : c.p,
                                     c.joins ? c.m_r : NULL, c.joins ? c.p_r : NULL, c.k, limit, 0, words};
    const size_t packed_bytes = table->gemm_size(&weights);
    if (packed_bytes == 0 || packed_bytes % 64 != 0) abort();
    guarded constant = allocate_random((int64_t)packed_bytes);
    uint8_t *packed = constant.data;
    table->gemm_pack(&weights, packed);

    uint8_t *bases[] = {packed, (uint8_t *)offsets, x.data, r.data, y.data};
    s.packed = space(0);
    s.packed_bytes = (int64_t)packed_bytes;
    s.tap_offsets = space(1);
    s.x_ref = space(2);
    s.r_ref = !c.joins ? INTONLY_ABSENT : in_place ? space(4) : space(3);
    s.y_ref = space(4);
    SET_SCALARS(s, c);
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
    drop_constants(c);
    release(x);
    release(y);
    release(r);
    release(constant);
    return good;
}
