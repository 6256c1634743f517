/* HEAD */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* the processor's widest vector; a wider one would be kept in memory */
#ifdef __AVX512F__
#define LANES 16
#elif defined __AVX__
#define LANES 8
#else
#define LANES 4
#endif
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int ints __attribute__((vector_size(4 * LANES)));
typedef struct { int shift; float weight; } tap;
#define MAY_BE_UNUSED __attribute__((unused)) static

/* Every channel of every layer is a plane in here: its rows are `pitch` floats apart, and what lies between them, above
   and below is zero, so that a convolution reads its border there. Each thread has its own. */
static _Thread_local _Alignas(64) float arena[ARENA];

/* a layer's output: plane o from y + o * plane on, rows of width; its taps are start[o] to start[o + 1] */
typedef struct { float *y; int plane, out, height, width, pitch, relu; } layer;

/* y[p] = bias + the sum of weight * arena[p + shift] for all p of a plane, N vectors at a time: N is a constant, and the
   sums stay in registers. The last N vectors overlap those before them. */
#define SUMS(N) \
static void sums##N(layer l, int vectors, const int *start, const tap *taps, const float *bias) { \
    const ints negative = (ints){0} - !l.relu; \
    for (int v = 0; v < vectors; v += N) { \
        const int p = LANES * (v + N < vectors ? v : vectors - N); \
        for (int o = 0; o < l.out; o++) { \
            lanes sum[N], x; \
            for (int i = 0; i < N; i++) sum[i] = bias[o] - (lanes){0}; \
            for (const tap *t = taps + start[o], *end = taps + start[o + 1]; t < end; t++) \
                for (int i = 0; i < N; i++) { \
                    memcpy(&x, arena + p + t->shift + LANES * i, sizeof x); \
                    sum[i] += t->weight * x; \
                } \
            for (int i = 0; i < N; i++) { \
                x = (lanes)((ints)sum[i] & ((sum[i] > 0) | negative)); \
                memcpy(l.y + o * l.plane + p + LANES * i, &x, sizeof x); \
            } \
        } \
    } \
}
#define CASE(N) case N: sums##N(l, vectors, start, taps, bias); break;
#define FOR_EACH_N(DO) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12)
FOR_EACH_N(SUMS)

static void sums(layer l, const int *start, const tap *taps, const float *bias) {
    const int end = (l.height - 1) * l.pitch + l.width, vectors = (end + LANES - 1) / LANES, blocks = (vectors + 11) / 12;
    switch ((vectors + blocks - 1) / blocks) { FOR_EACH_N(CASE) }
    for (int o = 0; o < l.out && l.pitch > l.width; o++) {
        float *border = l.y + o * l.plane + l.width;
        for (int j = 0; j < l.pitch - l.width; j++)
            for (int i = 0; i < l.height; i++) border[i * l.pitch + j] = 0;
        memset(border + end - l.width, 0, sizeof(lanes));
    }
}

/* the planes at from[c], each as stride * stride planes of every stride-th row and column */
MAY_BE_UNUSED void split(layer l, int channels, const int *from, int height, int width, int pitch, int stride) {
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < l.height * stride; i++)
            for (int r = 0; r < stride; r++) {
                const float *x = arena + from[c] + i * pitch + r;
                float *y = l.y + ((c * stride + i % stride) * stride + r) * l.plane + i / stride * l.pitch;
                for (int j = 0; j < l.width; j++) y[j] = i < height && j * stride + r < width ? x[j * stride] : 0;
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

int main(int count, char **words) {
    static float image[IMAGE], out[CLASSES];
    const int passes = count > 1 ? atoi(words[1]) : 0;
    while (fread(image, sizeof(float), IMAGE, stdin) == IMAGE) {
        const clock_t begin = clock();
        for (int i = 0; i < passes; i++) logits(image, 1, out);
        if (passes) return printf("%.6f\n", 1000.0 * (double)(clock() - begin) / CLOCKS_PER_SEC / passes) < 0;
        logits(image, 1, out);
        fwrite(out, sizeof(float), CLASSES, stdout);
    }
    return 0;
}
