/* The kernels of the CPU path: products of few or many rows with a weight, and attention over pages or packed rows.

   Each takes what it is asked as one structure, and gives 0, or why not: 1 no memory, 2 no such row.

   Everything is arithmetic in float32 over vectors of LANES numbers, written with the compilers' own vector types, so
   that one text serves every instruction set. Weights keep the order they have in files ([out, in]); a product is a dot
   along `in`. How many rows, outputs or keys share a register tile is decided by how many registers there are. */

#include "small_floats.h"
#include "vectors.h"

#ifdef __AVX512F__
enum { ROWS = 4, OUTS = 6 }; /* 24 of 32 registers add up */
#else
enum { ROWS = 3, OUTS = 3 }; /* 9 of 16: with 12 the lines no longer stay in registers */
#endif
enum { PAIR = 2 * LANES, DEPTH = 4, AHEAD_BYTES = 2048 };

typedef int32_t ints_at __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint32_t uints __attribute__((vector_size(4 * LANES)));

/* LANES signed bytes as float32; compilers take convertvector from bytes apart into single numbers. */
INLINE floats widened_bytes(const int8_t *at) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i_u *)at)));
#elif defined(__AVX2__)
    return (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(at)));
#else
    floats wide;
    for (int i = 0; i < LANES; i++) wide[i] = at[i];
    return wide;
#endif
}

/* LANES numbers in order. */
INLINE floats in_order(enum kind kind, const void *row, long at) {
    if (kind == F32) return load((const float *)row + at);
    if (kind == BF16) {
        ints wide = __builtin_convertvector(*(const halves_at *)((const uint16_t *)row + at), ints);
        return (floats)(wide << 16);
    }
    if (kind == E4M3) return widened_codes(E4M3, row, at);
    return widened_bytes((const int8_t *)row + at);
}

/* PAIR numbers as two vectors: of bfloat16 the even and the odd ones, which takes one operation each. */
INLINE void load_pair(enum kind kind, const void *row, long at, floats *first, floats *second) {
    if (kind == BF16) {
        ints both = *(const ints_at *)((const uint16_t *)row + at);
        *first = (floats)(both << 16);
        *second = (floats)(both & (int32_t)0xffff0000);
    } else {
        *first = in_order(kind, row, at);
        *second = in_order(kind, row, at + LANES);
    }
}

/* As bfloat16 holds them: see narrowed. */
INLINE ints rounded(floats x) {
    ints bits = (ints)x, is_number = x == x;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000;
    return (bits & is_number) | (~is_number & 0x7fc00000);
}

/* What load_pair gave, back to a row. */
INLINE void store_pair(enum kind kind, void *row, long at, floats first, floats second) {
    if (kind == BF16) *(ints_at *)((uint16_t *)row + at) = (ints)((uints)rounded(first) >> 16) | rounded(second);
    else {
        store((float *)row + at, first);
        store((float *)row + at + LANES, second);
    }
}

/* Where number k of a row lies in a line that meets weights of this kind, as load_pair orders them. */
INLINE long place(enum kind weight, long k) {
    if (weight != BF16) return k;
    long within = k % PAIR;
    return k - within + within / 2 + (within % 2) * LANES;
}

/* A row of `width` numbers as float32 in the order of `place`, zeros up to a whole pair. */
INLINE void lay_line(enum kind kind, enum kind weight, const void *row, long width, float *line) {
    long at = 0;
    if (weight != BF16) {
        for (; at + LANES <= width; at += LANES) store(line + at, in_order(kind, row, at));
    } else if (kind == BF16) {
        for (; at + PAIR <= width; at += PAIR) {
            floats even, odd;
            load_pair(BF16, row, at, &even, &odd);
            store(line + at, even);
            store(line + at + LANES, odd);
        }
    }
    long end = (width + PAIR - 1) / PAIR * PAIR;
    if (at < end) memset(line + at, 0, (end - at) * sizeof *line);
    for (; at < width; at++) line[place(weight, at)] = number(kind, row, at);
}

/* totals[o][r] = sum over [0, width) of weights[o] times lines[r]; `width` is a multiple of PAIR. */
INLINE void dots(
    enum kind kind, int outs, int rows, const void *const *weights, const float *lines, long line_stride, long width,
    float totals[][ROWS]
) {
    floats sums[OUTS][ROWS] = {0};
    for (long at = 0; at < width; at += PAIR) {
        floats x[ROWS][2];
        UNROLL for (int r = 0; r < rows; r++) {
            x[r][0] = load(lines + r * line_stride + at);
            x[r][1] = load(lines + r * line_stride + at + LANES);
        }
        UNROLL for (int o = 0; o < outs; o++) {
            floats first, second;
            load_pair(kind, weights[o], at, &first, &second);
            UNROLL for (int r = 0; r < rows; r++) sums[o][r] += first * x[r][0];
            UNROLL for (int r = 0; r < rows; r++) sums[o][r] += second * x[r][1];
        }
    }
    UNROLL for (int o = 0; o < outs; o++)
        UNROLL for (int r = 0; r < rows; r++) totals[o][r] = sum(sums[o][r]);
}

/* Adds one line's dots with `outs` rows of a weight to `totals`. Bound by reading the weight, which is asked for ahead
   of its use: the processor's own guess ends at each page. One row after another, as several streams are slower. */
INLINE void lone(enum kind kind, const void *weight, const float *line, long width, long outs, float *totals) {
    for (long o = 0; o < outs; o++) {
        const void *row = shifted(kind, weight, o * width);
        floats sums[2 * DEPTH] = {0};
        long at = 0;
        for (; at + DEPTH * PAIR <= width; at += DEPTH * PAIR) {
            UNROLL for (int i = 0; i < DEPTH; i++) {
                floats first, second;
                load_pair(kind, row, at + i * PAIR, &first, &second);
                __builtin_prefetch((const char *)shifted(kind, row, at + i * PAIR) + AHEAD_BYTES);
                sums[2 * i] += first * load(line + at + i * PAIR);
                sums[2 * i + 1] += second * load(line + at + i * PAIR + LANES);
            }
        }
        for (; at + PAIR <= width; at += PAIR) {
            floats first, second;
            load_pair(kind, row, at, &first, &second);
            sums[0] += first * load(line + at);
            sums[1] += second * load(line + at + LANES);
        }
        UNROLL for (int i = 1; i < 2 * DEPTH; i++) sums[0] += sums[i];
        float total = sum(sums[0]);
        for (; at < width; at++) total += number(kind, row, at) * line[place(kind, at)];
        totals[o] += total;
    }
}

/* One function a tile, not inlined: within a larger one the compiler spills the sums. */
#define DOTS(kind, outs, rows) \
    static __attribute__((noinline)) void dots_##kind##_##outs##_##rows( \
        const void *const *weights, const float *lines, long line_stride, long width, float totals[][ROWS] \
    ) { dots(kind, outs, rows, weights, lines, line_stride, width, totals); }
#define LONE(kind) \
    static __attribute__((noinline)) void lone_##kind( \
        const void *weight, const float *line, long width, long outs, float *totals \
    ) { lone(kind, weight, line, width, outs, totals); }
#define DOTS_OF(kind) DOTS(kind, OUTS, ROWS) DOTS(kind, OUTS, 2) LONE(kind)
DOTS_OF(F32)
DOTS_OF(BF16)
DOTS_OF(INT8)
DOTS_OF(E4M3)

