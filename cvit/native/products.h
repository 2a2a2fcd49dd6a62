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
    long row;
};

// C (J × V vectors), rows `ldc` apart, = or += A (J × K) B (K × V vectors); K counts pairs where factors are pairs.
void product(int J, int K, int V, Left<double> a, Right<double> b, double *C, long ldc, bool adds);
void product(int J, int K, int V, Left<float> a, Right<float> b, float *C, long ldc, bool adds);
void product(int J, int K, int V, Left<Pair> a, Right<Pair> b, float *C, long ldc, bool adds);

// x, (rows × K), as rows of pairs, `ldy` apart: pairs of neighbours in a row.
void pairs_in_rows(int rows, int K, const float *x, long ldx, Pair *y, long ldy);
// x, (K × columns), as rows of pairs, `ldy` apart: a row with the one below it. Columns are filled up to whole vectors.
void pairs_in_columns(int K, int columns, const float *x, long ldx, Pair *y, long ldy);
// So many numbers, in whole vectors, of pairs of neighbours.
void numbers_of_pairs(int count, const Pair *pairs, float *x);

#if defined(__AVX512BF16__)
constexpr bool HAS_HALF_PRODUCTS = true;
#else
constexpr bool HAS_HALF_PRODUCTS = false;
#endif

// How factors are made of float or double matrices: `rows` and `columns` are left factors A and Aᵀ, `right` and `turned`
// right factors B and Bᵀ. Matrices that `right` takes have their rows padded to whole vectors, or are `weights`.
template <class T> struct Exact {
    using Number = T;
    using Factor = T;
    static constexpr bool ROUNDS = false;
    static const T *kept(int, int, const T *x) { return x; }
    static int steps(int K) { return K; }
    static Left<T> rows(int, int, const T *x, long ldx) { return {x, ldx, 1}; }
    static Left<T> columns(int, int, const T *x, long ldx) { return {x, 1, ldx}; }
    static Right<T> right(int, int, const T *x, long ldx) { return {x, ldx}; }
    static Right<T> weights(int K, int columns, const T *x) {
        if (columns == padded<T>(columns)) return {x, columns};
        T *y = scratch.zeros<T>((size_t)K * padded<T>(columns));
        copy_rows<T>(K, columns, x, columns, y, padded<T>(columns));
        return {y, padded<T>(columns)};
    }
    static Right<T> turned(int columns, int K, const T *x, long ldx) {
        const long ldy = padded<T>(columns);
        T *y = columns == ldy ? scratch.take<T>(K * ldy) : scratch.zeros<T>(K * ldy);
        transpose<T>(columns, K, x, ldx, y, ldy);
        return {y, ldy};
    }
};

struct Halves {
    using Number = float;
    using Factor = Pair;
    static constexpr bool ROUNDS = true;
    // What will be a factor is kept as it is rounded. Rows are whole vectors.
    static void keep(int rows, int columns, const float *x, float *to) {
        pairs_in_rows(1, rows * columns, x, 0, reinterpret_cast<Pair *>(to), 0);
    }
    static const float *kept(int rows, int columns, const float *from) {
        float *x = scratch.take<float>((size_t)rows * columns);
        numbers_of_pairs(rows * columns, reinterpret_cast<const Pair *>(from), x);
        return x;
    }
    static int steps(int K) { return (K + 1) / 2; }
    static Left<Pair> rows(int J, int K, const float *x, long ldx) {
        const long ldy = padded<float>(steps(K));
        Pair *y = scratch.take<Pair>(J * ldy);
        pairs_in_rows(J, K, x, ldx, y, ldy);
        return {y, ldy, 1};
    }
    static Left<Pair> columns(int K, int J, const float *x, long ldx) {
        const Right<Pair> y = right(K, J, x, ldx);
        return {y.at, 1, y.row};
    }
    static Right<Pair> right(int K, int columns, const float *x, long ldx) {
        const long ldy = padded<float>(columns);
        Pair *y = scratch.take<Pair>(steps(K) * ldy);
        pairs_in_columns(K, columns, x, ldx, y, ldy);
        return {y, ldy};
    }
    static Right<Pair> weights(int K, int columns, const float *x) { return right(K, columns, x, columns); }
    static Right<Pair> turned(int columns, int K, const float *x, long ldx) {
        const Left<Pair> pairs = rows(columns, K, x, ldx);
        return Exact<Pair>::turned(columns, pairs.row, pairs.at, pairs.row);  // whole squares, zeros included
    }
};

}  // namespace cvit
