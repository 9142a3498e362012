/* Numbers that pages are kept in and nobody computes with: halves and two floats of 8 bits, to and from what rows hold.

   E4M3 has no infinity and one NaN of each sign, the other two are IEEE's. What is too large for one becomes its
   greatest number; what is no number stays none. */

#pragma once

#include "vectors.h"

typedef uint32_t codes_type __attribute__((vector_size(4 * LANES)));

INLINE int fraction_bits(enum kind kind) { return kind == F16 ? 10 : kind == E4M3 ? 3 : 2; }
INLINE int exponent_bias(enum kind kind) { return kind == E4M3 ? 7 : 15; }
INLINE int sign_place(enum kind kind) { return kind == F16 ? 15 : 7; }
INLINE int32_t greatest_code(enum kind kind) { return kind == F16 ? 0x7bff : kind == E4M3 ? 0x7e : 0x7b; }
INLINE int32_t bits_of_power(int power) { return (127 + power) << 23; }
INLINE floats power(int exponent) { return (floats)((ints){0} + bits_of_power(exponent)); }
INLINE ints chosen(ints where, ints yes, ints no) { return (where & yes) | (~where & no); }

#ifndef __AVX512F__
INLINE ints loaded_codes(enum kind kind, const void *row, long at) {
    ints codes;
    if (kind == F16) return __builtin_convertvector(*(const halves_at *)((const uint16_t *)row + at), ints);
    for (int i = 0; i < LANES; i++) codes[i] = ((const uint8_t *)row)[at + i];
    return codes;
}
#endif

/* LANES numbers of a row. Processors turn halves into float32, and those of 8 bits are halves that lack some: E5M2 of
   the fraction, E4M3 of the exponent too, which is 8 less there. */
INLINE floats widened_codes(enum kind kind, const void *row, long at) {
#ifdef __AVX512F__
    if (kind == F16) return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)((const uint16_t *)row + at)));
    __m128i codes = _mm_loadu_si128((const void *)((const uint8_t *)row + at));
    if (kind == E5M2) return (floats)_mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8));
    __m256i halves = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    __m512 values = _mm512_cvtph_ps(_mm256_and_si256(halves, _mm256_set1_epi16((short)0xbfff)));
    __mmask16 is_nan = _mm_cmpeq_epi8_mask(_mm_or_si128(codes, _mm_set1_epi8((char)0x80)), _mm_set1_epi8((char)0xff));
    values = _mm512_mul_ps(values, _mm512_set1_ps(256));
    return (floats)_mm512_mask_mov_ps(values, is_nan, _mm512_set1_ps(NAN));
#else
    int fraction = fraction_bits(kind), bias = exponent_bias(kind), shift = 23 - fraction;
    ints codes = loaded_codes(kind, row, at), size = codes & ((1 << sign_place(kind)) - 1);
    ints value = (size << shift) + ((127 - bias) << 23);
    ints small = (ints)(__builtin_convertvector(size, floats) * power(1 - bias - fraction));
    value = chosen(size < 1 << fraction, small, value);
    value = chosen(size > greatest_code(kind), (size << shift) | 0x7f800000, value);
    return (floats)(value | codes >> sign_place(kind) << 31);
#endif
}

/* To the nearest, ties to even. Below the least normal number the fraction's end is that of a number added to it. */
INLINE ints codes_of(enum kind kind, floats x) {
    int fraction = fraction_bits(kind), bias = exponent_bias(kind), shift = 23 - fraction;
    ints size = (ints)x & 0x7fffffff, is_nan = x != x;
    ints most = (ints){0} + ((greatest_code(kind) << shift) + ((127 - bias) << 23));
    size = chosen(size > most, most, size);
    ints code = ((size + ((1 << (shift - 1)) - 1) + (size >> shift & 1)) >> shift) - ((127 - bias) << fraction);
    floats end = power(24 - bias - fraction);
    ints small = (ints)((floats)size + end) - (ints)end;
    code = chosen(size < bits_of_power(1 - bias), small, code);
    code = chosen(is_nan, (ints){0} + ((1 << sign_place(kind)) - 1), code);
    return code | (ints)((codes_type)x >> 31 << sign_place(kind));
}

INLINE void store_codes(enum kind kind, void *row, long at, ints codes) {
#ifdef __AVX512F__
    if (kind == F16) _mm256_storeu_si256((void *)((uint16_t *)row + at), _mm512_cvtepi32_epi16((__m512i)codes));
    else _mm_storeu_si128((void *)((uint8_t *)row + at), _mm512_cvtepi32_epi8((__m512i)codes));
#else
    for (int i = 0; i < LANES; i++) {
        if (kind == F16) ((uint16_t *)row)[at + i] = codes[i];
        else ((uint8_t *)row)[at + i] = codes[i];
    }
#endif
}

