// The fused operators as torch operators with gradients; see README.md for the equations.

#include "kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace {

using namespace cvit;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int CHUNK = 64;  // tokens at a time: with their weights they stay in the second cache
thread_local Scratch scratch;

template <class Work> void for_each_member(int64_t members, const Work &work) {
    at::parallel_for(0, members, 1, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; m++) {
            scratch.reset();
            work(m);
        }
    });
}

// Matrices of a layer's weights, (F, E) or (M, F, E).
int64_t members_of(const Tensor &weight) { return weight.dim() == 3 ? weight.size(0) : 1; }

template <class T> const T *row_of(const Tensor &vectors, int64_t member, int64_t width) {
    T *copy = scratch.zeros<T>(padded<T>(width));
    std::memcpy(copy, vectors.const_data_ptr<T>() + member * width, sizeof(T) * width);
    return copy;
}
// (R, C) as rows padded to whole vectors; transposed as (C, R padded).
template <class T> T *padded_matrix(const T *matrix, int rows, int columns) {
    T *copy = scratch.zeros<T>((size_t)rows * padded<T>(columns));
    copy_rows(rows, columns, matrix, columns, copy, padded<T>(columns));
    return copy;
}
template <class T> T *transposed_matrix(const T *matrix, int rows, int columns, T *to = nullptr, int ldt = 0) {
    if (!to) to = scratch.zeros<T>((size_t)columns * (ldt = padded<T>(rows)));
    transpose(rows, columns, matrix, columns, to, ldt);
    return to;
}

// The factors of residual branches: images × 1, of `tokens` rows each. Without factors every row counts once.
struct Factors {
    Tensor values;
    int64_t tokens;

    Factors(const std::optional<Tensor> &given, const Tensor &x) : tokens(x.size(-2)) {
        if (given.has_value() && given->defined()) values = given->to(x.scalar_type()).contiguous();
    }
    template <class T> T of_row(int64_t row) const {
        return values.defined() ? values.const_data_ptr<T>()[row / tokens] : T(1);
    }
};

// y's rows become x + s · branch.
template <class T>
void add_branch(int R, int E, int64_t row, const Factors &factors, const T *x, const T *branch, int EP, T *y) {
    for (int i = 0; i < R; i++) {
        const T s = factors.of_row<T>(row + i);
        for (int e = 0; e < E; e++) y[(size_t)i * E + e] = x[(size_t)i * E + e] + s * branch[(size_t)i * EP + e];
    }
}
// The gradient of the branch: s · dy, rows padded.
template <class T> void branch_gradient(int R, int E, int64_t row, const Factors &factors, const T *dy, int EP, T *to) {
    for (int i = 0; i < R; i++) {
        const T s = factors.of_row<T>(row + i);
        for (int e = 0; e < E; e++) to[(size_t)i * EP + e] = s * dy[(size_t)i * E + e];
    }
}

// ---------------------------------------------------------------- y = x + s (W₂ GELU(W₁ norm(x) + b₁) + b₂)

