/* The most float32 arithmetic that all threads do together, in GFLOP/s: multiplications with additions in registers alone,
   as many under way as it takes to hide each one's latency. 256 bits wide, which Zen's cores do two of at once. */

#include <omp.h>
#include <stdio.h>

typedef float floats __attribute__((vector_size(32)));
enum { LANES = 8, SUMS = 12, ROUNDS = 20000000, TRIES = 5 };

static __attribute__((noinline)) float work(float factor) {
    floats sums[SUMS], by = factor - (floats){0}, total = {0};
    for (int i = 0; i < SUMS; i++) sums[i] = (float)i - (floats){0}; /* of equal ones a compiler would make one */
    for (long round = 0; round < ROUNDS; round++)
        _Pragma("GCC unroll 12") for (int i = 0; i < SUMS; i++) sums[i] = sums[i] * by + by;
    for (int i = 0; i < SUMS; i++) total += sums[i];
    return total[0];
}

int main(void) {
    double best = 0;
    for (int try = 0; try < TRIES; try++) {
        float used = 0;
        double started = omp_get_wtime();
#pragma omp parallel reduction(+ : used)
        used += work(0.999f);
        double seconds = omp_get_wtime() - started;
        double rate = 2.0 * LANES * SUMS * ROUNDS * omp_get_max_threads() / seconds / 1e9;
        if (used > 0 && rate > best) best = rate;
    }
    printf("%.1f\n", best);
    return 0;
}