#define CALL_DOTS(kind) \
    (rows == 2 ? dots_##kind##_OUTS_2 : dots_##kind##_OUTS_ROWS)(weights, lines, line_stride, width, totals)

INLINE void dot_tile(
    enum kind kind, int rows, const void *const *weights, const float *lines, long line_stride, long width,
    float totals[][ROWS]
) {
    if (kind == F32) CALL_DOTS(F32);
    else if (kind == BF16) CALL_DOTS(BF16);
    else if (kind == E4M3) CALL_DOTS(E4M3);
    else CALL_DOTS(INT8);
}

/* ---- product: out = x @ weight.T + bias -------------------------------------------------------------------------- */

struct product {
    const void *x, *weight, *bias;
    void *out;
    const float *scales; /* one an output, of INT8 and E4M3 weights; else NULL */
    int64_t rows, x_stride, outs, width;
    int32_t kind, weight_kind; /* of x, bias and out; of the weight */
};

enum { OUT_BLOCK = 96, ROW_BLOCK = 96, WIDTH_BLOCK = 1024 }; /* what a second-level and a first-level cache hold */

INLINE long whole_pairs(long width) { return (width + PAIR - 1) / PAIR * PAIR; }

/* Adds a tile of outputs by rows, over a part of the width that begins at `from`, to totals[row * OUT_BLOCK + out]. */
INLINE void add_tile(
    enum kind kind, int rows, const struct product *p, long first, long from, long width, const float *lines,
    long stride, float *totals
) {
    const void *weights[OUTS];
    float found[OUTS][ROWS];
    UNROLL for (int o = 0; o < OUTS; o++)
        weights[o] = shifted(kind, p->weight, least(first + o, p->outs - 1) * p->width + from);
    long whole = width / PAIR * PAIR;
    dot_tile(kind, rows, weights, lines, stride, whole, found);
    for (long at = whole; at < width; at++)
        for (int o = 0; o < OUTS; o++)
            for (int r = 0; r < rows; r++)
                found[o][r] += number(kind, weights[o], at) * lines[r * stride + place(kind, at)];
    for (int o = 0; o < OUTS && first + o < p->outs; o++)
        for (int r = 0; r < rows; r++) totals[r * OUT_BLOCK + o] += found[o][r];
}

INLINE void add_lone(enum kind kind, const struct product *p, long first, long outs, const float *line, float *totals) {
    const void *weight = shifted(kind, p->weight, first * p->width);
    if (kind == F32) lone_F32(weight, line, p->width, outs, totals);
    else if (kind == BF16) lone_BF16(weight, line, p->width, outs, totals);
    else if (kind == E4M3) lone_E4M3(weight, line, p->width, outs, totals);
    else lone_INT8(weight, line, p->width, outs, totals);
}

/* All rows of `lines` against a block of outputs; the outermost loop keeps the weight's part in the cache. */
INLINE void add_block(
    enum kind kind, const struct product *p, long first, long outs, const float *lines, long stride, long rows,
    float *totals
) {
    long lone_row = rows % ROWS % 2 ? --rows : -1;
    for (long from = 0; rows && from < p->width; from += WIDTH_BLOCK) {
        long width = least(WIDTH_BLOCK, p->width - from), r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            for (long o = 0; o < outs; o += OUTS)
                add_tile(kind, ROWS, p, first + o, from, width, lines + r * stride + from, stride,
                         totals + r * OUT_BLOCK + o);
        for (; r < rows; r += 2)
            for (long o = 0; o < outs; o += OUTS)
                add_tile(kind, 2, p, first + o, from, width, lines + r * stride + from, stride,
                         totals + r * OUT_BLOCK + o);
    }
    if (lone_row >= 0) add_lone(kind, p, first, outs, lines + lone_row * stride, totals + lone_row * OUT_BLOCK);
}

INLINE void finish_block(const struct product *p, long row, long rows, long first, long outs, const float *totals) {
    for (long r = 0; r < rows; r++)
        for (long o = 0; o < outs; o++) {
            float x = totals[r * OUT_BLOCK + o] * (p->scales ? p->scales[first + o] : 1.0f);
            if (p->bias) x += number(p->kind, p->bias, first + o);
            put(p->kind, p->out, (row + r) * p->outs + first + o, x);
        }
}

INLINE void run_product(enum kind kind, const struct product *p, float *lines) {
    long stride = whole_pairs(p->width);
    int is_small = p->rows * p->outs * p->width < SMALL_WORK;
#pragma omp parallel if (!is_small)
    {
#pragma omp for schedule(static)
        for (long r = 0; r < p->rows; r++)
            lay_line(p->kind, kind, shifted(p->kind, p->x, r * p->x_stride), p->width, lines + r * stride);
#pragma omp for schedule(dynamic, 1) nowait
        for (long first = 0; first < p->outs; first += OUT_BLOCK) {
            long outs = least(OUT_BLOCK, p->outs - first);
            for (long row = 0; row < p->rows; row += ROW_BLOCK) {
                float totals[ROW_BLOCK * OUT_BLOCK];
                long rows = least(ROW_BLOCK, p->rows - row);
                memset(totals, 0, rows * OUT_BLOCK * sizeof *totals);
                add_block(kind, p, first, outs, lines + row * stride, stride, rows, totals);
                finish_block(p, row, rows, first, outs, totals);
            }
        }
    }
}

/* 0, or 1 where there is no memory. */
int trefoil_product(const struct product *p) {
    float *lines = aligned_alloc(64, (whole_pairs(p->width) * p->rows * sizeof(float) + 63) / 64 * 64);
    if (!lines) return 1;
    switch (p->weight_kind) {
    case F32: run_product(F32, p, lines); break;
    case BF16: run_product(BF16, p, lines); break;
    case E4M3: run_product(E4M3, p, lines); break;
    default: run_product(INT8, p, lines);
    }
    free(lines);
    return 0;
}

/* ---- attention over pages or packed rows ------------------------------------------------------------------------- */

enum { LINES = 48, KEYS = 32, MOST_WIDTH = 576, SPLIT_KEYS = 512, TILE = 6 };

struct attention {
    const void *q, *k, *v;
    void *out;
    const int32_t *row_starts; /* N + 1: the query rows of each sequence */
    const int64_t *num_keys;   /* N, of keys in pages */
    const int64_t *table;      /* page numbers, `table_stride` a sequence; NULL: keys lie in order from `key_starts` */
    const int32_t *key_starts; /* N + 1 */
    const float *bias; /* per query head: what is added at key - query = d, at [d + bias_offset]; NULL: nothing */
    int64_t sequences, heads, kv_heads, head_dim, q_stride, kv_stride, table_stride, page_size, window;
    int64_t bias_offset, bias_stride;
    float scale;
    int32_t kind, page_kind, is_causal; /* of q and out; of k and v */
};

/* Query rows [row, row + rows) of one sequence and `heads` query heads of one group, over the keys [from, to). */
struct task {
    long sequence, head, heads, row, rows, from, to;
};

/* What a task has found of its lines, one a query row and head: merged with others' where the keys were split. */
struct found {
    float acc[LINES * MOST_WIDTH], most[LINES], total[LINES];
};

INLINE long key_slot(const struct attention *a, long n, long key) {
    if (!a->table) return a->key_starts[n] + key;
    return a->table[n * a->table_stride + key / a->page_size] * a->page_size + key % a->page_size;
}

INLINE long key_count(const struct attention *a, long n) {
    return a->table ? a->num_keys[n] : a->key_starts[n + 1] - a->key_starts[n];
}

INLINE ints picked(ints a, ints b, ints places) {
#ifdef __clang__
    ints both[2] = {a, b}, found;
    for (int i = 0; i < LANES; i++) found[i] = both[places[i] / LANES][places[i] % LANES];
    return found;
#else
    return __builtin_shuffle(a, b, places);
#endif
}

/* Where, of two vectors one after the other, the lower half of each run of 2 * half numbers stands; by half. */
static const int32_t lower_halves[][LANES] = {
#ifdef __AVX512F__
    [1] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30},
    [2] = {0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29},
    [4] = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27},
    [8] = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
#else
    [1] = {0, 2, 4, 6, 8, 10, 12, 14},
    [2] = {0, 1, 4, 5, 8, 9, 12, 13},
    [4] = {0, 1, 2, 3, 8, 9, 10, 11},
#endif
};

/* The sums of LANES vectors, in order. Each step adds halves and leaves half as many vectors of twice as many sums. */
INLINE floats lane_sums(floats x[LANES]) {
    UNROLL for (int half = LANES / 2; half; half /= 2) {
        ints low = *(const ints_at *)lower_halves[half], high = low + half;
        UNROLL for (int i = 0; i < half; i++) {
            ints a = (ints)x[2 * i], b = (ints)x[2 * i + 1];
            x[i] = (floats)picked(a, b, low) + (floats)picked(a, b, high);
        }
    }
    return x[0];
}