struct MlpBlock : torch::autograd::Function<MlpBlock> {
    static Tensor forward(AutogradContext *context, const Tensor &given, const Tensor &norm_weight,
                          const Tensor &norm_bias, double eps, const Tensor &w1, const Tensor &b1, const Tensor &w2,
                          const Tensor &b2, const std::optional<Tensor> &scale) {
        at::AutoDispatchBelowADInplaceOrView below;
        Tensor x = given.contiguous(), nw = norm_weight.contiguous(), nb = norm_bias.contiguous();
        Tensor first = w1.contiguous(), second = w2.contiguous(), c1 = b1.contiguous(), c2 = b2.contiguous();
        const int64_t members = members_of(first), E = x.size(-1), F = first.size(-2), rows = x.numel() / (members * E);
        const Factors factors(scale, x);
        Tensor y = at::empty_like(x), hidden, slope;
        AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cvit::mlp", [&] {
            using T = scalar_t;
            const int EP = padded<T>(E), FP = padded<T>(F), W = WIDTH<T>;
            hidden = at::empty({members, rows, FP}, x.options());
            slope = at::empty({members, rows, FP}, x.options());
            for_each_member(members, [&](int64_t m) {
                const T *weight = row_of<T>(nw, m, E), *bias = row_of<T>(nb, m, E);
                const T *bias1 = row_of<T>(c1, m, F), *bias2 = row_of<T>(c2, m, E);
                T *maps1 = transposed_matrix(first.const_data_ptr<T>() + m * F * E, F, E);
                T *maps2 = transposed_matrix(second.const_data_ptr<T>() + m * E * F, E, F);
                T *normal = scratch.take<T>((size_t)CHUNK * EP), *n = scratch.zeros<T>((size_t)CHUNK * EP);
                T *out = scratch.take<T>((size_t)CHUNK * EP), *rstd = scratch.take<T>(CHUNK);
                for (int64_t r = 0; r < rows; r += CHUNK) {
                    int R = std::min<int64_t>(CHUNK, rows - r);
                    int64_t row = m * rows + r;
                    norm_forward<T>(R, E, x.const_data_ptr<T>() + row * E, eps, weight, bias, normal, n, rstd);
                    T *h = hidden.mutable_data_ptr<T>() + row * FP;
                    for (int i = 0; i < R; i++) std::memcpy(h + (size_t)i * FP, bias1, sizeof(T) * FP);
                    product<T, true>(R, E, FP / W, n, EP, 1, maps1, FP, h, FP);
                    gelu((long)R * FP, h, slope.mutable_data_ptr<T>() + row * FP);
                    for (int i = 0; i < R; i++) std::memcpy(out + (size_t)i * EP, bias2, sizeof(T) * EP);
                    product<T, true>(R, F, EP / W, h, FP, 1, maps2, EP, out, EP);
                    const T *from = x.const_data_ptr<T>() + row * E;
                    add_branch<T>(R, E, row, factors, from, out, EP, y.mutable_data_ptr<T>() + row * E);
                }
            });
        });
        context->save_for_backward({x, nw, nb, first, second, hidden, slope, factors.values});
        context->saved_data["eps"] = eps;
        return y;
    }
    static variable_list backward(AutogradContext *context, variable_list gradients) {
        auto saved = context->get_saved_variables();
        const Tensor &x = saved[0], &nw = saved[1], &nb = saved[2], &first = saved[3], &second = saved[4];
        const Tensor &hidden = saved[5], &slope = saved[6];
        const Factors factors(saved[7], x);
        const double eps = context->saved_data["eps"].toDouble();
        Tensor dy = gradients[0].contiguous();
        const int64_t members = members_of(first), E = x.size(-1), F = first.size(-2), rows = x.numel() / (members * E);
        Tensor dx = at::empty_like(x), dnw = at::empty_like(nw), dnb = at::empty_like(nb);
        Tensor dfirst = at::empty_like(first), dsecond = at::empty_like(second);
        auto vector = [&](int64_t n) {
            return at::empty(first.dim() == 3 ? at::IntArrayRef{members, n} : at::IntArrayRef{n}, first.options());
        };
        Tensor dc1 = vector(F), dc2 = vector(E);
        AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cvit::mlp", [&] {
            using T = scalar_t;
            const int EP = padded<T>(E), FP = padded<T>(F), W = WIDTH<T>;
            for_each_member(members, [&](int64_t m) {
                const T *weight = row_of<T>(nw, m, E), *bias = row_of<T>(nb, m, E);
                T *maps1 = padded_matrix(first.const_data_ptr<T>() + m * F * E, F, E);
                T *maps2 = padded_matrix(second.const_data_ptr<T>() + m * E * F, E, F);
                T *dmaps1 = scratch.zeros<T>((size_t)F * EP), *dmaps2 = scratch.zeros<T>((size_t)E * FP);
                T *normal = scratch.take<T>((size_t)CHUNK * EP), *n = scratch.zeros<T>((size_t)CHUNK * EP);
                T *dn = scratch.take<T>((size_t)CHUNK * EP), *dh = scratch.take<T>((size_t)CHUNK * FP);
                T *d = scratch.zeros<T>((size_t)CHUNK * EP), *rstd = scratch.take<T>(CHUNK);
                T *line = scratch.take<T>(EP), *dw = scratch.zeros<T>(EP), *db = scratch.zeros<T>(EP);
                T *dbias1 = scratch.zeros<T>(FP), *dbias2 = scratch.zeros<T>(EP);
                for (int64_t r = 0; r < rows; r += CHUNK) {
                    int R = std::min<int64_t>(CHUNK, rows - r);
                    int64_t row = m * rows + r;
                    const T *past = dy.const_data_ptr<T>() + row * E, *h = hidden.const_data_ptr<T>() + row * FP;
                    const T *s = slope.const_data_ptr<T>() + row * FP;
                    branch_gradient<T>(R, E, row, factors, past, EP, d);
                    add_columns<T>(R, EP / W, d, EP, dbias2);
                    product<T, true>(E, R, FP / W, d, 1, EP, h, FP, dmaps2, FP);
                    product<T, false>(R, E, FP / W, d, EP, 1, maps2, FP, dh, FP);
                    for (long i = 0; i < (long)R * FP; i += W) store(dh + i, load(dh + i) * load(s + i));
                    add_columns<T>(R, FP / W, dh, FP, dbias1);
                    norm_forward<T>(R, E, x.const_data_ptr<T>() + row * E, eps, weight, bias, normal, n, rstd);
                    product<T, true>(F, R, EP / W, dh, 1, FP, n, EP, dmaps1, EP);
                    product<T, false>(R, F, EP / W, dh, FP, 1, maps1, EP, dn, EP);
                    T *to = dx.mutable_data_ptr<T>() + row * E;
                    norm_backward<T>(R, E, dn, normal, rstd, weight, past, to, dw, db, line);
                }
                auto put = [&](const Tensor &to, const T *from, int64_t width) {
                    std::memcpy(to.mutable_data_ptr<T>() + m * width, from, sizeof(T) * width);
                };
                put(dnw, dw, E), put(dnb, db, E), put(dc1, dbias1, F), put(dc2, dbias2, E);
                copy_rows<T>(F, E, dmaps1, EP, dfirst.mutable_data_ptr<T>() + m * F * E, E);
                copy_rows<T>(E, F, dmaps2, FP, dsecond.mutable_data_ptr<T>() + m * E * F, F);
            });
        });
        return {dx, dnw, dnb, Tensor(), dfirst, dc1, dsecond, dc2, Tensor()};
    }
};

