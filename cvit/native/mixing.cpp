#include "blocks.h"

#include <limits>

namespace cvit {
namespace {

// ---------------------------------------------------------------- attention: softmax([q kᵀ / √D, 0] + bias) [v, 0]

// The bias of a member's heads, (H, N + 1 keys, NP queries): looked up in its table, (H, positions), at `index`,
// (N, N + 1). An index of −1 stands for a pair that is masked.
template <class T> const T *looked_up(const Mixing<T> &b, int64_t member) {
    const int N = b.N, NP = b.NP();
    T *all_heads = scratch.zeros<T>((size_t)b.H * (N + 1) * NP);
    for (int h = 0; h < b.H; h++) {
        const T *row = b.table + (member * b.H + h) * b.positions;
        T *bias = all_heads + (size_t)h * (N + 1) * NP;
        for (int i = 0; i < N; i++)
            for (int j = 0; j <= N; j++) {
                const int64_t at = b.index[i * (N + 1) + j];
                bias[(size_t)j * NP + i] = at < 0 ? -std::numeric_limits<T>::infinity() : row[at];
            }
    }
    return all_heads;
}
// The inverse: adds the gradient of every query's and key's bias to its place in the table's.
template <class T> void add_to_table(const Mixing<T> &b, const T *dbias, T *dtable) {
    const int N = b.N, NP = b.NP();
    for (int h = 0; h < b.H; h++) {
        T *row = dtable + (int64_t)h * b.positions;
        const T *from = dbias + (size_t)h * (N + 1) * NP;
        for (int i = 0; i < N; i++)
            for (int j = 0; j <= N; j++) {
                const int64_t at = b.index[i * (N + 1) + j];
                if (at >= 0) row[at] += from[(size_t)j * NP + i];
            }
    }
}

// Columns of p, (N + 1, NP), become probabilities: of the logits p + bias, and of the zero slot in the last row.
template <class T> void softmax(int N, int NP, const T *bias, T *p) {
    for (int i = 0; i < NP; i += WIDTH<T>) {
        Vector<T> zero = load(bias + (size_t)N * NP + i), most = zero;
        for (int j = 0; j < N; j++) {
            const Vector<T> x = load(p + (size_t)j * NP + i) + load(bias + (size_t)j * NP + i);
            store(p + (size_t)j * NP + i, x);
            most = x > most ? x : most;
        }
        const Vector<T> e0 = exponential(zero - most);
        Vector<T> sum = e0;
        for (int j = 0; j < N; j++) {
            const Vector<T> x = exponential(load(p + (size_t)j * NP + i) - most);
            store(p + (size_t)j * NP + i, x);
            sum += x;
        }
        const Vector<T> r = T(1) / sum;
        store(p + (size_t)N * NP + i, e0 * r);
        for (int j = 0; j < N; j++) store(p + (size_t)j * NP + i, load(p + (size_t)j * NP + i) * r);
    }
}
// dp, (N, NP), becomes the gradient of the logits; adds it, and that of the zero slot, to the bias's.
template <class T> void softmax_backward(int N, int NP, const T *p, T *dp, T *dbias) {
    for (int i = 0; i < NP; i += WIDTH<T>) {
        Vector<T> mean{};
        for (int j = 0; j < N; j++) mean += load(p + (size_t)j * NP + i) * load(dp + (size_t)j * NP + i);
        for (int j = 0; j < N; j++) {
            const size_t at = (size_t)j * NP + i;
            const Vector<T> x = load(p + at) * (load(dp + at) - mean);
            store(dp + at, x);
            store(dbias + at, load(dbias + at) + x);
        }
        const size_t zero = (size_t)N * NP + i;
        store(dbias + zero, load(dbias + zero) - load(p + zero) * mean);
    }
}

// `qkv` and `out` are a group's projections and mixed channels; p its probabilities, image by image and head by head.
template <class T> void attend(const Mixing<T> &b, int images, const T *bias, T *qkv, T *out, T *p, bool keeps) {
    using Plain = Exact<T>;
    const int N = b.N, NP = b.NP(), TP = b.TP(), D = b.D, V = NP / WIDTH<T>;
    const size_t size = (size_t)(N + 1) * NP;
    const T root = 1 / std::sqrt(T(D));
    for (long i = 0; i < (long)b.I() * TP; i += WIDTH<T>) store(qkv + i, load(qkv + i) * root);
    for (int i = 0; i < images; i++)
        for (int h = 0; h < b.H; h++) {
            const T *q = qkv + h * D * TP + i * NP, *k = q + b.I() * TP, *v = k + b.I() * TP;
            product(N, D, V, Plain::columns(D, N, k, TP), Plain::right(D, NP, q, TP), p, NP, false);
            softmax<T>(N, NP, bias + h * size, p);
            product(D, N, V, Plain::rows(D, N, v, TP), Plain::right(N, NP, p, NP), out + h * D * TP + i * NP, TP, false);
            if (keeps) p += size;
        }
}
template <class T>
void attend_backward(const Mixing<T> &b, int images, const T *qkv, const T *p, const T *dout, T *dqkv, T *dbias) {
    using Plain = Exact<T>;
    const int N = b.N, NP = b.NP(), TP = b.TP(), D = b.D, V = NP / WIDTH<T>;
    const size_t size = (size_t)(N + 1) * NP;
    const T root = 1 / std::sqrt(T(D));
    T *dp = scratch.take<T>((size_t)N * NP);
    for (int i = 0; i < images; i++)
        for (int h = 0; h < b.H; h++, p += size) {
            const Scratch::Scope scope(scratch);
            const long at = (long)h * D * TP + i * NP;
            const T *q = qkv + at, *k = q + b.I() * TP, *v = k + b.I() * TP, *o = dout + at;
            T *dq = dqkv + at, *dk = dq + b.I() * TP, *dv = dk + b.I() * TP;
            product(N, D, V, Plain::columns(D, N, v, TP), Plain::right(D, NP, o, TP), dp, NP, false);
            softmax_backward<T>(N, NP, p, dp, dbias + h * size);
            product(D, N, V, Plain::rows(D, N, k, TP), Plain::right(N, NP, dp, NP), dq, TP, false);
            product(D, N, V, Plain::rows(D, N, q, TP), Plain::turned(N, N, dp, NP), dk, TP, false);
            product(D, N, V, Plain::rows(D, N, o, TP), Plain::turned(N, N, p, NP), dv, TP, false);
        }
    for (long i = 0; i < (long)b.I() * TP; i += WIDTH<T>) store(dqkv + i, load(dqkv + i) * root);
}

// ---------------------------------------------------------------- shift

// Every head's channels from the token at `places`, (H, N); −1 stands for zero outside the grid.
template <class T> void shift(const Mixing<T> &b, int images, const int64_t *places, const T *values, T *out) {
    for (int c = 0; c < b.I(); c++) {
        const int64_t *from = places + c / b.D * b.N;
        for (int i = 0; i < images; i++) {
            const T *row = values + (size_t)c * b.TP() + i * b.NP();
            T *to = out + (size_t)c * b.TP() + i * b.NP();
            for (int n = 0; n < b.N; n++) to[n] = from[n] < 0 ? T(0) : row[from[n]];
            for (int n = b.N; n < b.NP(); n++) to[n] = 0;
        }
    }
}

// ---------------------------------------------------------------- what both share

// Where a group's part of what is kept lies.
template <class T> struct Kept {
    T *projected, *mixed, *attention;

    Kept(const Mixing<T> &b, int64_t member, int64_t group, T *kept) {
        const int64_t at = member * b.groups() + group, image = member * b.images + group * b.group();
        projected = kept + at * b.parts * b.I() * b.TP();
        mixed = kept + b.kept_projected() + at * b.I() * b.TP();
        attention = kept + b.kept_projected() + b.kept_mixed() + image * b.H * (b.N + 1) * b.NP();
    }
};

// Calls each(image, first row in x, first row in a group's buffers) for the images of a group.
template <class T, class Each> void for_images(const Mixing<T> &b, int64_t member, int64_t group, const Each &each) {
    const int64_t first = group * b.group();
    for (int64_t i = first; i < std::min(first + b.group(), b.images); i++) {
        const int64_t image = member * b.images + i;
        each(image, image * b.N, (i - first) * b.NP());
    }
}

}  // namespace

template <class P>
void mixing_forward(const Mixing<typename P::Number> &b, int64_t member, typename P::Number *y,
                    typename P::Number *kept) {
    using T = typename P::Number;
    const Scratch::Scope whole(scratch);
    const bool attends = b.parts == 3;
    const int N = b.N, E = b.E, EP = padded<T>(E), I = b.I(), W = WIDTH<T>, TP = b.TP();
    const T *weight = padded_row(b.norm_weight, member, E), *bias = padded_row(b.norm_bias, member, E);
    const T *biases = attends ? looked_up(b, member) : nullptr;
    Left<typename P::Factor> maps[3];
    for (int part = 0; part < b.parts; part++) maps[part] = P::rows(I, E, b.maps[part] + member * I * E, E);
    const auto output = P::turned(E, I, b.output_weight + member * E * I, I);
    T *normal = scratch.take<T>(N * EP), *rstd = scratch.take<T>(N), *n = scratch.zeros<T>(TP * EP);
    T *out = scratch.take<T>(TP * EP), *projected = scratch.take<T>((size_t)b.parts * I * TP);
    T *mixed = scratch.take<T>((size_t)I * TP), *p = attends ? scratch.take<T>((size_t)(N + 1) * b.NP()) : nullptr;
    for (int64_t group = 0; group < b.groups(); group++) {
        const Scratch::Scope scope(scratch);
        if (kept) {
            const Kept<T> here(b, member, group, kept);
            mixed = here.mixed;
            if (attends) projected = here.projected, p = here.attention;
        }
        int images = 0;
        for_images(b, member, group, [&](int64_t, int64_t row, int at) {
            norm_forward<T>(N, E, b.x + row * E, b.eps, weight, bias, normal, n + at * EP, rstd);
            images++;
        });
        const int R = images * b.NP();
        const auto channels = P::turned(R, E, n, EP);
        for (int part = 0; part < b.parts; part++)
            product(I, P::steps(E), R / W, maps[part], channels, projected + (long)part * I * TP, TP, false);
        if (attends)
            attend<T>(b, images, biases, projected, mixed, p, kept);
        else
            shift<T>(b, images, b.sources, projected, mixed);
        product(R, P::steps(I), EP / W, P::columns(I, R, mixed, TP), output, out, EP, false);
        for_images(b, member, group, [&](int64_t image, int64_t row, int at) {
            const T s = b.scale ? b.scale[image] : T(1);
            add_branch<T>(N, E, s, b.x + row * E, out + at * EP, b.output_bias + member * E, y + row * E);
        });
    }
}

template <class P>
void mixing_backward(const Mixing<typename P::Number> &b, int64_t member, const typename P::Number *dy,
                     const typename P::Number *kept, const MixingGradients<typename P::Number> &d) {
    using T = typename P::Number;
    const Scratch::Scope whole(scratch);
    const bool attends = b.parts == 3;
    const int N = b.N, E = b.E, EP = padded<T>(E), I = b.I(), F = b.parts * I, W = WIDTH<T>, TP = b.TP();
    const T *weight = padded_row(b.norm_weight, member, E), *bias = padded_row(b.norm_bias, member, E);
    T *beside = scratch.take<T>((size_t)F * E);  // the maps, one below the other
    for (int part = 0; part < b.parts; part++)
        std::memcpy(beside + (size_t)part * I * E, b.maps[part] + member * I * E, sizeof(T) * I * E);
    const auto maps = P::weights(F, E, beside);
    const auto output = P::columns(E, I, b.output_weight + member * E * I, I);
    T *dmaps = scratch.zeros<T>((size_t)F * EP), *doutput = scratch.zeros<T>((size_t)I * EP);
    T *dweight = scratch.zeros<T>(EP), *dbias = scratch.zeros<T>(EP), *line = scratch.take<T>(EP);
    T *doutput_bias = scratch.zeros<T>(EP);
    T *dbiases = attends ? scratch.zeros<T>((size_t)b.H * (N + 1) * b.NP()) : nullptr;
    T *normal = scratch.take<T>(TP * EP), *rstd = scratch.take<T>(TP), *n = scratch.zeros<T>(TP * EP);
    T *dbranch = scratch.zeros<T>(TP * EP), *dn = scratch.take<T>(TP * EP);
    T *dmixed = scratch.take<T>((size_t)I * TP), *dprojected = scratch.zeros<T>((size_t)F * TP);
    for (int64_t group = 0; group < b.groups(); group++) {
        const Scratch::Scope scope(scratch);
        const Kept<T> here(b, member, group, const_cast<T *>(kept));
        int images = 0;
        for_images(b, member, group, [&](int64_t image, int64_t row, int at) {
            branch_gradient<T>(N, E, b.scale ? b.scale[image] : T(1), dy + row * E, dbranch + at * EP);
            add_columns<T>(N, EP / W, dbranch + at * EP, EP, doutput_bias);
            norm_forward<T>(N, E, b.x + row * E, b.eps, weight, bias, normal + at * EP, n + at * EP, rstd + at);
            images++;
        });
        const int R = images * b.NP();
        product(I, P::steps(R), EP / W, P::rows(I, R, here.mixed, TP), P::right(R, EP, dbranch, EP), doutput, EP, true);
        product(I, P::steps(E), R / W, output, P::turned(R, E, dbranch, EP), dmixed, TP, false);
        if (attends)
            attend_backward<T>(b, images, here.projected, here.attention, dmixed, dprojected, dbiases);
        else
            shift<T>(b, images, b.targets, dmixed, dprojected);
        product(F, P::steps(R), EP / W, P::rows(F, R, dprojected, TP), P::right(R, EP, n, EP), dmaps, EP, true);
        product(R, P::steps(F), EP / W, P::columns(F, R, dprojected, TP), maps, dn, EP, false);
        for_images(b, member, group, [&](int64_t, int64_t row, int at) {
            norm_backward<T>(N, E, dn + at * EP, normal + at * EP, rstd + at, weight, dy + row * E, d.x + row * E, dweight,
                             dbias, line);
        });
    }
    copy_rows<T>(1, E, dweight, EP, d.norm_weight + member * E, E);
    copy_rows<T>(1, E, dbias, EP, d.norm_bias + member * E, E);
    copy_rows<T>(1, E, doutput_bias, EP, d.output_bias + member * E, E);
    transpose<T>(I, E, doutput, EP, d.output_weight + member * E * I, I);
    for (int part = 0; part < b.parts; part++)
        copy_rows<T>(I, E, dmaps + (size_t)part * I * EP, EP, d.maps[part] + member * I * E, E);
    if (attends) add_to_table<T>(b, dbiases, d.table + member * b.H * b.positions);
}

#define CVIT_FOR(P)                                                                                            \
    template void mixing_forward<P>(const Mixing<P::Number> &, int64_t, P::Number *, P::Number *);            \
    template void mixing_backward<P>(const Mixing<P::Number> &, int64_t, const P::Number *, const P::Number *, \
                                     const MixingGradients<P::Number> &);
CVIT_FOR(Exact<float>)
CVIT_FOR(Exact<double>)
CVIT_FOR(Halves)

}  // namespace cvit
