/* Products with weights that were laid out for them once: out = x @ weight.T * scales + bias.

   Outputs lie in panels of PANEL. Within one, STEP numbers along `in` of every output follow one another, then the next
   STEP: a panel is read front to back, and no sum crosses lanes. STEP is what one instruction multiplies and adds up in
   a lane: 1 float32, 2 bfloat16 (vdpbf16ps), 4 bytes (vpdpbusd). A tile is MOST_ROWS rows by a panel, in registers.

   Bytes meet bytes: weights unsigned, activations signed, rounded row by row in groups that have a scale each. With
   u = w + middle, sum(u x) - middle sum(x) = sum(w x): what the offset adds is known before the group begins. Weights
   of 4 bits carry a float16 scale for each output and group of 32, two numbers a byte.

   8-bit floats become bfloat16, of which each of theirs is one, by a table in registers (vpermi2b): for few rows on
   their way into the tile, for many a task's panels at once. */

#include <sys/mman.h>

#include "vectors.h"

#ifdef __AVX512F__
enum { MOST_ROWS = 12 }; /* 24 of 32 registers add up */
#else
enum { MOST_ROWS = 6 };
#endif
enum { PANEL = 2 * LANES, READ_AHEAD = 4096, BLOCK_BYTES = 512 << 10, FEW_PANELS = 4, ROWS_A_TASK = 32 * MOST_ROWS };
enum { BYTE_GROUP = 128, NIBBLE_GROUP = 32, NIBBLE_BLOCK = NIBBLE_GROUP * PANEL / 2 + 2 * PANEL };
enum { GROUP_BYTES_INT8 = BYTE_GROUP * PANEL, GROUP_BYTES_INT4 = NIBBLE_BLOCK };

struct packed_weight {
    const void *data, *bias;
    const float *scales; /* one an output, of INT8 and E4M3; else NULL */
    void *out;
    int64_t outs, out_stride;
};

struct packed {
    const void *x;
    const struct packed_weight *weights; /* `count` of them meet the same rows */
    int64_t count, rows, x_stride, width;
    int32_t kind, weight_kind; /* of x, bias and out; of the weights */
    int32_t activation;        /* out = its function of ... */
};

/* Rows as the tiles take them: `data` at `stride` bytes; of bytes also a scale and an offset for each group. */
struct lines {
    const char *data;
    const float *scales;
    const int32_t *offsets;
    int64_t stride, groups;
};

INLINE long rounded_up(long x, long to) { return (x + to - 1) / to * to; }

/* Bytes of a panel. */
INLINE long panel_bytes(enum kind kind, long width) {
    switch (kind) {
    case F32: return width * PANEL * 4;
    case BF16: return rounded_up(width, 2) * PANEL * 2;
    case INT8: return rounded_up(width, BYTE_GROUP) * PANEL;
    case E4M3: return rounded_up(width, 2) * PANEL;
    default: return rounded_up(width, NIBBLE_GROUP) / NIBBLE_GROUP * NIBBLE_BLOCK;
    }
}

/* Bytes that a weight takes when packed; 0 where this library multiplies no such kind. */
int64_t trefoil_packed_bytes(int32_t kind, int64_t outs, int64_t width) {
#ifndef __AVX512BF16__
    if (kind == BF16) return 0;
#endif
#ifndef __AVX512VNNI__
    if (kind == INT8 || kind == INT4) return 0;
#endif
#ifndef __AVX512VBMI__
    if (kind == E4M3) return 0;
#endif
    return (outs + PANEL - 1) / PANEL * panel_bytes(kind, width);
}

/* ---- packing ----------------------------------------------------------------------------------------------------- */

