/* SPDX-License-Identifier: Apache-2.0
 *
 * Elements of any intonly_type as int64, a chunk at a time, so that arithmetic is written once for all types.
 *
 * Elements may stand at any byte address: they go through memcpy, which compiles to one load or store where the
 * processor allows it.
 */
#ifndef INTONLY_ELEMENTS_H
#define INTONLY_ELEMENTS_H

#include <stdint.h>
#include <string.h>

#include "intonly.h"

/* Elements that a kernel widens, works on and narrows at a time; a few such buffers stay in the first-level cache. */
#define INTONLY_CHUNK 128

/* T(intonly_type, C type) for every element type. */
#define INTONLY_TYPES(T)                                                                                               \
    T(INTONLY_S8, int8_t)                                                                                              \
    T(INTONLY_U8, uint8_t)                                                                                             \
    T(INTONLY_S16, int16_t)                                                                                            \
    T(INTONLY_U16, uint16_t)                                                                                           \
    T(INTONLY_S32, int32_t)                                                                                            \
    T(INTONLY_U32, uint32_t)                                                                                           \
    T(INTONLY_S64, int64_t)

/* Return the bytes of one element. */
static inline int64_t intonly_bytes_of(int64_t type) {
    switch (type) {
#define INTONLY_BYTES(name, element)                                                                                   \
    case name: return (int64_t)sizeof(element);
        INTONLY_TYPES(INTONLY_BYTES)
#undef INTONLY_BYTES
    default: return 0;
    }
}

/* Loops over elements whose distance is known when it is that of neighbours, or 0: vectors can do those. */
#define INTONLY_READ_RUN(element, by)                                                                                  \
    for (int64_t i = 0; i < count; ++i) {                                                                              \
        element value;                                                                                                 \
        memcpy(&value, source + i * (by), sizeof value);                                                               \
        values[i] = (int64_t)value;                                                                                    \
    }
#define INTONLY_WRITE_RUN(element, by)                                                                                 \
    for (int64_t i = 0; i < count; ++i) {                                                                              \
        const element value = (element)values[i];                                                                      \
        memcpy(target + i * (by), &value, sizeof value);                                                               \
    }

/* Read `count` elements that stand `stride` bytes apart. */
static inline void intonly_load(const uint8_t *source, int64_t type, int64_t stride, int64_t count, int64_t *values) {
    switch (type) {
#define INTONLY_LOAD(name, element)                                                                                    \
    case name:                                                                                                         \
        if (stride == (int64_t)sizeof(element)) {                                                                      \
            INTONLY_READ_RUN(element, (int64_t)sizeof(element))                                                        \
        } else if (stride == 0) {                                                                                      \
            INTONLY_READ_RUN(element, 0)                                                                               \
        } else {                                                                                                       \
            INTONLY_READ_RUN(element, stride)                                                                          \
        }                                                                                                              \
        break;
        INTONLY_TYPES(INTONLY_LOAD)
#undef INTONLY_LOAD
    default: break;
    }
}

/* Write `count` elements `stride` bytes apart; the values fit the type. */
static inline void intonly_store(const int64_t *values, int64_t count, uint8_t *target, int64_t type, int64_t stride) {
    switch (type) {
#define INTONLY_STORE(name, element)                                                                                   \
    case name:                                                                                                         \
        if (stride == (int64_t)sizeof(element)) {                                                                      \
            INTONLY_WRITE_RUN(element, (int64_t)sizeof(element))                                                       \
        } else {                                                                                                       \
            INTONLY_WRITE_RUN(element, stride)                                                                         \
        }                                                                                                              \
        break;
        INTONLY_TYPES(INTONLY_STORE)
#undef INTONLY_STORE
    default: break;
    }
}
#undef INTONLY_READ_RUN
#undef INTONLY_WRITE_RUN

/* Return an index that lies in 0..entries-1: the last for one that does not (negative ones are large here). */
static inline uint64_t intonly_index(uint64_t index, int64_t entries) {
    return index < (uint64_t)entries ? index : (uint64_t)entries - 1;
}

/* values[i] = table[values[i] - offset] for a contiguous table of `entries`.
 *
 * The certificate proves that every index lies inside; one that does not (a forged program) takes the last entry. */
static inline void intonly_pick(const uint8_t *table, int64_t type, int64_t entries, int64_t offset, int64_t count,
                                int64_t *values) {
    switch (type) {
#define INTONLY_PICK(name, element)                                                                                    \
    case name:                                                                                                         \
        for (int64_t i = 0; i < count; ++i) {                                                                          \
            const uint64_t index = intonly_index((uint64_t)values[i] - (uint64_t)offset, entries);                     \
            element value;                                                                                             \
            memcpy(&value, table + index * sizeof value, sizeof value);                                                \
            values[i] = (int64_t)value;                                                                                \
        }                                                                                                              \
        break;
        INTONLY_TYPES(INTONLY_PICK)
#undef INTONLY_PICK
    default: break;
    }
}

#endif
