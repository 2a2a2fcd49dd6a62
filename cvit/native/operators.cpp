// The fused blocks as torch operators with gradients; see README.md.
//
// A model calls cvit::attention_block, cvit::shift_block and cvit::mlp_block. They are made of two operators for all
// blocks: block_forward, which with `keeps` also returns what the backward pass needs, and block_backward. There a
// block is its name and its tensors, in the order of its schema and with the scale last if there is one.

#include "blocks.h"
#include "optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <malloc.h>

namespace {

using at::Tensor, at::TensorList;
using torch::autograd::AutogradContext, torch::autograd::variable_list;

constexpr int KEPT_BYTES = 1 << 29;  // of freed memory that a process keeps

// Calls work(arithmetic) for the type of x.
template <class Work> void with_arithmetic(const Tensor &x, bool half_products, const Work &work) {
    TORCH_CHECK(x.scalar_type() == at::kFloat || (x.scalar_type() == at::kDouble && !half_products),
                "blocks compute in float32 or float64, with half_products in float32, not in ", x.scalar_type());
    TORCH_CHECK(!half_products || cvit::HAS_HALF_PRODUCTS, "this machine has no products of bfloat16 (AVX512_BF16)");
    if (half_products)
        work(cvit::Halves{});
    else if (x.scalar_type() == at::kFloat)
        work(cvit::Exact<float>{});
    else
        work(cvit::Exact<double>{});
}
template <class Work> void for_each_member(int64_t members, const Work &work) {
    at::parallel_for(0, members, 1, [&](int64_t begin, int64_t end) {
        for (int64_t member = begin; member < end; member++) work(member);
    });
}

// Weights are (F, E), in a pack (M, F, E).
int64_t members_of(const Tensor &weight) { return weight.dim() == 3 ? weight.size(0) : 1; }
Tensor like(const Tensor &tensor) { return at::empty_like(tensor, tensor.options(), at::MemoryFormat::Contiguous); }
template <class T> const T *data(const Tensor &tensor) { return tensor.const_data_ptr<T>(); }
template <class T> T *room(const Tensor &tensor) { return tensor.mutable_data_ptr<T>(); }

// The tensors of a block, taken in order, contiguous and checked: of x's type, with so many numbers.
class Inputs {
    const TensorList given;
    size_t next = 0;
    std::vector<Tensor> contiguous;

    const Tensor &take(at::ScalarType type, int64_t numbers, const char *name) {
        const Tensor &tensor = given[next++];
        TORCH_CHECK(tensor.scalar_type() == type, name, " is ", tensor.scalar_type(), " instead of ", type);
        TORCH_CHECK(tensor.numel() == numbers, name, " has ", tensor.numel(), " numbers instead of ", numbers);
        return contiguous.emplace_back(tensor.contiguous());
    }

