// Kernels of the fused operators: products, layer norm, GELU and attention, on one thread.
//
// Everything is written with the vector types of GCC and Clang, at the width of the machine. A product has its vectors
// along the last dimension of its result; buffers have their rows padded to whole vectors (`padded`), so that no kernel
// has a tail of its own. float is for training; double, with the functions of the C library, is for checks.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace cvit {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 32, REGISTERS = 16;
#endif

#define CVIT_INLINE static inline __attribute__((always_inline))

template <class T> struct Vectors {
    typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
    static constexpr int width = VECTOR_BYTES / sizeof(T);
};
template <class T> using Vector = typename Vectors<T>::type;
template <class T> constexpr int WIDTH = Vectors<T>::width;

template <class T> CVIT_INLINE Vector<T> load(const T *at) { return *reinterpret_cast<const Vector<T> *>(at); }
template <class T> CVIT_INLINE void store(T *at, Vector<T> x) { *reinterpret_cast<Vector<T> *>(at) = x; }
template <class T> CVIT_INLINE Vector<T> all(T x) { return Vector<T>{} + x; }
template <class T> CVIT_INLINE int padded(int n) { return (n + WIDTH<T> - 1) / WIDTH<T> * WIDTH<T>; }

template <class T> CVIT_INLINE T sum_of(Vector<T> x) {
    T sum = 0;
    for (int i = 0; i < WIDTH<T>; i++) sum += x[i];
    return sum;
}

// Memory for one thread that grows and is kept; a pointer is valid until the next `reset`.
struct Scratch {
    std::vector<std::vector<char>> blocks;
    size_t used = 0;

    template <class T> T *take(size_t count) {
        size_t bytes = count * sizeof(T) + 2 * VECTOR_BYTES;
        if (used == blocks.size()) blocks.emplace_back();
        auto &block = blocks[used++];
        if (block.size() < bytes) block.assign(bytes, 0);
        auto address = reinterpret_cast<uintptr_t>(block.data());
        return reinterpret_cast<T *>((address + VECTOR_BYTES - 1) / VECTOR_BYTES * VECTOR_BYTES);
    }
    template <class T> T *zeros(size_t count) {
        T *memory = take<T>(count);
        std::fill_n(memory, count, T(0));
        return memory;
    }
    void reset() { used = 0; }
};

// e^x. NaN stays NaN, so that a training that diverged is seen; −∞ gives 0 to rounding.
CVIT_INLINE Vector<double> exponential(Vector<double> x) {
    for (int i = 0; i < WIDTH<double>; i++) x[i] = std::exp(x[i]);
    return x;
}
CVIT_INLINE Vector<float> exponential(Vector<float> x) {
    typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    x = x < all<float>(-87.f) ? all<float>(-87.f) : x;
    x = x > all<float>(88.f) ? all<float>(88.f) : x;
    Vector<float> scaled = x * 1.44269504088896341f;
    // Adding 1.5·2²³ rounds to the nearest whole number.
    Vector<float> whole = (scaled + 12582912.f) - 12582912.f;
    Vector<float> f = x - whole * 0.693359375f;
    f = f + whole * 2.12194440e-4f;
    Vector<float> p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.f;
    Integers exponent = (__builtin_convertvector(whole, Integers) + 127) << 23;
    return p * reinterpret_cast<Vector<float> &>(exponent);
}

// C (J × V vectors) = or += A B. A is (J × K) with strides (lda, sa), B is (K × V vectors), rows ldb apart.
template <class T, int ROWS, int COLUMNS, bool ADD>
CVIT_INLINE void tile(int K, const T *A, long lda, long sa, const T *B, long ldb, T *C, long ldc) {
    Vector<T> sums[ROWS][COLUMNS];
#pragma GCC unroll 16
    for (int j = 0; j < ROWS; j++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) sums[j][v] = ADD ? load(C + j * ldc + v * WIDTH<T>) : Vector<T>{};
    for (int k = 0; k < K; k++) {
        Vector<T> b[COLUMNS];
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) b[v] = load(B + k * ldb + v * WIDTH<T>);
#pragma GCC unroll 16
        for (int j = 0; j < ROWS; j++) {
            Vector<T> a = all<T>(A[j * lda + k * sa]);
#pragma GCC unroll 4
            for (int v = 0; v < COLUMNS; v++) sums[j][v] += a * b[v];
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < ROWS; j++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) store(C + j * ldc + v * WIDTH<T>, sums[j][v]);
}

template <class T, int COLUMNS, bool ADD>
CVIT_INLINE void strip(int J, int K, const T *A, long lda, long sa, const T *B, long ldb, T *C, long ldc) {
    // As many rows as the registers hold beside the vectors of B and one of A.
    constexpr int FIT = (REGISTERS - COLUMNS - 1) / COLUMNS;
    constexpr int ROWS = FIT >= 14 ? 14 : FIT;
    int j = 0;
    for (; j + ROWS <= J; j += ROWS) tile<T, ROWS, COLUMNS, ADD>(K, A + j * lda, lda, sa, B, ldb, C + j * ldc, ldc);
    if constexpr (ROWS > 4)
        for (; j + 4 <= J; j += 4) tile<T, 4, COLUMNS, ADD>(K, A + j * lda, lda, sa, B, ldb, C + j * ldc, ldc);
    for (; j < J; j++) tile<T, 1, COLUMNS, ADD>(K, A + j * lda, lda, sa, B, ldb, C + j * ldc, ldc);
}

