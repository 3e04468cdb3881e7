// Products with the norm before them and the gate and the product after, as Paddle custom
// operators: in one kernel for few rows, in as few as there can be for more.
#include "../infer.h"
#include "products.h"
#include "rounding.h"

namespace qinfer::cuda {
namespace {

// norm(x + residual) * weight; x is the sum where there is no residual.
struct Normed {
  const Tensor& x;
  const Optional& residual;
  const Tensor& weight;
  float eps;
};

void validate(const Normed& n) {
  const int64_t width = n.x.shape()[1];
  PD_CHECK(width % 8 == 0 && width <= 16384,
           "qinfer_cuda_norm_linear: the width must be a multiple of 8 up to 16384");
  PD_CHECK(n.weight.dtype() == n.x.dtype() && n.weight.numel() == width &&
               (!n.residual ||
                (n.residual->shape() == n.x.shape() && n.residual->dtype() == n.x.dtype())),
           "qinfer_cuda_norm_linear: the norm must be [in], the residual as x");
}

// Fewer rows are gated and rounded sooner by two kernels, the first of which fills the card.
constexpr int64_t kLeastGated = 256;

bool in_one(const Operands& o) { return fused_knows(o.type, o.format, o.rows, o.in, o.out); }

// Norm, product and gate in one kernel.
void all_in_one(const Operands& o, const Normed& n, bool gated, void* y, Tensor& total) {
  FusedProduct p = fused(o, n.x.data(), y);
  p.norm = n.weight.data(), p.eps = n.eps, p.gated = gated;
  if (n.residual) p.residual = n.residual->data(), p.total = total.data();
  fused_product(o.format, p, o.stream);
}

// A norm's results for a product with `o`: numbers, or what they are rounded to.
Rounded normed_inputs(const Operands& o, const Normed& n, bool gated, Tensor& total,
                      Spaces& spaces) {
  Rounded x{nullptr, nullptr, false};
  if (o.format == Format::kE4M3)
    x = rounded_inputs(o, gated, spaces);
  else
    x.numbers = spaces(o.rows * o.in * 2);
  Norm norm{};
  norm.x = n.x.data(), norm.weight = n.weight.data(), norm.eps = n.eps;
  if (n.residual) norm.residual = n.residual->data(), norm.total = total.data();
  norm.rows = o.rows, norm.width = o.in;
  norm.y = x.numbers, norm.scale = x.scale, norm.as_bytes = x.as_bytes;
  rms_norm(o.type, norm, o.stream);
  return x;
}

void multiply_normed(const Operands& o, const Rounded& x, void* y, Spaces& spaces) {
  x.scale ? multiply_rounded(o, x, y, spaces) : multiply(o, x.numbers, y, spaces);
}

// Gates and what they let pass -> one of them; false where `y` [rows, out] is left to be gated.
bool gated_product(const Operands& o, const Normed& n, void* half, void*& y, Tensor& total,
                   Spaces& spaces) {
  PD_CHECK(o.out % 16 == 0, "qinfer_cuda_norm_linear: gates must be a multiple of 8");
  if (in_one(o)) return all_in_one(o, n, true, half, total), true;
  const bool itself = gates_itself(o);
  const Rounded x = normed_inputs(o, n, itself, total, spaces);
  if (itself) return multiply_gated(o, x.numbers, x.scale, half), true;
  y = spaces(o.rows * o.out * 2);
  multiply_normed(o, x, y, spaces);
  return false;
}

// y = product of norm(x + residual) * norm, gated or not, and x + residual; x itself where there is
// no residual.
std::vector<Tensor> norm_linear(const Tensor& x, const Optional& residual, const Tensor& norm,
                                const Tensor& weight, const Optional& scale, const Optional& bias,
                                float eps, int64_t format, int64_t out, bool gated) {
  const Normed n{x, residual, norm, eps};
  validate(n);
  const Operands o = operands(x, x.shape()[1], weight, scale, bias, format, out);
  Tensor y = output({o.rows, gated ? out / 2 : out}, x.dtype(), x), total = x;
  if (residual) total = output(x.shape(), x.dtype(), x);
  Spaces spaces(x);
  if (gated) {
    void* whole = nullptr;
    if (!gated_product(o, n, y.data(), whole, total, spaces))
      silu_gate(o.type, whole, y.data(), o.rows, out / 2, o.stream);
  } else if (in_one(o)) {
    all_in_one(o, n, false, y.data(), total);
  } else {
    multiply_normed(o, normed_inputs(o, n, false, total, spaces), y.data(), spaces);
  }
  return {y, total};
}

// The product with `down` of what norm_linear gives, gated.
std::vector<Tensor> gated_mlp(const Tensor& x, const Optional& residual, const Tensor& norm,
                              const Tensor& weight, const Optional& scale, const Optional& bias,
                              const Tensor& down, const Optional& down_scale,
                              const Optional& down_bias, float eps, int64_t format, int64_t out,
                              int64_t down_format, int64_t down_out) {
  const Normed n{x, residual, norm, eps};
  validate(n);
  const Operands o = operands(x, x.shape()[1], weight, scale, bias, format, out);
  const Operands d = operands(x, out / 2, down, down_scale, down_bias, down_format, down_out);
  Tensor y = output({o.rows, down_out}, x.dtype(), x), total = x;
  if (residual) total = output(x.shape(), x.dtype(), x);
  Spaces spaces(x);
  void *half = spaces(d.rows * d.in * 2), *whole = nullptr;
  if (gated_product(o, n, half, whole, total, spaces)) {
    multiply(d, half, y.data(), spaces);
  } else if (d.format == Format::kE4M3 && d.rows >= kLeastGated) {
    const Rounded to = rounded_inputs(d, false, spaces);
    Rounding r{};
    r.x = whole, r.rounded = to.numbers, r.scale = to.scale, r.as_bytes = to.as_bytes;
    r.rows = d.rows, r.width = d.in, r.gated = true;
    round_inputs(d.type, Code::kE4M3, r, d.stream);
    multiply_rounded(d, to, y.data(), spaces);
  } else {
    silu_gate(d.type, whole, half, d.rows, d.in, d.stream);
    multiply(d, half, y.data(), spaces);
  }
  return {y, total};
}

}  // namespace
}  // namespace qinfer::cuda

PD_BUILD_OP(qinfer_cuda_norm_linear)
    .Inputs({"x", paddle::Optional("residual"), "norm", "weight", paddle::Optional("scale"),
             paddle::Optional("bias")})
    .Outputs({"y", "total"})
    .Attrs({"eps: float", "format: int64_t", "out: int64_t", "gated: bool"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::norm_linear))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::norm_linear))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::two_same));

PD_BUILD_OP(qinfer_cuda_gated_mlp)
    .Inputs({"x", paddle::Optional("residual"), "norm", "weight", paddle::Optional("scale"),
             paddle::Optional("bias"), "down", paddle::Optional("down_scale"),
             paddle::Optional("down_bias")})
    .Outputs({"y", "total"})
    .Attrs({"eps: float", "format: int64_t", "out: int64_t", "down_format: int64_t",
            "down_out: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::gated_mlp))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::gated_mlp))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::two_same));