/* INT8: values of -127 .. 127 at [out, in]. INT4: values of -8 .. 7 likewise, `scales` float16 at [out, group]. */
void trefoil_pack(int32_t kind, const void *weight, const uint16_t *scales, char *to, int64_t outs, int64_t width) {
    long bytes = panel_bytes(kind, width), groups = rounded_up(width, NIBBLE_GROUP) / NIBBLE_GROUP;
    madvise((void *)rounded_up((long)to, 4096), (outs + PANEL - 1) / PANEL * bytes / 4096 * 4096, MADV_HUGEPAGE);
#pragma omp parallel for schedule(static)
    for (long first = 0; first < outs; first += PANEL) {
        char *panel = to + first / PANEL * bytes;
        long count = least(PANEL, outs - first);
        memset(panel, kind == INT8 ? 128 : kind == INT4 ? 0x88 : 0, bytes);
        for (long o = 0; o < count; o++)
            for (long k = 0; k < width; k++) {
                long from = (first + o) * width + k;
                if (kind == F32) ((float *)panel)[k * PANEL + o] = ((const float *)weight)[from];
                else if (kind == BF16)
                    ((uint16_t *)panel)[(k / 2 * PANEL + o) * 2 + k % 2] = ((const uint16_t *)weight)[from];
                else if (kind == E4M3) /* as unpacklo and unpackhi lay two outputs' sixteenths apart */
                    panel[k / 2 * 2 * PANEL + o % LANES / 4 * 16 + o / LANES * 8 + o % 4 * 2 + k % 2] =
                        ((const char *)weight)[from];
                else if (kind == INT8) panel[(k / 4 * PANEL + o) * 4 + k % 4] = (char)(((const int8_t *)weight)[from] + 128);
                else {
                    char *block = panel + k / NIBBLE_GROUP * NIBBLE_BLOCK;
                    long step = k % NIBBLE_GROUP / 4, at = (step / 2 * PANEL + o) * 4 + k % 4, high = step % 2 * 4;
                    int value = ((const int8_t *)weight)[from] + 8;
                    block[at] = (char)((block[at] & (0xf0 >> high)) | value << high);
                }
            }
        for (long g = 0; kind == INT4 && g < groups; g++) {
            uint16_t *own = (uint16_t *)(panel + g * NIBBLE_BLOCK + NIBBLE_GROUP * PANEL / 2);
            for (long o = 0; o < PANEL; o++) own[o] = o < count ? scales[(first + o) * groups + g] : 0;
        }
    }
}

/* ---- tiles: sums of `rows` rows with one panel, to totals[row][out] ------------------------------------------------ */

INLINE void ask_ahead(const char *at) {
    for (long line = 0; line < PANEL * 4; line += 64) __builtin_prefetch(at + READ_AHEAD + line);
}

INLINE void tile_F32(int rows, const char *panel, const struct lines *x, long row, long width, float (*totals)[PANEL]) {
    floats sums[MOST_ROWS][2] = {0};
    const float *line = (const float *)(x->data + row * x->stride), *weight = (const float *)panel;
    long stride = x->stride / sizeof(float);
    for (long k = 0; k < width; k++) {
        floats first = load(weight + k * PANEL), second = load(weight + k * PANEL + LANES);
        ask_ahead((const char *)(weight + k * PANEL));
        UNROLL for (int r = 0; r < rows; r++) {
            floats own = all(line[r * stride + k]);
            sums[r][0] += first * own;
            sums[r][1] += second * own;
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        store(totals[r], sums[r][0]);
        store(totals[r] + LANES, sums[r][1]);
    }
}

#ifdef __AVX512VBMI__
static uint8_t high_bytes[128], low_bytes[128]; /* of what a code without its sign is in bfloat16 */

__attribute__((constructor)) static void fill_tables(void) {
    for (int code = 0; code < 128; code++) {
        uint16_t number = narrowed(widened_code((uint8_t)code));
        high_bytes[code] = (uint8_t)(number >> 8);
        low_bytes[code] = (uint8_t)number;
    }
}

/* A pair of bfloat16 along `in` of each output: of the first LANES outputs, and of the others. */
INLINE void load_codes(const char *at, __m512i *first, __m512i *second) {
    __m512i codes = _mm512_loadu_si512(at);
    __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(high_bytes), codes, _mm512_loadu_si512(high_bytes + 64));
    __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(low_bytes), codes, _mm512_loadu_si512(low_bytes + 64));
    high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8((char)0x80), 0xf8); /* high | codes & sign */
    *first = _mm512_unpacklo_epi8(low, high);
    *second = _mm512_unpackhi_epi8(low, high);
}
#endif

#ifdef __AVX512BF16__
INLINE __m512i four_bytes(const char *at) {
    int32_t both;
    memcpy(&both, at, sizeof both);
    return _mm512_set1_epi32(both);
}

