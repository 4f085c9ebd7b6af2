/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs against their check. Sound programs of random steps pass it, and give the same bytes with every table of
 * kernels and any number of threads, also when steps that need no wait run beside each other. The same programs with
 * words or constants changed, and words at random, either break a rule or run without leaving their memory: every space
 * ends (or begins) at a page that cannot be touched, and the sanitizers look for the rest. Prints how many programs of
 * each sort it ran.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exec_programs.h"

static intonly_status check_program(size_t count, intonly_fault *fault) {
    const intonly_spaces spaces = {space_bytes, SPACES, OUTPUT, bases[INTONLY_CONSTANTS]};
    return intonly_program_check(words, count, kernels, &spaces, fault);
}

static intonly_pool *pools[4]; /* by number of threads */
static uint8_t saved[1 << 18]; /* the arena and the outputs before a run */

/* Forget what attentions have left in their scratch: it depends on the kernels and the threads. */
static void forget_scratch(void) {
    for (size_t at = 0; at < word_count; at += (size_t)words[at + 1]) {
        if (words[at] != INTONLY_KIND_attention) continue;
        const intonly_attention *s = (const intonly_attention *)(const void *)(words + at);
        memset(intonly_at(bases, s->scratch), 0, (size_t)(s->parts * s->scratch_bytes));
    }
}

/* Run a program that passed, return a digest of what it wrote, and undo that. Nothing may be written beside. */
static uint64_t run_program(unsigned threads) {
    uint64_t sum = 0;
    size_t at = 0;
    for (int s = INTONLY_ARENA; s < SPACES; s = s == INTONLY_ARENA ? OUTPUT : s + 1) {
        memcpy(saved + at, region[s], region_bytes[s]);
        at += region_bytes[s];
    }
    REQUIRE(at <= sizeof saved);
    protect(1);
    intonly_program_run(words, word_count, kernels, bases, pools[threads], NULL);
    protect(0);
    forget_scratch();
    at = 0;
    for (int s = INTONLY_ARENA; s < SPACES; s = s == INTONLY_ARENA ? OUTPUT : s + 1) {
        const size_t before = (size_t)(bases[s] - region[s]), behind = before + space_bytes[s];
        REQUIRE(memcmp(region[s], saved + at, before) == 0);
        REQUIRE(memcmp(region[s] + behind, saved + at + behind, region_bytes[s] - behind) == 0);
        sum = digest(sum, bases[s], space_bytes[s]);
        memcpy(region[s], saved + at, region_bytes[s]);
        at += region_bytes[s];
    }
    return sum;
}

static const intonly_kernels *tables[INTONLY_ISAS];
static int table_count;

static unsigned long steps_made[INTONLY_KINDS];

static const intonly_head *step_at(size_t at) { return (const intonly_head *)(const void *)(words + at); }

/* Put the steps that run beside each other into another order: first those of several parts, from the last to the
 * first, then those of one part, which are one thread's. */
static void reorder(void) {
    static int64_t made[MOST_WORDS];
    size_t count = 0;
    for (size_t begin = 0, end; begin < word_count; begin = end) {
        size_t at[64], steps = 0;
        end = begin;
        do {
            at[steps++] = end;
            end += (size_t)step_at(end)->words;
        } while (end < word_count && step_at(end)->beside);
        for (size_t i = 0; i < 2 * steps; ++i) {
            const intonly_head *head = step_at(at[i < steps ? steps - 1 - i : i - steps]);
            if ((head->parts == 1) != (i >= steps)) continue;
            memcpy(made + count, head, (size_t)head->words * sizeof *words);
            count += (size_t)head->words;
        }
    }
    REQUIRE(count == word_count);
    memcpy(words, made, count * sizeof *words);
}

static unsigned long let_loose, kept_waiting;

/* Let the steps of a sound program run beside each other; that changes no byte, and no more of them may. */
static void test_beside(uint64_t expected) {
    const intonly_spaces spaces = {space_bytes, SPACES, OUTPUT, bases[INTONLY_CONSTANTS]};
    intonly_fault fault = {0, NULL};
    REQUIRE(intonly_program_loosen(words, word_count, kernels, &spaces, &fault) == INTONLY_OK);
    REQUIRE(check_program(word_count, &fault) == INTONLY_OK);
    for (unsigned threads = 1; threads <= 3; ++threads) REQUIRE(run_program(threads) == expected);
    size_t step = 0;
    for (size_t at = 0; at < word_count; at += (size_t)step_at(at)->words, ++step) {
        let_loose += step_at(at)->beside != 0;
        if (step_at(at)->beside) continue;
        ++kept_waiting;
        ((intonly_head *)(void *)(words + at))->beside = 1;
        REQUIRE(check_program(word_count, &fault) == INTONLY_ERROR_ARGUMENT && fault.step == step);
        ((intonly_head *)(void *)(words + at))->beside = 0;
    }
    reorder();
    REQUIRE(run_program(1) == expected);
}

