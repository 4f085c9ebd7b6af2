/* SPDX-License-Identifier: Apache-2.0
 *
 * Times the gemm kernel of an instruction set on the layers of known networks, one thread, and prints GMAC/s, and
 * percent of what a bare loop of vpdpbusd reaches in the same rounds. Weights and codes are random, weights of 8 bits or,
 * where asked for, out of -7..7 (4 bits) or -1..1 (2 bits).
 */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "exec/program.h"
#include "intonly.h"
#include "kernels/kernels.h"

/* k x k taps over ic channels; side x side pixels of oc channels come out. side 1: a linear layer. */
typedef struct layer {
    const char *network;
    int64_t side, ic, oc, k, stride;
    int residual;
} layer;

static const layer layers[] = {
    {"ResNet50", 112, 3, 64, 7, 2, 0},  {"ResNet50", 56, 64, 64, 1, 1, 0},    {"ResNet50", 56, 64, 64, 3, 1, 0},
    {"ResNet50", 56, 64, 256, 1, 1, 0}, {"ResNet50", 56, 64, 256, 1, 1, 1},   {"ResNet50", 56, 256, 64, 1, 1, 0},
    {"ResNet50", 28, 128, 128, 3, 2, 0}, {"ResNet50", 28, 128, 128, 3, 1, 0}, {"ResNet50", 28, 128, 512, 1, 1, 1},
    {"ResNet50", 28, 512, 128, 1, 1, 0}, {"ResNet50", 28, 256, 512, 1, 2, 0}, {"ResNet50", 14, 256, 256, 3, 1, 0},
    {"ResNet50", 14, 256, 1024, 1, 1, 1}, {"ResNet50", 14, 1024, 256, 1, 1, 0}, {"ResNet50", 7, 512, 512, 3, 1, 0},
    {"ResNet50", 7, 512, 2048, 1, 1, 1}, {"ResNet50", 7, 2048, 512, 1, 1, 0}, {"ResNet50", 1, 2048, 1000, 1, 1, 0},
    {"ResNet18", 56, 64, 64, 3, 1, 1},   {"ResNet18", 28, 64, 128, 3, 2, 0},  {"ResNet18", 7, 512, 512, 3, 1, 1},
    {"ResNet20", 32, 3, 16, 3, 1, 0},    {"ResNet20", 32, 16, 16, 3, 1, 1},   {"ResNet20", 16, 16, 32, 3, 2, 0},
    {"ResNet20", 16, 32, 32, 3, 1, 1},   {"ResNet20", 8, 32, 64, 3, 2, 0},    {"ResNet20", 8, 64, 64, 3, 1, 1},
    {"MobileNetV2", 112, 3, 32, 3, 2, 0}, {"MobileNetV2", 112, 32, 16, 1, 1, 0}, {"MobileNetV2", 112, 16, 96, 1, 1, 0},
    {"MobileNetV2", 56, 96, 24, 1, 1, 0}, {"MobileNetV2", 56, 24, 144, 1, 1, 0}, {"MobileNetV2", 56, 144, 24, 1, 1, 1},
    {"MobileNetV2", 28, 144, 32, 1, 1, 0}, {"MobileNetV2", 28, 32, 192, 1, 1, 0}, {"MobileNetV2", 28, 192, 32, 1, 1, 1},
    {"MobileNetV2", 14, 64, 384, 1, 1, 0}, {"MobileNetV2", 14, 384, 64, 1, 1, 1}, {"MobileNetV2", 14, 576, 96, 1, 1, 1},
    {"MobileNetV2", 7, 160, 960, 1, 1, 0}, {"MobileNetV2", 7, 960, 160, 1, 1, 1},
    {"MobileNetV2", 7, 320, 1280, 1, 1, 0},
    {"Autoencoder", 1, 640, 128, 1, 1, 0}, {"Autoencoder", 1, 128, 128, 1, 1, 0}, {"Autoencoder", 1, 128, 8, 1, 1, 0},
    {"Autoencoder", 1, 8, 128, 1, 1, 0}, {"Autoencoder", 1, 128, 640, 1, 1, 0},
    {"Decoder", 1, 4096, 4096, 1, 1, 0}, {"Decoder", 1, 4096, 14336, 1, 1, 0}, {"Decoder", 1, 14336, 4096, 1, 1, 0},
};
enum { LAYERS = sizeof layers / sizeof *layers, ROUNDS = 15, WAYS = 4 };