/* Pair `k` of a panel of BF16 or E4M3, as load_codes gives it. */
INLINE void load_pair(enum kind kind, const char *panel, long k, __m512i *first, __m512i *second) {
#ifdef __AVX512VBMI__
    if (kind == E4M3) {
        load_codes(panel + k * PANEL, first, second);
        __builtin_prefetch(panel + k * PANEL + READ_AHEAD);
        return;
    }
#endif
    const char *at = panel + k * PANEL * 2;
    *first = _mm512_loadu_si512(at), *second = _mm512_loadu_si512(at + 64);
    ask_ahead(at);
}

INLINE void tile_pairs(
    enum kind kind, int rows, const char *panel, const struct lines *x, long row, long width, float (*totals)[PANEL]
) {
    __m512 sums[MOST_ROWS][2];
    const char *line = x->data + row * x->stride;
    UNROLL for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (long k = 0; k < width; k += 2) {
        __m512i first, second;
        load_pair(kind, panel, k, &first, &second);
        UNROLL for (int r = 0; r < rows; r++) {
            __m512bh own = (__m512bh)four_bytes(line + r * x->stride + k * 2);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], (__m512bh)first, own);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], (__m512bh)second, own);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(totals[r], sums[r][0]);
        _mm512_storeu_ps(totals[r] + LANES, sums[r][1]);
    }
}
#else
INLINE void tile_pairs(
    enum kind kind, int rows, const char *panel, const struct lines *x, long row, long width, float (*totals)[PANEL]
) {}
#endif

INLINE void tile_BF16(int rows, const char *panel, const struct lines *x, long row, long width, float (*totals)[PANEL]) {
    tile_pairs(BF16, rows, panel, x, row, width, totals);
}

INLINE void tile_E4M3(int rows, const char *panel, const struct lines *x, long row, long width, float (*totals)[PANEL]) {
    tile_pairs(E4M3, rows, panel, x, row, width, totals);
}

#ifdef __AVX512VBMI__
INLINE __m512 even_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
INLINE __m512 odd_of(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

/* Codes by rows of float32. */
INLINE void tile_E4M3_F32(
    int rows, const char *panel, const struct lines *x, long row, long width, float (*totals)[PANEL]
) {
    __m512 sums[MOST_ROWS][2];
    const float *line = (const float *)(x->data + row * x->stride);
    long stride = x->stride / sizeof(float);
    UNROLL for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (long k = 0; k < width; k += 2) {
        __m512i first, second;
        load_codes(panel + k * PANEL, &first, &second);
        __builtin_prefetch(panel + k * PANEL + READ_AHEAD);
        UNROLL for (int r = 0; r < rows; r++) {
            __m512 even = _mm512_set1_ps(line[r * stride + k]), odd = _mm512_set1_ps(line[r * stride + k + 1]);
            sums[r][0] = _mm512_fmadd_ps(even_of(first), even, sums[r][0]);
            sums[r][1] = _mm512_fmadd_ps(even_of(second), even, sums[r][1]);
            sums[r][0] = _mm512_fmadd_ps(odd_of(first), odd, sums[r][0]);
            sums[r][1] = _mm512_fmadd_ps(odd_of(second), odd, sums[r][1]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(totals[r], sums[r][0]);
        _mm512_storeu_ps(totals[r] + LANES, sums[r][1]);
    }
}

/* A panel as F32 or BF16 has it. Of F32 it may write one number an output too many. */
INLINE void widen_panel(enum kind kind, const char *panel, long width, char *to) {
    for (long k = 0; k < width; k += 2) {
        __m512i first, second;
        load_codes(panel + k * PANEL, &first, &second);
        if (kind == BF16) {
            _mm512_storeu_si512(to + k * PANEL * 2, first);
            _mm512_storeu_si512(to + k * PANEL * 2 + 64, second);
        } else {
            float *line = (float *)to + k * PANEL;
            _mm512_storeu_ps(line, even_of(first));
            _mm512_storeu_ps(line + LANES, even_of(second));
            _mm512_storeu_ps(line + PANEL, odd_of(first));
            _mm512_storeu_ps(line + PANEL + LANES, odd_of(second));
        }
    }
}
#else
INLINE void tile_E4M3_F32(
    int rows, const char *panel, const struct lines *x, long row, long width, float (*totals)[PANEL]
) {}
INLINE void widen_panel(enum kind kind, const char *panel, long width, char *to) {}
#endif

#ifdef __AVX512VNNI__
INLINE ints dots_of_four(ints sums, __m512i bytes, __m512i own) {
    return (ints)_mm512_dpbusd_epi32((__m512i)sums, bytes, own);
}

/* to += sums * scale; one vector at a time, as compilers keep no array in registers that another function is given. */
INLINE void add_scaled(ints sums, __m512 scale, float *to) {
    _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sums), scale, _mm512_loadu_ps(to)));
}