/* A sound program: it passes, and all tables and teams agree. */
static void test_sound(uint64_t seed) {
    uint64_t expected = 0;
    place_spaces(seed % 2 == 0);
    for (int t = 0; t < table_count; ++t) {
        make_program(seed, tables[t]);
        intonly_fault fault = {0, NULL};
        if (check_program(word_count, &fault) != INTONLY_OK) {
            fprintf(stderr, "seed %lu, table %s, step %zu: %s\n", (unsigned long)seed, tables[t]->isa, fault.step,
                    fault.what);
            exit(1);
        }
        for (unsigned threads = 1; threads <= 3; ++threads) {
            const uint64_t got = run_program(threads);
            if (t == 0 && threads == 1) expected = got;
            if (got != expected) {
                fprintf(stderr, "seed %lu, table %s, %u threads: other bytes\n", (unsigned long)seed, tables[t]->isa,
                        threads);
                exit(1);
            }
        }
        test_beside(expected);
    }
    for (size_t at = 0; at < word_count; at += (size_t)words[at + 1]) ++steps_made[words[at]];
}

/* Whether all steps of a program that passed are small enough for a test to run them. */
static int is_small(void) {
    for (size_t at = 0; at < word_count; at += (size_t)words[at + 1]) {
        const void *step = words + at;
        const int64_t limit = 1 << 19;
        int64_t work = 1;
#define TIMES(factor)                                                                                                  \
    do {                                                                                                               \
        if ((factor) > limit || (work *= (factor)) > limit) return 0;                                                  \
    } while (0)
        const int64_t *extent = NULL;
        switch (words[at]) {
        case INTONLY_KIND_gemm: {
            const intonly_gemm *s = step;
            const int64_t all[] = {s->n, s->oh, s->ow, s->oc, s->taps, s->tap_bytes};
            for (int i = 0; i < 6; ++i) TIMES(all[i]);
            break;
        }
        case INTONLY_KIND_window: {
            const intonly_window *s = step;
            const int64_t all[] = {s->n, s->oh, s->ow, s->c, s->taps};
            for (int i = 0; i < 5; ++i) TIMES(all[i]);
            break;
        }
        case INTONLY_KIND_contract:
            extent = ((const intonly_contract *)step)->extent;
            for (int i = 0; i < INTONLY_REDUCED; ++i) TIMES(((const intonly_contract *)step)->reduced[i]);
            break;
        case INTONLY_KIND_map: extent = ((const intonly_map *)step)->extent; break;
        case INTONLY_KIND_norm:
            extent = ((const intonly_norm *)step)->extent;
            TIMES(((const intonly_norm *)step)->count);
            break;
        case INTONLY_KIND_attention: {
            const intonly_attention *s = step;
            extent = s->extent;
            TIMES(s->keys);
            TIMES(s->depth);
            TIMES(s->width);
            break;
        }
        case INTONLY_KIND_copy: extent = ((const intonly_copy *)step)->extent; break;
        case INTONLY_KIND_gather: {
            const intonly_gather *s = step;
            TIMES(s->outer);
            TIMES(s->count);
            TIMES(s->row_bytes);
            break;
        }
        default: {
            const intonly_halo *s = step;
            TIMES(s->n);
            TIMES(s->top + s->h + s->bottom);
            TIMES(s->left + s->w + s->right);
            TIMES(s->pixel_bytes);
        }
        }
        for (int i = 0; extent != NULL && i < INTONLY_RANK; ++i) TIMES(extent[i]);
#undef TIMES
    }
    return 1;
}

static int64_t odd_word(void) {
    static const int64_t odd[] = {0,
                                  1,
                                  -1,
                                  2,
                                  3,
                                  4,
                                  5,
                                  6,
                                  7,
                                  8,
                                  63,
                                  64,
                                  65,
                                  127,
                                  128,
                                  255,
                                  256,
                                  4095,
                                  4096,
                                  4097,
                                  -2,
                                  -64,
                                  INT32_MAX,
                                  INT64_C(1) << 31,
                                  -(INT64_C(1) << 31),
                                  INT64_C(1) << 32,
                                  INT64_C(1) << 40,
                                  INT64_C(1) << 48,
                                  (INT64_C(1) << 48) - 1,
                                  INT64_C(1) << 49,
                                  INT64_C(5) << 48,
                                  INT64_C(6) << 48,
                                  INT64_MAX,
                                  INT64_MIN,
                                  INT64_MIN + 1};
    switch (below(4)) {
    case 0: return (int64_t)random64();
    case 1: return ref_of(below(SPACES + 1), below(1 << 16));
    default: return odd[below(sizeof odd / sizeof *odd)];
    }
}

