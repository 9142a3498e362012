/* Rows and the low-rank change that each row's own adapter makes of them: out += (x @ down.T) @ up.

   Rows of one adapter meet in tiles, so that its matrices are read once for all of them; which rows share a tile changes
   no bit of a row. `down` keeps the order it has in files ([rank, in]) and is met by dots along `in`. `up` lies in panels
   of PANEL outputs, one rank's numbers after the other's, and is read front to back. */

#include "vectors.h"

#ifdef __AVX512F__
enum { ROWS = 4, RANKS = 4 };
#else
enum { ROWS = 2, RANKS = 4 };
#endif
enum { PANEL = 32, VECTORS = PANEL / LANES, AHEAD_BYTES = 4096 };

struct lora {
    const void *x, *down, *up; /* [rows, width], [slots, rank, width], [slots, panels, rank, PANEL] */
    void *out;                 /* [rows, outs] */
    const int64_t *slots;      /* of each row; below zero: the row stays as it is */
    int64_t rows, x_stride, width, outs, num_slots, rank;
    int32_t kind;
};

/* Some rows of one slot, numbers of which stand in `order`. */
struct tile {
    long slot, first, rows;
};

INLINE long panels_of(const struct lora *p) { return (p->outs + PANEL - 1) / PANEL; }

/* sums += the products of PANEL numbers of two rows. */
INLINE floats with_products(enum kind kind, floats sums, const void *a, const void *b, long at) {
#ifdef __AVX512BF16__
    if (kind == BF16) {
        __m512bh first = (__m512bh)_mm512_loadu_si512((const uint16_t *)a + at);
        __m512bh second = (__m512bh)_mm512_loadu_si512((const uint16_t *)b + at);
        return (floats)_mm512_dpbf16_ps((__m512)sums, first, second);
    }
#endif
    UNROLL for (int i = 0; i < VECTORS; i++) sums += some_of(kind, a, at + i * LANES) * some_of(kind, b, at + i * LANES);
    return sums;
}

/* low[row][rank] of a tile, for RANKS ranks from `rank` on. */
INLINE void go_down(
    enum kind kind, int rows, const struct lora *p, const struct tile *tile, const int64_t *order, long rank, float *low
) {
    floats sums[RANKS][ROWS] = {0};
    const void *x[ROWS], *down[RANKS];
    long size = kind == F32 ? 4 : 2, whole = p->width / PANEL * PANEL;
    UNROLL for (int r = 0; r < rows; r++) x[r] = shifted(kind, p->x, order[tile->first + r] * p->x_stride);
    UNROLL for (int i = 0; i < RANKS; i++)
        down[i] = shifted(kind, p->down, (tile->slot * p->rank + least(rank + i, p->rank - 1)) * p->width);
    for (long at = 0; at < whole; at += PANEL)
        UNROLL for (int i = 0; i < RANKS; i++) {
            __builtin_prefetch((const char *)down[i] + (at + RANKS * p->width) * size);
            UNROLL for (int r = 0; r < rows; r++) sums[i][r] = with_products(kind, sums[i][r], down[i], x[r], at);
        }
    for (int i = 0; i < RANKS && rank + i < p->rank; i++)
        for (int r = 0; r < rows; r++) {
            float total = sum(sums[i][r]);
            for (long at = whole; at < p->width; at++) total += number(kind, down[i], at) * number(kind, x[r], at);
            low[(tile->first + r) * p->rank + rank + i] = total;
        }
}

