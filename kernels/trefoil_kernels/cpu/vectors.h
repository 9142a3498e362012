/* What the C files share: vectors of LANES numbers, the kinds of number that rows hold, sums and roundings. */

#pragma once

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float quads __attribute__((vector_size(16)));
typedef float floats_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum kind { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

INLINE floats load(const float *at) { return *(const floats_at *)at; }
INLINE void store(float *at, floats x) { *(floats_at *)at = x; }
INLINE floats all(float x) { return x - (floats){0}; }

INLINE float widened(uint16_t x) {
    union { uint32_t bits; float value; } both = {(uint32_t)x << 16};
    return both.value;
}

/* to the nearest, ties to even; NaN stays NaN */
INLINE uint16_t narrowed(float x) {
    union { float value; uint32_t bits; } both = {x};
    if (x != x) return 0x7fc0;
    return (uint16_t)((both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16);
}

INLINE quads folded(floats x) {
    quads parts[LANES / 4], total;
    memcpy(parts, &x, sizeof x);
    total = parts[0];
    UNROLL for (int i = 1; i < LANES / 4; i++) total += parts[i];
    return total;
}

INLINE float sum(floats x) {
    quads four = folded(x);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* Number `at` of a row that holds any kind. */
INLINE float number(enum kind kind, const void *row, long at) {
    if (kind == F32) return ((const float *)row)[at];
    if (kind == BF16) return widened(((const uint16_t *)row)[at]);
    return (float)((const int8_t *)row)[at];
}

INLINE void put(enum kind kind, void *row, long at, float x) {
    if (kind == F32) ((float *)row)[at] = x;
    else ((uint16_t *)row)[at] = narrowed(x);
}

INLINE const void *shifted(enum kind kind, const void *base, long count) {
    return (const char *)base + count * (kind == F32 ? 4 : kind == BF16 ? 2 : 1);
}

INLINE long least(long a, long b) { return a < b ? a : b; }

enum { SMALL_WORK = 1 << 15 }; /* multiplications for which waking another thread does not pay */