static void change_word(void) {
    int64_t *word = words + below((int64_t)word_count);
    switch (below(6)) {
    case 0: *word = (int64_t)((uint64_t)*word + (uint64_t)between(-9, 9)); break;
    case 1: *word = (int64_t)((uint64_t)*word ^ (UINT64_C(1) << below(64))); break;
    case 2: *word = words[below((int64_t)word_count)]; break;
    case 3: *word = (int64_t)((uint64_t)*word * 2); break;
    case 4: *word = below(600); break;
    default: *word = odd_word(); break;
    }
}

typedef struct tally {
    unsigned long tried, passed, ran;
} tally;

static void try_program(tally *t) {
    intonly_fault fault = {0, NULL};
    ++t->tried;
    const intonly_status status = check_program(word_count, &fault);
    REQUIRE((status == INTONLY_OK) == (fault.what == NULL));
    if (status != INTONLY_OK) return;
    ++t->passed;
    if (!is_small()) return;
    ++t->ran;
    for (unsigned threads = 1; threads <= 3; threads += 2) (void)run_program(threads);
}

/* A program with some words and constants changed. */
static void test_changed(uint64_t seed, tally *t) {
    place_spaces(seed % 2 == 0);
    make_program(seed, tables[seed % (uint64_t)table_count]);
    if (word_count == 0) return;
    for (int round = 0; round < 12; ++round) {
        static int64_t kept[MOST_WORDS];
        const size_t count = word_count;
        memcpy(kept, words, count * sizeof *words);
        const int64_t place = below(constants_used > 0 ? constants_used : 1);
        const uint8_t byte = bases[INTONLY_CONSTANTS][place];
        if (one_in(3)) bases[INTONLY_CONSTANTS][place] = (uint8_t)random64();
        if (!one_in(6))
            for (int64_t changes = between(1, 3); changes > 0; --changes) change_word();
        if (one_in(20)) word_count -= (size_t)below((int64_t)word_count);
        try_program(t);
        bases[INTONLY_CONSTANTS][place] = byte;
        word_count = count;
        memcpy(words, kept, count * sizeof *words);
    }
}

/* One step of the right length whose words are anything. */
static void test_random(uint64_t seed, tally *t) {
    static const size_t lengths[INTONLY_KINDS] = {
#define LENGTH(name) sizeof(intonly_##name) / sizeof(int64_t),
        INTONLY_STEPS(LENGTH)
#undef LENGTH
    };
    place_spaces(seed % 2 == 0);
    random_state = seed * 2 + 1;
    kernels = tables[seed % (uint64_t)table_count];
    const int64_t kind = below(INTONLY_KINDS);
    word_count = lengths[kind];
    for (int round = 0; round < 20; ++round) {
        for (size_t i = 4; i < word_count; ++i)
            words[i] = one_in(2)   ? 1
                       : one_in(2) ? below(3) - 1
                       : one_in(2) ? ref_of(below(SPACES), 64 * below(20))
                                   : odd_word();
        words[0] = kind;
        words[1] = (int64_t)word_count;
        words[2] = between(1, 5);
        words[3] = below(2);
        for (size_t i = 0; i < 4096; ++i) bases[INTONLY_CONSTANTS][i] = (uint8_t)(one_in(8) ? random64() : 1);
        try_program(t);
    }
}

int main(int count, char **arguments) {
    const uint64_t programs = count > 1 ? strtoull(arguments[1], NULL, 10) : 1000;
    const uint64_t first = count > 2 ? strtoull(arguments[2], NULL, 10) : 0;
    static uint8_t memory[4][16384] __attribute__((aligned(64)));
    tally changed = {0, 0, 0}, random = {0, 0, 0};
    map_spaces();
    for (unsigned threads = 2; threads <= 3; ++threads) {
        REQUIRE(intonly_pool_bytes(threads) <= sizeof memory[0]);
        REQUIRE(intonly_pool_start(memory[threads], threads, &pools[threads]) == INTONLY_OK);
    }
    for (int isa = 0; isa < INTONLY_ISAS; ++isa)
        if (intonly_kernels_of((intonly_isa)isa) != NULL) tables[table_count++] = intonly_kernels_of((intonly_isa)isa);
    for (uint64_t seed = first; seed < first + programs; ++seed) test_sound(seed);
    REQUIRE(let_loose > programs && kept_waiting > programs);
    for (int kind = 0; kind < INTONLY_KINDS; ++kind) REQUIRE(programs < 300 || steps_made[kind] > programs / 20);
    for (uint64_t seed = first; seed < first + programs; ++seed) test_changed(seed, &changed);
    for (uint64_t seed = first; seed < first + programs; ++seed) test_random(seed, &random);
    for (unsigned threads = 2; threads <= 3; ++threads) intonly_pool_stop(pools[threads]);
    printf("%d tables, %lu sound programs; changed: %lu tried, %lu passed, %lu ran; random: %lu tried, %lu passed, %lu "
           "ran\n",
           table_count, (unsigned long)programs, changed.tried, changed.passed, changed.ran, random.tried,
           random.passed, random.ran);
    return 0;
}