/* One group. Sums are an array of a function whose only loop runs along `in`: else compilers keep it in memory. */
INLINE void group_INT8(int rows, const char *panel, const struct lines *x, long row, long group, float (*totals)[PANEL]) {
    const char *line = x->data + row * x->stride + group * BYTE_GROUP;
    ints sums[MOST_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++)
        sums[r][0] = sums[r][1] = (ints)_mm512_set1_epi32(x->offsets[(row + r) * x->groups + group]);
    for (long k = 0; k < BYTE_GROUP; k += 4) {
        const char *at = panel + k * PANEL;
        __m512i first = _mm512_loadu_si512(at), second = _mm512_loadu_si512(at + 64);
        ask_ahead(at);
        UNROLL for (int r = 0; r < rows; r++) {
            __m512i own = four_bytes(line + r * x->stride + k);
            sums[r][0] = dots_of_four(sums[r][0], first, own);
            sums[r][1] = dots_of_four(sums[r][1], second, own);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        __m512 scale = _mm512_set1_ps(x->scales[(row + r) * x->groups + group]);
        add_scaled(sums[r][0], scale, totals[r]);
        add_scaled(sums[r][1], scale, totals[r] + LANES);
    }
}

INLINE void group_INT4(int rows, const char *panel, const struct lines *x, long row, long group, float (*totals)[PANEL]) {
    const char *line = x->data + row * x->stride + group * NIBBLE_GROUP, *scales = panel + NIBBLE_GROUP * PANEL / 2;
    __m512i low = _mm512_set1_epi8(15);
    ints sums[MOST_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++)
        sums[r][0] = sums[r][1] = (ints)_mm512_set1_epi32(x->offsets[(row + r) * x->groups + group]);
    for (long step = 0; step < NIBBLE_GROUP / 4; step += 2) {
        const char *at = panel + step / 2 * PANEL * 4;
        __m512i first = _mm512_loadu_si512(at), second = _mm512_loadu_si512(at + 64);
        __m512i first_low = _mm512_and_si512(first, low), second_low = _mm512_and_si512(second, low);
        __m512i first_high = _mm512_and_si512(_mm512_srli_epi16(first, 4), low);
        __m512i second_high = _mm512_and_si512(_mm512_srli_epi16(second, 4), low);
        ask_ahead(at);
        UNROLL for (int r = 0; r < rows; r++) {
            __m512i own = four_bytes(line + r * x->stride + step * 4);
            __m512i next = four_bytes(line + r * x->stride + step * 4 + 4);
            sums[r][0] = dots_of_four(sums[r][0], first_low, own);
            sums[r][1] = dots_of_four(sums[r][1], second_low, own);
            sums[r][0] = dots_of_four(sums[r][0], first_high, next);
            sums[r][1] = dots_of_four(sums[r][1], second_high, next);
        }
    }
    __m512 first = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
    __m512 second = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + PANEL)));
    UNROLL for (int r = 0; r < rows; r++) {
        __m512 scale = _mm512_set1_ps(x->scales[(row + r) * x->groups + group]);
        add_scaled(sums[r][0], _mm512_mul_ps(first, scale), totals[r]);
        add_scaled(sums[r][1], _mm512_mul_ps(second, scale), totals[r] + LANES);
    }
}
#else
INLINE void group_INT8(int rows, const char *panel, const struct lines *x, long row, long group, float (*totals)[PANEL]) {}
INLINE void group_INT4(int rows, const char *panel, const struct lines *x, long row, long group, float (*totals)[PANEL]) {}
#endif