// ---------------------------------------------------------------- y = x + s (W mix(V₁ norm(x), …) + b)

// The geometry of a block that mixes tokens. Projected tokens lie as channels × tokens, a group of images side by side:
// so heads are rows, products have tokens along their vectors, and nothing is copied into heads and back. In a group an
// image begins at a multiple of NP, its number of tokens N padded to whole vectors.
struct Groups {
    int64_t M, B, count;  // members, images of each, groups of each
    int N, NP, G, TP;     // tokens of an image, images of a group, length of a row
    int E, I, H, D;       // width of a token, of all heads; heads, and their width

    template <class T> static Groups of(const Tensor &x, const Tensor &value, int64_t heads) {
        Groups g;
        g.M = members_of(value), g.N = x.size(-2), g.E = x.size(-1), g.I = value.size(-2), g.H = heads;
        g.D = g.I / g.H, g.B = x.numel() / (g.M * g.N * g.E);
        g.NP = padded<T>(g.N), g.G = std::max(1, CHUNK / g.NP), g.TP = g.G * g.NP;
        g.count = (g.B + g.G - 1) / g.G;
        return g;
    }
    int images(int64_t group) const { return std::min<int64_t>(G, B - group * G); }
    int64_t first_row(int64_t member, int64_t group) const { return (member * B + group * G) * N; }
};

// Tokens (rows of EP) of a group → channels × tokens.
template <class T> void to_channels(const Groups &g, int images, const T *tokens, T *channels) {
    const int EP = padded<T>(g.E);
    for (int i = 0; i < images; i++) transpose<T>(g.N, g.E, tokens + (size_t)i * g.N * EP, EP, channels + i * g.NP, g.TP);
}
// Rows of tokens += channelsᵀ maps, and maps += channels tokens, over all images of a group.
template <class T>
void tokens_from(const Groups &g, int images, int channels, const T *x, const T *maps, T *tokens) {
    const int EP = padded<T>(g.E), V = EP / WIDTH<T>;
    if (g.N == g.NP) return product<T, true>(images * g.N, channels, V, x, 1, g.TP, maps, EP, tokens, EP);
    for (int i = 0; i < images; i++)
        product<T, true>(g.N, channels, V, x + i * g.NP, 1, g.TP, maps, EP, tokens + (size_t)i * g.N * EP, EP);
}
template <class T>
void add_maps(const Groups &g, int images, int channels, const T *x, const T *tokens, T *maps) {
    const int EP = padded<T>(g.E), V = EP / WIDTH<T>;
    if (g.N == g.NP) return product<T, true>(channels, images * g.N, V, x, g.TP, 1, tokens, EP, maps, EP);
    for (int i = 0; i < images; i++)
        product<T, true>(channels, g.N, V, x + i * g.NP, g.TP, 1, tokens + (size_t)i * g.N * EP, EP, maps, EP);
}

// What a block has in common with others of its kind: norm, projections, the output's weights and factors.
struct Frame {
    Tensor x, norm_weight, norm_bias, output_weight, output_bias;
    std::vector<Tensor> maps;  // V₁, …
    Factors factors;
    double eps;
};

