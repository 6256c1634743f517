#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __AVX512F__                 /* floats in the processor's widest vector: a wider one would be kept in memory */
#define LANES 16
#elif defined __AVX__
#define LANES 8
#else
#define LANES 4
#endif
#if LANES > 8                      /* the same, where rows are of eight floats */
#define NARROW 8
#else
#define NARROW LANES
#endif
enum { MOST = LANES == 16 ? 16 : 12 };                           /* vectors of sums that the registers hold */

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif
#define RIGHT_4 3, 4, 5, 6
#define RIGHT_8 7, 8, 9, 10, 11, 12, 13, 14
#define RIGHT_16 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#define LEFT_4 1, 2, 3, 4
#define LEFT_8 1, 2, 3, 4, 5, 6, 7, 8
#define LEFT_16 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
#define MAY_BE_UNUSED __attribute__((unused)) static

/* Every channel of every layer is a plane in here: rows of `pitch` floats, zero beyond the width, and rows of zeros above
   and below, so that a convolution reads its border there. Each thread has its own. */
static _Thread_local _Alignas(64) float arena[ARENA];

typedef struct { int shift; float weight; } tap;
typedef struct { float *y; int plane, count, height, width, pitch; } layer;    /* channel o begins at y + o * plane */

/* y[p] = bias + the sum of weight * arena[p + shift + dx] over the taps of a channel, and ReLU. A load at p + dx crosses
   cache lines and takes twice the time, so the sums move instead: the taps are in groups of equal dx, -left ... 0, then
   right ... 1, and after each but 0 the sums so far move by one column. Those up to 0 wait in y for the others.
   A block of rows stays in registers: N vectors, K in a row. Where N is small each vector has several sums, as an
   addition must wait for the one before. */
#define SUMS(HEIGHT, PITCH, L) SUMS_OF(HEIGHT, PITCH, L)
#define SUMS_OF(HEIGHT, PITCH, L) \
static void sums_##HEIGHT##x##PITCH(layer l, int relu, int left, int right, const int *ends, const tap *taps, \
                                    const float *bias) { \
    typedef float lanes __attribute__((vector_size(4 * L))); \
    typedef int ints __attribute__((vector_size(4 * L))); \
    enum { K = PITCH / L, BLOCKS = (HEIGHT - 1) / (K < MOST ? MOST / K : 1) + 1, ROWS = (HEIGHT - 1) / BLOCKS + 1, \
           N = ROWS * K, PARTS = N < 4 ? 4 : 1 }; \
    ints inside[K]; \
    for (int j = 0; j < PITCH; j++) inside[j / L][j % L] = -(j % l.pitch < l.width); \
    for (int b = 0; b < BLOCKS; b++) { \
        const int p = PITCH * (b < BLOCKS - 1 ? b * ROWS : HEIGHT - ROWS), *end = ends; \
        int n = 0; \
        for (int o = 0; o < l.count; o++) { \
            float *y = l.y + o * l.plane + p; \
            lanes sum[PARTS][N], x, zero = {0}; \
            for (int i = 0; i < PARTS * N; i++) sum[i / N][i % N] = zero; \
            for (int dx = -left; dx <= right; dx++, end++) { \
                for (; n < *end; n += PARTS) \
                    for (int part = 0; part < PARTS && n + part < *end; part++) \
                        for (int i = 0; i < N; i++) { \
                            memcpy(&x, arena + p + taps[n + part].shift + L * i, sizeof x); \
                            sum[part][i] += taps[n + part].weight * x; \
                        } \
                n = *end; \
                for (int i = N; i < PARTS * N; i++) { sum[0][i % N] += sum[i / N][i % N]; sum[i / N][i % N] = zero; } \
                for (int i = N - 1; i >= 0 && dx < 0; i--) \
                    sum[0][i] = SHUFFLE(i % K ? sum[0][i - 1] : zero, sum[0][i], RIGHT_##L); \
                for (int i = 0; i < N && dx > 0; i++) \
                    sum[0][i] = SHUFFLE(sum[0][i], (i + 1) % K ? sum[0][i + 1] : zero, LEFT_##L); \
                for (int i = 0; i < N && dx == 0 && right; i++) { \
                    x = sum[0][i]; \
                    memcpy(y + L * i, &x, sizeof x); \
                    sum[0][i] = zero; \
                } \
            } \
            for (int i = 0; i < N; i++) { \
                memcpy(&x, y + L * i, sizeof x); \
                x = sum[0][i] + bias[o] + (right ? x : zero); \
                x = (lanes)((ints)x & inside[i % K] & ((x > 0) | (relu - 1))); \
                memcpy(y + L * i, &x, sizeof x); \
            } \
        } \
    } \
}

/* the planes at from[c], each as stride * stride planes of every stride-th row and column; zero where that ends early */
MAY_BE_UNUSED void split(layer l, int channels, const int *from, int height, int width, int pitch, int stride) {
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < l.height * stride; i++)
            for (int r = 0; r < stride; r++) {
                const float *x = arena + from[c] + i * pitch + r;
                float *y = l.y + ((c * stride + i % stride) * stride + r) * l.plane + i / stride * l.pitch;
                const int columns = i < height ? (width - r + stride - 1) / stride : 0;
                if (stride == 2) for (int j = 0; j < columns; j++) y[j] = x[2 * j];    /* compilers use vectors here */
                else for (int j = 0; j < columns; j++) y[j] = x[stride * j];
                for (int j = columns; j < l.width; j++) y[j] = 0;
            }
}

/* the largest value of each size x size window; what is beyond the border does not count */
MAY_BE_UNUSED void max_pool(layer l, int channels, const int *from, int height, int width, int pitch, int size, int stride, int pad) {
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < l.height; i++)
            for (int j = 0; j < l.width; j++) {
                float most = -3.4e38f;
                for (int k = 0; k < size * size; k++) {
                    const int a = i * stride - pad + k / size, b = j * stride - pad + k % size;
                    if (a < 0 || b < 0 || a >= height || b >= width) continue;
                    const float x = arena[from[c] + a * pitch + b];
                    most = x > most ? x : most;
                }
                l.y[c * l.plane + i * l.pitch + j] = most;
            }
}

/* TABLES */

void logits(const float *images, int count, float *out) {
    for (; count > 0; count--, images += IMAGE, out += CLASSES) {
        /* LAYERS */
    }
}

__attribute__((weak)) int main(int count, char **words) {                       /* one of your own comes before it */
    static float image[IMAGE], out[CLASSES];
    const int passes = count > 1 ? atoi(words[1]) : 0;
    size_t got, images = 0;
    if (count > 1 && passes < 1)
        return fprintf(stderr, "usage: %s [PASSES] < images.f32 > logits.f32\n", words[0]) > 0;
    for (; (got = fread(image, sizeof(float), IMAGE, stdin)) == IMAGE; images++) {
        const clock_t begin = clock();
        for (int i = 0; i < passes; i++) logits(image, 1, out);
        if (passes) return printf("%.6f\n", 1000.0 * (double)(clock() - begin) / CLOCKS_PER_SEC / passes) < 0;
        logits(image, 1, out);
        fwrite(out, sizeof(float), CLASSES, stdout);
    }
    if (got || !images) fprintf(stderr, "an image has %d floats, not %zu\n", IMAGE, got);
    return got || !images;
}