/* One function a number of rows, so that all sums stay in registers. */
typedef void tile(const char *panel, const struct lines *x, long row, long width, float (*totals)[PANEL]);
#define TILE(kind, rows) \
    static __attribute__((noinline)) void tile_##kind##_##rows( \
        const char *panel, const struct lines *x, long row, long width, float (*totals)[PANEL] \
    ) { tile_##kind(rows, panel, x, row, width, totals); }
#define GROUPED(kind, rows) \
    static __attribute__((noinline)) void group_##kind##_##rows( \
        const char *panel, const struct lines *x, long row, long group, float (*totals)[PANEL] \
    ) { group_##kind(rows, panel, x, row, group, totals); } \
    static void tile_##kind##_##rows( \
        const char *panel, const struct lines *x, long row, long width, float (*totals)[PANEL] \
    ) { \
        memset(totals, 0, rows * sizeof *totals); \
        for (long group = 0; group < x->groups; group++) \
            group_##kind##_##rows(panel + group * GROUP_BYTES_##kind, x, row, group, totals); \
    }
#define SIX(of, kind) of(kind, 1) of(kind, 2) of(kind, 3) of(kind, 4) of(kind, 5) of(kind, 6)
#define SIX_NAMES(kind) tile_##kind##_1, tile_##kind##_2, tile_##kind##_3, tile_##kind##_4, tile_##kind##_5, tile_##kind##_6
#ifdef __AVX512F__
#define EVERY(of, kind) SIX(of, kind) of(kind, 7) of(kind, 8) of(kind, 9) of(kind, 10) of(kind, 11) of(kind, 12)
#define NAMES(kind) \
    SIX_NAMES(kind), tile_##kind##_7, tile_##kind##_8, tile_##kind##_9, tile_##kind##_10, tile_##kind##_11, tile_##kind##_12
#else
#define EVERY(of, kind) SIX(of, kind)
#define NAMES(kind) SIX_NAMES(kind)
#endif
EVERY(TILE, F32)
EVERY(TILE, BF16)
EVERY(GROUPED, INT8)
EVERY(GROUPED, INT4)
EVERY(TILE, E4M3)
EVERY(TILE, E4M3_F32)
enum { E4M3_F32 = E5M2 + 1 }; /* of rows of float32 */
static tile *const tiles[][MOST_ROWS] = {
    [F32] = {NAMES(F32)}, [BF16] = {NAMES(BF16)}, [INT8] = {NAMES(INT8)}, [INT4] = {NAMES(INT4)},
    [E4M3] = {NAMES(E4M3)}, [E4M3_F32] = {NAMES(E4M3_F32)},
};

/* ---- rows -------------------------------------------------------------------------------------------------------- */

#ifdef __AVX512VNNI__
/* Signed bytes by the greatest of each group, zeros beyond the width. */
INLINE void round_row(enum kind kind, const void *x, long width, long group, long middle, int8_t *to, float *scales,
                      int32_t *offsets) {
    for (long from = 0; from < width; from += group) {
        float line[BYTE_GROUP];
        __m512 most = _mm512_setzero_ps();
        __m512i total = _mm512_setzero_si512();
        long count = least(group, width - from);
        for (long k = 0; k < group; k += LANES) {
            __mmask16 real = (__mmask16)((1u << (count - k < 0 ? 0 : least(count - k, LANES))) - 1);
            __m512 own = kind == F32 ? _mm512_maskz_loadu_ps(real, (const float *)x + from + k)
                                     : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(
                                           _mm256_maskz_loadu_epi16(real, (const uint16_t *)x + from + k)), 16));
            _mm512_storeu_ps(line + k, own);
            most = _mm512_max_ps(most, _mm512_abs_ps(own));
        }
        float greatest = _mm512_reduce_max_ps(most);
        __m512 up = _mm512_set1_ps(greatest > 0 ? 127 / greatest : 0);
        for (long k = 0; k < group; k += LANES) {
            __m512i values = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(line + k), up));
            _mm_storeu_si128((__m128i *)(to + from + k), _mm512_cvtsepi32_epi8(values));
            total = _mm512_add_epi32(total, values);
        }
        scales[from / group] = greatest / 127;
        offsets[from / group] = (int32_t)(-middle * _mm512_reduce_add_epi32(total));
    }
}
#else
INLINE void round_row(enum kind kind, const void *x, long width, long group, long middle, int8_t *to, float *scales,
                      int32_t *offsets) {}
#endif

INLINE int goes_by_pairs(const struct packed *p) { return p->weight_kind == BF16 || p->weight_kind == E4M3; }

