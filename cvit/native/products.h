// Matrix products C = A B and C += A B, with the vectors along the columns of B and C.
//
// A `Left` factor and a `Right` factor are views. What they are made of is the arithmetic's affair, one of two:
//
// Exact<T>  factors as they are
// Halves    float factors rounded to bfloat16 and multiplied in pairs with sums in float, where the processor can
//           (AVX512_BF16); the pairs lie along the dimension that is summed over

#pragma once

#include "rows.h"

namespace cvit {

typedef int32_t Pair;  // two numbers in bfloat16

template <class F> struct Left {
    const F *at;
    long row, step;  // from a row of A to the next, from a column to the next
    Left rows_from(long first) const { return {at + first * row, row, step}; }
};
template <class F> struct Right {
    const F *at;
    long row, column;  // from a row of B to the next, from a vector of a row to the next
    Right columns_from(int first) const { return {at + first * column, row, column}; }
};
// Rows of numbers, `row` apart.
template <class F> Right<F> in_rows(const F *at, long row) { return {at, row, WIDTH<F>}; }
// Columns of vectors, each of K vectors one below the other: all that a tile reads of B lies close together.
template <class F> Right<F> in_columns(const F *at, int K) { return {at, WIDTH<F>, (long)K * WIDTH<F>}; }

// C (J × V vectors), rows `ldc` apart, = or += A (J × K) B (K × V vectors); K counts pairs where factors are pairs.
void product(int J, int K, int V, Left<double> a, Right<double> b, double *C, long ldc, bool adds);
void product(int J, int K, int V, Left<float> a, Right<float> b, float *C, long ldc, bool adds);
void product(int J, int K, int V, Left<Pair> a, Right<Pair> b, float *C, long ldc, bool adds);

// x, (rows × K), as rows of pairs of neighbours, `ldy` apart, filled up with zeros to whole vectors.
void pairs_in_rows(int rows, int K, const float *x, long ldx, Pair *y, long ldy);
// x, (K × columns), as rows of pairs of a number with the one below it; columns are filled up to whole vectors.
void pairs_in_columns(int K, int columns, const float *x, long ldx, Pair *y, long ldy);
// The same of rows of pairs of neighbours.
void weave_pairs(int K, int columns, const Pair *x, long ldx, Pair *y, long ldy);
#if defined(__AVX512BF16__)
CVIT_INLINE void put_pairs(Pair *at, Vector<float> low, Vector<float> high) {
    _mm512_storeu_si512(at, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}
#else
CVIT_INLINE void put_pairs(Pair *, Vector<float>, Vector<float>) { __builtin_trap(); }
#endif

#if defined(__AVX512BF16__)
constexpr bool HAS_HALF_PRODUCTS = true;
#else
constexpr bool HAS_HALF_PRODUCTS = false;
#endif

// Rows of numbers as they are multiplied, and kept for the backward pass, `row` apart; a row is padded to whole vectors.
template <class F> struct Rows {
    F *at;
    long row;
};

// How factors are made of float or double matrices. `stored` are the rows of a matrix as they are multiplied: of them,
// `rows` and `columns` are left factors A and Aᵀ, `right` and `turned` right factors B and Bᵀ. `plain` is a right factor of
// numbers that are not stored, in padded rows, and `weights` one that is used so often that it is put in columns.
template <class T> struct Exact {
    using Number = T;
    using Factor = T;
    static constexpr bool ROUNDS = false;
    static int steps(int K) { return K; }
    static Rows<T> room(int rows, int K) { return {scratch().zeros<T>((size_t)rows * spread<T>(K)), spread<T>(K)}; }
    static Rows<T> stored(int, int, const T *x, long ldx) { return {const_cast<T *>(x), ldx}; }
    // In place of x, or where they have another form elsewhere.
    static Rows<T> instead_of(int, int, T *x, long ldx) { return {x, ldx}; }
    static Rows<T> kept(T *at, long length) { return {at, length}; }
    static Rows<T> keep(int, int K, const T *, T *at) { return kept(at, K); }  // they are there already
    static Rows<T> part(Rows<T> x, long row, long column) { return {x.at + row * x.row + column, x.row}; }
    // Puts two vectors into a row, at a column of a row that ends at `end`: the second one may lie beyond it.
    CVIT_INLINE void put(T *row, int column, int end, Vector<T> low, Vector<T> high) {
        store(row + column, low);
        if (column + WIDTH<T> < end) store(row + column + WIDTH<T>, high);
    }
    static Left<T> rows(int, int, Rows<T> x) { return {x.at, x.row, 1}; }
    static Left<T> columns(int, int, Rows<T> x) { return {x.at, 1, x.row}; }
    static Right<T> right(int, int, Rows<T> x) { return in_rows(x.at, x.row); }
    static Right<T> plain(int, int columns, const T *x) { return in_rows(x, columns); }
    static Right<T> weights(int K, int columns, const T *x) {
        T *y = scratch().take<T>((size_t)K * padded<T>(columns));
        for_vectors<T>(columns, [&](int c, auto in) {
            for (int k = 0; k < K; k++) store(y + (long)c * K + k * WIDTH<T>, in.load(x + (long)k * columns + c));
        });
        return in_columns(y, K);
    }
    static Right<T> turned(int columns, int K, Rows<T> x) {
        const size_t size = (size_t)K * padded<T>(columns);
        T *y = columns == padded<T>(columns) ? scratch().take<T>(size) : scratch().zeros<T>(size);
        for (int c = 0; c < columns; c += WIDTH<T>)
            transpose<T>(std::min(WIDTH<T>, columns - c), K, x.at + c * x.row, x.row, y + (long)c * K, WIDTH<T>);
        return in_columns(y, K);
    }
};

struct Halves {
    using Number = float;
    using Factor = Pair;
    static constexpr bool ROUNDS = true;
    static int steps(int K) { return (K + 1) / 2; }
    static Rows<Pair> room(int rows, int K) {
        const int row = padded<float>(steps(K));
        return {scratch().zeros<Pair>((size_t)rows * row), row};
    }
    static Rows<Pair> stored(int rows, int K, const float *x, long ldx) {
        const int row = padded<float>(steps(K));
        const Rows<Pair> y{scratch().take<Pair>((size_t)rows * row), row};
        pairs_in_rows(rows, K, x, ldx, y.at, y.row);
        return y;
    }
    static Rows<Pair> instead_of(int rows, int K, float *, long) { return room(rows, K); }
    static Rows<Pair> kept(float *at, long length) { return {reinterpret_cast<Pair *>(at), length / 2}; }
    static Rows<Pair> keep(int rows, int K, const float *x, float *at) {
        const Rows<Pair> y = kept(at, K);
        pairs_in_rows(rows, K, x, K, y.at, y.row);  // the end of a row may be written over: the next row comes later
        return y;
    }
    static Rows<Pair> part(Rows<Pair> x, long row, long column) { return {x.at + row * x.row + column / 2, x.row}; }
    CVIT_INLINE void put(Pair *row, int column, int, Vector<float> low, Vector<float> high) {
        put_pairs(row + column / 2, low, high);
    }
    static Left<Pair> rows(int, int, Rows<Pair> x) { return {x.at, x.row, 1}; }
    static Left<Pair> columns(int K, int J, Rows<Pair> x) {
        const Right<Pair> y = right(K, J, x);
        return {y.at, 1, y.row};
    }
    static Right<Pair> right(int K, int columns, Rows<Pair> x) {
        const long ldy = padded<float>(columns);
        Pair *y = scratch().take<Pair>(steps(K) * ldy);
        weave_pairs(K, columns, x.at, x.row, y, ldy);
        return in_rows(y, ldy);
    }
    static Right<Pair> plain(int K, int columns, const float *x) {
        const long ldy = padded<float>(columns);
        Pair *y = scratch().take<Pair>(steps(K) * ldy);
        pairs_in_columns(K, columns, x, columns, y, ldy);
        return in_rows(y, ldy);
    }
    static Right<Pair> weights(int K, int columns, const float *x) { return plain(K, columns, x); }
    static Right<Pair> turned(int columns, int K, Rows<Pair> x) {
        // Whole squares, zeros included.
        return Exact<Pair>::turned(columns, std::min<long>(x.row, padded<float>(steps(K))), x);
    }
};

}  // namespace cvit