  public:
    explicit Inputs(TensorList given) : given(given) { contiguous.reserve(given.size()); }
    template <class T> const T *numbers(int64_t count, const char *name) {
        return data<T>(take(given[0].scalar_type(), count, name));
    }
    // Weights of a pack are parts of one matrix with a row for each member: they need not be copied for that.
    template <class T> cvit::Weight<T> weight(int64_t members, int64_t count, const char *name) {
        const Tensor &tensor = given[next];
        int64_t numbers = 1, axis = tensor.dim() - 1;
        for (; axis >= 0 && numbers < count && tensor.stride(axis) == numbers; axis--) numbers *= tensor.size(axis);
        const bool is_row = numbers == count && axis == 0 && tensor.size(0) == members;
        if (is_row && tensor.scalar_type() == given[0].scalar_type()) return {data<T>(given[next++]), tensor.stride(0)};
        return {this->numbers<T>(members * count, name), count};
    }
    const int64_t *places(int64_t count, const char *name) { return data<int64_t>(take(at::kLong, count, name)); }
    template <class T> const T *scale(int64_t images) {
        return next < given.size() ? numbers<T>(images, "scale") : nullptr;
    }
};

// ---------------------------------------------------------------- blocks of tensors

constexpr int X = 0, NORM_WEIGHT = 1, NORM_BIAS = 2;    // of every block
constexpr int W1 = 3, B1 = 4, W2 = 5, B2 = 6;           // of an MLP
constexpr int MAPS = 3;                                 // the first of query, key, value; of a shift the value
constexpr int TABLE = 6, INDEX = 7, SOURCES = 4;        // of attention; of a shift
// The output's weight and bias come last.
constexpr int output_of(bool attends) { return attends ? INDEX + 1 : SOURCES + 2; }

template <class T> cvit::Mlp<T> mlp(TensorList t, double eps, Inputs &in) {
    const int64_t M = members_of(t[W1]), N = t[X].size(-2), E = t[X].size(-1), F = t[W1].size(-2);
    cvit::Mlp<T> b{};
    b.members = M, b.images = t[X].numel() / (M * N * E), b.N = N, b.E = E, b.F = F, b.eps = eps;
    b.x = in.numbers<T>(M * b.images * N * E, "x");
    b.norm_weight = in.weight<T>(M, E, "norm_weight");
    b.norm_bias = in.weight<T>(M, E, "norm_bias");
    b.w1 = in.weight<T>(M, F * E, "w1");
    b.b1 = in.weight<T>(M, F, "b1");
    b.w2 = in.weight<T>(M, E * F, "w2");
    b.b2 = in.weight<T>(M, E, "b2");
    b.scale = in.scale<T>(M * b.images);
    return b;
}

template <class T> cvit::Mixing<T> mixing(bool attends, TensorList t, double eps, Inputs &in) {
    const Tensor &output = t[output_of(attends)];
    const int64_t M = members_of(output), N = t[X].size(-2), E = t[X].size(-1), I = output.size(-1);
    const int64_t H = t[attends ? TABLE : SOURCES].size(-2);
    TORCH_CHECK(H > 0 && I % H == 0, I, " channels are no multiple of ", H, " heads");
    cvit::Mixing<T> b{};
    b.members = M, b.images = t[X].numel() / (M * N * E), b.N = N, b.E = E, b.H = H, b.D = I / H, b.eps = eps;
    b.parts = attends ? 3 : 1;
    b.x = in.numbers<T>(M * b.images * N * E, "x");
    b.norm_weight = in.weight<T>(M, E, "norm_weight");
    b.norm_bias = in.weight<T>(M, E, "norm_bias");
    for (int part = 0; part < b.parts; part++) b.maps[part] = in.weight<T>(M, I * E, "a projection");
    if (attends) {
        b.positions = t[TABLE].size(-1);
        b.table = in.weight<T>(M, H * b.positions, "table");
        b.index = in.places(N * (N + 1), "index");
    } else {
        b.sources = in.places(H * N, "sources");
        b.targets = in.places(H * N, "targets");
    }
    b.output_weight = in.weight<T>(M, E * I, "output_weight");
    b.output_bias = in.weight<T>(M, E, "output_bias");
    b.scale = in.scale<T>(M * b.images);
    return b;
}

// Gradients of the tensors, as they are ordered; places and scale have none.
template <class P>
variable_list mlp_backward(TensorList t, double eps, const typename P::Number *dy, const typename P::Number *kept) {
    using T = typename P::Number;
    Inputs in(t);
    const auto b = mlp<T>(t, eps, in);
    variable_list d;
    auto of = [&](int i) { return room<T>(d.emplace_back(like(t[i]))); };
    const cvit::MlpGradients<T> to{of(X), of(NORM_WEIGHT), of(NORM_BIAS), of(W1), of(B1), of(W2), of(B2)};
    for_each_member(b.members, [&](int64_t member) { cvit::mlp_backward<P>(b, member, dy, kept, to); });
    return d;
}
template <class P>
variable_list mixing_backward(bool attends, TensorList t, double eps, const typename P::Number *dy,
                              const typename P::Number *kept) {
    using T = typename P::Number;
    Inputs in(t);
    const auto b = mixing<T>(attends, t, eps, in);
    variable_list d;
    auto of = [&](int i) { return room<T>(d.emplace_back(like(t[i]))); };
    cvit::MixingGradients<T> to{};
    to.x = of(X), to.norm_weight = of(NORM_WEIGHT), to.norm_bias = of(NORM_BIAS);
    for (int part = 0; part < b.parts; part++) to.maps[part] = of(MAPS + part);
    if (attends) to.table = room<T>(d.emplace_back(at::zeros(t[TABLE].sizes(), t[TABLE].options())));
    to.output_weight = of(output_of(attends));
    to.output_bias = of(output_of(attends) + 1);
    for_each_member(b.members, [&](int64_t member) { cvit::mixing_backward<P>(b, member, dy, kept, to); });
    return d;
}

// ---------------------------------------------------------------- operators

constexpr auto MLP = "mlp", ATTENTION = "attention", SHIFT = "shift";

std::tuple<Tensor, Tensor> block_forward(c10::string_view name, TensorList t, double eps, bool half_products,
                                         bool keeps) {
    Tensor y = like(t[X]), kept = at::empty({0}, t[X].options());
    with_arithmetic(t[X], half_products, [&](auto arithmetic) {
        using P = decltype(arithmetic);
        using T = typename P::Number;
        Inputs in(t);
        T *to = room<T>(y);
        auto run = [&](const auto &b, auto *forward) {
            if (keeps) kept = at::empty({b.kept()}, t[X].options());
            T *keep = keeps ? room<T>(kept) : nullptr;
            for_each_member(b.members, [&](int64_t member) { forward(b, member, to, keep); });
        };
        if (name == MLP)
            run(mlp<T>(t, eps, in), cvit::mlp_forward<P>);
        else
            run(mixing<T>(name == ATTENTION, t, eps, in), cvit::mixing_forward<P>);
    });
    return {y, kept};
}

variable_list block_backward(c10::string_view name, const Tensor &gradient, const Tensor &kept, TensorList t, double eps,
                             bool half_products) {
    variable_list d;
    const Tensor dy = gradient.contiguous();
    with_arithmetic(t[X], half_products, [&](auto arithmetic) {
        using P = decltype(arithmetic);
        using T = typename P::Number;
        if (name == MLP)
            d = mlp_backward<P>(t, eps, data<T>(dy), data<T>(kept));
        else
            d = mixing_backward<P>(name == ATTENTION, t, eps, data<T>(dy), data<T>(kept));
    });
    return d;
}

void adamw(Tensor parameters, Tensor mean, Tensor square, const Tensor &gradient, const Tensor &clipping,
           const Tensor &coefficients, const Tensor &moves, const Tensor &spared, const std::optional<Tensor> &group,
           const std::optional<Tensor> &start, double beta1, double beta2, double epsilon) {
    const int64_t members = parameters.size(0), columns = parameters.size(1);
    const auto given = [&](const Tensor &tensor, at::ScalarType type, int64_t numbers, const char *name) {
        TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == type && tensor.numel() == numbers, name,
                    " must be ", numbers, " contiguous ", type, ", and is ", tensor.scalar_type(), " ", tensor.sizes());
        return tensor;
    };
    const auto numbers = [&](const Tensor &tensor, const char *name) {
        return room<float>(given(tensor, at::kFloat, members * columns, name));
    };
    cvit::AdamW o{};
    o.members = members, o.columns = columns, o.groups = coefficients.size(1);
    o.parameters = numbers(parameters, "parameters"), o.mean = numbers(mean, "mean");
    o.square = numbers(square, "square"), o.gradient = numbers(gradient, "gradient");
    o.clipping = data<float>(given(clipping, at::kFloat, members, "clipping"));
    o.coefficients = data<float>(given(coefficients, at::kFloat, members * o.groups * 3, "coefficients"));
    o.moves_by_column = moves.numel() != members;
    o.moves = data<bool>(given(moves, at::kBool, o.moves_by_column ? members * columns : members, "moves"));
    o.spared = data<bool>(given(spared, at::kBool, columns, "spared"));
    if (group) o.group = data<int64_t>(given(*group, at::kLong, members * columns, "group"));
    if (start) o.start = numbers(*start, "start");
    o.beta1 = beta1, o.beta2 = beta2, o.epsilon = epsilon;
    for_each_member(members, [&](int64_t member) { cvit::adamw(o, member); });
}