/* As load_pair, of a row that ends at `width`: zeros beyond. */
INLINE void load_last(enum kind kind, const void *row, long at, long width, floats *first, floats *second) {
    float some[PAIR] = {0};
    memcpy(some, shifted(kind, row, at), (width - at) * (kind == F32 ? 4 : 2));
    load_pair(kind, some, 0, first, second);
}

/* Scores of one line with LANES keys. */
INLINE floats line_scores(enum kind kind, const float *q, const void *const *keys, long width) {
    floats sums[LANES] = {0}, first, second;
    long whole = width / PAIR * PAIR;
    for (long d = 0; d < whole; d += PAIR) {
        floats own = load(q + d), next = load(q + d + LANES);
        UNROLL for (int j = 0; j < LANES; j++) {
            load_pair(kind, keys[j], d, &first, &second);
            sums[j] += first * own;
            sums[j] += second * next;
        }
    }
    for (int j = 0; whole < width && j < LANES; j++) {
        load_last(kind, keys[j], whole, width, &first, &second);
        sums[j] += first * load(q + whole) + second * load(q + whole + LANES);
    }
    return lane_sums(sums);
}

/* acc[m] += sum over `count` keys, an even number, of weights[m][key] * values[key], for `lines` lines. */
INLINE void add_values(
    enum kind kind, int lines, const void *const *values, long count, long width, const float weights[][KEYS], float *acc
) {
    long padded = (width + PAIR - 1) / PAIR * PAIR;
    for (long d = 0; d < width; d += PAIR) {
        floats sums[3][2][2] = {0}; /* of even and of odd keys, so that one addition need not wait for another */
        for (long key = 0; key < count; key += 2) {
            floats own[2][2];
            UNROLL for (int i = 0; i < 2; i++) {
                if (d + PAIR <= width) load_pair(kind, values[key + i], d, &own[i][0], &own[i][1]);
                else load_last(kind, values[key + i], d, width, &own[i][0], &own[i][1]);
            }
            UNROLL for (int m = 0; m < lines; m++)
                UNROLL for (int i = 0; i < 2; i++) {
                    floats weight = all(weights[m][key + i]);
                    sums[m][i][0] += weight * own[i][0];
                    sums[m][i][1] += weight * own[i][1];
                }
        }
        UNROLL for (int m = 0; m < lines; m++)
            UNROLL for (int half = 0; half < 2; half++) {
                float *to = acc + m * padded + d + half * LANES;
                store(to, load(to) + sums[m][0][half] + sums[m][1][half]);
            }
    }
}

/* Functions of their own, whose sums stay in registers. */
#define MEETING(kind) \
    static __attribute__((noinline)) void scores_##kind( \
        const float *q, const void *const *keys, long count, long width, float *scores \
    ) { for (long j = 0; j < count; j += LANES) store(scores + j, line_scores(kind, q, keys + j, width)); } \
    static __attribute__((noinline)) void add_one_##kind( \
        const void *const *values, long count, long width, const float weights[][KEYS], float *acc \
    ) { add_values(kind, 1, values, count, width, weights, acc); } \
    static __attribute__((noinline)) void add_three_##kind( \
        const void *const *values, long count, long width, const float weights[][KEYS], float *acc \
    ) { add_values(kind, 3, values, count, width, weights, acc); }
MEETING(F32)
MEETING(BF16)

INLINE void scale_line(float *line, long padded, float factor) {
    for (long d = 0; d < padded; d += LANES) store(line + d, load(line + d) * all(factor));
}

INLINE floats greater(floats a, floats b) {
#ifdef __AVX512F__
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    ints is_above = a > b;
    return (floats)(((ints)a & is_above) | ((ints)b & ~is_above));
#endif
}

INLINE float greatest(floats x) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)x);
#endif
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* Scale, bias, mask and running softmax of one line over `count` keys from `key` on; weights replace scores, and zeros
   fill the rest of the `columns`, a multiple of LANES. Gives the factor of what was found before. */
INLINE float take_scores(
    const struct attention *a, long head, long position, long key, long count, long columns, float scale, float *scores,
    float *most, float *total
) {
    long first = 0, end = count;
    if (a->is_causal) end = least(end, position + 1 - key);
    if (a->window && position - a->window + 1 > key) first = position - a->window + 1 - key;
    if (first >= end) {
        memset(scores, 0, columns * sizeof *scores);
        return 1;
    }
    if (a->bias) {
        const float *bias = a->bias + head * a->bias_stride + a->bias_offset + key - position;
        for (long j = first; j < end; j++) scores[j] = scores[j] * scale + bias[j];
        scale = 1;
    }
    for (long j = 0; j < first; j++) scores[j] = -INFINITY;
    for (long j = end; j < columns; j++) scores[j] = -INFINITY;
    floats tops = all(-INFINITY);
    for (long j = 0; j < columns; j += LANES) {
        floats own = load(scores + j) * all(scale);
        store(scores + j, own);
        tops = greater(own, tops);
    }
    float now = greatest(tops);
    now = now > *most ? now : *most;
    floats sums = {0};
    for (long j = 0; j < columns; j += LANES) {
        floats weights = exp_below_zero(load(scores + j) - all(now));
        store(scores + j, weights);
        sums += weights;
    }
    float kept = *most == -INFINITY ? 0 : expf(*most - now);
    *most = now;
    *total = *total * kept + sum(sums);
    return kept;
}

INLINE long row_count(const struct attention *a, long n) { return a->row_starts[n + 1] - a->row_starts[n]; }

/* Where the sequence's first query row stands among its keys. */
INLINE long first_position(const struct attention *a, long n) {
    return a->is_causal ? key_count(a, n) - row_count(a, n) : 0;
}

/* Is it worth laying the sequence's keys down for its rows? Units hold whole pairs of bfloat16. */
INLINE int has_many_rows(const struct attention *a, long n) {
    return row_count(a, n) >= TILE && (a->kind == F32 || a->head_dim % 2 == 0);
}

/* A task's heads in order of the keys they share, within these its rows, then heads: where a line stands. */
INLINE long sharing(const struct attention *a, const struct task *t) { return least(a->heads / a->kv_heads, t->heads); }
INLINE long line_row(const struct attention *a, const struct task *t, long line) {
    return line % (sharing(a, t) * t->rows) / sharing(a, t);
}
INLINE long line_head(const struct attention *a, const struct task *t, long line) {
    long own = sharing(a, t);
    return t->head + line / (own * t->rows) * own + line % own;
}

/* Rows of pages as queries are: `rows` point to where they are then, in `wide`. */
INLINE void convert_in_place(enum kind kind, const struct attention *a, const void **rows, long count, void *wide) {
    convert_rows(a->page_kind, kind, rows, count, a->head_dim, wide, a->head_dim);
    for (long j = 0; j < count; j++) rows[j] = shifted(kind, wide, j * a->head_dim);
}

/* The lines from `line` on, which share keys, meet `count` keys from `key` on. */
INLINE void meet(
    enum kind kind, const struct attention *a, const struct task *t, struct found *f, const float *q, long line, long key,
    long count, const int64_t *slots
) {
    long width = a->head_dim, padded = whole_pairs(width), end = line + sharing(a, t) * t->rows;
    long position = first_position(a, t->sequence) + t->row, columns = (count + LANES - 1) / LANES * LANES;
    long own_head = line_head(a, t, line) / (a->heads / a->kv_heads) * width;
    const void *keys[KEYS], *values[KEYS];
    float scores[LINES][KEYS], wide_keys[KEYS * MOST_WIDTH], wide_values[KEYS * MOST_WIDTH];
    for (long j = 0; j < columns; j++) { /* those beyond the last take its place, and weigh nothing */
        long at = slots[least(j, count - 1)] * a->kv_stride + own_head;
        keys[j] = shifted(a->page_kind, a->k, at);
        values[j] = shifted(a->page_kind, a->v, at);
    }
    if (a->page_kind != kind) {
        convert_in_place(kind, a, keys, columns, wide_keys);
        if (a->k == a->v) memcpy(values, keys, sizeof values);
        else convert_in_place(kind, a, values, columns, wide_values);
    }
    for (long m = line; m < end; m++) {
        (kind == F32 ? scores_F32 : scores_BF16)(q + m * padded, keys, columns, width, scores[m]);
        float kept = take_scores(a, line_head(a, t, m), position + line_row(a, t, m), key, count, columns, a->scale,
                                 scores[m], &f->most[m], &f->total[m]);
        if (kept != 1) scale_line(f->acc + m * padded, padded, kept);
    }
    for (; line + 3 <= end; line += 3)
        (kind == F32 ? add_three_F32 : add_three_BF16)(values, columns, width, scores + line, f->acc + line * padded);
    for (; line < end; line++)
        (kind == F32 ? add_one_F32 : add_one_BF16)(values, columns, width, scores + line, f->acc + line * padded);
}