/* A panel's outputs of a tile's rows become what they were and what `low` makes of `up`. */
INLINE void go_up(
    enum kind kind, int rows, const struct lora *p, const struct tile *tile, const int64_t *order, long panel,
    const float *low
) {
    floats sums[ROWS][VECTORS] = {0};
    const void *up = shifted(kind, p->up, (tile->slot * panels_of(p) + panel) * p->rank * PANEL);
    for (long rank = 0; rank < p->rank; rank++) {
        floats own[VECTORS];
        __builtin_prefetch((const char *)shifted(kind, up, rank * PANEL) + AHEAD_BYTES);
        UNROLL for (int i = 0; i < VECTORS; i++) own[i] = some_of(kind, up, rank * PANEL + i * LANES);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int i = 0; i < VECTORS; i++)
                sums[r][i] += all(low[(tile->first + r) * p->rank + rank]) * own[i];
    }
    long count = least(PANEL, p->outs - panel * PANEL);
    for (int r = 0; r < rows; r++) {
        void *out = (void *)shifted(kind, p->out, order[tile->first + r] * p->outs + panel * PANEL);
        float totals[PANEL];
        UNROLL for (int i = 0; i < VECTORS; i++) store(totals + i * LANES, sums[r][i]);
        for (long o = 0; o < count; o++) put(kind, out, o, number(kind, out, o) + totals[o]);
    }
}

/* One function a number of rows, so that sums stay in registers. */
#define TILE(kind, rows) \
    static __attribute__((noinline)) void down_##kind##_##rows( \
        const struct lora *p, const struct tile *tile, const int64_t *order, long rank, float *low \
    ) { go_down(kind, rows, p, tile, order, rank, low); } \
    static __attribute__((noinline)) void up_##kind##_##rows( \
        const struct lora *p, const struct tile *tile, const int64_t *order, long panel, float *low \
    ) { go_up(kind, rows, p, tile, order, panel, low); }
typedef void half(const struct lora *p, const struct tile *tile, const int64_t *order, long at, float *low);
TILE(F32, 1) TILE(F32, 2) TILE(BF16, 1) TILE(BF16, 2)
#ifdef __AVX512F__
TILE(F32, 3) TILE(F32, 4) TILE(BF16, 3) TILE(BF16, 4)
static half *const downs[][ROWS] = {
    {down_F32_1, down_F32_2, down_F32_3, down_F32_4}, {down_BF16_1, down_BF16_2, down_BF16_3, down_BF16_4}};
static half *const ups[][ROWS] = {{up_F32_1, up_F32_2, up_F32_3, up_F32_4}, {up_BF16_1, up_BF16_2, up_BF16_3, up_BF16_4}};
#else
static half *const downs[][ROWS] = {{down_F32_1, down_F32_2}, {down_BF16_1, down_BF16_2}};
static half *const ups[][ROWS] = {{up_F32_1, up_F32_2}, {up_BF16_1, up_BF16_2}};
#endif

/* The rows of each slot one after the other in `order`, and tiles of them; how many tiles. */
static long make_tiles(const struct lora *p, int64_t *order, struct tile *tiles) {
    long num_tiles = 0, found = 0;
    for (long slot = 0; slot < p->num_slots; slot++) {
        long first = found;
        for (long row = 0; row < p->rows; row++)
            if (p->slots[row] == slot) order[found++] = row;
        for (; first < found; first += ROWS) tiles[num_tiles++] = (struct tile){slot, first, least(ROWS, found - first)};
    }
    return num_tiles;
}

/* 0, or 1 where there is no memory. */
int trefoil_add_lora(const struct lora *p) {
    long chunks = (p->rank + RANKS - 1) / RANKS, panels = panels_of(p);
    int64_t *order = malloc(p->rows * sizeof *order + 1);
    struct tile *tiles = malloc(p->rows * sizeof *tiles + 1);
    float *low = malloc(p->rows * p->rank * sizeof *low + 1);
    if (order && tiles && low) {
        long num_tiles = make_tiles(p, order, tiles);
#pragma omp parallel if (p->rows * p->rank * (p->width + p->outs) >= SMALL_WORK)
        {
#pragma omp for schedule(static)
            for (long i = 0; i < num_tiles * chunks; i++) {
                const struct tile *tile = tiles + i / chunks;
                downs[p->kind][tile->rows - 1](p, tile, order, i % chunks * RANKS, low);
            }
#pragma omp for schedule(static)
            for (long i = 0; i < num_tiles * panels; i++) {
                const struct tile *tile = tiles + i / panels;
                ups[p->kind][tile->rows - 1](p, tile, order, i % panels, low);
            }
        }
    }
    int is_short = !order || !tiles || !low;
    free(order);
    free(tiles);
    free(low);
    return is_short;
}
