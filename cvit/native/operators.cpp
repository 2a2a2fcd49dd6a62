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

// ---------------------------------------------------------------- y = [W₁; W₂; W₃] norm(x)

struct Projection {
    std::vector<Tensor> weights;
    int64_t members, rows, E, F;

    Projection(const Tensor &x, std::vector<Tensor> given) : weights(std::move(given)) {
        members = members_of(weights[0]);
        E = x.size(-1);
        rows = x.numel() / (members * E);
        F = 0;
        for (auto &weight : weights) F += weight.size(-2);
    }
    template <class T> const T *data(int part, int64_t member) const {
        return weights[part].const_data_ptr<T>() + member * weights[part].size(-2) * E;
    }
};

Tensor project_forward(const Tensor &x, const Tensor &norm_weight, const Tensor &norm_bias, double eps,
                       const Projection &p) {
    auto sizes = x.sizes().vec();
    sizes.back() = p.F;
    Tensor y = at::empty(sizes, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cvit::norm_project", [&] {
        using T = scalar_t;
        const int E = p.E, F = p.F, EP = padded<T>(E), FP = padded<T>(F);
        for_each_member(p.members, [&](int64_t m) {
            const T *weight = row_of<T>(norm_weight, m, E), *bias = row_of<T>(norm_bias, m, E);
            T *maps = scratch.zeros<T>((size_t)E * FP);
            int at = 0;
            for (size_t i = 0; i < p.weights.size(); i++) {
                transposed_matrix(p.data<T>(i, m), p.weights[i].size(-2), E, maps + at, FP);
                at += p.weights[i].size(-2);
            }
            T *normal = scratch.take<T>((size_t)CHUNK * EP), *n = scratch.zeros<T>((size_t)CHUNK * EP);
            T *out = scratch.take<T>((size_t)CHUNK * FP), *rstd = scratch.take<T>(CHUNK);
            for (int64_t r = 0; r < p.rows; r += CHUNK) {
                int R = std::min<int64_t>(CHUNK, p.rows - r);
                int64_t row = m * p.rows + r;
                norm_forward<T>(R, E, x.const_data_ptr<T>() + row * E, eps, weight, bias, normal, n, rstd);
                T *to = y.mutable_data_ptr<T>() + row * F;
                T *product_to = F == FP ? to : out;
                product<T, false>(R, E, FP / WIDTH<T>, n, EP, 1, maps, FP, product_to, FP);
                if (F != FP) copy_rows(R, F, out, FP, to, F);
            }
        });
    });
    return y;
}

// (dx, dnorm_weight, dnorm_bias, dW₁, …); dx has the gradient that flows past the block added to it.
std::vector<Tensor> project_backward(const Tensor &dy, const Tensor &past, const Tensor &x, const Tensor &norm_weight,
                                     const Tensor &norm_bias, double eps, const Projection &p) {
    Tensor dx = at::empty_like(x), dnorm_weight = at::empty_like(norm_weight), dnorm_bias = at::empty_like(norm_bias);
    std::vector<Tensor> dweights;
    for (auto &weight : p.weights) dweights.push_back(at::empty_like(weight));
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cvit::norm_project", [&] {
        using T = scalar_t;
        const int E = p.E, F = p.F, EP = padded<T>(E), FP = padded<T>(F), W = WIDTH<T>;
        for_each_member(p.members, [&](int64_t m) {
            const T *weight = row_of<T>(norm_weight, m, E), *bias = row_of<T>(norm_bias, m, E);
            T *maps = scratch.zeros<T>((size_t)F * EP), *dmaps = scratch.zeros<T>((size_t)F * EP);
            int at = 0;
            for (size_t i = 0; i < p.weights.size(); i++) {
                copy_rows<T>(p.weights[i].size(-2), E, p.data<T>(i, m), E, maps + (size_t)at * EP, EP);
                at += p.weights[i].size(-2);
            }
            T *normal = scratch.take<T>((size_t)CHUNK * EP), *n = scratch.zeros<T>((size_t)CHUNK * EP);
            T *dn = scratch.take<T>((size_t)CHUNK * EP), *rstd = scratch.take<T>(CHUNK), *line = scratch.take<T>(EP);
            T *dw = scratch.zeros<T>(EP), *db = scratch.zeros<T>(EP);
            for (int64_t r = 0; r < p.rows; r += CHUNK) {
                int R = std::min<int64_t>(CHUNK, p.rows - r);
                int64_t row = m * p.rows + r;
                const T *d = dy.const_data_ptr<T>() + row * F;
                norm_forward<T>(R, E, x.const_data_ptr<T>() + row * E, eps, weight, bias, normal, n, rstd);
                product<T, true>(F, R, EP / W, d, 1, F, n, EP, dmaps, EP);
                product<T, false>(R, F, EP / W, d, F, 1, maps, EP, dn, EP);
                const T *beside = past.const_data_ptr<T>() + row * E;
                T *to = dx.mutable_data_ptr<T>() + row * E;
                norm_backward<T>(R, E, dn, normal, rstd, weight, beside, to, dw, db, line);
            }
            std::memcpy(dnorm_weight.mutable_data_ptr<T>() + m * E, dw, sizeof(T) * E);
            std::memcpy(dnorm_bias.mutable_data_ptr<T>() + m * E, db, sizeof(T) * E);
            at = 0;
            for (auto &dweight : dweights) {
                int64_t size = dweight.size(-2);
                copy_rows<T>(size, E, dmaps + (size_t)at * EP, EP, dweight.mutable_data_ptr<T>() + m * size * E, E);
                at += size;
            }
        });
    });
    std::vector<Tensor> gradients{dx, dnorm_weight, dnorm_bias};
    gradients.insert(gradients.end(), dweights.begin(), dweights.end());
    return gradients;
}

