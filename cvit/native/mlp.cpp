#include "blocks.h"

namespace cvit {
namespace {

constexpr int CHUNK = 64;  // tokens at a time: with their weights they stay in the second cache

// Calls work(first row, rows) for consecutive rows of a member, and `each(first row within these, rows, s)` for those
// of an image.
template <class T, class Each> void by_image(const Mlp<T> &b, int64_t row, int rows, const Each &each) {
    if (!b.scale) return each(0, rows, T(1));
    for (int r = 0; r < rows;) {
        const int64_t image = (row + r) / b.N;
        const int count = std::min<int64_t>(rows - r, (image + 1) * b.N - row - r);
        each(r, count, b.scale[image]);
        r += count;
    }
}

}  // namespace

template <class P>
void mlp_forward(const Mlp<typename P::Number> &b, int64_t member, typename P::Number *y, typename P::Number *kept) {
    using T = typename P::Number;
    const Scratch::Scope whole(scratch());
    const int E = b.E, F = b.F, EP = padded<T>(E), FP = padded<T>(F), W = WIDTH<T>;
    const int64_t rows = b.images * b.N;
    const T *weight = padded_row(b.norm_weight.of(member), E), *bias = padded_row(b.norm_bias.of(member), E);
    const T *b1 = padded_row(b.b1.of(member), F), *b2 = padded_row(b.b2.of(member), E);
    const auto w1 = P::turned(F, E, P::stored(F, E, b.w1.of(member), E));
    const auto w2 = P::turned(E, F, P::stored(E, F, b.w2.of(member), F));
    const auto n = P::room(CHUNK, E), h = P::room(CHUNK, F);
    T *linear = scratch().take<T>((size_t)CHUNK * FP), *out = scratch().take<T>(CHUNK * EP), few_moments[2 * CHUNK];
    for (int64_t first = 0; first < rows; first += CHUNK) {
        const Scratch::Scope scope(scratch());
        const int R = std::min<int64_t>(CHUNK, rows - first);
        const int64_t row = member * rows + first;
        const T *x = b.x + row * E;
        T *a = kept ? kept + row * FP : linear;
        auto *m = reinterpret_cast<Moments<T> *>(kept ? kept + b.kept_linear() + 2 * row : few_moments);
        moments<T>(R, E, x, b.eps, m);
        norm_forward<P>(R, E, x, m, weight, bias, n.at, n.row);
        product(R, P::steps(E), FP / W, P::rows(R, E, n), w1, a, FP, false);
        gelu_rows<P>(R, FP, a, b1, h.at, h.row);
        product(R, P::steps(F), EP / W, P::rows(R, F, h), w2, out, EP, false);
        by_image(b, row, R, [&](int r, int count, T s) {
            add_branch<T>(count, E, s, x + r * E, out + r * EP, b2, y + (row + r) * E);
        });
    }
}

template <class P>
void mlp_backward(const Mlp<typename P::Number> &b, int64_t member, const typename P::Number *dy,
                  const typename P::Number *kept, const MlpGradients<typename P::Number> &d) {
    using T = typename P::Number;
    const Scratch::Scope whole(scratch());
    const int E = b.E, F = b.F, EP = padded<T>(E), FP = padded<T>(F), FL = spread<T>(F), W = WIDTH<T>;
    const int64_t rows = b.images * b.N;
    const T *weight = padded_row(b.norm_weight.of(member), E), *bias = padded_row(b.norm_bias.of(member), E);
    const T *b1 = padded_row(b.b1.of(member), F);
    const auto w1 = P::weights(F, E, b.w1.of(member)), w2 = P::weights(E, F, b.w2.of(member));
    T *dw1 = scratch().zeros<T>((size_t)F * EP), *dw2 = scratch().zeros<T>((size_t)E * FP);
    T *db1 = scratch().zeros<T>(FP), *db2 = scratch().zeros<T>(EP);
    T *dweight = scratch().zeros<T>(EP), *dbias = scratch().zeros<T>(EP), *dlinear = scratch().take<T>((size_t)CHUNK * FL);
    const auto n = P::room(CHUNK, E), h = P::room(CHUNK, F), dh = P::instead_of(CHUNK, F, dlinear, FL);
    T *dbranch = scratch().zeros<T>(CHUNK * EP), *dn = scratch().take<T>(CHUNK * EP);
    for (int64_t first = 0; first < rows; first += CHUNK) {
        const Scratch::Scope scope(scratch());
        const int R = std::min<int64_t>(CHUNK, rows - first);
        const int64_t row = member * rows + first;
        const T *past = dy + row * E, *x = b.x + row * E;
        const auto *m = reinterpret_cast<const Moments<T> *>(kept + b.kept_linear() + 2 * row);
        by_image(b, row, R, [&](int r, int count, T s) {
            branch_gradient<T>(count, E, s, past + r * E, dbranch + r * EP);
        });
        add_columns<T>(R, EP / W, dbranch, EP, db2);
        const auto g = P::stored(R, EP, dbranch, EP);
        product(R, P::steps(E), FP / W, P::rows(R, E, g), w2, dlinear, FL, false);
        gelu_backward<P>(R, FP, kept + row * FP, b1, h.at, h.row, dlinear, FL, dh.at, dh.row, db1);
        product(E, P::steps(R), FP / W, P::columns(R, E, g), P::right(R, FP, h), dw2, FP, true);
        norm_forward<P>(R, E, x, m, weight, bias, n.at, n.row);
        product(F, P::steps(R), EP / W, P::columns(R, F, dh), P::right(R, EP, n), dw1, EP, true);
        product(R, P::steps(F), EP / W, P::rows(R, F, dh), w1, dn, EP, false);
        norm_backward<T>(R, E, dn, x, m, weight, past, d.x + row * E, dweight, dbias);
    }
    copy_rows<T>(1, E, dweight, EP, d.norm_weight + member * E, E);
    copy_rows<T>(1, E, dbias, EP, d.norm_bias + member * E, E);
    copy_rows<T>(F, E, dw1, EP, d.w1 + member * F * E, E);
    copy_rows<T>(1, F, db1, FP, d.b1 + member * F, F);
    copy_rows<T>(E, F, dw2, FP, d.w2 + member * E * F, F);
    copy_rows<T>(1, E, db2, EP, d.b2 + member * E, E);
}

#define CVIT_FOR(P)                                                                                       \
    template void mlp_forward<P>(const Mlp<P::Number> &, int64_t, P::Number *, P::Number *);             \
    template void mlp_backward<P>(const Mlp<P::Number> &, int64_t, const P::Number *, const P::Number *, \
                                  const MlpGradients<P::Number> &);
CVIT_FOR(Exact<float>)
CVIT_FOR(Exact<double>)
CVIT_FOR(Halves)

}  // namespace cvit