/* Room for rows that must be made anew, else 0. */
static long line_bytes(const struct packed *p) {
    if (p->weight_kind == F32) return 0;
    if (goes_by_pairs(p)) return p->width % 2 ? (p->width + 1) * (p->kind == F32 ? 4 : 2) : 0;
    long group = p->weight_kind == INT8 ? BYTE_GROUP : NIBBLE_GROUP, groups = (p->width + group - 1) / group;
    return groups * (group + sizeof(float) + sizeof(int32_t));
}

static struct lines lines_of(const struct packed *p, char *room) {
    long group = p->weight_kind == INT8 ? BYTE_GROUP : NIBBLE_GROUP, groups = (p->width + group - 1) / group;
    if (!room) return (struct lines){p->x, NULL, NULL, p->x_stride * (p->kind == F32 ? 4 : 2), 0};
    if (goes_by_pairs(p)) return (struct lines){room, NULL, NULL, line_bytes(p), 0};
    char *scales = room + p->rows * groups * group, *offsets = scales + p->rows * groups * sizeof(float);
    return (struct lines){room, (const float *)scales, (const int32_t *)offsets, groups * group, groups};
}

INLINE void make_line(const struct packed *p, const struct lines *lines, long row) {
    const void *x = shifted(p->kind, p->x, row * p->x_stride);
    char *to = (char *)lines->data + row * lines->stride;
    float *scales = (float *)lines->scales + row * lines->groups;
    int32_t *offsets = (int32_t *)lines->offsets + row * lines->groups;
    long group = p->weight_kind == INT8 ? BYTE_GROUP : NIBBLE_GROUP, middle = p->weight_kind == INT8 ? 128 : 8;
    if (goes_by_pairs(p)) {
        long size = p->kind == F32 ? 4 : 2;
        memcpy(to, x, p->width * size);
        memset(to + p->width * size, 0, size);
    } else if (p->kind == F32) round_row(F32, x, p->width, group, middle, (int8_t *)to, scales, offsets);
    else round_row(BF16, x, p->width, group, middle, (int8_t *)to, scales, offsets);
}

/* ---- product ----------------------------------------------------------------------------------------------------- */

/* A whole panel's numbers of a row go from `totals` to `out`. */
INLINE void finish_panel(
    enum kind kind, const struct packed *p, const struct packed_weight *w, long row, long first, const float *totals
) {
    floats found[2];
    UNROLL for (int i = 0; i < 2; i++) {
        found[i] = load(totals + i * LANES);
        if (w->scales) found[i] *= load(w->scales + first + i * LANES);
        if (w->bias) found[i] += some_of(kind, w->bias, first + i * LANES);
        found[i] = activated(p->activation, found[i]);
    }
    if (kind == F32) {
        UNROLL for (int i = 0; i < 2; i++) store((float *)w->out + row * w->out_stride + first + i * LANES, found[i]);
        return;
    }
    uint16_t *out = (uint16_t *)w->out + row * w->out_stride + first;
#ifdef __AVX512BF16__
    __m512bh both = _mm512_cvtne2ps_pbh((__m512)found[1], (__m512)found[0]);
    memcpy(out, &both, sizeof both);
#else
    for (int i = 0; i < PANEL; i++) out[i] = narrowed(found[i / LANES][i % LANES]);
#endif
}

INLINE void finish_row(
    enum kind kind, const struct packed *p, const struct packed_weight *w, long row, long first, float *totals
) {
    long count = w->outs - first;
    if (count >= PANEL) {
        finish_panel(kind, p, w, row, first, totals);
        return;
    }
    for (long o = 0; w->scales && o < count; o++) totals[o] *= w->scales[first + o];
    for (long o = 0; w->bias && o < count; o++) totals[o] += number(kind, w->bias, first + o);
    for (long o = 0; p->activation && o < PANEL; o += LANES) store(totals + o, activated(p->activation, load(totals + o)));
    for (long o = 0; o < count; o++) put(kind, w->out, row * w->out_stride + first + o, totals[o]);
}

/* Panels `first` and following, `count` of them, of one weight by rows `top` to `end`, in tiles of about the same
   height; the panels lie at `data`, as tiles of this kind take them. */