// ---------------------------------------------------------------- y = x + s (W h + b), s a factor per image or none

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

Tensor output_forward(const Tensor &x, const Tensor &h, const Tensor &w, const Tensor &b, const Factors &factors) {
    const int64_t members = members_of(w), I = h.size(-1), E = w.size(-2), rows = h.numel() / (members * I);
    Tensor y = at::empty_like(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cvit::output", [&] {
        using T = scalar_t;
        const int EP = padded<T>(E);
        for_each_member(members, [&](int64_t m) {
            const T *bias = row_of<T>(b, m, E);
            T *maps = transposed_matrix(w.const_data_ptr<T>() + m * E * I, E, I);
            T *out = scratch.take<T>((size_t)CHUNK * EP);
            for (int64_t r = 0; r < rows; r += CHUNK) {
                int R = std::min<int64_t>(CHUNK, rows - r);
                int64_t row = m * rows + r;
                for (int i = 0; i < R; i++) std::memcpy(out + (size_t)i * EP, bias, sizeof(T) * EP);
                product<T, true>(R, I, EP / WIDTH<T>, h.const_data_ptr<T>() + row * I, I, 1, maps, EP, out, EP);
                const T *from = x.const_data_ptr<T>() + row * E;
                add_branch<T>(R, E, row, factors, from, out, EP, y.mutable_data_ptr<T>() + row * E);
            }
        });
    });
    return y;
}

// (dh, dW, db); the gradient of x is dy.
std::array<Tensor, 3> output_backward(const Tensor &dy, const Tensor &h, const Tensor &w, const Factors &factors) {
    const int64_t members = members_of(w), I = h.size(-1), E = w.size(-2), rows = h.numel() / (members * I);
    Tensor dh = at::empty_like(h), dw = at::empty_like(w);
    Tensor db = at::empty(w.dim() == 3 ? at::IntArrayRef{members, E} : at::IntArrayRef{E}, w.options());
    AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "cvit::output", [&] {
        using T = scalar_t;
        const int IP = padded<T>(I), EP = padded<T>(E), W = WIDTH<T>;
        for_each_member(members, [&](int64_t m) {
            T *maps = padded_matrix(w.const_data_ptr<T>() + m * E * I, E, I);
            T *dmaps = scratch.zeros<T>((size_t)E * IP), *dbias = scratch.zeros<T>(EP);
            T *in = scratch.zeros<T>((size_t)CHUNK * IP), *out = scratch.take<T>((size_t)CHUNK * IP);
            T *d = scratch.zeros<T>((size_t)CHUNK * EP);
            for (int64_t r = 0; r < rows; r += CHUNK) {
                int R = std::min<int64_t>(CHUNK, rows - r);
                int64_t row = m * rows + r;
                branch_gradient<T>(R, E, row, factors, dy.const_data_ptr<T>() + row * E, EP, d);
                add_columns<T>(R, EP / W, d, EP, dbias);
                copy_rows<T>(R, I, h.const_data_ptr<T>() + row * I, I, in, IP);
                product<T, true>(E, R, IP / W, d, 1, EP, in, IP, dmaps, IP);
                product<T, false>(R, E, IP / W, d, EP, 1, maps, IP, out, IP);
                copy_rows<T>(R, I, out, IP, dh.mutable_data_ptr<T>() + row * I, I);
            }
            copy_rows<T>(E, I, dmaps, IP, dw.mutable_data_ptr<T>() + m * E * I, I);
            std::memcpy(db.mutable_data_ptr<T>() + m * E, dbias, sizeof(T) * E);
        });
    });
    return {dh, dw, db};
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

