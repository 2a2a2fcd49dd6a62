// What kernels do to rows of tokens besides products: copies, transposes, sums, layer norm and GELU.

#pragma once

#include "vectors.h"

namespace cvit {

// Copies rows between memory of different row lengths; what lies beyond `width` in `to` is left as it is.
template <class T> static void copy_rows(int rows, int width, const T *from, long ldf, T *to, long ldt) {
    for (int r = 0; r < rows; r++) std::memcpy(to + r * ldt, from + r * ldf, sizeof(T) * width);
}
// Transposes a square of vectors: each step interleaves the upper half of the rows with the lower half.
template <class T> CVIT_INLINE void transpose_square(const T *from, long ldf, T *to, long ldt) {
    constexpr int W = WIDTH<T>;
    Places<T> low, high;
    for (int i = 0; i < W; i++) low[i] = i / 2 + i % 2 * W, high[i] = low[i] + W / 2;
    Vector<T> rows[W], next[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; r++) rows[r] = load(from + r * ldf);
#pragma GCC unroll 4
    for (int step = 1; step < W; step *= 2) {
#pragma GCC unroll 8
        for (int r = 0; r < W / 2; r++) {
            next[2 * r] = __builtin_shuffle(rows[r], rows[r + W / 2], low);
            next[2 * r + 1] = __builtin_shuffle(rows[r], rows[r + W / 2], high);
        }
#pragma GCC unroll 16
        for (int r = 0; r < W; r++) rows[r] = next[r];
    }
#pragma GCC unroll 16
    for (int r = 0; r < W; r++) store(to + r * ldt, rows[r]);
}
template <class T> static void transpose(int rows, int width, const T *from, long ldf, T *to, long ldt) {
    constexpr int W = WIDTH<T>;
    const int whole_rows = rows / W * W, whole_width = width / W * W;
    for (int r = 0; r < whole_rows; r += W)
        for (int c = 0; c < whole_width; c += W) transpose_square<T>(from + r * ldf + c, ldf, to + c * ldt + r, ldt);
    for (int r = 0; r < rows; r++)
        for (int c = r < whole_rows ? whole_width : 0; c < width; c++) to[c * ldt + r] = from[r * ldf + c];
}
template <class T> static void add_columns(int rows, int vectors, const T *x, long ldx, T *sums) {
    for (int v = 0; v < vectors; v++) {
        Vector<T> sum = load(sums + v * WIDTH<T>);
        for (int r = 0; r < rows; r++) sum += load(x + r * ldx + v * WIDTH<T>);
        store(sums + v * WIDTH<T>, sum);
    }
}

// Layer norm over the last dimension. Rows of `x` are E long; those of `normal` (x̂) and `y` are padded with zeros.
template <class T>
static void norm_forward(int rows, int E, const T *x, T eps, const T *weight, const T *bias, T *normal, T *y, T *rstd) {
    int EP = padded<T>(E), V = EP / WIDTH<T>;
    for (int r = 0; r < rows; r++) {
        T *to = normal + (long)r * EP;
        std::memcpy(to, x + (long)r * E, sizeof(T) * E);
        for (int e = E; e < EP; e++) to[e] = 0;
        Vector<T> sum{}, squares{};
        for (int v = 0; v < V; v++) sum += load(to + v * WIDTH<T>);
        const T mean = sum_of<T>(sum) / E;
        for (int v = 0; v < V; v++) store(to + v * WIDTH<T>, load(to + v * WIDTH<T>) - mean);
        for (int e = E; e < EP; e++) to[e] = 0;
        for (int v = 0; v < V; v++) squares += load(to + v * WIDTH<T>) * load(to + v * WIDTH<T>);
        const T variance = sum_of<T>(squares) / E;
        rstd[r] = T(1) / std::sqrt(variance + eps);
        for (int v = 0; v < V; v++) {
            Vector<T> h = load(to + v * WIDTH<T>) * rstd[r];
            store(to + v * WIDTH<T>, h);
            store(y + (long)r * EP + v * WIDTH<T>, h * load(weight + v * WIDTH<T>) + load(bias + v * WIDTH<T>));
        }
    }
}
// dx = past + the gradient of a layer norm from dy; adds to the gradients of its weight and bias. The rows of `past` and
// `dx` are E long, the others padded.
template <class T>
static void norm_backward(int rows, int E, const T *dy, const T *normal, const T *rstd, const T *weight, const T *past,
                          T *dx, T *dweight, T *dbias, T *row) {
    int EP = padded<T>(E), V = EP / WIDTH<T>;
    for (int r = 0; r < rows; r++) {
        const T *d = dy + (long)r * EP, *h = normal + (long)r * EP;
        Vector<T> first{}, second{};
        for (int v = 0; v < V; v++) {
            int at = v * WIDTH<T>;
            Vector<T> y = load(d + at), x = load(h + at), g = y * load(weight + at);
            first += g;
            second += g * x;
            store(dweight + at, load(dweight + at) + y * x);
            store(dbias + at, load(dbias + at) + y);
        }
        T a = sum_of<T>(first) / E, b = sum_of<T>(second) / E;
        bool direct = E == EP;
        const T *beside = past + (long)r * E;
        if (!direct) {
            std::memcpy(row, beside, sizeof(T) * E);
            beside = row;
        }
        T *to = direct ? dx + (long)r * E : row;
        for (int v = 0; v < V; v++) {
            int at = v * WIDTH<T>;
            Vector<T> g = (load(d + at) * load(weight + at) - a - load(h + at) * b) * rstd[r];
            store(to + at, load(beside + at) + g);
        }
        if (!direct) std::memcpy(dx + (long)r * E, row, sizeof(T) * E);
    }
}

// x Φ(x), and its derivative as `slope`.
CVIT_INLINE Vector<double> gelu(Vector<double> x, Vector<double> &slope) {
    Vector<double> y;
    for (int i = 0; i < WIDTH<double>; i++) {
        const double cdf = 0.5 * (1 + std::erf(x[i] * M_SQRT1_2));
        slope[i] = cdf + x[i] * std::exp(-0.5 * x[i] * x[i]) * 0.3989422804014327;
        y[i] = x[i] * cdf;
    }
    return y;
}
// erf by formula 7.1.26 of Abramowitz and Stegun, error below 1.5e-7.
CVIT_INLINE Vector<float> gelu(Vector<float> x, Vector<float> &slope) {
    const Vector<float> u = (x < 0.f ? -x : x) * 0.70710678f;
    const Vector<float> t = 1.f / (u * 0.3275911f + 1.f), e = exponential(-u * u);
    Vector<float> p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vector<float> half = p * t * e * 0.5f;  // (1 − erf |x|/√2) / 2
    const Vector<float> cdf = x < 0.f ? half : 1.f - half;
    slope = x * 0.39894228f * e + cdf;
    return x * cdf;
}
// y = GELU(x + bias), row by row; where `dy` is given, it becomes the gradient of x.
template <class T> static void gelu_rows(int rows, int width, const T *x, const T *bias, T *y, T *dy) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < width; c += WIDTH<T>) {
            const long at = (long)r * width + c;
            Vector<T> slope;
            store(y + at, gelu(load(x + at) + load(bias + c), slope));
            if (dy) store(dy + at, load(dy + at) * slope);
        }
}

}  // namespace cvit
