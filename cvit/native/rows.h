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

// Layer norm over the last dimension. Rows of x, dx and `past` are E long, the others padded with zeros.
template <class T> struct Moments {
    T mean, rstd;  // of a row; rstd is 1 / √(variance + ε)
};
template <class T, int ROWS> CVIT_INLINE void moments_of(int E, const T *x, T eps, Moments<T> *to) {
    Vector<T> sums[ROWS] = {}, squares[ROWS] = {};  // several rows at once, or each would wait for the one before
    for_vectors<T>(E, [&](int e, auto in) {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) sums[r] += in.load(x + (long)r * E + e);
    });
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) to[r].mean = sum_of<T>(sums[r]) / E;
    for_vectors<T>(E, [&](int e, auto in) {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const Vector<T> d = in.only(in.load(x + (long)r * E + e) - to[r].mean);
            squares[r] += d * d;
        }
    });
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) to[r].rstd = T(1) / std::sqrt(sum_of<T>(squares[r]) / E + eps);
}
template <class T> static void moments(int rows, int E, const T *x, T eps, Moments<T> *to) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) moments_of<T, 4>(E, x + (long)r * E, eps, to + r);
    for (; r < rows; r++) moments_of<T, 1>(E, x + (long)r * E, eps, to + r);
}
// y = x̂ · weight + bias with x̂ = (x − mean) · rstd, in rows as `P` multiplies them (products.h), `ldy` apart.
template <class P, class T>
static void norm_forward(int rows, int E, const T *x, const Moments<T> *m, const T *weight, const T *bias,
                         typename P::Factor *y, long ldy) {
    constexpr int W = WIDTH<T>;
    for (int r = 0; r < rows; r++) {
        const T *from = x + (long)r * E, mean = m[r].mean, rstd = m[r].rstd;
        const auto normal = [&](int e) {
            if (e >= E) return Vector<T>{};
            const Vector<T> here = e + W <= E ? load(from + e) : Rest<T>{E - e}.load(from + e);
            const Vector<T> hat = (here - mean) * rstd;
            return hat * load(weight + e) + load(bias + e);
        };
        for (int e = 0; e < E; e += 2 * W) P::put(y + r * ldy, e, E, normal(e), normal(e + W));
    }
}
// dx = past + the gradient of the norm from dy; adds to the gradients of its weight and bias. dy is multiplied by the
// weight in place: where a row hardly varies, its rounding would be magnified if it was not the same both times.
template <class T>
static void norm_backward(int rows, int E, T *dy, const T *x, const Moments<T> *m, const T *weight, const T *past,
                          T *dx, T *dweight, T *dbias) {
    const int EP = padded<T>(E);
    for (int r = 0; r < rows; r++) {
        T *d = dy + (long)r * EP;
        const T *from = x + (long)r * E, mean = m[r].mean, rstd = m[r].rstd;
        Vector<T> first{}, second{};
        for_vectors<T>(E, [&](int e, auto in) {
            const Vector<T> y = load(d + e), normal = (in.load(from + e) - mean) * rstd, g = y * load(weight + e);
            store(d + e, g);
            first += g;
            second += g * normal;
            store(dweight + e, load(dweight + e) + y * normal);
            store(dbias + e, load(dbias + e) + y);
        });
        const T a = sum_of<T>(first) / E, b = sum_of<T>(second) / E;
        for_vectors<T>(E, [&](int e, auto in) {
            const Vector<T> normal = (in.load(from + e) - mean) * rstd;
            const Vector<T> g = (load(d + e) - a - normal * b) * rstd;
            in.store(dx + (long)r * E + e, in.load(past + (long)r * E + e) + g);
        });
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
    const Vector<float> size = (Vector<float>)((Places<float>)x & 0x7fffffff);
    const Vector<float> t = reciprocal(size * 0.23164189f + 1.f), e = power_of_2(x * x * float(-LOG2_E / 2));
    Vector<float> p = t * 0.5307027145f - 0.7265760135f;
    p = p * t + 0.7107068705f;
    p = p * t - 0.142248368f;
    p = p * t + 0.127414796f;
    const Vector<float> half = p * t * e;  // (1 − erf |x|/√2) / 2
    const Vector<float> cdf = x < 0.f ? half : 1.f - half;
    slope = x * 0.39894228f * e + cdf;
    return x * cdf;
}
// y = GELU(x + bias), row by row, in rows as `P` multiplies them.
template <class P, class T>
static void gelu_rows(int rows, int width, const T *x, const T *bias, typename P::Factor *y, long ldy) {
    constexpr int W = WIDTH<T>;
    for (int r = 0; r < rows; r++) {
        const T *from = x + (long)r * width;
        const auto value = [&](int c) {
            Vector<T> slope;
            return c < width ? gelu(load(from + c) + load(bias + c), slope) : Vector<T>{};
        };
        for (int c = 0; c < width; c += 2 * W) P::put(y + r * ldy, c, width, value(c), value(c + W));
    }
}
// The same, and dx = dy GELU'(x + bias); adds to the gradient of the bias. dx may be dy.
template <class P, class T>
static void gelu_backward(int rows, int width, const T *x, const T *bias, typename P::Factor *y, long ldy, const T *dy,
                          long lddy, typename P::Factor *dx, long lddx, T *dbias) {
    constexpr int W = WIDTH<T>;
    for (int r = 0; r < rows; r++) {
        const T *from = x + (long)r * width, *past = dy + r * lddy;
        Vector<T> d[2];
        const auto value = [&](int c, Vector<T> &gradient) {
            if (c >= width) return gradient = Vector<T>{};
            Vector<T> slope;
            const Vector<T> v = gelu(load(from + c) + load(bias + c), slope);
            gradient = load(past + c) * slope;
            store(dbias + c, load(dbias + c) + gradient);
            return v;
        };
        for (int c = 0; c < width; c += 2 * W) {
            const Vector<T> low = value(c, d[0]), high = value(c + W, d[1]);
            P::put(y + r * ldy, c, width, low, high);
            P::put(dx + r * lddx, c, width, d[0], d[1]);
        }
    }
}

}  // namespace cvit