// ---------------------------------------------------------------- softmax([q kᵀ / √D, 0] + bias) [v, 0]

struct Shape {  // of attention: qkv is (M, B, N, 3 H D), heads side by side, and so is the result (M, B, N, H D)
    int64_t M, B, H;
    int N, D, I;

    Shape(const Tensor &qkv, const Tensor &table) {
        M = table.dim() == 3 ? table.size(0) : 1;
        H = table.size(-2);
        N = qkv.size(-2);
        I = qkv.size(-1) / 3;
        D = I / H;
        B = qkv.numel() / (M * N * 3 * I);
    }
};

// The bias of a member's heads, (H, N + 1 keys, N padded): looked up in its table, (H, positions), at `index`, (N, N + 1).
template <class T> T *looked_up(const Tensor &table, const Tensor &index, const Shape &s, int64_t m) {
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

// (mixed, probabilities): `qkv` is (M, B, N, 3 H D).
std::array<Tensor, 2> attention_forward(const Tensor &qkv, const Tensor &table, const Tensor &index) {
    const Shape s(qkv, table);
    auto sizes = qkv.sizes().vec();
    sizes.back() = s.I;
    Tensor mixed = at::empty(sizes, qkv.options()), kept;
    AT_DISPATCH_FLOATING_TYPES(qkv.scalar_type(), "cvit::attention_block", [&] {
        using T = scalar_t;
        const int N = s.N, D = s.D, NP = padded<T>(N), W = WIDTH<T>, V = NP / W, ld = 3 * s.I;
        const T scale = 1 / std::sqrt(T(D));
        kept = at::empty({s.M, s.B, s.H, N + 1, NP}, qkv.options());
        for_each_member(s.M, [&](int64_t m) {
            const T *biases = looked_up<T>(table, index, s, m);
            T *qt = scratch.zeros<T>((size_t)D * NP), *ot = scratch.take<T>((size_t)D * NP);
            for (int64_t b = 0; b < s.B; b++)
                for (int h = 0; h < s.H; h++) {
                    const int64_t image = m * s.B + b;
                    const T *q = qkv.const_data_ptr<T>() + image * N * ld + h * D, *k = q + s.I, *v = k + s.I;
                    const T *bi = biases + (size_t)h * (N + 1) * NP;
                    T *p = kept.mutable_data_ptr<T>() + (image * s.H + h) * (N + 1) * NP;
                    transpose<T>(N, D, q, ld, qt, NP);
                    for (int i = 0; i < D * NP; i += W) store(qt + i, load(qt + i) * scale);
                    product<T, false>(N, D, V, k, ld, 1, qt, NP, p, NP);
                    softmax(N, NP, bi, p);
                    product<T, false>(D, N, V, v, 1, ld, p, NP, ot, NP);
                    T *to = mixed.mutable_data_ptr<T>() + image * N * s.I + h * D;
                    transpose<T>(D, N, ot, NP, to, s.I);
                }
        });
    });
    return {mixed, kept};
}

// (dqkv, dtable)
std::array<Tensor, 2> attention_backward(const Tensor &dmixed, const Tensor &qkv, const Tensor &table,
                                         const Tensor &index, const Tensor &kept) {
    const Shape s(qkv, table);
    Tensor dqkv = at::empty_like(qkv), dtable = at::zeros_like(table);
    AT_DISPATCH_FLOATING_TYPES(qkv.scalar_type(), "cvit::attention_block", [&] {
        using T = scalar_t;
        const int N = s.N, D = s.D, NP = padded<T>(N), DP = padded<T>(D), W = WIDTH<T>, V = NP / W, ld = 3 * s.I;
        const T scale = 1 / std::sqrt(T(D));
        for_each_member(s.M, [&](int64_t m) {
            T *dbiases = scratch.zeros<T>((size_t)s.H * (N + 1) * NP), *dp = scratch.take<T>((size_t)N * NP);
            T *dot = scratch.zeros<T>((size_t)D * NP), *dqt = scratch.take<T>((size_t)D * NP);
            T *od = scratch.zeros<T>((size_t)N * DP), *qd = scratch.zeros<T>((size_t)N * DP);
            T *out = scratch.take<T>((size_t)N * DP);
            for (int64_t b = 0; b < s.B; b++)
                for (int h = 0; h < s.H; h++) {
                    const int64_t image = m * s.B + b, at = image * N * ld + h * D;
                    const T *q = qkv.const_data_ptr<T>() + at, *k = q + s.I, *v = k + s.I;
                    T *dq = dqkv.mutable_data_ptr<T>() + at, *dk = dq + s.I, *dv = dk + s.I;
                    const T *p = kept.const_data_ptr<T>() + (image * s.H + h) * (N + 1) * NP;
                    const T *d = dmixed.const_data_ptr<T>() + image * N * s.I + h * D;
                    T *db = dbiases + (size_t)h * (N + 1) * NP;
                    transpose<T>(N, D, d, s.I, dot, NP);
                    product<T, false>(N, D, V, v, ld, 1, dot, NP, dp, NP);
                    logits_backward(N, NP, p, dp, db);
                    product<T, false>(D, N, V, k, 1, ld, dp, NP, dqt, NP);
                    for (int i = 0; i < D * NP; i += W) store(dqt + i, load(dqt + i) * scale);
                    transpose<T>(D, N, dqt, NP, dq, ld);
                    copy_rows<T>(N, D, d, s.I, od, DP);
                    copy_rows<T>(N, D, q, ld, qd, DP);
                    for (int i = 0; i < N * DP; i += W) store(qd + i, load(qd + i) * scale);
                    product<T, false>(N, N, DP / W, p, NP, 1, od, DP, out, DP);
                    copy_rows<T>(N, D, out, DP, dv, ld);
                    product<T, false>(N, N, DP / W, dp, NP, 1, qd, DP, out, DP);
                    copy_rows<T>(N, D, out, DP, dk, ld);
                }
            const int positions = table.size(-1);
            const int64_t *at = index.const_data_ptr<int64_t>();
            for (int h = 0; h < s.H; h++) {
                T *row = dtable.mutable_data_ptr<T>() + (m * s.H + h) * positions;
                const T *db = dbiases + (size_t)h * (N + 1) * NP;
                for (int i = 0; i < N; i++)
                    for (int j = 0; j <= N; j++) row[at[i * (N + 1) + j]] += db[(size_t)j * NP + i];
            }
        });
    });
    return {dqkv, dtable};
}

// y = x + s (W attention(Wq norm(x), Wk norm(x), Wv norm(x)) + b)
struct AttentionBlock : torch::autograd::Function<AttentionBlock> {
    static Tensor forward(AutogradContext *context, const Tensor &given, const Tensor &norm_weight,
                          const Tensor &norm_bias, double eps, const Tensor &query, const Tensor &key,
                          const Tensor &value, const Tensor &table, const Tensor &index, const Tensor &output_weight,
                          const Tensor &output_bias, const std::optional<Tensor> &scale) {
        at::AutoDispatchBelowADInplaceOrView below;
        Tensor x = given.contiguous(), nw = norm_weight.contiguous(), nb = norm_bias.contiguous();
        Tensor biases = table.contiguous(), w = output_weight.contiguous(), b = output_bias.contiguous();
        Projection p(x, {query.contiguous(), key.contiguous(), value.contiguous()});
        const Factors factors(scale, x);
        Tensor qkv = project_forward(x, nw, nb, eps, p);
        auto [mixed, kept] = attention_forward(qkv, biases, index);
        context->save_for_backward({x, nw, nb, p.weights[0], p.weights[1], p.weights[2], biases, index, w, qkv, kept,
                                    mixed, factors.values});
        context->saved_data["eps"] = eps;
        return output_forward(x, mixed, w, b, factors);
    }
    static variable_list backward(AutogradContext *context, variable_list gradients) {
        auto saved = context->get_saved_variables();
        const Tensor &x = saved[0], &table = saved[6], &index = saved[7];
        Tensor dy = gradients[0].contiguous();
        Projection p(x, {saved[3], saved[4], saved[5]});
        auto [dmixed, dw, db] = output_backward(dy, saved[11], saved[8], Factors(saved[12], x));
        auto [dqkv, dtable] = attention_backward(dmixed, saved[9], table, index, saved[10]);
        const double eps = context->saved_data["eps"].toDouble();
        auto d = project_backward(dqkv, dy, x, saved[1], saved[2], eps, p);
        return {d[0], d[1], d[2], Tensor(), d[3], d[4], d[5], dtable, Tensor(), dw, db, Tensor()};
    }
};

// ---------------------------------------------------------------- y = x + s (W shift(V norm(x)) + b)

// Every head's channels (M, B, N, H D) taken from the token at `sources`, (H, N); −1 stands for zero outside the grid.
Tensor shifted(const Tensor &values, const Tensor &sources) {
    const int64_t H = sources.size(0), N = sources.size(1), D = values.size(-1) / H, images = values.numel() / (N * H * D);
    Tensor moved = at::empty_like(values);
    const int64_t *from = sources.const_data_ptr<int64_t>();
    AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "cvit::shift_block", [&] {
        using T = scalar_t;
        for (int64_t image = 0; image < images; image++) {
            const T *in = values.const_data_ptr<T>() + image * N * H * D;
            T *out = moved.mutable_data_ptr<T>() + image * N * H * D;
            for (int64_t n = 0; n < N; n++)
                for (int64_t h = 0; h < H; h++) {
                    T *to = out + (n * H + h) * D;
                    const int64_t source = from[h * N + n];
                    if (source < 0) std::fill_n(to, D, T(0));
                    else std::memcpy(to, in + (source * H + h) * D, sizeof(T) * D);
                }
        }
    });
    return moved;
}