// mix(member, group of images, projected, mixed) is called once per group, after the projections.
template <class T, class Prepare> Tensor frame_forward(const Frame &f, const Groups &g, T *projected, T *mixed, const Prepare &prepare) {
    const int E = g.E, EP = padded<T>(E), W = WIDTH<T>, F = f.maps.size() * g.I;
    Tensor y = at::empty_like(f.x);
    for_each_member(g.M, [&](int64_t m) {
        const T *weight = row_of<T>(f.norm_weight, m, E), *bias = row_of<T>(f.norm_bias, m, E);
        const T *output_bias = row_of<T>(f.output_bias, m, E);
        T *output = transposed_matrix(f.output_weight.const_data_ptr<T>() + m * E * g.I, E, g.I);
        T *normal = scratch.take<T>((size_t)g.G * g.N * EP), *n = scratch.zeros<T>((size_t)g.G * g.N * EP);
        T *channels = scratch.zeros<T>((size_t)E * g.TP), *out = scratch.take<T>((size_t)g.G * g.N * EP);
        T *rstd = scratch.take<T>(g.G * g.N);
        auto mix = prepare(m);
        for (int64_t group = 0; group < g.count; group++) {
            const int images = g.images(group), R = images * g.N;
            const int64_t row = g.first_row(m, group);
            const T *from = f.x.const_data_ptr<T>() + row * E;
            norm_forward<T>(R, E, from, f.eps, weight, bias, normal, n, rstd);
            to_channels<T>(g, images, n, channels);
            T *p = projected + (m * g.count + group) * F * g.TP, *o = mixed + (m * g.count + group) * g.I * g.TP;
            for (size_t part = 0; part < f.maps.size(); part++) {
                const T *maps = f.maps[part].const_data_ptr<T>() + m * g.I * E;
                product<T, false>(g.I, E, g.TP / W, maps, E, 1, channels, g.TP, p + part * g.I * g.TP, g.TP);
            }
            mix(group, images, p, o);
            for (int i = 0; i < R; i++) std::memcpy(out + (size_t)i * EP, output_bias, sizeof(T) * EP);
            tokens_from<T>(g, images, g.I, o, output, out);
            add_branch<T>(R, E, row, f.factors, from, out, EP, y.mutable_data_ptr<T>() + row * E);
        }
    });
    return y;
}

struct FrameGradients {
    Tensor x, norm_weight, norm_bias, output_weight, output_bias;
    std::vector<Tensor> maps;
};

