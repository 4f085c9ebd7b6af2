/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as a program: what the check lets pass must run without leaving its memory, with every table of kernels.
 *
 * An input is a number of words (2 bytes), which table (1 byte), how many threads (1 byte), the words, and constants.
 * Built with libFuzzer it is guided by coverage; with INTONLY_REPLAY it is a program that runs the files it is given.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exec/exec.h"

enum { SPACES = 6, FIRST_OUTPUT = 4, MOST_WORDS = 1200, MOST_THREADS = 3 };

static size_t sizes[SPACES] = {0, 1 << 14, 4096, 2056, 3000, 1032};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Return a block that ends where the sanitizer begins to look; constants and arena have their slack. */
static uint8_t *block(int space, const uint8_t *from) {
    const size_t slack = space < INTONLY_CALLER ? INTONLY_SLACK : 0;
    uint8_t *p = aligned_alloc(64, (sizes[space] + slack + 63) & ~(size_t)63);
    if (p == NULL) abort();
    if (from != NULL)
        memcpy(p, from, sizes[space]);
    else
        for (size_t i = 0; i < sizes[space]; ++i) p[i] = (uint8_t)(i * 37 + (i >> 5));
    if (from != NULL) memset(p + sizes[space], 0, slack);
    return p;
}

static void run(const int64_t *words, size_t count, const intonly_kernels *kernels, const uint8_t *constants,
                unsigned threads) {
    uint8_t *bases[SPACES];
    for (int i = 0; i < SPACES; ++i) bases[i] = block(i, i == INTONLY_CONSTANTS ? constants : NULL);
    const intonly_spaces spaces = {sizes, SPACES, FIRST_OUTPUT, bases[INTONLY_CONSTANTS]};
    intonly_fault fault = {0, NULL};
    if (intonly_program_check(words, count, kernels, &spaces, &fault) == INTONLY_OK) {
        intonly_pool *pool = NULL;
        void *memory = aligned_alloc(64, (intonly_pool_bytes(threads) + 63) & ~(size_t)63);
        if (memory == NULL || intonly_pool_start(memory, threads, &pool) != INTONLY_OK) abort();
        intonly_program_run(words, count, kernels, bases, pool, NULL);
        intonly_pool_stop(pool);
        free(memory);
    } else if (fault.what == NULL) {
        abort(); /* a refusal says what is wrong */
    }
    for (int i = 0; i < SPACES; ++i) free(bases[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int64_t words[MOST_WORDS];
    if (size < 4) return 0;
    const size_t count = (size_t)data[0] | (size_t)data[1] << 8;
    const intonly_kernels *kernels = intonly_kernels_of((intonly_isa)(data[2] % INTONLY_ISAS));
    if (kernels == NULL || count > MOST_WORDS || size < 4 + 8 * count) return 0;
    memcpy(words, data + 4, 8 * count);
    sizes[INTONLY_CONSTANTS] = size - 4 - 8 * count;
    run(words, count, kernels, data + 4 + 8 * count, 1 + data[3] % MOST_THREADS);
    return 0;
}

#ifdef INTONLY_REPLAY
int main(int count, char **paths) {
    static uint8_t data[1 << 20];
    for (int i = 1; i < count; ++i) {
        FILE *file = fopen(paths[i], "rb");
        if (file == NULL) return 1;
        const size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%d files\n", count - 1);
    return 0;
}
#endif
