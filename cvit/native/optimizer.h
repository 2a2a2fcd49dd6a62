// A step of AdamW for the parameters of a pack; its formula is that of cvit/training/optimizer.py.

#pragma once

#include <cstdint>

namespace cvit {

// M members, P parameters each and G groups of parameters with coefficients of their own. All are (M, P) but where
// another shape is given.
struct AdamW {
    int64_t members, columns, groups;
    float *parameters, *mean, *square;
    const float *gradient;
    const float *clipping;      // (M), what the gradient is multiplied by
    const float *coefficients;  // (M, G, 3): shrinkage, step size, √(1 − β₂ᵗ)
    const int64_t *group;       // or null, if there is one group
    const bool *moves;          // (M) or (M, P)
    bool moves_by_column;
    const bool *spared;  // (P), those without weight decay
    const float *start;  // what weight decay pulls towards, or null for zero
    double beta1, beta2, epsilon;
};
void adamw(const AdamW &, int64_t member);

}  // namespace cvit