template <class T, class Prepare>
FrameGradients frame_backward(const Tensor &dy, const Frame &f, const Groups &g, const T *mixed, const Prepare &prepare) {
    const int E = g.E, EP = padded<T>(E), W = WIDTH<T>, parts = f.maps.size(), F = parts * g.I;
    FrameGradients d{at::empty_like(f.x), at::empty_like(f.norm_weight), at::empty_like(f.norm_bias),
                     at::empty_like(f.output_weight), at::empty_like(f.norm_bias), {}};
    for (auto &maps : f.maps) d.maps.push_back(at::empty_like(maps));
    for_each_member(g.M, [&](int64_t m) {
        const T *weight = row_of<T>(f.norm_weight, m, E), *bias = row_of<T>(f.norm_bias, m, E);
        const T *output = f.output_weight.const_data_ptr<T>() + m * E * g.I;
        T *maps = scratch.zeros<T>((size_t)F * EP), *dmaps = scratch.zeros<T>((size_t)F * EP);
        for (int part = 0; part < parts; part++)
            copy_rows<T>(g.I, E, f.maps[part].const_data_ptr<T>() + m * g.I * E, E, maps + (size_t)part * g.I * EP, EP);
        T *doutput = scratch.zeros<T>((size_t)g.I * EP), *dbias = scratch.zeros<T>(EP);
        T *normal = scratch.take<T>((size_t)g.G * g.N * EP), *n = scratch.zeros<T>((size_t)g.G * g.N * EP);
        T *dbranch = scratch.zeros<T>((size_t)g.G * g.N * EP), *dn = scratch.take<T>((size_t)g.G * g.N * EP);
        T *channels = scratch.zeros<T>((size_t)E * g.TP), *dmixed = scratch.take<T>((size_t)g.I * g.TP);
        T *dprojected = scratch.zeros<T>((size_t)F * g.TP), *rstd = scratch.take<T>(g.G * g.N);
        T *line = scratch.take<T>(EP), *dw = scratch.zeros<T>(EP), *db = scratch.zeros<T>(EP);
        auto unmix = prepare(m);
        for (int64_t group = 0; group < g.count; group++) {
            const int images = g.images(group), R = images * g.N;
            const int64_t row = g.first_row(m, group);
            const T *past = dy.const_data_ptr<T>() + row * E;
            const T *o = mixed + (m * g.count + group) * g.I * g.TP;
            branch_gradient<T>(R, E, row, f.factors, past, EP, dbranch);
            add_columns<T>(R, EP / W, dbranch, EP, dbias);
            add_maps<T>(g, images, g.I, o, dbranch, doutput);
            to_channels<T>(g, images, dbranch, channels);
            product<T, false>(g.I, E, g.TP / W, output, 1, g.I, channels, g.TP, dmixed, g.TP);
            unmix(group, images, dmixed, dprojected);
            norm_forward<T>(R, E, f.x.const_data_ptr<T>() + row * E, f.eps, weight, bias, normal, n, rstd);
            add_maps<T>(g, images, F, dprojected, n, dmaps);
            std::fill_n(dn, (size_t)R * EP, T(0));
            tokens_from<T>(g, images, F, dprojected, maps, dn);
            T *to = d.x.template mutable_data_ptr<T>() + row * E;
            norm_backward<T>(R, E, dn, normal, rstd, weight, past, to, dw, db, line);
        }
        auto put = [&](const Tensor &to, const T *from) {
            std::memcpy(to.mutable_data_ptr<T>() + m * E, from, sizeof(T) * E);
        };
        put(d.norm_weight, dw), put(d.norm_bias, db), put(d.output_bias, dbias);
        transpose<T>(g.I, E, doutput, EP, d.output_weight.template mutable_data_ptr<T>() + m * E * g.I, g.I);
        for (int part = 0; part < parts; part++)
            copy_rows<T>(g.I, E, dmaps + (size_t)part * g.I * EP, EP,
                         d.maps[part].template mutable_data_ptr<T>() + m * g.I * E, E);
    });
    return d;
}

// ---------------------------------------------------------------- mix = softmax([q kᵀ / √D, 0] + bias) [v, 0]

// The bias of a member's heads, (H, N + 1 keys, N padded): looked up in its table, (H, positions), at `index`, (N, N + 1).
template <class T> T *looked_up(const Tensor &table, const Tensor &index, const Groups &s, int64_t m) {
    const int NP = padded<T>(s.N), positions = table.size(-1);
    const int64_t *at = index.const_data_ptr<int64_t>();
    T *to = scratch.zeros<T>((size_t)s.H * (s.N + 1) * NP);
    for (int h = 0; h < s.H; h++) {
        const T *row = table.const_data_ptr<T>() + (m * s.H + h) * positions;
        T *bias = to + (size_t)h * (s.N + 1) * NP;
        for (int i = 0; i < s.N; i++)
            for (int j = 0; j <= s.N; j++) bias[(size_t)j * NP + i] = row[at[i * (s.N + 1) + j]];
    }
    return to;
}

// Columns of p, (N + 1, NP), become probabilities: of the logits p + bias, and of the zero slot in the last row.
template <class T> void softmax(int N, int NP, const T *bias, T *p) {
    for (int i = 0; i < NP; i += WIDTH<T>) {
        Vector<T> zero = load(bias + (size_t)N * NP + i), most = zero;
        for (int j = 0; j < N; j++) {
            Vector<T> x = load(p + (size_t)j * NP + i) + load(bias + (size_t)j * NP + i);
            store(p + (size_t)j * NP + i, x);
            most = x > most ? x : most;
        }
        Vector<T> e0 = exponential(zero - most), sum = e0;
        for (int j = 0; j < N; j++) {
            Vector<T> x = exponential(load(p + (size_t)j * NP + i) - most);
            store(p + (size_t)j * NP + i, x);
            sum += x;
        }
        Vector<T> r = T(1) / sum;
        store(p + (size_t)N * NP + i, e0 * r);
        for (int j = 0; j < N; j++) store(p + (size_t)j * NP + i, load(p + (size_t)j * NP + i) * r);
    }
}

