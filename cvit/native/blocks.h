// The two halves of a transformer's block on plain memory, member by member; see README.md for the equations.
//
// A member is computed by one thread, in an order that depends on its own shape only: so its numbers do not depend on
// the other members of a pack or on the number of threads. `P` is the arithmetic of the products (products.h).

#pragma once

#include "products.h"

namespace cvit {

// A weight of each member. Those of a member lie one after the other, but its next weight may lie between two members'.
template <class T> struct Weight {
    const T *at;
    int64_t apart;
    const T *of(int64_t member) const { return at + member * apart; }
};

// y = x + s (W₂ GELU(W₁ norm(x) + b₁) + b₂)
template <class T> struct Mlp {
    int64_t members, images;
    int N, E, F;  // tokens of an image, width of a token, hidden width
    T eps;
    const T *x;
    Weight<T> norm_weight, norm_bias, w1, b1, w2, b2;
    const T *scale;  // s by image, or null
    int64_t kept_linear() const { return members * images * N * padded<T>(F); }
    int64_t kept() const { return kept_linear() + 2 * members * images * N; }
};
template <class T> struct MlpGradients {
    T *x, *norm_weight, *norm_bias, *w1, *b1, *w2, *b2;
};
// `kept`, of a size that the block says, is what the backward pass needs; null in evaluation.
template <class P>
void mlp_forward(const Mlp<typename P::Number> &, int64_t member, typename P::Number *y, typename P::Number *kept);
template <class P>
void mlp_backward(const Mlp<typename P::Number> &, int64_t member, const typename P::Number *dy,
                  const typename P::Number *kept, const MlpGradients<typename P::Number> &);

// y = x + s (W mix(V₁ norm(x), …) + b), where mix is attention or a shift of each head's channels.
template <class T> struct Mixing {
    int64_t members, images;
    int N, E, H, D;  // tokens of an image, width of a token, heads, and their width
    T eps;
    const T *x;
    Weight<T> norm_weight, norm_bias;
    Weight<T> maps[3];  // query, key, value; of a shift the value only
    int parts;
    Weight<T> output_weight, output_bias;
    const T *scale;   // s by image, or null
    Weight<T> table;  // attention: the bias of each head and position, and the position of each query and key
    const int64_t *index;
    int positions;
    const int64_t *sources, *targets;  // shift: for each head and token, the token to take from, and that which takes it

    int I() const { return H * D; }
    // Tokens lie as channels × tokens where they are mixed, a group of images side by side. There an image begins at a
    // multiple of NP, its number of tokens padded to whole vectors, and TP is the length of a row.
    int NP() const { return padded<T>(N); }
    int group() const { return std::max(1, CHUNK / NP()); }
    int TP() const { return group() * NP(); }
    int64_t groups() const { return (images + group() - 1) / group(); }
    int kept_parts() const { return parts == 3 ? 4 : 1; }  // queries, keys and values; mixed channels
    int64_t kept_channels() const { return members * groups() * kept_parts() * I() * TP(); }
    int64_t kept() const { return kept_channels() + 2 * members * images * N; }

    static constexpr int CHUNK = 64;
};
template <class T> struct MixingGradients {
    T *x, *norm_weight, *norm_bias, *maps[3], *output_weight, *output_bias;
    T *table;  // zeros before
};
template <class P>
void mixing_forward(const Mixing<typename P::Number> &, int64_t member, typename P::Number *y,
                    typename P::Number *kept);
template <class P>
void mixing_backward(const Mixing<typename P::Number> &, int64_t member, const typename P::Number *dy,
                     const typename P::Number *kept, const MixingGradients<typename P::Number> &);

// Rows of a block: y = x + s (branch + bias), and the gradient of the branch, s dy. Rows of x, y and dy are E long,
// others padded.
template <class T>
static void add_branch(int rows, int E, T scale, const T *x, const T *branch, const T *bias, T *y) {
    const int EP = padded<T>(E);
    for (int r = 0; r < rows; r++)
        for_vectors<T>(E, [&](int e, auto in) {
            const Vector<T> whole = load(branch + (long)r * EP + e) + load(bias + e);
            in.store(y + (long)r * E + e, in.load(x + (long)r * E + e) + scale * whole);
        });
}
template <class T> static void branch_gradient(int rows, int E, T scale, const T *dy, T *to) {
    const int EP = padded<T>(E);
    for (int r = 0; r < rows; r++)
        for_vectors<T>(E, [&](int e, auto in) {
            store(to + (long)r * EP + e, in.load(dy + (long)r * E + e) * scale);
        });
}
// A vector of so many numbers, padded with zeros.
template <class T> static const T *padded_row(const T *vector, int width) {
    T *copy = scratch().zeros<T>(padded<T>(width));
    std::memcpy(copy, vector, sizeof(T) * width);
    return copy;
}

}  // namespace cvit
