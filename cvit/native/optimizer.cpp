#include "optimizer.h"

#include <cmath>

namespace cvit {
namespace {

// Consecutive parameters that move, of one group and with weight decay or without.
struct Run {
    int64_t first, end;
    float clipping, shrinkage, rate, root;
};

template <bool HAS_START> void step(const AdamW &o, const Run &run) {
    float *__restrict parameters = o.parameters, *__restrict mean = o.mean, *__restrict square = o.square;
    const float *__restrict gradient = o.gradient, *__restrict start = o.start;
    const float rest1 = 1 - o.beta1, rest2 = 1 - o.beta2;  // differences in double: in float they are off by 5e-5
    const float beta2 = o.beta2, epsilon = o.epsilon, per_root = 1 / run.root;
#pragma GCC ivdep
    for (int64_t i = run.first; i < run.end; i++) {
        const float g = gradient[i] * run.clipping;
        mean[i] += rest1 * (g - mean[i]);
        square[i] = square[i] * beta2 + rest2 * g * g;
        const float change = mean[i] / (std::sqrt(square[i]) * per_root + epsilon) * run.rate;
        if constexpr (HAS_START)
            parameters[i] = (parameters[i] - start[i]) * run.shrinkage + start[i] - change;
        else  // rounded twice, as with a start of zero: a member is not to depend on what the others decay towards
            parameters[i] = std::fma(parameters[i], run.shrinkage, 0.f) - change;
    }
}

}  // namespace

void adamw(const AdamW &o, int64_t member) {
    const int64_t begin = member * o.columns, end = begin + o.columns;
    const auto group = [&](int64_t i) { return o.group ? o.group[i] : 0; };
    const auto moves = [&](int64_t i) { return o.moves[o.moves_by_column ? i : member]; };
    const auto spared = [&](int64_t i) { return o.spared[i - begin]; };
    for (int64_t i = begin; i < end;) {
        Run run{i, i + 1, o.clipping[member]};
        while (run.end < end && spared(run.end) == spared(i) && group(run.end) == group(i) && moves(run.end) == moves(i))
            run.end++;
        const float *c = o.coefficients + (member * o.groups + group(i)) * 3;
        run.shrinkage = spared(i) ? 1 : c[0], run.rate = c[1], run.root = c[2];
        if (moves(i)) o.start ? step<true>(o, run) : step<false>(o, run);
        i = run.end;
    }
}

}  // namespace cvit
