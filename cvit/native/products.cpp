#include "products.h"

#include <immintrin.h>

namespace cvit {
namespace {

template <class F> struct Sums { using type = F; };
template <> struct Sums<Pair> { using type = float; };
template <class F> using Sum = typename Sums<F>::type;

CVIT_INLINE Vector<double> added(Vector<double> sum, Vector<double> a, Vector<double> b) { return sum + a * b; }
CVIT_INLINE Vector<float> added(Vector<float> sum, Vector<float> a, Vector<float> b) { return sum + a * b; }
#if defined(__AVX512BF16__)
CVIT_INLINE Vector<float> added(Vector<float> sum, Vector<Pair> a, Vector<Pair> b) {
    return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

// A tile of C that fits the registers: sums stay there over all K. Where A is transposed (its rows are 1 apart), the
// compiler knows the places of its numbers.
template <class F, int ROWS, int COLUMNS, bool TRANSPOSED>
void tile(int K, Left<F> a, Right<F> b, Sum<F> *C, long ldc, bool adds) {
    using T = Sum<F>;
    if constexpr (TRANSPOSED) a.row = 1;
    constexpr int W = WIDTH<T>;
    Vector<T> sums[ROWS][COLUMNS];
#pragma GCC unroll 16
    for (int j = 0; j < ROWS; j++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) sums[j][v] = Vector<T>{};
    if (adds)
#pragma GCC unroll 16
        for (int j = 0; j < ROWS; j++)
#pragma GCC unroll 4
            for (int v = 0; v < COLUMNS; v++) sums[j][v] = load(C + j * ldc + v * W);
    for (int k = 0; k < K; k++) {
        Vector<F> right[COLUMNS];
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) right[v] = load(b.at + k * b.row + v * b.column);
#pragma GCC unroll 16
        for (int j = 0; j < ROWS; j++) {
            const Vector<F> left = all<F>(a.at[j * a.row + k * a.step]);
#pragma GCC unroll 4
            for (int v = 0; v < COLUMNS; v++) sums[j][v] = added(sums[j][v], left, right[v]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < ROWS; j++)
#pragma GCC unroll 4
        for (int v = 0; v < COLUMNS; v++) store(C + j * ldc + v * W, sums[j][v]);
}

// The most rows of a tile: as many as the registers hold beside the vectors of B and one of A.
constexpr int most_rows(int columns) {
    const int fit = (REGISTERS - columns - 1) / columns;
    return fit > 16 ? 16 : fit;
}

template <class F, int ROWS, int COLUMNS>
CVIT_INLINE void tile_of(int rows, int K, Left<F> a, Right<F> b, Sum<F> *C, long ldc, bool adds) {
    if constexpr (ROWS > 1)
        if (rows < ROWS) return tile_of<F, ROWS - 1, COLUMNS>(rows, K, a, b, C, ldc, adds);
    if (a.row == 1) return tile<F, ROWS, COLUMNS, true>(K, a, b, C, ldc, adds);
    tile<F, ROWS, COLUMNS, false>(K, a, b, C, ldc, adds);
}

// Columns of C as wide as a tile, cut into tiles of almost equal height, so that none has too few sums to hide the
// latency of an addition.
template <class F, int COLUMNS>
void strip(int J, int K, Left<F> a, Right<F> b, Sum<F> *C, long ldc, bool adds) {
    constexpr int MOST = most_rows(COLUMNS);
    const int tiles = (J + MOST - 1) / MOST;
    for (int t = 0, j = 0; t < tiles; t++) {
        const int rows = J / tiles + (t < J % tiles);
        tile_of<F, MOST, COLUMNS>(rows, K, a.rows_from(j), b, C + j * ldc, ldc, adds);
        j += rows;
    }
}

template <class F> void cut(int J, int K, int V, Left<F> a, Right<F> b, Sum<F> *C, long ldc, bool adds) {
    constexpr int WIDEST = REGISTERS == 32 ? 4 : 2;
    int v = 0;
    auto take = [&]<int COLUMNS>() {
        const long at = (long)v * WIDTH<Sum<F>>;
        strip<F, COLUMNS>(J, K, a, b.columns_from(v), C + at, ldc, adds);
        v += COLUMNS;
    };
    if constexpr (WIDEST == 4)
        while (V - v >= 3 && (V - v) % 4 != 0) take.template operator()<3>();
    while (V - v >= WIDEST) take.template operator()<WIDEST>();
    if (V - v == 2) take.template operator()<2>();
    if (V - v == 1) take.template operator()<1>();
}

}  // namespace

void product(int J, int K, int V, Left<double> a, Right<double> b, double *C, long ldc, bool adds) {
    for (int v = 0; v < V; v++) {  // for checks only, so as plain as it can be
        const long at = (long)v * WIDTH<double>;
        for (int j = 0; j < J; j++) tile<double, 1, 1, false>(K, a.rows_from(j), b.columns_from(v), C + j * ldc + at, ldc, adds);
    }
}
void product(int J, int K, int V, Left<float> a, Right<float> b, float *C, long ldc, bool adds) {
    cut<float>(J, K, V, a, b, C, ldc, adds);
}

#if defined(__AVX512BF16__)

void product(int J, int K, int V, Left<Pair> a, Right<Pair> b, float *C, long ldc, bool adds) {
    cut<Pair>(J, K, V, a, b, C, ldc, adds);
}

namespace {

CVIT_INLINE __mmask16 first(int count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1); }

}  // namespace

void pairs_in_rows(int rows, int K, const float *x, long ldx, Pair *y, long ldy) {
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < K; k += 32) {
            const float *from = x + r * ldx + k;
            const __m512 low = _mm512_maskz_loadu_ps(first(K - k), from);
            const __m512 high = _mm512_maskz_loadu_ps(first(K - k - 16), from + 16);
            _mm512_storeu_si512(y + r * ldy + k / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
}

void pairs_in_columns(int K, int columns, const float *x, long ldx, Pair *y, long ldy) {
    alignas(64) static constexpr uint16_t WEAVE[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i weave = _mm512_load_si512(WEAVE);
    for (int k = 0; k < K; k += 2)
        for (int c = 0; c < columns; c += 16) {
            const float *from = x + k * ldx + c;
            const __mmask16 mask = first(columns - c);
            const __m512 above = _mm512_maskz_loadu_ps(mask, from);
            const __m512 below = k + 1 < K ? _mm512_maskz_loadu_ps(mask, from + ldx) : _mm512_setzero_ps();
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(below, above);
            _mm512_storeu_si512(y + (k / 2) * ldy + c, _mm512_permutexvar_epi16(weave, both));
        }
}

void weave_pairs(int K, int columns, const Pair *x, long ldx, Pair *y, long ldy) {
    alignas(64) static constexpr uint16_t LOW[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(LOW), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int k = 0; k < K; k += 2)
        for (int c = 0; c < columns; c += 32) {
            const Pair *from = x + k * ldx + c / 2;
            Pair *to = y + (k / 2) * ldy + c;
            // No more than there is: columns are read up to whole vectors of 16 numbers.
            const __mmask16 mask = columns - c > 16 ? 0xffff : 0x00ff;
            const __m512i above = _mm512_maskz_loadu_epi32(mask, from);
            const __m512i below = k + 1 < K ? _mm512_maskz_loadu_epi32(mask, from + ldx) : _mm512_setzero_si512();
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(above, low, below));
            if (columns - c > 16) _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(above, high, below));
        }
}

#else

void product(int, int, int, Left<Pair>, Right<Pair>, float *, long, bool) { __builtin_trap(); }
void pairs_in_rows(int, int, const float *, long, Pair *, long) { __builtin_trap(); }
void pairs_in_columns(int, int, const float *, long, Pair *, long) { __builtin_trap(); }
void weave_pairs(int, int, const Pair *, long, Pair *, long) { __builtin_trap(); }

#endif

}  // namespace cvit