// dp, (N, NP), becomes the gradient of the logits; adds it, and that of the zero slot, to the bias's.
template <class T> void logits_backward(int N, int NP, const T *p, T *dp, T *db) {
    for (int i = 0; i < NP; i += WIDTH<T>) {
        Vector<T> mean{};
        for (int j = 0; j < N; j++) mean += load(p + (size_t)j * NP + i) * load(dp + (size_t)j * NP + i);
        for (int j = 0; j < N; j++) {
            size_t at = (size_t)j * NP + i;
            Vector<T> x = load(p + at) * (load(dp + at) - mean);
            store(dp + at, x);
            store(db + at, load(db + at) + x);
        }
        size_t last = (size_t)N * NP + i;
        store(db + last, load(db + last) - load(p + last) * mean);
    }
}

struct AttentionBlock : torch::autograd::Function<AttentionBlock> {
    static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &norm_weight, const Tensor &norm_bias,
                          double eps, const Tensor &query, const Tensor &key, const Tensor &value, const Tensor &table,
                          const Tensor &index, const Tensor &output_weight, const Tensor &output_bias,
                          const std::optional<Tensor> &scale) {
        at::AutoDispatchBelowADInplaceOrView below;
        const Frame f{x.contiguous(), norm_weight.contiguous(), norm_bias.contiguous(), output_weight.contiguous(),
                      output_bias.contiguous(), {query.contiguous(), key.contiguous(), value.contiguous()},
                      Factors(scale, x), eps};
        const Tensor biases = table.contiguous();
        Tensor y, projected, mixed, kept;
        AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cvit::attention_block", [&] {
            using T = scalar_t;
            const Groups g = Groups::of<T>(f.x, f.maps[0], table.size(-2));
            const int N = g.N, NP = g.NP, D = g.D, TP = g.TP, V = NP / WIDTH<T>;
            const T root = 1 / std::sqrt(T(D));
            projected = at::empty({g.M, g.count, 3 * g.I, TP}, x.options());
            mixed = at::empty({g.M, g.count, g.I, TP}, x.options());
            kept = at::empty({g.M, g.B, g.H, N + 1, NP}, x.options());
            y = frame_forward<T>(f, g, projected.mutable_data_ptr<T>(), mixed.mutable_data_ptr<T>(), [&](int64_t m) {
                const T *bias = looked_up<T>(biases, index, g, m);
                T *probabilities = kept.mutable_data_ptr<T>() + m * g.B * g.H * (N + 1) * NP;
                return [=](int64_t group, int images, T *qkv, T *out) {
                    for (int i = 0; i < g.I * TP; i += WIDTH<T>) store(qkv + i, load(qkv + i) * root);
                    for (int i = 0; i < images; i++)
                        for (int h = 0; h < g.H; h++) {
                            const T *q = qkv + h * D * TP + i * NP, *k = q + g.I * TP, *v = k + g.I * TP;
                            T *p = probabilities + ((group * g.G + i) * g.H + h) * (N + 1) * NP;
                            product<T, false>(N, D, V, k, 1, TP, q, TP, p, NP);
                            softmax<T>(N, NP, bias + (size_t)h * (N + 1) * NP, p);
                            product<T, false>(D, N, V, v, TP, 1, p, NP, out + h * D * TP + i * NP, TP);
                        }
                };
            });
        });
        context->save_for_backward({f.x, f.norm_weight, f.norm_bias, f.output_weight, f.output_bias, f.maps[0],
                                    f.maps[1], f.maps[2], f.factors.values, biases, index, projected, mixed, kept});
        context->saved_data["eps"] = eps;
        return y;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const auto saved = context->get_saved_variables();
        const Tensor &x = saved[0], &table = saved[9], &index = saved[10];
        const Frame f{x, saved[1], saved[2], saved[3], saved[4], {saved[5], saved[6], saved[7]}, Factors(saved[8], x),
                      context->saved_data["eps"].toDouble()};
        const Tensor dy = gradients[0].contiguous();
        Tensor dtable = at::zeros_like(table);
        FrameGradients d;
        AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cvit::attention_block", [&] {
            using T = scalar_t;
            const Groups g = Groups::of<T>(x, f.maps[0], table.size(-2));
            const int N = g.N, NP = g.NP, D = g.D, TP = g.TP, V = NP / WIDTH<T>;
            const T root = 1 / std::sqrt(T(D));
            std::vector<T *> dbiases(g.M);
            d = frame_backward<T>(dy, f, g, saved[12].const_data_ptr<T>(), [&](int64_t m) {
                T *dbias = dbiases[m] = scratch.zeros<T>((size_t)g.H * (N + 1) * NP);
                T *dp = scratch.take<T>((size_t)N * NP), *turned = scratch.zeros<T>((size_t)N * NP);
                const T *probabilities = saved[13].const_data_ptr<T>() + m * g.B * g.H * (N + 1) * NP;
                const T *projected = saved[11].const_data_ptr<T>() + m * g.count * 3 * g.I * TP;
                return [=, &dtable](int64_t group, int images, const T *dmixed, T *dqkv) {
                    const T *qkv = projected + group * 3 * g.I * TP;
                    for (int i = 0; i < images; i++)
                        for (int h = 0; h < g.H; h++) {
                            const size_t at = (size_t)h * D * TP + i * NP;
                            const T *q = qkv + at, *k = q + g.I * TP, *v = k + g.I * TP, *o = dmixed + at;
                            T *dq = dqkv + at, *dk = dq + g.I * TP, *dv = dk + g.I * TP;
                            const T *p = probabilities + ((group * g.G + i) * g.H + h) * (N + 1) * NP;
                            product<T, false>(N, D, V, v, 1, TP, o, TP, dp, NP);
                            logits_backward<T>(N, NP, p, dp, dbias + (size_t)h * (N + 1) * NP);
                            product<T, false>(D, N, V, k, TP, 1, dp, NP, dq, TP);
                            transpose<T>(N, N, dp, NP, turned, NP);
                            product<T, false>(D, N, V, q, TP, 1, turned, NP, dk, TP);
                            transpose<T>(N, N, p, NP, turned, NP);
                            product<T, false>(D, N, V, o, TP, 1, turned, NP, dv, TP);
                        }
                    for (int i = 0; i < g.I * TP; i += WIDTH<T>) store(dqkv + i, load(dqkv + i) * root);
                    if (group + 1 == g.count) add_to_table<T>(g, dbias, index, dtable, m);
                };
            });
        });
        return {d.x, d.norm_weight, d.norm_bias, Tensor(), d.maps[0], d.maps[1], d.maps[2], dtable, Tensor(),
                d.output_weight, d.output_bias, Tensor()};
    }

    // The inverse of `looked_up`: adds the gradient of every query's and key's bias to its place in the table.
    template <class T>
    static void add_to_table(const Groups &g, const T *dbias, const Tensor &index, const Tensor &dtable, int64_t m) {
        const int positions = dtable.size(-1);
        const int64_t *at = index.const_data_ptr<int64_t>();
        for (int h = 0; h < g.H; h++) {
            T *row = dtable.mutable_data_ptr<T>() + (m * g.H + h) * positions;
            const T *from = dbias + (size_t)h * (g.N + 1) * g.NP;
            for (int i = 0; i < g.N; i++)
                for (int j = 0; j <= g.N; j++) row[at[i * (g.N + 1) + j]] += from[(size_t)j * g.NP + i];
        }
    }
};