INLINE void run_tiles(
    enum kind kind, const struct packed *p, const struct packed_weight *w, const struct lines *x, int tile_kind,
    const char *data, long first, long count, long top, long end
) {
    long bytes = panel_bytes(tile_kind == E4M3_F32 ? E4M3 : tile_kind, p->width);
    long heights = (end - top + MOST_ROWS - 1) / MOST_ROWS;
    for (long t = 0; t < heights; t++) {
        long row = top + t * (end - top) / heights, rows = top + (t + 1) * (end - top) / heights - row;
        for (long panel = 0; panel < count; panel++) {
            float totals[MOST_ROWS][PANEL];
            tiles[tile_kind][rows - 1](data + panel * bytes, x, row, p->width, totals);
            for (long r = 0; r < rows; r++) finish_row(kind, p, w, row + r, (first + panel) * PANEL, totals[r]);
        }
    }
}

/* Are panels made whole before rows meet them? It pays from five tiles on. */
INLINE int is_widened(const struct packed *p) { return p->weight_kind == E4M3 && p->rows > 5 * MOST_ROWS; }

/* What the tiles of a product multiply by. */
INLINE int tile_kind_of(const struct packed *p) {
    if (p->weight_kind != E4M3) return p->weight_kind;
    return is_widened(p) ? p->kind : p->kind == F32 ? E4M3_F32 : E4M3;
}

INLINE void run_task(
    enum kind kind, const struct packed *p, const struct packed_weight *w, const struct lines *x, long from, long to,
    long top, long end, char *room
) {
    const char *data = (const char *)w->data + from * panel_bytes(p->weight_kind, p->width);
    if (is_widened(p)) {
        long bytes = panel_bytes(E4M3, p->width), wide = panel_bytes(kind, p->width);
        for (long panel = 0; panel < to - from; panel++)
            widen_panel(kind, data + panel * bytes, p->width, room + panel * wide);
        data = room;
    }
    run_tiles(kind, p, w, x, tile_kind_of(p), data, from, to - from, top, end);
}

/* Panels of a task: few enough to stay in a second-level cache while rows pass by, and for every thread to have some. */
INLINE long panels_a_task(const struct packed *p, long panels) {
    long bytes = panel_bytes(is_widened(p) ? p->kind : p->weight_kind, p->width);
    long most = BLOCK_BYTES / bytes, even = panels / (4 * omp_get_max_threads());
    if (p->rows <= MOST_ROWS) most = least(most, FEW_PANELS);
    most = least(most, even);
    return most < 1 ? 1 : most;
}

/* Room in which each thread makes the panels of a task whole, else 0. */
static long task_bytes(const struct packed *p) {
    if (!is_widened(p)) return 0;
    long panel = panel_bytes(p->kind, p->width);
    return (panel > BLOCK_BYTES ? panel : BLOCK_BYTES) + PANEL * sizeof(float);
}

static void run_packed(const struct packed *p, struct lines *x, int has_lines, int is_small, char *room) {
    long heights = (p->rows + ROWS_A_TASK - 1) / ROWS_A_TASK;
#pragma omp parallel if (!is_small)
    {
        char *own = room + omp_get_thread_num() * task_bytes(p);
        if (has_lines) {
#pragma omp for schedule(static)
            for (long row = 0; row < p->rows; row++) make_line(p, x, row);
        }
        for (long i = 0; i < p->count; i++) {
            const struct packed_weight *w = p->weights + i;
            long panels = (w->outs + PANEL - 1) / PANEL, step = panels_a_task(p, panels);
            long widths = (panels + step - 1) / step;
#pragma omp for schedule(dynamic, 1) nowait
            for (long task = 0; task < widths * heights; task++) {
                long from = task % widths * step, top = task / widths * ROWS_A_TASK;
                long to = least(from + step, panels), end = least(top + ROWS_A_TASK, p->rows);
                if (p->kind == F32) run_task(F32, p, w, x, from, to, top, end, own);
                else run_task(BF16, p, w, x, from, to, top, end, own);
            }
        }
    }
}

/* 0, or 1 where there is no memory. */
int trefoil_packed_product(const struct packed *p) {
    long lines = rounded_up(p->rows * line_bytes(p), 64), bytes = lines + omp_get_max_threads() * task_bytes(p), outs = 0;
    char *room = bytes ? aligned_alloc(64, rounded_up(bytes, 64)) : NULL;
    if (bytes && !room) return 1;
    for (long i = 0; i < p->count; i++) outs += p->weights[i].outs;
    struct lines x = lines_of(p, lines ? room : NULL);
    run_packed(p, &x, lines > 0, p->rows * outs * p->width < SMALL_WORK, room + lines);
    free(room);
    return 0;
}