/* Asks for a key and its value, of all heads, before they are needed. */
INLINE void ask_for(const struct attention *a, const struct task *t, long key) {
    long group = a->heads / a->kv_heads, bytes = kind_bytes(a->page_kind) * a->head_dim;
    long at = key_slot(a, t->sequence, key) * a->kv_stride + t->head / group * a->head_dim;
    const char *k = shifted(a->page_kind, a->k, at), *v = shifted(a->page_kind, a->v, at);
    for (long i = 0; i < (t->heads + group - 1) / group * bytes; i += 64) {
        __builtin_prefetch(k + i, 0, 2);
        __builtin_prefetch(v + i, 0, 2);
    }
}

/* Keys in the outer loop, heads within: memory is read in the order in which it lies. Asks for what is met after them,
   at the end the keys of the `next` task. */
INLINE void attend(
    enum kind kind, const struct attention *a, const struct task *t, const struct task *next, struct found *f
) {
    long lines = t->rows * t->heads, padded = whole_pairs(a->head_dim);
    float q[LINES * MOST_WIDTH];
    for (long line = 0; line < lines; line++) {
        long row = a->row_starts[t->sequence] + t->row + line_row(a, t, line);
        const void *own = shifted(kind, a->q, row * a->q_stride + line_head(a, t, line) * a->head_dim);
        lay_line(kind, kind, own, a->head_dim, q + line * padded);
        f->most[line] = -INFINITY, f->total[line] = 0;
    }
    memset(f->acc, 0, lines * padded * sizeof *f->acc);
    for (long key = t->from; key < t->to; key += KEYS) {
        int64_t slots[KEYS];
        long count = least(KEYS, t->to - key);
        for (long j = 0; j < count; j++) slots[j] = key_slot(a, t->sequence, key + j);
        const struct task *later = key + KEYS < t->to ? t : next;
        long own = sharing(a, t) * t->rows, asked = later == t ? key + KEYS : next->from, start = asked;
        for (long line = 0; line < lines; line += own) {
            long until = least(later->to, start + KEYS * (line + own) / lines); /* evenly, as few can be under way */
            for (; asked < until; asked++) ask_for(a, later, asked);
            meet(kind, a, t, f, q, line, key, count, slots);
        }
    }
}

/* Writes what `parts` tasks over the same lines and different keys found together. */
INLINE void merge(enum kind kind, const struct attention *a, const struct task *t, struct found *parts, long count) {
    long width = a->head_dim, padded = whole_pairs(width);
    for (long line = 0; line < t->rows * t->heads; line++) {
        float most = -INFINITY, total = 0, *acc = parts->acc + line * padded;
        for (long i = 0; i < count; i++) most = parts[i].most[line] > most ? parts[i].most[line] : most;
        for (long i = 0; i < count; i++) {
            float kept = parts[i].total[line] ? expf(parts[i].most[line] - most) : 0;
            total += parts[i].total[line] * kept;
            if (count > 1) scale_line(parts[i].acc + line * padded, padded, kept);
            for (long d = 0; i && d < padded; d++) acc[d] += parts[i].acc[line * padded + d];
        }
        long row = a->row_starts[t->sequence] + t->row + line_row(a, t, line), head = line_head(a, t, line);
        void *out = (void *)shifted(kind, a->out, (row * a->heads + head) * width);
        long d = 0;
        for (; d + PAIR <= width; d += PAIR)
            store_pair(kind, out, d, load(acc + d) / all(total), load(acc + d + LANES) / all(total));
        for (; d < width; d++) put(kind, out, d, acc[place(kind, d)] / total);
    }
}

/* Fills `tasks` where there are any; how many there are. Every `parts` tasks in a row share their lines. */
static long cut(const struct attention *a, long parts, struct task *tasks) {
    long count = 0, group = a->heads / a->kv_heads, few = 0;
    for (long n = 0; n < a->sequences; n++) few += row_count(a, n) && !has_many_rows(a, n);
    long each = few ? (2 * omp_get_max_threads() + few - 1) / few : 1; /* tasks that a sequence should give */
    for (long n = 0; n < a->sequences; n++) {
        if (!row_count(a, n) || has_many_rows(a, n)) continue;
        long rows = least(row_count(a, n), LINES / least(group, LINES)), whole = least(a->kv_heads, LINES / (rows * group));
        long heads = group > LINES ? LINES : group * least(whole, (a->kv_heads + each - 1) / each);
        for (long row = (row_count(a, n) - 1) / rows * rows; row >= 0; row -= rows) /* the longest first */
            for (long head = 0, next; head < a->heads; head = next) {
                /* heads of a group that is wider than a task stay within it */
                next = least(head + heads, group > LINES ? (head / group + 1) * group : a->heads);
                struct task t = {n, head, next - head, row, least(rows, row_count(a, n) - row), 0, key_count(a, n)};
                long position = first_position(a, n) + row;
                if (a->is_causal) t.to = position + t.rows;
                if (a->window && position + 1 > a->window) t.from = position + 1 - a->window;
                long from = t.from, step = (t.to - t.from + parts - 1) / parts;
                for (long i = 0; i < parts; i++, count++) {
                    if (!tasks) continue;
                    t.from = least(from + i * step, t.to);
                    tasks[count] = t;
                    tasks[count].to = least(t.from + step, t.to);
                }
            }
    }
    return count;
}

INLINE void run_attention(enum kind kind, const struct attention *a, const struct task *tasks, long count) {
#pragma omp parallel for schedule(dynamic, 1) if (count > 1)
    for (long i = 0; i < count; i++) {
        struct found own;
        attend(kind, a, tasks + i, tasks + least(i + omp_get_num_threads(), count - 1), &own);
        merge(kind, a, tasks + i, &own, 1);
    }
}

INLINE void run_split(
    enum kind kind, const struct attention *a, const struct task *tasks, long count, long parts, struct found *found
) {
#pragma omp parallel for schedule(dynamic, 1)
    for (long i = 0; i < count; i++) attend(kind, a, tasks + i, tasks + least(i + 1, count - 1), found + i);
    for (long i = 0; i < count; i += parts) merge(kind, a, tasks + i, found + i, parts);
}

/* Few lines over many keys are cut along the keys, so that every thread has work; 1 where there is no memory. */
static int attend_few(const struct attention *a) {
    long count = cut(a, 1, NULL), parts = 1, most = 0;
    if (!count) return 0;
    for (long n = 0; n < a->sequences; n++) most = key_count(a, n) > most ? key_count(a, n) : most;
    if (count < 2 * omp_get_max_threads())
        parts = least((2 * omp_get_max_threads() + count - 1) / count, (most + SPLIT_KEYS - 1) / SPLIT_KEYS);
    if (parts < 1) parts = 1;
    struct task *tasks = malloc(count * parts * sizeof *tasks);
    struct found *found = parts > 1 ? malloc(count * parts * sizeof *found) : NULL;
    int is_short = !tasks || (parts > 1 && !found);
    if (!is_short) {
        count = cut(a, parts, tasks);
        if (parts == 1 && a->kind == F32) run_attention(F32, a, tasks, count);
        else if (parts == 1) run_attention(BF16, a, tasks, count);
        else if (a->kind == F32) run_split(F32, a, tasks, count, parts, found);
        else run_split(BF16, a, tasks, count, parts, found);
    }
    free(found);
    free(tasks);
    return is_short;
}

/* ---- attention of many rows: keys and values are laid down once, then TILE lines at a time meet them ------------- */