// ---------------------------------------------------------------- mix = shift of each head's channels

// Every head's channels from the token at `sources`, (H, N); −1 stands for zero outside the grid.
template <class T>
void shift(const Groups &g, int images, const int64_t *sources, const T *values, T *out) {
    for (int c = 0; c < g.I; c++) {
        const int64_t *from = sources + (c / g.D) * g.N;
        for (int i = 0; i < images; i++) {
            const T *row = values + (size_t)c * g.TP + i * g.NP;
            T *to = out + (size_t)c * g.TP + i * g.NP;
            for (int n = 0; n < g.N; n++) to[n] = from[n] < 0 ? T(0) : row[from[n]];
        }
    }
}

struct ShiftBlock : torch::autograd::Function<ShiftBlock> {
    static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &norm_weight, const Tensor &norm_bias,
                          double eps, const Tensor &value, const Tensor &sources, const Tensor &targets,
                          const Tensor &output_weight, const Tensor &output_bias, const std::optional<Tensor> &scale) {
        at::AutoDispatchBelowADInplaceOrView below;
        const Frame f{x.contiguous(), norm_weight.contiguous(), norm_bias.contiguous(), output_weight.contiguous(),
                      output_bias.contiguous(), {value.contiguous()}, Factors(scale, x), eps};
        Tensor y, mixed;
        AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cvit::shift_block", [&] {
            using T = scalar_t;
            const Groups g = Groups::of<T>(f.x, f.maps[0], sources.size(0));
            Tensor projected = at::empty({g.M, g.count, g.I, g.TP}, x.options());
            mixed = at::zeros({g.M, g.count, g.I, g.TP}, x.options());
            const int64_t *from = sources.const_data_ptr<int64_t>();
            y = frame_forward<T>(f, g, projected.mutable_data_ptr<T>(), mixed.mutable_data_ptr<T>(), [&](int64_t) {
                return [=](int64_t, int images, T *values, T *out) { shift<T>(g, images, from, values, out); };
            });
        });
        context->save_for_backward({f.x, f.norm_weight, f.norm_bias, f.output_weight, f.output_bias, f.maps[0],
                                    f.factors.values, targets, mixed});
        context->saved_data["eps"] = eps;
        return y;
    }
    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const auto saved = context->get_saved_variables();
        const Tensor &x = saved[0], &targets = saved[7];
        const Frame f{x, saved[1], saved[2], saved[3], saved[4], {saved[5]}, Factors(saved[6], x),
                      context->saved_data["eps"].toDouble()};
        const Tensor dy = gradients[0].contiguous();
        FrameGradients d;
        AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cvit::shift_block", [&] {
            using T = scalar_t;
            const Groups g = Groups::of<T>(x, f.maps[0], targets.size(0));
            const int64_t *from = targets.const_data_ptr<int64_t>();
            d = frame_backward<T>(dy, f, g, saved[8].const_data_ptr<T>(), [&](int64_t) {
                return [=](int64_t, int images, const T *dmixed, T *dvalues) { shift<T>(g, images, from, dmixed, dvalues); };
            });
        });
        return {d.x, d.norm_weight, d.norm_bias, Tensor(), d.maps[0], Tensor(), Tensor(), d.output_weight, d.output_bias,
                Tensor()};
    }
};

}  // namespace