static double seconds(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Return the GMAC/s of a loop of vpdpbusd on twelve independent accumulators, 0 where there is none. */
static double peak(void) {
#if defined(__x86_64__)
    if (intonly_kernels_of(INTONLY_ISA_AVX512VNNI) == NULL) return 0;
    const int64_t turns = 300000;
    int64_t left = turns;
    const double start = seconds();
#define DOT(i) "vpdpbusd %%zmm1, %%zmm0, %%zmm" #i "\n"
    __asm__ volatile("1:" DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11) DOT(12) DOT(13)
                     "dec %0\n jnz 1b\n vzeroupper"
                     : "+r"(left)
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                       "xmm12", "xmm13", "cc");
    return (double)turns * 12 * 64 / (seconds() - start) * 1e-9;
#else
    return 0;
#endif
}

static void *zeroed(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 127) & ~(size_t)63);
    if (p == NULL) abort();
    memset(p, 0, (bytes + 127) & ~(size_t)63);
    return p;
}

static void *filled(size_t bytes) {
    uint8_t *p = zeroed(bytes);
    for (size_t i = 0; i < bytes; ++i) p[i] = (uint8_t)rand();
    return p;
}

/* A layer ready to run. */
typedef struct ready {
    intonly_gemm step;
    int64_t offsets[64], macs;
    uint8_t *bases[5];
} ready;

/* Weights of about as many bits. */
static int8_t *weights_of(size_t count, int64_t bits) {
    const int spread = bits == 2 ? 3 : bits == 4 ? 15 : 80;
    int8_t *w = zeroed(count);
    for (size_t i = 0; i < count; ++i) w[i] = (int8_t)(rand() % spread - (bits == 8 ? 20 : spread / 2));
    return w;
}

static ready prepare(const intonly_kernels *table, const layer *l, int64_t batch, int64_t bits) {
    ready r;
    memset(&r, 0, sizeof r);
    intonly_gemm *s = &r.step;
    const int64_t side = l->side, width = side * l->stride + l->k - l->stride, few = l->ic < 16 && l->k > 1;
    const int64_t taps = few ? l->k : l->k * l->k, depth = few ? l->k * l->ic : l->ic;
    s->kind = INTONLY_KIND_gemm;
    s->n = side == 1 ? 1 : batch;
    s->oh = side == 1 ? 1 : side;
    s->ow = side == 1 ? batch : side;
    s->oc = l->oc;
    s->x_type = INTONLY_U8;
    s->x_w = l->ic * l->stride;
    s->x_h = width * l->ic * l->stride;
    s->x_n = width * width * l->ic;
    s->y_type = s->r_type = INTONLY_U8;
    s->y_w = s->r_w = l->oc;
    s->y_h = s->r_h = s->ow * l->oc;
    s->y_n = s->r_n = s->oh * s->y_h;
    s->taps = taps;
    s->tap_bytes = (depth + 3) & ~INT64_C(3);
    for (int64_t t = 0; t < taps; ++t)
        r.offsets[t] = few ? t * width * l->ic : t / l->k * width * l->ic + t % l->k * l->ic;
    s->form = INTONLY_FORM_NARROW;
    s->hi = 255;
    s->fraction_bits = l->residual ? 5 : 6;
    r.macs = batch * side * side * l->oc * l->k * l->k * l->ic;

    int32_t *bias = zeroed((size_t)l->oc * 4), *m = zeroed((size_t)l->oc * 4);
    int8_t *p = zeroed((size_t)l->oc), *p_r = zeroed((size_t)l->oc);
    for (int64_t o = 0; o < l->oc; ++o) m[o] = 16384 + rand() % 16384, p[o] = 5, p_r[o] = -5;
    const intonly_weights w = {l->oc, taps, depth, s->tap_bytes, weights_of((size_t)(l->oc * taps * depth), bits), bias,
                               INTONLY_FORM_NARROW, m, p, l->residual ? m : NULL, l->residual ? p_r : NULL,
                               s->fraction_bits, 1 << 28, 0, 0};
    s->packed_bytes = (int64_t)table->gemm_size(&w);
    r.bases[0] = zeroed((size_t)s->packed_bytes);
    table->gemm_pack(&w, r.bases[0]);
    r.bases[2] = filled((size_t)(batch * s->x_n) + INTONLY_SLACK + 64);
    r.bases[3] = filled((size_t)(batch * side * side * l->oc));
    r.bases[4] = zeroed((size_t)(batch * side * side * l->oc));
    s->packed = 0;
    s->tap_offsets = INT64_C(1) << INTONLY_SPACE_SHIFT;
    s->x_ref = INT64_C(2) << INTONLY_SPACE_SHIFT;
    s->r_ref = l->residual ? INT64_C(3) << INTONLY_SPACE_SHIFT : INTONLY_ABSENT;
    s->y_ref = INT64_C(4) << INTONLY_SPACE_SHIFT;
    free((void *)(uintptr_t)w.w);
    free(bias);
    free(m);
    free(p);
    free(p_r);
    return r;
}