#ifdef __AVX512F__
enum { VECS = 4 }; /* with TILE lines 24 of 32 registers add up */
#else
enum { VECS = 2 };
#endif
enum { SPAN = 512, TASK_ROWS = 192 }; /* keys whose scores a first-level cache holds; rows that lay keys down once */

/* What is multiplied at once: one float32 or two bfloat16. */
typedef int32_t unit __attribute__((aligned(2), may_alias));

INLINE long whole_lanes(long count) { return (count + LANES - 1) / LANES * LANES; }
INLINE long per_unit(enum kind kind) { return kind == F32 ? 1 : 2; }

INLINE floats plus_products(enum kind kind, floats sums, ints a, ints b) {
    if (kind == F32) return sums + (floats)a * (floats)b;
#ifdef __AVX512BF16__
    return (floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
    ints high = (ints){0} + (int32_t)0xffff0000;
    return sums + (floats)(a << 16) * (floats)(b << 16) + (floats)(a & high) * (floats)(b & high);
#endif
}

/* out[line][column] (+)= sum over units of left[line][unit] * right[unit][column], for `vecs` vectors of columns. */
INLINE void multiply_tile(
    enum kind kind, int vecs, const unit *const *left, const int32_t *right, long right_stride, long units, int adds,
    float *out, long out_stride
) {
    floats sums[TILE][4] = {0};
    if (adds)
        UNROLL for (int m = 0; m < TILE; m++)
            UNROLL for (int c = 0; c < vecs; c++) sums[m][c] = load(out + m * out_stride + c * LANES);
    for (long u = 0; u < units; u++) {
        ints own[4];
        UNROLL for (int c = 0; c < vecs; c++) own[c] = *(const ints_at *)(right + u * right_stride + c * LANES);
        UNROLL for (int m = 0; m < TILE; m++) {
            ints x = (ints){0} + left[m][u];
            UNROLL for (int c = 0; c < vecs; c++) sums[m][c] = plus_products(kind, sums[m][c], x, own[c]);
        }
    }
    UNROLL for (int m = 0; m < TILE; m++)
        UNROLL for (int c = 0; c < vecs; c++) store(out + m * out_stride + c * LANES, sums[m][c]);
}

#define MULTIPLY(kind, vecs) \
    static __attribute__((noinline)) void multiply_##kind##_##vecs( \
        const unit *const *left, const int32_t *right, long right_stride, long units, int adds, float *out, \
        long out_stride \
    ) { multiply_tile(kind, vecs, left, right, right_stride, units, adds, out, out_stride); }
#define MULTIPLY_OF(kind) MULTIPLY(kind, 1) MULTIPLY(kind, 2) MULTIPLY(kind, 4)
MULTIPLY_OF(F32)
MULTIPLY_OF(BF16)
#undef MULTIPLY_OF
#define CALL_MULTIPLY(kind, vecs) \
    multiply_##kind##_##vecs(left, right + at, right_stride, units, adds, out + at, out_stride)

INLINE void multiply(
    enum kind kind, const unit *const *left, const int32_t *right, long right_stride, long units, long columns,
    int adds, float *out, long out_stride
) {
    for (long at = 0, step; at < columns; at += step) {
        long vecs = (columns - at) / LANES;
        step = LANES * (vecs >= VECS ? VECS : vecs >= 2 ? 2 : 1);
        if (step == LANES && kind == F32) CALL_MULTIPLY(F32, 1);
        else if (step == LANES) CALL_MULTIPLY(BF16, 1);
        else if (step == 2 * LANES && kind == F32) CALL_MULTIPLY(F32, 2);
        else if (step == 2 * LANES) CALL_MULTIPLY(BF16, 2);
        else if (kind == F32) CALL_MULTIPLY(F32, 4);
        else CALL_MULTIPLY(BF16, 4);
    }
}

/* Rows become columns: at each step blocks of twice the size change places across the diagonal. */
INLINE void transpose(ints rows[LANES]) {
    UNROLL for (int step = 1; step < LANES; step *= 2) {
        ints upper, lower;
        for (int j = 0; j < LANES; j++) upper[j] = j & step ? LANES + j - step : j;
        for (int j = 0; j < LANES; j++) lower[j] = j & step ? LANES + j : j + step;
        UNROLL for (int i = 0; i < LANES; i++) {
            if (i & step) continue;
            ints a = rows[i], b = rows[i + step];
            rows[i] = picked(a, b, upper);
            rows[i + step] = picked(a, b, lower);
        }
    }
}

/* LANES units of a row that has `count` more, zeros beyond. */
INLINE ints units_from(const unit *row, long count) {
    if (count >= LANES) return *(const ints_at *)row;
    ints some = {0};
    memcpy(&some, row, count * sizeof *row);
    return some;
}

/* LANES bfloat16 of a row that has `count` more, each in the lower half of a unit. */
INLINE ints halves_from(const uint16_t *row, long count) {
    uint16_t some[LANES] = {0};
    if (count < LANES) memcpy(some, row, count * sizeof *row);
    return __builtin_convertvector(*(const halves_at *)(count < LANES ? some : row), ints);
}

/* One group's lines of one sequence: rows [row, row + rows) and the keys [from, to) that any of them may see. */
struct stretch {
    long sequence, kv_head, row, rows, from, to;
};

/* The keys in blocks of SPAN as [unit][key], the values as [unit of keys][width]. */
struct laid {
    int32_t *keys, *values;
};

/* Rows of `count` keys from `key` on, in `wide` where pages hold another kind. */
INLINE void key_rows(
    enum kind kind, const struct attention *a, const void *base, const struct stretch *s, long key, long count,
    const void **rows, void *wide
) {
    for (long j = 0; j < count; j++) {
        long at = key_slot(a, s->sequence, key + j) * a->kv_stride + s->kv_head * a->head_dim;
        rows[j] = shifted(a->page_kind, base, at);
    }
    if (a->page_kind != kind) convert_in_place(kind, a, rows, count, wide);
}

INLINE void lay_keys(enum kind kind, const struct attention *a, const struct stretch *s, int32_t *keys) {
    long units = a->head_dim / per_unit(kind);
    for (long key = s->from; key < s->to; key += LANES) {
        const void *rows[LANES];
        float wide[LANES * MOST_WIDTH];
        long count = least(LANES, s->to - key), at = key - s->from;
        key_rows(kind, a, a->k, s, key, count, rows, wide);
        int32_t *block = keys + at / SPAN * SPAN * units + at % SPAN;
        for (long u = 0; u < units; u += LANES) {
            ints square[LANES] = {0};
            for (long j = 0; j < count; j++) square[j] = units_from((const unit *)rows[j] + u, units - u);
            transpose(square);
            for (long i = 0; i < least(LANES, units - u); i++)
                *(ints_at *)(block + (u + i) * SPAN) = square[i];
        }
    }
}

INLINE void lay_values(enum kind kind, const struct attention *a, const struct stretch *s, int32_t *values) {
    long width = a->head_dim, padded = whole_lanes(width);
    for (long key = s->from; key < s->to; key += per_unit(kind), values += padded) {
        const void *rows[2] = {NULL};
        float wide[2 * MOST_WIDTH];
        key_rows(kind, a, a->v, s, key, least(per_unit(kind), s->to - key), rows, wide);
        const void *own = rows[0], *next = rows[1];
        for (long d = 0; d < width; d += LANES) {
            ints both = kind == F32 ? units_from((const unit *)own + d, width - d)
                                    : halves_from((const uint16_t *)own + d, width - d);
            if (next) both |= halves_from((const uint16_t *)next + d, width - d) << 16;
            *(ints_at *)(values + d) = both;
        }
    }
}

INLINE void put_lanes(enum kind kind, void *row, long at, long count, floats x) {
    if (kind == F32 && count >= LANES) {
        store((float *)row + at, x);
        return;
    }
#ifdef __AVX512BF16__
    if (kind == BF16 && count >= LANES) {
        _mm256_storeu_si256((__m256i *)((uint16_t *)row + at), (__m256i)_mm512_cvtneps_pbh((__m512)x));
        return;
    }
#endif
    for (long i = 0; i < least(count, LANES); i++) put(kind, row, at + i, x[i]);
}

