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

static inline lanes load(const float *from) {
    lanes all;
    memcpy(&all, from, sizeof all);
    return all;
}

/* y = bias + the sum of weight[k] * x[shift[k] + ...], N vectors of it; N is a constant, the sums stay in registers */
#define SUMS(N) \
static inline void sums##N(const float *restrict x, float *restrict y, float bias, const int *restrict shift, \
                           const float *restrict weight, int count) { \
    lanes sum[N]; \
    for (int i = 0; i < N; i++) sum[i] = bias - (lanes){0}; \
    for (int k = 0; k < count; k++) \
        for (int i = 0; i < N; i++) sum[i] += weight[k] * load(x + shift[k] + LANES * i); \
    memcpy(y, sum, sizeof sum); \
}
SUMS(8)
SUMS(4)
SUMS(1)

/* x (channels, height, width) with a border of zeros, as stride * stride images of every stride-th row and column */
static inline void spread(const float *x, float *to, int channels, int height, int width, int pad, int stride, int rows,
                   int columns) {
    memset(to, 0, sizeof(float) * (size_t)(channels * stride * stride * rows * columns + 128));
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < height; i++) {
            const float *from = x + (c * height + i) * width;
            const int row = (i + pad) / stride, part = c * stride * stride + (i + pad) % stride * stride;
            if (stride == 1) {
                memcpy(to + (c * rows + row) * columns + pad, from, sizeof(float) * (size_t)width);
                continue;
            }
            for (int j = 0; j < width; j++)
                to[((part + (j + pad) % stride) * rows + row) * columns + (j + pad) / stride] = from[j];
        }
}

/* x as spread() makes it, rows of `columns`; y (out, height, width); weights of channel o: start[o] to start[o + 1] */
static inline void convolve(const float *x, float *y, int out, int height, int width, int columns, const int *start,
                     const int *shift, const float *weight, const float *bias, int relu) {
    static float plane[PLANE];
    for (int o = 0; o < out; o++, y += height * width) {
        const int end = (height - 1) * columns + width, k = start[o], count = start[o + 1] - start[o];
        float *to = columns == width && end % 16 == 0 ? y : plane;
        int p = 0;
        for (; p + 8 * LANES <= end; p += 8 * LANES) sums8(x + p, to + p, bias[o], shift + k, weight + k, count);
        for (; p + 4 * LANES <= end; p += 4 * LANES) sums4(x + p, to + p, bias[o], shift + k, weight + k, count);
        for (; p < end; p += LANES) sums1(x + p, to + p, bias[o], shift + k, weight + k, count);
        if (to == plane)
            for (int i = 0; i < height; i++) memcpy(y + i * width, plane + i * columns, sizeof(float) * (size_t)width);
        if (relu)
            for (int i = 0; i < height * width; i++) y[i] = y[i] > 0 ? y[i] : 0;
    }
}

static inline void linear(const float *x, float *y, int out, const int *start, const int *from, const float *weight,
                   const float *bias) {
    for (int o = 0; o < out; o++) {
        y[o] = bias[o];
        for (int k = start[o]; k < start[o + 1]; k++) y[o] += weight[k] * x[from[k]];
    }
}

static inline void norm(const float *x, float *y, int channels, int size, const float *scale, const float *shift) {
    for (int c = 0; c < channels; c++)
        for (int i = 0; i < size; i++) y[c * size + i] = x[c * size + i] * scale[c] + shift[c];
}

static inline void relu(const float *x, float *y, int size) {
    for (int i = 0; i < size; i++) y[i] = x[i] > 0 ? x[i] : 0;
}

static inline void clear(float *y, int size) {
    for (int i = 0; i < size; i++) y[i] = 0;
}

static inline void add(const float *a, const float *b, float *y, int size) {
    for (int i = 0; i < size; i++) y[i] = a[i] + b[i];
}

/* size x size windows, their mean or their largest value; what is beyond the border does not count */
static inline void pool(const float *x, float *y, int channels, int height, int width, int rows, int columns, int size,
                        int stride, int pad, int mean) {
    for (int c = 0; c < channels; c++, x += height * width)
        for (int i = -pad; i < rows * stride - pad; i += stride)
            for (int j = -pad; j < columns * stride - pad; j += stride) {
                float all = 0, most = -3.4e38f;
                for (int k = 0; k < size * size; k++) {
                    const int a = i + k / size, b = j + k % size;
                    if (a < 0 || b < 0 || a >= height || b >= width) continue;
                    all += x[a * width + b];
                    most = x[a * width + b] > most ? x[a * width + b] : most;
                }
                *y++ = mean ? all / (float)(size * size) : most;
            }
}

/* TABLES */

void logits(const float *image, float *out) {
/* LAYERS */
}

int main(int count, char **words) {
    static float image[IMAGE], out[CLASSES];
    const int passes = count > 1 ? atoi(words[1]) : 0;
    while (fread(image, sizeof(float), IMAGE, stdin) == IMAGE) {
        const clock_t begin = clock();
        for (int i = 0; i < passes; i++) logits(image, out);
        if (passes) return printf("%.6f\n", 1000.0 * (double)(clock() - begin) / CLOCKS_PER_SEC / passes) < 0;
        logits(image, out);
        fwrite(out, sizeof(float), CLASSES, stdout);
    }
    return 0;
}