template <class Signature> auto operator_of(const char *name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}
auto forward(const char *name, TensorList t, double eps, bool half_products, bool keeps) {
    static const auto call = operator_of<decltype(block_forward)>("cvit::block_forward");
    return call.call(name, t, eps, half_products, keeps);
}

struct Block : torch::autograd::Function<Block> {
    static Tensor forward(AutogradContext *context, const char *name, TensorList t, double eps, bool half_products) {
        at::AutoDispatchBelowADInplaceOrView below;
        auto [y, kept] = ::forward(name, t, eps, half_products, true);
        variable_list saved = t.vec();
        saved.push_back(kept);
        context->save_for_backward(std::move(saved));
        context->saved_data["name"] = name, context->saved_data["eps"] = eps;
        context->saved_data["half_products"] = half_products;
        return y;
    }
    static variable_list backward(AutogradContext *context, variable_list dy) {
        TORCH_CHECK(!at::GradMode::is_enabled(), "a fused block has no second derivative (create_graph=True)");
        static const auto call = operator_of<decltype(block_backward)>("cvit::block_backward");
        variable_list t = context->get_saved_variables();
        const Tensor kept = t.back();
        t.pop_back();
        auto &given = context->saved_data;
        const variable_list d = call.call(given["name"].toStringRef(), dy[0], kept, t, given["eps"].toDouble(),
                                          given["half_products"].toBool());
        variable_list of_arguments(t.size() + 3);  // of the name, the tensors, eps and half_products
        auto next = d.begin();
        for (size_t i = 0; i < t.size() && next != d.end(); i++)
            if (t[i].is_floating_point()) of_arguments[1 + i] = *next++;
        return of_arguments;
    }
};