/* Weights become bfloat16 where they lie. */
INLINE void narrow_line(float *line, long columns) {
    for (long j = 0; j < columns; j += LANES) put_lanes(BF16, line, j, LANES, load(line + j));
}

/* `lines` of a stretch's lines from `line` on: line i is head i % group of row i / group. */
INLINE void attend_tile(
    enum kind kind, const struct attention *a, const struct stretch *s, const struct laid *laid, long line, long lines
) {
    long group = a->heads / a->kv_heads, width = a->head_dim, padded = whole_lanes(width);
    long units = width / per_unit(kind);
    long start = a->row_starts[s->sequence] + s->row, position = first_position(a, s->sequence) + s->row;
    float scores[TILE][SPAN], acc[TILE][MOST_WIDTH], most[TILE], total[TILE] = {0};
    const unit *queries[TILE], *weights[TILE];
    for (long m = 0; m < TILE; m++) {
        long own = line + least(m, lines - 1);
        long head = s->kv_head * group + own % group;
        queries[m] = shifted(kind, a->q, (start + own / group) * a->q_stride + head * width);
        weights[m] = (const unit *)scores[m];
        most[m] = -INFINITY;
    }
    long to = s->to;
    if (a->is_causal) to = least(to, position + (line + lines - 1) / group + 1);
    for (long key = s->from; key < to; key += SPAN) {
        long count = least(SPAN, to - key), columns = whole_lanes(count), at = key - s->from;
        multiply(kind, queries, laid->keys + at * units, SPAN, units, columns, 0, scores[0], SPAN);
        for (long m = 0; m < lines; m++) {
            long row = (line + m) / group, head = s->kv_head * group + (line + m) % group;
            float kept = take_scores(a, head, position + row, key, count, columns, a->scale, scores[m],
                                     &most[m], &total[m]);
            if (kept != 1 && at) scale_line(acc[m], padded, kept);
            if (kind == BF16) narrow_line(scores[m], columns);
        }
        long pairs = (count + per_unit(kind) - 1) / per_unit(kind);
        const int32_t *values = laid->values + at / per_unit(kind) * padded;
        multiply(kind, weights, values, padded, pairs, padded, at > 0, acc[0], MOST_WIDTH);
    }
    for (long m = 0; m < lines; m++) {
        long row = start + (line + m) / group, head = s->kv_head * group + (line + m) % group;
        void *out = (char *)a->out + (row * a->heads + head) * width * (kind == F32 ? 4 : 2);
        for (long d = 0; d < width; d += LANES) put_lanes(kind, out, d, width - d, load(acc[m] + d) / all(total[m]));
    }
}

INLINE void attend_stretch(
    enum kind kind, const struct attention *a, const struct stretch *s, const struct laid *laid
) {
    long lines = s->rows * (a->heads / a->kv_heads);
    lay_keys(kind, a, s, laid->keys);
    lay_values(kind, a, s, laid->values);
    for (long line = 0; line < lines; line += TILE) attend_tile(kind, a, s, laid, line, least(TILE, lines - line));
}

static void attend_stretch_F32(const struct attention *a, const struct stretch *s, const struct laid *laid) {
    attend_stretch(F32, a, s, laid);
}

static void attend_stretch_BF16(const struct attention *a, const struct stretch *s, const struct laid *laid) {
    attend_stretch(BF16, a, s, laid);
}

/* Fills `stretches` where there are any; how many there are. */
static long cut_stretches(const struct attention *a, struct stretch *stretches) {
    long count = 0;
    for (long n = 0; n < a->sequences; n++) {
        if (!has_many_rows(a, n)) continue;
        for (long row = (row_count(a, n) - 1) / TASK_ROWS * TASK_ROWS; row >= 0; row -= TASK_ROWS) {
            struct stretch s = {n, 0, row, least(TASK_ROWS, row_count(a, n) - row), 0, key_count(a, n)};
            long position = first_position(a, n) + row;
            if (a->is_causal) s.to = position + s.rows;
            if (a->window && position + 1 > a->window) s.from = position + 1 - a->window;
            for (s.kv_head = 0; s.kv_head < a->kv_heads; s.kv_head++, count++)
                if (stretches) stretches[count] = s;
        }
    }
    return count;
}

/* 1 where there is no memory. */
static int attend_many(const struct attention *a) {
    long count = cut_stretches(a, NULL), most = 0, units = a->head_dim / per_unit(a->kind);
    if (!count) return 0;
    struct stretch *stretches = malloc(count * sizeof *stretches);
    if (!stretches) return 1;
    cut_stretches(a, stretches);
    for (long i = 0; i < count; i++) {
        long keys = stretches[i].to - stretches[i].from;
        most = keys > most ? keys : most;
    }
    long spans = (most + SPAN - 1) / SPAN * SPAN;
    int is_short = 0;
#pragma omp parallel if (count > 1)
    {
        struct laid laid = {
            aligned_alloc(64, spans * units * sizeof *laid.keys),
            aligned_alloc(64, spans / per_unit(a->kind) * whole_lanes(a->head_dim) * sizeof *laid.values),
        };
        if (!laid.keys || !laid.values) is_short = 1;
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < count; i++) {
            if (!laid.keys || !laid.values) continue;
            if (a->kind == F32) attend_stretch_F32(a, stretches + i, &laid);
            else attend_stretch_BF16(a, stretches + i, &laid);
        }
        free(laid.keys);
        free(laid.values);
    }
    free(stretches);
    return is_short;
}

/* 0, or 1 where there is no memory. */
int trefoil_attention(const struct attention *a) { return attend_many(a) || attend_few(a); }

/* ---- small steps between the products ---------------------------------------------------------------------------- */

/* out = weight * rounded(x / sqrt(mean(x^2) + eps)) */
INLINE void norm_row(enum kind kind, const void *x, const void *weight, void *out, long width, float eps) {
    floats squares = {0};
    float rest = 0;
    long at = 0, whole = width / LANES * LANES;
    for (; at < whole; at += LANES) {
        floats own = in_order(kind, x, at);
        squares += own * own;
    }
    for (; at < width; at++) rest += number(kind, x, at) * number(kind, x, at);
    float scale = 1.0f / sqrtf((sum(squares) + rest) / width + eps);
    for (at = 0; at < width; at++) {
        float normed = number(kind, x, at) * scale;
        if (kind == BF16) normed = widened(narrowed(normed));
        put(kind, out, at, normed * number(kind, weight, at));
    }
}

/* out = x + other, rounded */
INLINE void sum_row(enum kind kind, const void *x, const void *other, void *out, long width) {
    for (long at = 0; at < width; at++) put(kind, out, at, number(kind, x, at) + number(kind, other, at));
}

/* Of x; where there is an `other`, of their sum, which is kept. Rows of `other` and of results are contiguous. */
struct rms_norm {
    const void *x, *other, *weight;
    void *sum, *out;
    int64_t rows, x_stride, width;
    float eps;
    int32_t kind;
};

INLINE void rms_norm_row(enum kind kind, const struct rms_norm *n, long r) {
    const void *own = shifted(kind, n->x, r * n->x_stride), *from = n->other ? shifted(kind, n->sum, r * n->width) : own;
    if (n->other) sum_row(kind, own, shifted(kind, n->other, r * n->width), (void *)from, n->width);
    norm_row(kind, from, n->weight, (void *)shifted(kind, n->out, r * n->width), n->width, n->eps);
}

int trefoil_rms_norm(const struct rms_norm *n) {
#pragma omp parallel for schedule(static) if (n->rows * n->width >= SMALL_WORK)
    for (long r = 0; r < n->rows; r++) {
        if (n->kind == F32) rms_norm_row(F32, n, r);
        else rms_norm_row(BF16, n, r);
    }
    return 0;
}

/* out = x + y, rounded */
struct sum {
    const void *x, *y;
    void *out;
    int64_t count;
    int32_t kind;
};

int trefoil_add(const struct sum *s) {
#pragma omp parallel for schedule(static) if (s->count >= SMALL_WORK)
    for (long from = 0; from < s->count; from += 4096) {
        const void *x = shifted(s->kind, s->x, from), *y = shifted(s->kind, s->y, from);
        void *out = (void *)shifted(s->kind, s->out, from);
        if (s->kind == F32) sum_row(F32, x, y, out, least(4096, s->count - from));
        else sum_row(BF16, x, y, out, least(4096, s->count - from));
    }
    return 0;
}

