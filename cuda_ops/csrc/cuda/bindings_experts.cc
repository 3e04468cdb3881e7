// Routing, and products whose rows have weights of their own, as Paddle custom operators; also
// products with one weight in the formats that bindings_linear.cc does not know.
#include "../infer.h"
#include "grouped.h"
#include "products.h"
#include "rounding.h"

namespace qinfer::cuda {
namespace {

std::vector<Tensor> choose_experts(const Tensor& logits, int64_t top_k, bool normalise) {
  const int64_t tokens = logits.shape()[0], count = logits.shape()[1];
  PD_CHECK(count <= kMostExperts, "qinfer_cuda_route: there may be ", kMostExperts,
           " experts at most, not ", count);
  PD_CHECK(top_k > 0 && top_k <= count, "qinfer_cuda_route: there are fewer experts than wanted");
  Tensor weights = output({tokens, top_k}, DataType::FLOAT32, logits);
  Tensor experts = output({tokens, top_k}, DataType::INT32, logits);
  const Routing r{
      logits.data(), weights.data<float>(), experts.data<int32_t>(), tokens, count, top_k,
      normalise};
  cuda::route(type_of(logits, "qinfer_cuda_route: logits"), r, stream_of(logits));
  return {weights, experts};
}

std::vector<Tensor> mix(const Tensor& routed, const Tensor& weights, const Optional& shared,
                        const Optional& gate) {
  const int64_t tokens = weights.shape()[0], top_k = weights.shape()[1], width = routed.shape()[1];
  PD_CHECK(width % 8 == 0 && routed.shape()[0] == tokens * top_k,
           "qinfer_cuda_mix_experts: routed must be [tokens * top_k, a multiple of 8]");
  PD_CHECK(!shared == !gate, "qinfer_cuda_mix_experts: a shared expert comes with its gate");
  PD_CHECK(
      !shared || (shared->dtype() == routed.dtype() && gate->dtype() == routed.dtype() &&
                  shared->numel() == tokens * width && gate->numel() == tokens),
      "qinfer_cuda_mix_experts: the shared expert must be [tokens, width], its gate [tokens, 1]");
  Tensor y = output({tokens, width}, routed.dtype(), routed);
  const Mixture m{routed.data(),
                  floats(weights, "qinfer_cuda_mix_experts: weights"),
                  shared ? shared->data() : nullptr,
                  gate ? gate->data() : nullptr,
                  y.data(),
                  tokens,
                  top_k,
                  width};
  cuda::mix_experts(type_of(routed, "qinfer_cuda_mix_experts: routed"), m, stream_of(routed));
  return {y};
}

enum class Round { kNot, kInt8, kE4M3, kE4M3Runs };

struct Call {
  const Tensor &x, &weight;
  const Optional &scale, &bias, &experts, &input_scale;
  Format format;
  int64_t out, count;
  Round round;
  int64_t group, channels;
};

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

void validate(const Call& c) {
  const int64_t in = c.x.shape()[1], rows = c.count * c.out;
  PD_CHECK(in % 16 == 0, "qinfer_cuda_grouped: the inputs must be a multiple of 16, not ", in);
  PD_CHECK(c.group % 64 == 0 && (c.format != Format::kInt4 || (c.group == 64 && in % 64 == 0)),
           "qinfer_cuda_grouped: a group must be a multiple of 64 inputs, in int4 64");
  const int64_t held = c.format == Format::kInt4 ? int4_bytes(rows, in) : rows * in;
  const DataType kinds[] = {c.x.dtype(), DataType::INT8, DataType::FLOAT8_E4M3FN, DataType::UINT8};
  PD_CHECK(c.weight.dtype() == kinds[static_cast<int>(c.format)] && c.weight.numel() == held,
           "qinfer_cuda_grouped: the weight has another type or size");
  const int64_t scales =
      c.group ? c.count * ceiling(c.out, c.channels) * ceiling(in, c.group) : rows;
  PD_CHECK((c.format == Format::kPlain) == !c.scale && (!c.scale || c.scale->numel() == scales),
           "qinfer_cuda_grouped: the scale has another size");
  PD_CHECK(!c.bias || (c.bias->numel() == c.out && c.bias->dtype() == c.x.dtype()),
           "qinfer_cuda_grouped: the bias must be [out] of x's type");
  PD_CHECK(!c.experts || (c.x.shape()[0] && c.experts->numel() % c.x.shape()[0] == 0),
           "qinfer_cuda_grouped: x must have a row for each token or each pair");
}

Rounding rounding(const Call& c, int64_t rows, int64_t width) {
  Rounding how{};
  how.x = c.x.data(), how.rows = rows, how.width = width;
  if (c.input_scale) how.fixed = floats(*c.input_scale, "qinfer_cuda_grouped: input scale");
  return how;
}

// x rounded as the scheme says, as numbers, and its scales.
struct RoundedRows {
  Tensor numbers, scale;
};
RoundedRows rounded(const Call& c, Type type) {
  const int64_t rows = c.x.shape()[0], width = c.x.shape()[1];
  RoundedRows r{output({rows, width}, c.x.dtype(), c.x), output({rows}, DataType::FLOAT32, c.x)};
  Rounding how = rounding(c, rows, width);
  how.rounded = r.numbers.data(), how.scale = r.scale.data<float>();
  how.run = c.round == Round::kE4M3Runs ? c.group : 0;
  round_inputs(type, c.round == Round::kInt8 ? Code::kInt8 : Code::kE4M3, how, stream_of(c.x));
  return r;
}

// Which kernel, and the order of pairs it takes. Few pairs come as they are: weights that two of
// them share are in the card's cache the second time.
struct Plan {
  Tensor order, tiles;
  bool stream;
};
constexpr int64_t kFewPairs = 16, kFewRows = 64;
Plan plan(const Call& c, Grouped& p) {
  Plan made;
  if (!c.experts) {
    made.stream = p.pairs <= kFewRows;
    p.num_tiles = ceiling(p.pairs, made.stream ? kStreamTile : kMatrixTile);
    return made;
  }
  const int32_t* experts = ints(*c.experts, "qinfer_cuda_grouped: experts");
  made.stream = p.pairs <= kStreamTile * c.count;
  if (p.pairs <= kFewPairs) {
    p.experts = experts;
    p.num_tiles = p.pairs;
    return made;
  }
  const int64_t rows = made.stream ? kStreamTile : kMatrixTile;
  p.num_tiles = most_tiles(p.pairs, c.count, rows);
  made.order = output({p.pairs}, DataType::INT32, c.x);
  made.tiles = output({p.num_tiles, 3}, DataType::INT32, c.x);
  auto* tiles = reinterpret_cast<Tile*>(made.tiles.data<int32_t>());
  group_pairs(experts, p.pairs, c.count, rows, made.order.data<int32_t>(), tiles, stream_of(c.x));
  p.order = made.order.data<int32_t>(), p.tiles = tiles;
  return made;
}

// By the products of one weight that know how its inputs are rounded; false where grouped ones are
// faster: with many rows and no kernel made for them.
bool multiplied(const Call& c, Type type, Tensor& y) {
  const bool is_int8 = c.format == Format::kInt8 && c.round == Round::kInt8;
  const bool is_e4m3 = c.format == Format::kE4M3 && c.round == Round::kE4M3;
  const int64_t rows = c.x.shape()[0], in = c.x.shape()[1];
  if (c.experts || !(is_int8 || is_e4m3)) return false;
  if (rows > kFewRows && !(is_int8 ? is_sm90() : has_matmul())) return false;
  const auto format = static_cast<int64_t>(c.format);
  const Operands o = operands(c.x, in, c.weight, c.scale, c.bias, format, c.out);
  Spaces spaces(c.x);
  const Rounded to = rounded_inputs(o, false, spaces);
  Rounding how = rounding(c, rows, in);
  how.rounded = to.numbers, how.scale = to.scale, how.as_bytes = to.as_bytes;
  round_inputs(type, is_int8 ? Code::kInt8 : Code::kE4M3, how, o.stream);
  multiply_rounded(o, to, y.data(), spaces);
  return true;
}

std::vector<Tensor> grouped(const Tensor& x, const Tensor& weight, const Optional& scale,
                            const Optional& bias, const Optional& experts,
                            const Optional& input_scale, int64_t format, int64_t out, int64_t count,
                            int64_t round, int64_t group, int64_t channels) {
  PD_CHECK(format >= 0 && format <= 3 && round >= 0 && round <= 3,
           "qinfer_cuda_grouped: unknown format");
  const Call c{x,
               weight,
               scale,
               bias,
               experts,
               input_scale,
               static_cast<Format>(format),
               out,
               count,
               static_cast<Round>(round),
               group,
               channels};
  validate(c);
  const Type type = type_of(x, "qinfer_cuda_grouped: x");
  const int64_t rows = x.shape()[0], pairs = experts ? experts->numel() : rows;
  Tensor y = output({pairs, out}, x.dtype(), x);
  if (!pairs || multiplied(c, type, y)) return {y};
  Grouped p{};
  p.x = x.data(), p.weight = weight.data(), p.y = y.data();
  p.scale = scale ? floats(*scale, "qinfer_cuda_grouped: scale") : nullptr;
  p.bias = bias ? bias->data() : nullptr;
  p.pairs = pairs, p.repeats = pairs / rows, p.in = x.shape()[1], p.out = out;
  p.group = group, p.channels = channels;
  RoundedRows r;
  if (c.round != Round::kNot) {
    r = rounded(c, type);
    p.x = r.numbers.data();
    if (c.round != Round::kE4M3Runs) p.x_scale = r.scale.data<float>();
  }
  const Plan made = plan(c, p);
  (made.stream ? stream_grouped : multiply_grouped)(type, c.format, p, stream_of(x));
  return {y};
}

}  // namespace
}  // namespace qinfer::cuda

PD_BUILD_OP(qinfer_cuda_route)
    .Inputs({"logits"})
    .Outputs({"weights", "experts"})
    .Attrs({"top_k: int64_t", "normalise: bool"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::choose_experts))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::routes))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::weights_and_experts));

PD_BUILD_OP(qinfer_cuda_mix_experts)
    .Inputs({"routed", "weights", paddle::Optional("shared"), paddle::Optional("gate")})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::mix))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::mixed))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));

PD_BUILD_OP(qinfer_cuda_grouped)
    .Inputs({"x", "weight", paddle::Optional("scale"), paddle::Optional("bias"),
             paddle::Optional("experts"), paddle::Optional("input_scale")})
    .Outputs({"y"})
    .Attrs({"format: int64_t", "out: int64_t", "count: int64_t", "round: int64_t", "group: int64_t",
            "channels: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::grouped))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::grouped))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));