/* LANES numbers from one row to another. */
INLINE void convert_lanes(enum kind from, enum kind to, const void *row, void *out, long at) {
    floats x = from == F32 || from == BF16 ? some_of(from, row, at) : widened_codes(from, row, at);
    if (to == F32) store((float *)out + at, x);
    else if (to != BF16) store_codes(to, out, at, codes_of(to, x));
#ifdef __AVX512BF16__
    else _mm256_storeu_si256((void *)((uint16_t *)out + at), (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    else UNROLL for (int i = 0; i < LANES; i++) ((uint16_t *)out)[at + i] = narrowed(x[i]);
#endif
}

#ifdef __AVX512F__
/* What E4M3 without its sign is as bfloat16: eight below the least normal number, then eight of each exponent. */
#define OCTAVE(code) \
    0x3c00 + 16 * (code), 0x3c10 + 16 * (code), 0x3c20 + 16 * (code), 0x3c30 + 16 * (code), 0x3c40 + 16 * (code), \
        0x3c50 + 16 * (code), 0x3c60 + 16 * (code), 0x3c70 + 16 * (code)
static const uint16_t e4m3_values[128] __attribute__((aligned(64))) = {
    0,           0x3b00,      0x3b80,      0x3bc0,      0x3c00,      0x3c20,       0x3c40,       0x3c60,
    OCTAVE(8),   OCTAVE(16),  OCTAVE(24),  OCTAVE(32),  OCTAVE(40),  OCTAVE(48),   OCTAVE(56),   OCTAVE(64),
    OCTAVE(72),  OCTAVE(80),  OCTAVE(88),  OCTAVE(96),  OCTAVE(104), OCTAVE(112),  0x4380,       0x4390,
    0x43a0,      0x43b0,      0x43c0,      0x43d0,      0x43e0,      0x7fc0,
};

/* Twice LANES numbers at a time, which is quicker than by way of float32; how many they were. */
INLINE long look_up(const void *row, long count, void *out) {
    const __m512i *values = (const void *)e4m3_values;
    long at = 0;
    for (; at + 2 * LANES <= count; at += 2 * LANES) {
        __m512i codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)((const uint8_t *)row + at)));
        __m512i found = _mm512_mask_blend_epi16(
            _mm512_test_epi16_mask(codes, _mm512_set1_epi16(64)), _mm512_permutex2var_epi16(values[0], codes, values[1]),
            _mm512_permutex2var_epi16(values[2], codes, values[3])
        );
        __m512i signs = _mm512_and_si512(_mm512_slli_epi16(codes, 8), _mm512_set1_epi16((short)0x8000));
        _mm512_storeu_si512((uint16_t *)out + at, _mm512_or_si512(found, signs));
    }
    return at;
}
#endif

INLINE void convert_row(enum kind from, enum kind to, const void *row, long count, void *out) {
    long at = 0;
#ifdef __AVX512F__
    if (from == E4M3 && to == BF16) at = look_up(row, count, out);
#endif
    for (; at + LANES <= count; at += LANES) convert_lanes(from, to, row, out, at);
    if (at == count) return;
    float last[LANES] = {0}, turned[LANES];
    memcpy(last, shifted(from, row, at), (count - at) * kind_bytes(from));
    convert_lanes(from, to, last, turned, 0);
    memcpy((void *)shifted(to, out, at), turned, (count - at) * kind_bytes(to));
}

/* Rows of `width` numbers to others, which follow one another every `stride` numbers. */
INLINE void convert_each(
    enum kind from, enum kind to, const void *const *rows, long count, long width, void *out, long stride
) {
    for (long r = 0; r < count; r++) convert_row(from, to, rows[r], width, (void *)shifted(to, out, r * stride));
}

#define CONVERT(from, to) \
    if (from_kind == from && to_kind == to) { \
        convert_each(from, to, rows, count, width, out, stride); \
        return; \
    }
#define CONVERT_BOTH(small) CONVERT(small, F32) CONVERT(small, BF16) CONVERT(F32, small) CONVERT(BF16, small)

/* One of the kinds is F32 or BF16. */
static __attribute__((noinline)) void convert_rows(
    enum kind from_kind, enum kind to_kind, const void *const *rows, long count, long width, void *out, long stride
) {
    CONVERT(BF16, F32)
    CONVERT(F32, BF16)
    CONVERT_BOTH(E4M3)
    CONVERT_BOTH(E5M2)
    CONVERT_BOTH(F16)
}