struct ShiftBlock : torch::autograd::Function<ShiftBlock> {
    static Tensor forward(AutogradContext *context, const Tensor &given, const Tensor &norm_weight,
                          const Tensor &norm_bias, double eps, const Tensor &value, const Tensor &sources,
                          const Tensor &targets, const Tensor &output_weight, const Tensor &output_bias,
                          const std::optional<Tensor> &scale) {
        at::AutoDispatchBelowADInplaceOrView below;
        Tensor x = given.contiguous(), nw = norm_weight.contiguous(), nb = norm_bias.contiguous();
        Tensor w = output_weight.contiguous(), b = output_bias.contiguous();
        Projection p(x, {value.contiguous()});
        const Factors factors(scale, x);
        Tensor moved = shifted(project_forward(x, nw, nb, eps, p), sources);
        context->save_for_backward({x, nw, nb, p.weights[0], targets, w, moved, factors.values});
        context->saved_data["eps"] = eps;
        return output_forward(x, moved, w, b, factors);
    }
    static variable_list backward(AutogradContext *context, variable_list gradients) {
        auto saved = context->get_saved_variables();
        const Tensor &x = saved[0];
        Tensor dy = gradients[0].contiguous();
        Projection p(x, {saved[3]});
        auto [dmoved, dw, db] = output_backward(dy, saved[6], saved[5], Factors(saved[7], x));
        const double eps = context->saved_data["eps"].toDouble();
        auto d = project_backward(shifted(dmoved, saved[4]), dy, x, saved[1], saved[2], eps, p);
        return {d[0], d[1], d[2], Tensor(), d[3], Tensor(), Tensor(), dw, db, Tensor()};
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