/* out = factor * x, rounded */
struct scaling {
    const void *x;
    void *out;
    int64_t count;
    float factor;
    int32_t kind;
};

int trefoil_scale(const struct scaling *s) {
    long at = 0;
    for (; s->kind == F32 && at + LANES <= s->count; at += LANES)
        store((float *)s->out + at, load((const float *)s->x + at) * all(s->factor));
    for (; at < s->count; at++) put(s->kind, s->out, at, number(s->kind, s->x, at) * s->factor);
    return 0;
}

/* out = (s - mean(s)) / sqrt(variance(s) + eps) * weight + bias, where s = x + y, or x where there is no y; `line` holds
   a row of sums. */
INLINE void layer_norm_row(
    enum kind kind, const void *x, const void *y, const void *weight, const void *bias, void *out, long width, float eps,
    float *line
) {
    floats totals = {0}, squares = {0};
    float rest = 0, rest_squares = 0;
    long at = 0, whole = width / LANES * LANES;
    for (; at < whole; at += LANES) {
        floats own = in_order(kind, x, at);
        if (y) own += in_order(kind, y, at);
        store(line + at, own);
        totals += own;
    }
    for (; at < width; at++) rest += line[at] = number(kind, x, at) + (y ? number(kind, y, at) : 0);
    float mean = (sum(totals) + rest) / width;
    for (at = 0; at < whole; at += LANES) {
        floats own = load(line + at) - all(mean);
        store(line + at, own);
        squares += own * own;
    }
    for (; at < width; at++) line[at] -= mean, rest_squares += line[at] * line[at];
    float scale = 1.0f / sqrtf((sum(squares) + rest_squares) / width + eps);
    for (at = 0; at < whole; at += LANES) {
        floats own = load(line + at) * all(scale) * in_order(kind, weight, at) + in_order(kind, bias, at);
        put_lanes(kind, out, at, LANES, own);
    }
    for (; at < width; at++) put(kind, out, at, line[at] * scale * number(kind, weight, at) + number(kind, bias, at));
}

/* Of each row of x + y; a `y_stride` of 0 adds one row to all, no y none. */
struct layer_norm {
    const void *x, *y, *weight, *bias;
    void *out;
    int64_t rows, width, y_stride;
    float eps;
    int32_t kind;
};

int trefoil_layer_norm(const struct layer_norm *n) {
    int is_short = 0;
#pragma omp parallel if (n->rows * n->width >= SMALL_WORK)
    {
        float *line = malloc(n->width * sizeof *line);
        if (!line) is_short = 1;
#pragma omp for schedule(static)
        for (long r = 0; r < n->rows; r++) {
            if (!line) continue;
            const void *own = shifted(n->kind, n->x, r * n->width);
            const void *other = n->y ? shifted(n->kind, n->y, r * n->y_stride) : NULL;
            void *out = (void *)shifted(n->kind, n->out, r * n->width);
            if (n->kind == F32) layer_norm_row(F32, own, other, n->weight, n->bias, out, n->width, n->eps, line);
            else layer_norm_row(BF16, own, other, n->weight, n->bias, out, n->width, n->eps, line);
        }
        free(line);
    }
    return is_short;
}

INLINE void turn_pair(enum kind kind, const void *x, void *out, long at, long run, float cosine, float sine) {
    float first = number(kind, x, at), second = number(kind, x, at + run);
    put(kind, out, at, first * cosine - second * sine);
    put(kind, out, at + run, second * cosine + first * sine);
}

/* Pair i is the numbers f and f + run, f = 2 run (i / run) + i % run; `half` pairs. */
INLINE void turn_head(
    enum kind kind, const void *x, void *out, const float *cosine, const float *sine, long half, long run, long width
) {
    if (run == 1) /* neighbours */
        for (long i = 0; i < half; i++) turn_pair(kind, x, out, 2 * i, 1, cosine[i], sine[i]);
    else
        for (long from = 0; from < half; from += run)
            for (long i = from; i < from + run; i++) turn_pair(kind, x, out, from + i, run, cosine[i], sine[i]);
    for (long i = 2 * half; i < width; i++) put(kind, out, i, number(kind, x, i));
}

/* cosines and sines of position * frequency, times a factor: [rows, half] each */
struct angles {
    const int64_t *positions;
    const float *frequencies;
    float *cosines, *sines;
    int64_t rows, half;
    float factor;
};

int trefoil_angles(const struct angles *a) {
#pragma omp parallel for schedule(static) if (a->rows * a->half >= SMALL_WORK / 16)
    for (long r = 0; r < a->rows; r++)
        for (long i = 0; i < a->half; i++) {
            float angle = (float)a->positions[r] * a->frequencies[i];
            a->cosines[r * a->half + i] = cosf(angle) * a->factor;
            a->sines[r * a->half + i] = sinf(angle) * a->factor;
        }
    return 0;
}

/* Turns each head's first 2 * half numbers by its row's angles, in pairs of this run. */
struct rotary {
    const void *x;
    void *out;
    const float *cosines, *sines;
    int64_t rows, x_stride, heads, width, half, run;
    int32_t kind;
};

INLINE void rotary_head(enum kind kind, const struct rotary *t, long i) {
    long r = i / t->heads;
    turn_head(kind, shifted(kind, t->x, r * t->x_stride + i % t->heads * t->width),
              (void *)shifted(kind, t->out, i * t->width), t->cosines + r * t->half, t->sines + r * t->half, t->half,
              t->run, t->width);
}

int trefoil_rotary(const struct rotary *t) {
#pragma omp parallel for schedule(static) if (t->rows * t->heads * t->width >= SMALL_WORK)
    for (long i = 0; i < t->rows * t->heads; i++) {
        if (t->kind == F32) rotary_head(F32, t, i);
        else rotary_head(BF16, t, i);
    }
    return 0;
}

struct turning {
    const void *q, *k, *v;
    void *out, *k_pages, *v_pages;
    const float *cosines, *sines;
    const int64_t *slots;
    int64_t rows, heads, kv_heads, width, half, run, q_stride, k_stride, v_stride;
    int32_t kind, page_kind;
};

/* A row to a slot, whose numbers may be of another kind. */
INLINE void put_row(enum kind kind, enum kind page_kind, const void *row, long count, void *slot) {
    if (kind == page_kind) memcpy(slot, row, count * kind_bytes(kind));
    else convert_rows(kind, page_kind, &row, 1, count, slot, count);
}

INLINE void turn_row(enum kind kind, const struct turning *t, long r) {
    const float *cosine = t->cosines + r * t->half, *sine = t->sines + r * t->half;
    long slot = t->slots[r] * t->kv_heads * t->width;
    float turned[t->page_kind == kind ? 1 : t->width];
    for (long h = 0; h < t->heads; h++)
        turn_head(kind, shifted(kind, t->q, r * t->q_stride + h * t->width),
                  (void *)shifted(kind, t->out, (r * t->heads + h) * t->width), cosine, sine, t->half, t->run, t->width);
    for (long h = 0; h < t->kv_heads; h++) {
        void *own = (void *)shifted(t->page_kind, t->k_pages, slot + h * t->width);
        turn_head(kind, shifted(kind, t->k, r * t->k_stride + h * t->width), t->page_kind == kind ? own : turned, cosine,
                  sine, t->half, t->run, t->width);
        if (t->page_kind != kind) put_row(kind, t->page_kind, turned, t->width, own);
    }
    put_row(kind, t->page_kind, shifted(kind, t->v, r * t->v_stride), t->kv_heads * t->width,
            (void *)shifted(t->page_kind, t->v_pages, slot));
}

/* Queries turned to `out`, keys turned and values to their slots. */
int trefoil_rotary_page_write(const struct turning *t) {
#pragma omp parallel for schedule(static) if (t->rows * t->heads * t->width >= SMALL_WORK)
    for (long r = 0; r < t->rows; r++) {
        if (t->kind == F32) turn_row(F32, t, r);
        else turn_row(BF16, t, r);
    }
    return 0;
}

