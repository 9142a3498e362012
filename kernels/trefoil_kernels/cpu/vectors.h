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
typedef uint16_t halves_at __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

enum kind { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3, F16 = 4, E4M3 = 5, E5M2 = 6 };

INLINE floats load(const float *at) { return *(const floats_at *)at; }
INLINE void store(float *at, floats x) { *(floats_at *)at = x; }
INLINE floats all(float x) { return x - (floats){0}; }

INLINE float widened(uint16_t x) {
    union { uint32_t bits; float value; } both = {(uint32_t)x << 16};
    return both.value;
}

/* What an 8-bit float (e4m3) stands for: its exponent is 120 less than float32's. */
INLINE float widened_code(uint8_t code) {
    int size = code & 127;
    union { uint32_t bits; float value; } both = {size == 127 ? 0x7fc00000 : (uint32_t)(size << 20) + (120 << 23)};
    float value = size < 8 ? size * 0x1p-9f : both.value;
    return code & 128 ? -value : value;
}

/* to the nearest, ties to even; NaN stays NaN */
INLINE uint16_t narrowed(float x) {
    union { float value; uint32_t bits; } both = {x};
    if (x != x) return 0x7fc0;
    return (uint16_t)((both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16);
}

/* 2 to a power from -0.5 to 0.5. */
INLINE floats power_of_two(floats part) {
    floats power = all(1.5403530e-4f);
    power = power * part + all(1.3333558e-3f);
    power = power * part + all(9.6181291e-3f);
    power = power * part + all(5.5504109e-2f);
    power = power * part + all(2.4022651e-1f);
    power = power * part + all(6.9314718e-1f);
    return power * part + all(1.0f);
}

INLINE floats exp_below_zero(floats x) {
    floats two = x * all(1.44269504f);
#ifdef __AVX512F__
    __mmask16 is_there = _mm512_cmp_ps_mask((__m512)two, _mm512_set1_ps(-126), _CMP_NLT_UQ);
    __m512 whole = _mm512_roundscale_ps((__m512)two, 0);
    return (floats)_mm512_maskz_scalef_ps(is_there, (__m512)power_of_two(two - (floats)whole), whole);
#else
    ints is_gone = two < all(-126.0f);
    two = (floats)(((ints)two & ~is_gone) | ((ints)all(-126.0f) & is_gone));
    ints whole = __builtin_convertvector(two - all(0.5f), ints);
    floats power = power_of_two(two - __builtin_convertvector(whole, floats));
    return (floats)((ints)(power * (floats)((whole + 127) << 23)) & ~is_gone);
#endif
}

INLINE floats sized(floats x) { return (floats)((ints)x & 0x7fffffff); }

/* x P(X <= x) of a normal X, by Abramowitz and Stegun 7.1.26: within 1.5e-7 |x| */
INLINE floats gelu(floats x) {
    floats size = sized(x), z = size * all(0.70710678f), t = all(1.0f) / (all(1.0f) + all(0.3275911f) * z);
    floats power = all(1.061405429f);
    power = power * t - all(1.453152027f);
    power = power * t + all(1.421413741f);
    power = power * t - all(0.284496736f);
    power = power * t + all(0.254829592f);
    floats tail = all(0.5f) * size * power * t * exp_below_zero(-z * z);
    return (x + size) * all(0.5f) - tail;
}

enum activation { NONE, GELU, RELU, SILU, GELU_TANH };

INLINE floats silu_of(floats x, floats z) { /* x / (1 + exp(-z)) */
    floats e = exp_below_zero(-sized(z));
    ints is_below = z < all(0.0f);
    floats top = (floats)(((ints)e & is_below) | ((ints)all(1.0f) & ~is_below));
    return x * top / (all(1.0f) + e);
}

INLINE floats activated(int32_t activation, floats x) {
    switch (activation) {
    case GELU: return gelu(x);
    case RELU: return (floats)((ints)x & ~(x < all(0.0f)));
    case SILU: return silu_of(x, x);
    /* 0.5 x (1 + tanh(y)) = x / (1 + exp(-2 y)), y = sqrt(2 / pi) (x + 0.044715 x^3) */
    case GELU_TANH: return silu_of(x, all(1.5957691216f) * (x + all(0.044715f) * x * x * x));
    default: return x;
    }
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
    if (kind == E4M3) return widened_code(((const uint8_t *)row)[at]);
    return (float)((const int8_t *)row)[at];
}

INLINE void put(enum kind kind, void *row, long at, float x) {
    if (kind == F32) ((float *)row)[at] = x;
    else ((uint16_t *)row)[at] = narrowed(x);
}

INLINE long kind_bytes(enum kind kind) { return kind == F32 ? 4 : kind == BF16 || kind == F16 ? 2 : 1; }

INLINE const void *shifted(enum kind kind, const void *base, long count) {
    return (const char *)base + count * kind_bytes(kind);
}

/* LANES of a row of float32 or bfloat16. */
INLINE floats some_of(enum kind kind, const void *row, long at) {
    if (kind == F32) return load((const float *)row + at);
    return (floats)(__builtin_convertvector(*(const halves_at *)((const uint16_t *)row + at), ints) << 16);
}

INLINE long least(long a, long b) { return a < b ? a : b; }

enum { SMALL_WORK = 1 << 15 }; /* multiplications for which waking another thread does not pay */