TORCH_LIBRARY(cvit, library) {
    library.def("attention_block(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor query, Tensor key, "
                "Tensor value, Tensor table, Tensor index, Tensor output_weight, Tensor output_bias, "
                "Tensor? scale=None) -> Tensor");
    library.def("shift_block(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor value, Tensor sources, "
                "Tensor targets, Tensor output_weight, Tensor output_bias, Tensor? scale=None) -> Tensor");
    library.def("mlp_block(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor w1, Tensor b1, Tensor w2, "
                "Tensor b2, Tensor? scale=None) -> Tensor");
}

// One implementation serves training and evaluation: without gradients, autograd keeps nothing of it.
TORCH_LIBRARY_IMPL(cvit, AutogradCPU, library) {
    library.impl("attention_block", [](const Tensor &x, const Tensor &nw, const Tensor &nb, double eps, const Tensor &q,
                                       const Tensor &k, const Tensor &v, const Tensor &table, const Tensor &index,
                                       const Tensor &w, const Tensor &b, const std::optional<Tensor> &scale) {
        return AttentionBlock::apply(x, nw, nb, eps, q, k, v, table, index, w, b, scale);
    });
    library.impl("shift_block", [](const Tensor &x, const Tensor &nw, const Tensor &nb, double eps, const Tensor &v,
                                   const Tensor &sources, const Tensor &targets, const Tensor &w, const Tensor &b,
                                   const std::optional<Tensor> &scale) {
        return ShiftBlock::apply(x, nw, nb, eps, v, sources, targets, w, b, scale);
    });
    library.impl("mlp_block", [](const Tensor &x, const Tensor &nw, const Tensor &nb, double eps, const Tensor &w1,
                                 const Tensor &b1, const Tensor &w2, const Tensor &b2,
                                 const std::optional<Tensor> &scale) {
        return MlpBlock::apply(x, nw, nb, eps, w1, b1, w2, b2, scale);
    });
}

// Inference mode leaves out the keys of autograd.
TORCH_LIBRARY_IMPL(cvit, CPU, library) {
    library.impl("attention_block", [](const Tensor &x, const Tensor &nw, const Tensor &nb, double eps, const Tensor &q,
                                       const Tensor &k, const Tensor &v, const Tensor &table, const Tensor &index,
                                       const Tensor &w, const Tensor &b, const std::optional<Tensor> &scale) {
        return AttentionBlock::apply(x, nw, nb, eps, q, k, v, table, index, w, b, scale);
    });
    library.impl("shift_block", [](const Tensor &x, const Tensor &nw, const Tensor &nb, double eps, const Tensor &v,
                                   const Tensor &sources, const Tensor &targets, const Tensor &w, const Tensor &b,
                                   const std::optional<Tensor> &scale) {
        return ShiftBlock::apply(x, nw, nb, eps, v, sources, targets, w, b, scale);
    });
    library.impl("mlp_block", [](const Tensor &x, const Tensor &nw, const Tensor &nb, double eps, const Tensor &w1,
                                 const Tensor &b1, const Tensor &w2, const Tensor &b2,
                                 const std::optional<Tensor> &scale) {
        return MlpBlock::apply(x, nw, nb, eps, w1, b1, w2, b2, scale);
    });
}