template <class T, bool ADD>
static void product(int J, int K, int V, const T *A, long lda, long sa, const T *B, long ldb, T *C, long ldc) {
    constexpr int WIDEST = REGISTERS == 32 ? 4 : 2;
    int v = 0;
    auto at = [&](auto *memory) { return memory + v * WIDTH<T>; };
    if (WIDEST == 4 && V % 4 != 0 && V % 3 == 0)
        for (; v < V; v += 3) strip<T, 3, ADD>(J, K, A, lda, sa, at(B), ldb, at(C), ldc);
    for (; v + WIDEST <= V; v += WIDEST) strip<T, WIDEST, ADD>(J, K, A, lda, sa, at(B), ldb, at(C), ldc);
    if (V - v == 3) strip<T, 3, ADD>(J, K, A, lda, sa, at(B), ldb, at(C), ldc);
    if (V - v == 2) strip<T, 2, ADD>(J, K, A, lda, sa, at(B), ldb, at(C), ldc);
    if (V - v == 1) strip<T, 1, ADD>(J, K, A, lda, sa, at(B), ldb, at(C), ldc);
}

// Copies rows between memory of different row lengths; what lies beyond `width` in `to` is left as it is.
template <class T> static void copy_rows(int rows, int width, const T *from, long ldf, T *to, long ldt) {
    for (int r = 0; r < rows; r++) std::memcpy(to + r * ldt, from + r * ldf, sizeof(T) * width);
}
template <class T> static void transpose(int rows, int width, const T *from, long ldf, T *to, long ldt) {
    constexpr int BLOCK = 16;  // so that both sides of a block lie in the first cache
    for (int r0 = 0; r0 < rows; r0 += BLOCK)
        for (int c0 = 0; c0 < width; c0 += BLOCK) {
            if (r0 + BLOCK <= rows && c0 + BLOCK <= width) {
                for (int c = c0; c < c0 + BLOCK; c++)
#pragma GCC unroll 16
                    for (int r = 0; r < BLOCK; r++) to[c * ldt + r0 + r] = from[(r0 + r) * ldf + c];
                continue;
            }
            for (int c = c0; c < std::min(c0 + BLOCK, width); c++)
                for (int r = r0; r < std::min(r0 + BLOCK, rows); r++) to[c * ldt + r] = from[r * ldf + c];
        }
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
        T mean = sum_of<T>(sum) / E;
        for (int v = 0; v < V; v++) {
            Vector<T> d = load(to + v * WIDTH<T>) - mean;
            store(to + v * WIDTH<T>, d);
            squares += d * d;
        }
        T variance = (sum_of<T>(squares) - (EP - E) * mean * mean) / E;
        rstd[r] = T(1) / std::sqrt(variance + eps);
        for (int v = 0; v < V; v++) {
            Vector<T> h = load(to + v * WIDTH<T>) * rstd[r];
            store(to + v * WIDTH<T>, h);
            store(y + (long)r * EP + v * WIDTH<T>, h * load(weight + v * WIDTH<T>) + load(bias + v * WIDTH<T>));
        }
        for (int e = E; e < EP; e++) to[e] = 0;
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

// x becomes GELU(x) = x Φ(x), `slope` its derivative.
CVIT_INLINE void gelu(long n, double *x, double *slope) {
    for (long i = 0; i < n; i++) {
        double cdf = 0.5 * (1 + std::erf(x[i] * M_SQRT1_2));
        slope[i] = cdf + x[i] * std::exp(-0.5 * x[i] * x[i]) * 0.3989422804014327;
        x[i] *= cdf;
    }
}
// erf by formula 7.1.26 of Abramowitz and Stegun, error below 1.5e-7.
CVIT_INLINE void gelu(long n, float *x, float *slope) {
    for (long i = 0; i < n; i += WIDTH<float>) {
        Vector<float> a = load(x + i), u = (a < 0.f ? -a : a) * 0.70710678f;
        Vector<float> t = 1.f / (u * 0.3275911f + 1.f), e = exponential(-u * u);
        Vector<float> p = t * 1.061405429f - 1.453152027f;
        p = p * t + 1.421413741f;
        p = p * t - 0.284496736f;
        p = p * t + 0.254829592f;
        Vector<float> half = p * t * e * 0.5f;  // (1 − erf |a|/√2) / 2
        Vector<float> cdf = a < 0.f ? half : 1.f - half;
        store(slope + i, a * 0.39894228f * e + cdf);
        store(x + i, a * cdf);
    }
}

}  // namespace cvit
