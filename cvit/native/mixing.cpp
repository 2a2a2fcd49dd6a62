#include "blocks.h"

#include <limits>

namespace cvit {
namespace {

// ---------------------------------------------------------------- attention: softmax([q kᵀ / √D, 0] + bias) [v, 0]

// The bias of a member's heads, (H, N + 1 keys, NP queries), over ln 2: looked up in its table, (H, positions), at
// `index`, (N, N + 1). An index of −1 stands for a pair that is masked.
template <class T> const T *looked_up(const Mixing<T> &b, int64_t member) {
    const int N = b.N, NP = b.NP();
    T *all_heads = scratch().zeros<T>((size_t)b.H * (N + 1) * NP);
    for (int h = 0; h < b.H; h++) {
        const T *row = b.table.of(member) + h * b.positions;
        T *bias = all_heads + (size_t)h * (N + 1) * NP;
        for (int i = 0; i < N; i++)
            for (int j = 0; j <= N; j++) {
                const int64_t at = b.index[i * (N + 1) + j];
                bias[(size_t)j * NP + i] = at < 0 ? -std::numeric_limits<T>::infinity() : row[at] * T(LOG2_E);
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

// Rows of NP queries for a head of an image: N + 1 of e and one of r, so that the probability of a key, or of the zero
// slot in row N, is e · r.
template <class T> size_t size_of(const Mixing<T> &b) { return (size_t)(b.N + 2) * b.NP(); }

// e, (N, NP), is computed in the place of the products of queries and keys; the logits over ln 2 are root · product +
// bias.
template <class T> void softmax(int N, int NP, T root, const T *bias, T *e) {
    const size_t zero = (size_t)N * NP;
    for (int i = 0; i < NP; i += WIDTH<T>) {
        Vector<T> most = load(bias + zero + i);
        for (int j = 0; j < N; j++) {
            const size_t at = (size_t)j * NP + i;
            const Vector<T> x = load(e + at) * root + load(bias + at);
            store(e + at, x);
            most = x > most ? x : most;
        }
        Vector<T> sum = power_of_2(load(bias + zero + i) - most);
        store(e + zero + i, sum);
        for (int j = 0; j < N; j++) {
            const size_t at = (size_t)j * NP + i;
            const Vector<T> x = power_of_2(load(e + at) - most);
            store(e + at, x);
            sum += x;
        }
        store(e + zero + NP + i, reciprocal(sum));
    }
}
// dp, (N, NP), the gradient of the probabilities times r, becomes that of the products; adds the gradient of the logits,
// and that of the zero slot, to the bias's.
template <class T> void softmax_backward(int N, int NP, T root, const T *e, T *dp, T *dbias) {
    const size_t zero = (size_t)N * NP;
    for (int i = 0; i < NP; i += WIDTH<T>) {
        Vector<T> mean{};
        for (int j = 0; j < N; j++) mean += load(e + (size_t)j * NP + i) * load(dp + (size_t)j * NP + i);
        mean *= load(e + zero + NP + i);
        for (int j = 0; j < N; j++) {
            const size_t at = (size_t)j * NP + i;
            const Vector<T> x = load(e + at) * (load(dp + at) - mean);
            store(dbias + at, load(dbias + at) + x);
            store(dp + at, x * root);
        }
        store(dbias + zero + i, load(dbias + zero + i) - load(e + zero + i) * mean);
    }
}
// Rows of D channels times r.
template <class T> void times(int D, int NP, const T *x, long ldx, const T *r, T *y, long ldy) {
    for (int d = 0; d < D; d++)
        for (int i = 0; i < NP; i += WIDTH<T>) store(y + d * ldy + i, load(x + d * ldx + i) * load(r + i));
}

// The channels of queries, keys and values of a head of an image, of those of a group.
template <class P> struct Head {
    Rows<typename P::Factor> q, k, v;
    Head(const Mixing<typename P::Number> &b, Rows<typename P::Factor> qkv, int head, int image)
        : q(P::part(qkv, head * b.D, image * b.NP())), k(P::part(q, b.I(), 0)), v(P::part(k, b.I(), 0)) {}
};
template <class P>
void weigh(const Mixing<typename P::Number> &b, const Head<P> &head, const typename P::Number *bias,
           typename P::Number *e) {
    using T = typename P::Number;
    const int N = b.N, NP = b.NP(), D = b.D;
    product(N, P::steps(D), NP / WIDTH<T>, P::columns(D, N, head.k), P::right(D, NP, head.q), e, NP, false);
    softmax<T>(N, NP, T(LOG2_E) / std::sqrt(T(D)), bias, e);
}
// `qkv` and `out` are a group's projections and mixed channels, `bias` that of all heads.
template <class P, class T>
void attend(const Mixing<T> &b, int images, const T *bias, Rows<typename P::Factor> qkv, T *out) {
    const int N = b.N, NP = b.NP(), TP = b.TP(), D = b.D, V = NP / WIDTH<T>;
    T *e = scratch().take<T>(size_of(b));
    for (int i = 0; i < images; i++)
        for (int h = 0; h < b.H; h++) {
            const Scratch::Scope scope(scratch());
            const long at = (long)h * D * TP + i * NP;
            const Head<P> head(b, qkv, h, i);
            weigh<P>(b, head, bias + (size_t)h * (N + 1) * NP, e);
            product(D, P::steps(N), V, P::rows(D, N, head.v), P::plain(N, NP, e), out + at, TP, false);
            times<T>(D, NP, out + at, TP, e + (size_t)(N + 1) * NP, out + at, TP);
        }
}
// The probabilities are computed anew, which takes no longer than writing and reading them.
template <class P, class T>
void attend_backward(const Mixing<T> &b, int images, const T *bias, Rows<typename P::Factor> qkv, const T *dout, T *dqkv,
                     T *dbias) {
    const int N = b.N, NP = b.NP(), TP = b.TP(), D = b.D, V = NP / WIDTH<T>;
    const T root = 1 / std::sqrt(T(D));
    T *e = scratch().take<T>(size_of(b)), *dp = scratch().take<T>((size_t)N * NP), *o = scratch().take<T>((size_t)D * NP);
    for (int i = 0; i < images; i++)
        for (int h = 0; h < b.H; h++) {
            const Scratch::Scope scope(scratch());
            const long at = (long)h * D * TP + i * NP;
            const size_t of_head = (size_t)h * (N + 1) * NP;
            const Head<P> head(b, qkv, h, i);
            T *dq = dqkv + at, *dk = dq + (long)b.I() * TP, *dv = dk + (long)b.I() * TP;
            weigh<P>(b, head, bias + of_head, e);
            times<T>(D, NP, dout + at, TP, e + (size_t)(N + 1) * NP, o, NP);
            const auto to = P::stored(D, NP, o, NP), weights = P::stored(N, NP, e, NP);
            product(N, P::steps(D), V, P::columns(D, N, head.v), P::right(D, NP, to), dp, NP, false);
            softmax_backward<T>(N, NP, root, e, dp, dbias + of_head);
            const auto dlogits = P::stored(N, NP, dp, NP);
            product(D, P::steps(N), V, P::rows(D, N, head.k), P::right(N, NP, dlogits), dq, TP, false);
            product(D, P::steps(N), V, P::rows(D, N, head.q), P::turned(N, N, dlogits), dk, TP, false);
            product(D, P::steps(N), V, P::rows(D, N, to), P::turned(N, N, weights), dv, TP, false);
        }
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
    T *projected, *mixed;
    Moments<T> *moments;

    Kept(const Mixing<T> &b, int64_t member, int64_t group, T *kept) {
        const int64_t at = member * b.groups() + group, image = member * b.images + group * b.group();
        projected = kept + at * b.kept_parts() * b.I() * b.TP();
        mixed = projected + (b.kept_parts() - 1) * b.I() * b.TP();
        moments = reinterpret_cast<Moments<T> *>(kept + b.kept_channels()) + image * b.N;
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
    const Scratch::Scope whole(scratch());
    const bool attends = b.parts == 3;
    const int N = b.N, E = b.E, EP = padded<T>(E), I = b.I(), W = WIDTH<T>, TP = b.TP();
    const T *weight = padded_row(b.norm_weight.of(member), E), *bias = padded_row(b.norm_bias.of(member), E);
    const T *output_bias = padded_row(b.output_bias.of(member), E);
    const T *biases = attends ? looked_up(b, member) : nullptr;
    Left<typename P::Factor> maps[3];
    for (int part = 0; part < b.parts; part++) maps[part] = P::rows(I, E, P::stored(I, E, b.maps[part].of(member), E));
    const auto output = P::turned(E, I, P::stored(E, I, b.output_weight.of(member), I));
    const auto n = P::room(TP, E);
    auto *m = reinterpret_cast<Moments<T> *>(scratch().take<T>(2 * b.group() * N));
    T *out = scratch().take<T>(TP * EP), *projected = scratch().take<T>((size_t)b.parts * I * TP);
    T *mixed = scratch().take<T>((size_t)I * TP);
    for (int64_t group = 0; group < b.groups(); group++) {
        const Scratch::Scope scope(scratch());
        if (kept) {
            const Kept<T> here(b, member, group, kept);
            m = here.moments;
            if constexpr (!P::ROUNDS) {
                mixed = here.mixed;
                if (attends) projected = here.projected;
            }
        }
        int images = 0;
        for_images(b, member, group, [&](int64_t, int64_t row, int at) {
            Moments<T> *of_image = m + images++ * N;
            moments<T>(N, E, b.x + row * E, b.eps, of_image);
            norm_forward<P>(N, E, b.x + row * E, of_image, weight, bias, n.at + at * n.row, n.row);
        });
        const int R = images * b.NP();
        const auto channels = P::turned(R, E, n);
        for (int part = 0; part < b.parts; part++)
            product(I, P::steps(E), R / W, maps[part], channels, projected + (long)part * I * TP, TP, false);
        const auto as_stored = [&](int rows, const T *x, T *Kept<T>::*place) {
            return kept ? P::keep(rows, TP, x, Kept<T>(b, member, group, kept).*place) : P::stored(rows, TP, x, TP);
        };
        if (attends)
            attend<P>(b, images, biases, as_stored(3 * I, projected, &Kept<T>::projected), mixed);
        else
            shift<T>(b, images, b.sources, projected, mixed);
        const auto channels_out = as_stored(I, mixed, &Kept<T>::mixed);
        product(R, P::steps(I), EP / W, P::columns(I, R, channels_out), output, out, EP, false);
        for_images(b, member, group, [&](int64_t image, int64_t row, int at) {
            const T s = b.scale ? b.scale[image] : T(1);
            add_branch<T>(N, E, s, b.x + row * E, out + at * EP, output_bias, y + row * E);
        });
    }
}

template <class P>
void mixing_backward(const Mixing<typename P::Number> &b, int64_t member, const typename P::Number *dy,
                     const typename P::Number *kept, const MixingGradients<typename P::Number> &d) {
    using T = typename P::Number;
    const Scratch::Scope whole(scratch());
    const bool attends = b.parts == 3;
    const int N = b.N, E = b.E, EP = padded<T>(E), I = b.I(), F = b.parts * I, W = WIDTH<T>, TP = b.TP();
    const T *weight = padded_row(b.norm_weight.of(member), E), *bias = padded_row(b.norm_bias.of(member), E);
    T *beside = scratch().take<T>((size_t)F * E);  // the maps, one below the other
    for (int part = 0; part < b.parts; part++)
        std::memcpy(beside + (size_t)part * I * E, b.maps[part].of(member), sizeof(T) * I * E);
    const auto maps = P::weights(F, E, beside);
    const auto output = P::columns(E, I, P::stored(E, I, b.output_weight.of(member), I));
    T *dmaps = scratch().zeros<T>((size_t)F * EP), *doutput = scratch().zeros<T>((size_t)I * EP);
    T *dweight = scratch().zeros<T>(EP), *dbias = scratch().zeros<T>(EP);
    T *doutput_bias = scratch().zeros<T>(EP);
    const T *biases = attends ? looked_up(b, member) : nullptr;
    T *dbiases = attends ? scratch().zeros<T>((size_t)b.H * (N + 1) * b.NP()) : nullptr;
    const auto n = P::room(TP, E);
    T *dbranch = scratch().zeros<T>(TP * EP), *dn = scratch().take<T>(TP * EP);
    T *dmixed = scratch().take<T>((size_t)I * TP), *dprojected = scratch().zeros<T>((size_t)F * TP);
    for (int64_t group = 0; group < b.groups(); group++) {
        const Scratch::Scope scope(scratch());
        const Kept<T> here(b, member, group, const_cast<T *>(kept));
        int images = 0;
        for_images(b, member, group, [&](int64_t image, int64_t row, int at) {
            branch_gradient<T>(N, E, b.scale ? b.scale[image] : T(1), dy + row * E, dbranch + at * EP);
            add_columns<T>(N, EP / W, dbranch + at * EP, EP, doutput_bias);
            norm_forward<P>(N, E, b.x + row * E, here.moments + images++ * N, weight, bias, n.at + at * n.row, n.row);
        });
        const int R = images * b.NP();
        const auto mixed = P::kept(here.mixed, TP), dout = P::stored(R, EP, dbranch, EP);
        product(I, P::steps(R), EP / W, P::rows(I, R, mixed), P::right(R, EP, dout), doutput, EP, true);
        product(I, P::steps(E), R / W, output, P::turned(R, E, dout), dmixed, TP, false);
        if (attends)
            attend_backward<P>(b, images, biases, P::kept(here.projected, TP), dmixed, dprojected, dbiases);
        else
            shift<T>(b, images, b.targets, dmixed, dprojected);
        const auto dchannels = P::stored(F, TP, dprojected, TP);
        product(F, P::steps(R), EP / W, P::rows(F, R, dchannels), P::right(R, EP, n), dmaps, EP, true);
        product(R, P::steps(F), EP / W, P::columns(F, R, dchannels), maps, dn, EP, false);
        const Moments<T> *m = here.moments;
        for_images(b, member, group, [&](int64_t, int64_t row, int at) {
            norm_backward<T>(N, E, dn + at * EP, b.x + row * E, m, weight, dy + row * E, d.x + row * E, dweight, dbias);
            m += N;
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
