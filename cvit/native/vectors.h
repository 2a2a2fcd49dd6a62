// Vectors at the width of the machine, by the vector types of GCC and Clang, and the memory that kernels work in.
//
// Buffers have their rows padded to whole vectors (`padded`), so that no kernel has a tail of its own. float is for
// training; double, with the functions of the C library, is for checks.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace cvit {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 32, REGISTERS = 16;
#endif

#define CVIT_INLINE static inline __attribute__((always_inline))

template <class T> struct Vectors {
    typedef T type __attribute__((vector_size(VECTOR_BYTES)));
    typedef T in_memory __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
    static constexpr int width = VECTOR_BYTES / sizeof(T);
};
template <class T> using Vector = typename Vectors<T>::type;
template <class T> constexpr int WIDTH = Vectors<T>::width;

template <class T> CVIT_INLINE Vector<T> load(const T *at) {
    return *reinterpret_cast<const typename Vectors<T>::in_memory *>(at);
}
template <class T> CVIT_INLINE void store(T *at, Vector<T> x) {
    *reinterpret_cast<typename Vectors<T>::in_memory *>(at) = x;
}
template <class T> CVIT_INLINE Vector<T> all(T x) { return x - Vector<T>{}; }
template <class T> CVIT_INLINE int padded(int n) { return (n + WIDTH<T> - 1) / WIDTH<T> * WIDTH<T>; }

// The length of rows in memory whose columns are read: an odd number of cache lines, so that the numbers of a column fall
// into all sets of the cache. Rows of 1,536 bytes would share an eighth of them.
template <class T> CVIT_INLINE int spread(int n) {
    constexpr int LINE = 64 / sizeof(T);
    return ((n + LINE - 1) / LINE | 1) * LINE;
}

template <class T> using Places = decltype(Vector<T>{} < Vector<T>{});  // as many whole numbers, for shuffles

template <class T> CVIT_INLINE T sum_of(Vector<T> x) {
#pragma GCC unroll 4
    for (int distance = WIDTH<T> / 2; distance; distance /= 2) {
        Places<T> partners;
        for (int i = 0; i < WIDTH<T>; i++) partners[i] = i ^ distance;
        x += __builtin_shuffle(x, partners);
    }
    return x[0];
}

// How the vectors of a row lie in memory: `only` sets to zero what is not part of the row.
template <class T> struct Whole {
    Vector<T> load(const T *at) const { return cvit::load(at); }
    void store(T *at, Vector<T> x) const { cvit::store(at, x); }
    Vector<T> only(Vector<T> x) const { return x; }
};
template <class T> struct Rest {  // the last of a row that is no whole number of vectors
    int count;
    Vector<T> load(const T *at) const {
        T numbers[WIDTH<T>] = {};
        std::memcpy(numbers, at, sizeof(T) * count);
        return cvit::load(numbers);
    }
    void store(T *at, Vector<T> x) const { std::memcpy(at, &x, sizeof(T) * count); }
    Vector<T> only(Vector<T> x) const {
        for (int i = count; i < WIDTH<T>; i++) x[i] = 0;
        return x;
    }
};
// Calls each(column, Whole or Rest) for every vector of a row of E numbers.
template <class T, class Each> CVIT_INLINE void for_vectors(int E, const Each &each) {
    const int whole = E / WIDTH<T> * WIDTH<T>;
    for (int e = 0; e < whole; e += WIDTH<T>) each(e, Whole<T>{});
    if (whole < E) each(whole, Rest<T>{E - whole});
}

// Memory for one thread that grows and is kept. What is taken within a `Scope` is free again when the scope ends.
class Scratch {
    struct Free {
        void operator()(char *memory) const { std::free(memory); }
    };
    struct Block {
        std::unique_ptr<char, Free> memory;
        size_t size = 0;
    };
    std::vector<Block> blocks;
    size_t used = 0;

  public:
    template <class T> T *take(size_t count) {
        const size_t bytes = (count * sizeof(T) / VECTOR_BYTES + 2) * VECTOR_BYTES;
        if (used == blocks.size()) blocks.emplace_back();
        Block &block = blocks[used++];
        if (block.size < bytes) {
            block.memory.reset(static_cast<char *>(std::aligned_alloc(VECTOR_BYTES, bytes)));
            if (!block.memory) throw std::bad_alloc();
            block.size = bytes;
        }
        return reinterpret_cast<T *>(block.memory.get());
    }
    template <class T> T *zeros(size_t count) {
        T *memory = take<T>(count);
        std::memset(memory, 0, count * sizeof(T));
        return memory;
    }

    class Scope {
        Scratch &scratch;
        const size_t used;

      public:
        explicit Scope(Scratch &scratch) : scratch(scratch), used(scratch.used) {}
        ~Scope() { scratch.used = used; }
    };
};

// A thread's own is made at its first use and never freed, since threads live as long as the process. So it is reached
// without a call, which thousands of small products a step would feel.
__attribute__((tls_model("initial-exec"))) inline thread_local Scratch *scratch_here = nullptr;
CVIT_INLINE Scratch &scratch() {
    if (!scratch_here) scratch_here = new Scratch;
    return *scratch_here;
}

// 2^x. NaN stays NaN, so that a training that diverged is seen. Below −150 it is 0, for −∞ above all. To compute e^x as
// 2^(x / ln 2) spares a reduction in two parts, and rounds no worse than x itself has been.
constexpr double LOG2_E = 1.4426950408889634;
CVIT_INLINE Vector<double> power_of_2(Vector<double> x) {
    for (int i = 0; i < WIDTH<double>; i++) x[i] = std::exp2(x[i]);
    return x;
}
CVIT_INLINE Vector<float> power_of_2(Vector<float> x) {
#if defined(__AVX512F__)
    x = (Vector<float>)_mm512_max_ps((__m512)all<float>(-160.f), (__m512)x);  // of a NaN, the second one
#else
    const auto vanishes = x < -126.f;
#endif
    const Vector<float> whole = (x + 12582912.f) - 12582912.f;  // 1.5·2²³: rounds to the nearest whole number
    const Vector<float> f = x - whole;
    Vector<float> p = f * 1.5345811e-4f + 1.3399931e-3f;
    p = p * f + 9.6184891e-3f;
    p = p * f + 5.5503286e-2f;
    p = p * f + 2.4022646e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.f;
#if defined(__AVX512F__)
    return (Vector<float>)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    const Vector<float> at_most = whole > 127.f ? all<float>(127.f) : whole;
    p = p * (Vector<float>)((__builtin_convertvector(at_most, Vector<int32_t>) + 127) << 23);
    return vanishes ? all<float>(0.f) : p;
#endif
}

CVIT_INLINE Vector<double> reciprocal(Vector<double> x) { return 1.0 / x; }
CVIT_INLINE Vector<float> reciprocal(Vector<float> x) {
#if defined(__AVX512F__)  // a division takes several times as long
    const Vector<float> first = (Vector<float>)_mm512_rcp14_ps((__m512)x);
    return first * (2.f - x * first);
#else
    return 1.f / x;
#endif
}

}  // namespace cvit