Tensor run(const char *name, variable_list t, double eps, const std::optional<Tensor> &scale, bool half_products) {
    if (scale.has_value() && scale->defined()) t.push_back(scale->to(t[X].scalar_type()));
    const auto needs = [](const Tensor &tensor) { return tensor.requires_grad(); };
    if (at::GradMode::is_enabled() && std::any_of(t.begin(), t.end(), needs))
        return Block::apply(name, TensorList(t), eps, half_products);
    return std::get<0>(forward(name, t, eps, half_products, false));
}

}  // namespace

// A step takes and frees tens of megabytes. Unless told so, the C library gives such memory back to the system each time,
// and zeroing it anew takes as long as half of a forward pass.
void keep_freed_memory() {
#if defined(__GLIBC__)
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES);
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES);
#endif
}

TORCH_LIBRARY(cvit, library) {
    keep_freed_memory();
    library.def("attention_block(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor query, Tensor key, "
                "Tensor value, Tensor table, Tensor index, Tensor output_weight, Tensor output_bias, "
                "Tensor? scale=None, bool half_products=False) -> Tensor",
                [](const Tensor &x, const Tensor &norm_weight, const Tensor &norm_bias, double eps, const Tensor &query,
                   const Tensor &key, const Tensor &value, const Tensor &table, const Tensor &index,
                   const Tensor &output_weight, const Tensor &output_bias, const std::optional<Tensor> &scale,
                   bool half_products) {
                    return run(ATTENTION,
                               {x, norm_weight, norm_bias, query, key, value, table, index, output_weight, output_bias},
                               eps, scale, half_products);
                });
    library.def("shift_block(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor value, Tensor sources, "
                "Tensor targets, Tensor output_weight, Tensor output_bias, Tensor? scale=None, "
                "bool half_products=False) -> Tensor",
                [](const Tensor &x, const Tensor &norm_weight, const Tensor &norm_bias, double eps, const Tensor &value,
                   const Tensor &sources, const Tensor &targets, const Tensor &output_weight, const Tensor &output_bias,
                   const std::optional<Tensor> &scale, bool half_products) {
                    return run(SHIFT,
                               {x, norm_weight, norm_bias, value, sources, targets, output_weight, output_bias}, eps,
                               scale, half_products);
                });
    library.def("mlp_block(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor w1, Tensor b1, Tensor w2, "
                "Tensor b2, Tensor? scale=None, bool half_products=False) -> Tensor",
                [](const Tensor &x, const Tensor &norm_weight, const Tensor &norm_bias, double eps, const Tensor &w1,
                   const Tensor &b1, const Tensor &w2, const Tensor &b2, const std::optional<Tensor> &scale,
                   bool half_products) {
                    return run(MLP, {x, norm_weight, norm_bias, w1, b1, w2, b2}, eps, scale, half_products);
                });
    library.def("block_forward(str block, Tensor[] tensors, float eps, bool half_products, bool keeps) -> "
                "(Tensor, Tensor)");
    library.def("block_backward(str block, Tensor gradient, Tensor kept, Tensor[] tensors, float eps, "
                "bool half_products) -> Tensor[]");
    library.def("adamw_(Tensor(a!) parameters, Tensor(b!) mean, Tensor(c!) square, Tensor gradient, Tensor clipping, "
                "Tensor coefficients, Tensor moves, Tensor spared, Tensor? group, Tensor? start, float beta1, "
                "float beta2, float epsilon) -> ()");
    library.def("has_half_products() -> bool", [] { return cvit::HAS_HALF_PRODUCTS; });
}

TORCH_LIBRARY_IMPL(cvit, CPU, library) {
    library.impl("block_forward", block_forward);
    library.impl("block_backward", block_backward);
    library.impl("adamw_", adamw);
}