/* Read and write so much that the second-level cache holds nothing else. */
static void evict(void) {
    static uint8_t other[4 << 20];
    for (size_t i = 0; i < sizeof other; i += 64) ++other[i];
}

/* Return the seconds of one run, `best` or better: repeated on warm caches, or once after an eviction. */
static double time_step(const intonly_kernels *table, ready *r, int64_t channels_first, int cold, double best) {
    const intonly_kernel run = table->run[INTONLY_KIND_gemm];
    const int64_t repeats = cold ? 1 : 1 + 20000000 / r->macs;
    r->step.channels_first = channels_first;
    r->bases[1] = (uint8_t *)r->offsets;
    if (cold) evict();
    else run(&r->step, r->bases, 0, 1);
    const double start = seconds();
    for (int64_t i = 0; i < repeats; ++i) run(&r->step, r->bases, 0, 1);
    const double each = (seconds() - start) / (double)repeats;
    return each < best ? each : best;
}

int main(int count, char **arguments) {
    const char *isa = count > 1 ? arguments[1] : "best", *network = count > 2 ? arguments[2] : "";
    const int64_t batch = count > 3 ? atoll(arguments[3]) : 1;
    const int64_t bits = count > 4 ? atoll(arguments[4]) : 8;
    const intonly_kernels *table = intonly_kernels_of(intonly_best_isa());
    for (int i = 0; i < INTONLY_ISAS; ++i)
        if (strcmp(intonly_isa_name(i), isa) == 0) table = intonly_kernels_of((intonly_isa)i);
    if (table == NULL) {
        (void)fprintf(stderr, "this machine or build has no %s\n", isa);
        return 2;
    }
    static ready all[LAYERS];
    static double best[LAYERS][WAYS];
    double most = 0;
    for (int i = 0; i < LAYERS; ++i) {
        if (strstr(layers[i].network, network) != NULL) all[i] = prepare(table, &layers[i], batch, bits);
        for (int way = 0; way < WAYS; ++way) best[i][way] = 1;
    }
    for (int round = 0; round < ROUNDS; ++round) {
        for (int i = 0; i < LAYERS; ++i) {
            if (strstr(layers[i].network, network) == NULL) continue;
            for (int way = 0; way < WAYS; ++way)
                best[i][way] = time_step(table, &all[i], way & 1, way >> 1, best[i][way]);
            if (round < 3 || i % 8 == 0) {
                const double now = peak();
                most = now > most ? now : most;
            }
        }
    }
    (void)printf("%s, batch %lld, %lld bits, peak %.0f GMAC/s. Time, GMAC/s, of the peak; warm, then after an eviction from L2;\n"
                 "of each first with all channels of some pixels, then all pixels of some channels (channels_first)\n",
                 table->isa, (long long)batch, (long long)bits, most);
    for (int i = 0; i < LAYERS; ++i) {
        const layer *l = &layers[i];
        if (strstr(l->network, network) == NULL) continue;
        (void)printf("%-12s %3lld^2 %4lld -> %4lld %lldx%lld/%lld %s", l->network, (long long)l->side, (long long)l->ic,
                     (long long)l->oc, (long long)l->k, (long long)l->k, (long long)l->stride,
                     l->residual ? "+r" : "  ");
        for (int way = 0; way < WAYS; ++way) {
            const double speed = (double)all[i].macs / best[i][way] * 1e-9;
            (void)printf(" |%8.2f us %5.1f", best[i][way] * 1e6, speed);
            if (most > 0) (void)printf(" %5.1f %%", 100 * speed / most);
        }
        (void)puts("");
    }
    return 0;
}