INLINE void gate_row(
    enum kind kind, int32_t activation, const void *gate, const void *up, void *out, long from, long to
) {
    long at = from;
    for (; at + LANES <= to; at += LANES) {
        floats act = activated(activation, in_order(kind, gate, at)), other = in_order(kind, up, at);
        if (kind == F32) store((float *)out + at, act * other);
        else {
            ints both = rounded((floats)rounded(act) * other);
            *(halves_at *)((uint16_t *)out + at) = __builtin_convertvector((uints)both >> 16, halves_at);
        }
    }
    for (; at < to; at++) {
        float act = activated(activation, all(number(kind, gate, at)))[0];
        put(kind, out, at, (kind == BF16 ? widened(narrowed(act)) : act) * number(kind, up, at));
    }
}

/* out = activated(gate) * up, rows of `width` numbers */
struct gating {
    const void *gate, *up;
    void *out;
    int64_t rows, width, gate_stride, up_stride;
    int32_t kind, activation;
};

enum { GATED = 4096 };

INLINE void gate_part(enum kind kind, int32_t activation, const struct gating *g, long r, long from) {
    gate_row(kind, activation, shifted(kind, g->gate, r * g->gate_stride), shifted(kind, g->up, r * g->up_stride),
             (void *)shifted(kind, g->out, r * g->width), from, least(from + GATED, g->width));
}

/* One loop an activation: which one it is must not be asked for each vector. */
INLINE void gate_any(enum kind kind, const struct gating *g, long r, long from) {
    if (g->activation == SILU) gate_part(kind, SILU, g, r, from);
    else if (g->activation == GELU_TANH) gate_part(kind, GELU_TANH, g, r, from);
    else if (g->activation == GELU) gate_part(kind, GELU, g, r, from);
    else gate_part(kind, RELU, g, r, from);
}

int trefoil_gate(const struct gating *g) {
    long parts = (g->width + GATED - 1) / GATED;
#pragma omp parallel for schedule(static) if (g->rows * g->width >= SMALL_WORK)
    for (long i = 0; i < g->rows * parts; i++) {
        if (g->kind == F32) gate_any(F32, g, i / parts, i % parts * GATED);
        else gate_any(BF16, g, i / parts, i % parts * GATED);
    }
    return 0;
}

enum { SMALL_COPY = 1 << 16 }; /* bytes for which waking another thread does not pay */

/* Copies each row's heads to its slot; `width` numbers a row. */
struct page_write {
    const void *rows;
    void *pages;
    const int64_t *slots;
    int64_t count, row_stride, width;
    int32_t kind, page_kind;
};

int trefoil_page_write(const struct page_write *w) {
    for (long r = 0; r < w->count; r++)
        put_row(w->kind, w->page_kind, shifted(w->kind, w->rows, r * w->row_stride), w->width,
                (void *)shifted(w->page_kind, w->pages, w->slots[r] * w->width));
    return 0;
}

/* Copies whole pages; `bytes` a page. */
struct page_copy {
    char *pages;
    const int64_t *sources, *targets;
    int64_t count, bytes;
};

int trefoil_page_copy(const struct page_copy *c) {
#pragma omp parallel for schedule(static) if (c->count * c->bytes >= SMALL_COPY)
    for (long i = 0; i < c->count; i++)
        memcpy(c->pages + c->targets[i] * c->bytes, c->pages + c->sources[i] * c->bytes, c->bytes);
    return 0;
}

/* Copies the row of each id from a table of `length` rows; `bytes` a row. */
struct lookup {
    const int64_t *ids;
    const char *table;
    char *out;
    int64_t count, length, bytes;
};

/* 2 where the table has no row of that id. */
int trefoil_lookup(const struct lookup *l) {
    for (long r = 0; r < l->count; r++) {
        if (l->ids[r] < 0 || l->ids[r] >= l->length) return 2;
        memcpy(l->out + r * l->bytes, l->table + l->ids[r] * l->bytes, l->bytes);
    }
    return 0;
}

INLINE long greatest_at(enum kind kind, const void *row, long width) {
    floats tops = all(-INFINITY);
    long at = 0;
    for (; at + LANES <= width; at += LANES) tops = greater(in_order(kind, row, at), tops);
    float most = greatest(tops);
    for (; at < width; at++) most = number(kind, row, at) > most ? number(kind, row, at) : most;
    for (at = 0; at < width; at++)
        if (number(kind, row, at) == most) return at;
    return 0;
}

/* Where each row has its greatest number, the first of equals. */
struct argmax {
    const void *x;
    int64_t *out;
    int64_t rows, width;
    int32_t kind;
};

int trefoil_argmax(const struct argmax *a) {
#pragma omp parallel for schedule(static) if (a->rows > 1)
    for (long r = 0; r < a->rows; r++) {
        const void *row = shifted(a->kind, a->x, r * a->width);
        a->out[r] = a->kind == F32 ? greatest_at(F32, row, a->width) : greatest_at(BF16, row, a->width);
    }
    return 0;
}

enum { SOME = 1024 };

/* The `count` likeliest entries of each row, likeliest first, of equals the first, and none of `never`, which is in order;
   where there are not as many, log p of the others is minus infinity. */
struct likeliest {
    const void *x;
    const int64_t *never;
    float *logprobs; /* `count` a row: log p among all entries */
    int64_t *ids;    /* likewise */
    int64_t rows, width, num_never, count;
    int32_t kind;
};

INLINE int is_any_above(floats x, float bound) {
#ifdef __AVX512F__
    return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
#else
    return greatest(x) > bound;
#endif
}

INLINE int is_never(const struct likeliest *l, long id) {
    long from = 0, to = l->num_never;
    while (from < to) {
        long middle = (from + to) / 2;
        if (l->never[middle] < id) from = middle + 1;
        else to = middle;
    }
    return from < l->num_never && l->never[from] == id;
}

/* log sum exp(x) where `most` is the greatest; sums of many lose digits, hence of some at a time. */
INLINE float log_sum(enum kind kind, const void *row, long width, float most) {
    double total = 0;
    for (long from = 0; from < width; from += SOME) {
        floats sums = {0};
        long at = from, to = least(from + SOME, width);
        for (; at + LANES <= to; at += LANES) sums += exp_below_zero(in_order(kind, row, at) - all(most));
        for (; at < to; at++) total += expf(number(kind, row, at) - most);
        total += sum(sums);
    }
    return most + (float)log(total);
}

INLINE void likeliest_of(enum kind kind, const struct likeliest *l, long r) {
    const void *row = shifted(kind, l->x, r * l->width);
    float *best = l->logprobs + r * l->count, *last = best + l->count - 1, most = -INFINITY;
    int64_t *ids = l->ids + r * l->count;
    for (long i = 0; i < l->count; i++) best[i] = -INFINITY, ids[i] = 0;
    for (long from = 0; from < l->width; from += LANES) {
        long to = least(from + LANES, l->width);
        if (to == from + LANES && !is_any_above(in_order(kind, row, from), *last)) continue;
        for (long id = from; id < to; id++) {
            float x = number(kind, row, id);
            most = x > most ? x : most;
            if (!(x > *last) || is_never(l, id)) continue;
            long at = l->count - 1;
            for (; at && best[at - 1] < x; at--) best[at] = best[at - 1], ids[at] = ids[at - 1];
            best[at] = x, ids[at] = id;
        }
    }
    float total = log_sum(kind, row, l->width, most);
    for (long i = 0; i < l->count; i++) best[i] -= total;
}

int trefoil_likeliest(const struct likeliest *l) {
#pragma omp parallel for schedule(static) if (l->rows > 1)
    for (long r = 0; r < l->rows; r++) {
        if (l->kind == F32) likeliest_of(F32, l, r);
        else likeliest_of(BF16, l, r);
    }
    return 0;
}

/* ---- a tape: calls that were made once, made again ----------------------------------------------------------------- */

struct call {
    int (*function)(const void *);
    const void *asked;
};

/* The first status that is not 0, else 0. */
int trefoil_play(const struct call *calls, int64_t count) {
    int status = 0;
    for (long i = 0; !status && i < count; i++) status = calls[i].function(calls[i].asked);
    return status;
}
