// Products of weights from quantised checkpoints, and what goes with them.
#include <algorithm>

#include "binding.h"
#include "cpu/columns.h"
#include "cpu/experts.h"
#include "cpu/linear.h"
#include "cpu/pages.h"
#include "infer.h"

using namespace qinfer::binding;

namespace {

// Shape of packed numbers, which are padded: one that begins with what they were, so that a product
// can tell.
Shape begins_with(Shape shape, int64_t numbers) {
  int64_t each = 1;
  for (int64_t size : shape) each *= size;
  shape.push_back((numbers + each - 1) / std::max<int64_t>(each, 1));
  return shape;
}

// weight [out, in] e4m3 -> bytes in panel order, a tensor [out, .]
std::vector<Tensor> pack_e4m3(const Tensor& weight) {
  PD_CHECK(weight.shape().size() == 2 && weight.dtype() == DataType::FLOAT8_E4M3FN,
           "qinfer_pack_e4m3: the weight must be [out, in] in e4m3");
  const int64_t out = weight.shape()[0], in = weight.shape()[1];
  const int64_t bytes = qinfer::packed_bytes(qinfer::Format::kE4M3, out, in);
  Tensor packed = paddle::empty(begins_with({out}, bytes), DataType::UINT8, weight.place());
  qinfer::pack_weight(qinfer::Format::kE4M3, weight.data(), packed.data<uint8_t>(), out, in);
  qinfer::prefer_huge_pages(packed.data(), packed.numel());
  return {packed};
}

bool is_packed_e4m3(const Tensor& packed, int64_t out, int64_t in) {
  return packed.shape() == begins_with({out}, qinfer::packed_bytes(qinfer::Format::kE4M3, out, in));
}

std::vector<Tensor> linear_e4m3(const Tensor& x, const Tensor& packed, const Tensor& scale,
                                const Tensor& input_scale, const Optional& bias) {
  const int64_t rows = x.shape()[0], in = x.shape()[1], out = scale.numel();
  PD_CHECK(is_packed_e4m3(packed, out, in),
           "qinfer_linear_e4m3: the packed weight does not have this shape");
  PD_CHECK(input_scale.numel() == 1 && (!bias || bias->numel() == out),
           "qinfer_linear_e4m3: the input's scale must be one number, the bias [out]");
  Tensor y = result({rows, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::linear_e4m3(floats(x, "qinfer_linear_e4m3: x"), read(packed),
                                     floats(scale, "scale"), floats(input_scale, "input_scale"),
                                     floats(bias, "bias"), written(y), rows, in, out));
  return {y};
}

std::vector<Tensor> linear_e4m3_blocks(const Tensor& x, const Tensor& packed, const Tensor& scale,
                                       const Optional& bias, int64_t block) {
  const int64_t rows = x.shape()[0], in = x.shape()[1], out = packed.shape()[0];
  PD_CHECK(is_packed_e4m3(packed, out, in),
           "qinfer_linear_e4m3_blocks: the packed weight does not have this shape");
  PD_CHECK(block > 0 && block % 4 == 0, "qinfer_linear_e4m3_blocks: blocks of 4, 8, 12, ...");
  const Shape blocks = {(out + block - 1) / block, (in + block - 1) / block};
  PD_CHECK(scale.shape() == blocks && (!bias || bias->numel() == out),
           "qinfer_linear_e4m3_blocks: a scale for each block, the bias [out]");
  Tensor y = result({rows, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::linear_e4m3_blocks(floats(x, "qinfer_linear_e4m3_blocks: x"), read(packed),
                                            floats(scale, "scale"), block, floats(bias, "bias"),
                                            written(y), rows, in, out));
  return {y};
}

// weight [out, in] int8, scale [out, groups] -> bytes in panel order, in half as many where all are
// from -8 to 7; the packed scales, whose shape begins with out and groups.
std::vector<Tensor> pack_groups(const Tensor& weight, const Tensor& scale) {
  PD_CHECK(weight.shape().size() == 2 && scale.shape().size() == 2 &&
               weight.shape()[0] == scale.shape()[0] && weight.dtype() == DataType::INT8,
           "qinfer_pack_groups: the weight must be [out, in] int8, the scale [out, groups]");
  const int64_t out = weight.shape()[0], in = weight.shape()[1], groups = scale.shape()[1];
  PD_CHECK(out > 0 && groups > 0 && in % groups == 0,
           "qinfer_pack_groups: the groups must be equal");
  const int8_t* values = weight.data<int8_t>();
  const bool is_small =
      std::all_of(values, values + out * in, [](int8_t v) { return -8 <= v && v <= 7; });
  const int bits = is_small ? 4 : 8;
  Tensor packed = paddle::empty({qinfer::packed_group_bytes(bits, out, in, groups)},
                                DataType::UINT8, weight.place());
  qinfer::pack_groups(bits, values, reinterpret_cast<char*>(packed.data<uint8_t>()), out, in,
                      groups);
  qinfer::prefer_huge_pages(packed.data(), packed.numel());
  Tensor scales = paddle::empty(begins_with({out, groups}, qinfer::packed_scales(out, groups)),
                                DataType::FLOAT32, scale.place());
  qinfer::pack_scales(floats(scale, "the scale"), scales.data<float>(), out, groups);
  return {packed, scales};
}

std::vector<Tensor> linear_groups(const Tensor& x, const Tensor& packed, const Tensor& scale,
                                  const Optional& bias) {
  const int64_t rows = x.shape()[0], in = x.shape()[1];
  const int64_t out = scale.shape()[0], groups = scale.shape()[1];
  PD_CHECK(in % groups == 0, "qinfer_linear_groups: the groups must be equal");
  const bool is_small = packed.numel() == qinfer::packed_group_bytes(4, out, in, groups);
  PD_CHECK(is_small || packed.numel() == qinfer::packed_group_bytes(8, out, in, groups),
           "qinfer_linear_groups: the packed weight does not have this shape");
  PD_CHECK(!bias || bias->numel() == out, "qinfer_linear_groups: the bias must be [out]");
  Tensor y = result({rows, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::linear_groups(is_small ? 4 : 8, floats(x, "qinfer_linear_groups: x"),
                                       read(packed), floats(scale, "scale"), floats(bias, "bias"),
                                       written(y), rows, in, out, groups));
  return {y};
}

std::vector<Tensor> add_zero_points(const Tensor& y, const Tensor& x, const Tensor& zero) {
  const int64_t rows = x.shape()[0], in = x.shape()[1];
  const int64_t groups = zero.shape()[0], out = zero.shape()[1];
  PD_CHECK(in % groups == 0 && y.numel() == rows * out,
           "qinfer_add_zero_points: y must be [rows, out], zero [groups, out]");
  Tensor total = result({rows, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::add_zero_points(floats(y, "y"), floats(x, "x"), floats(zero, "zero"),
                                         written(total), rows, in, out, groups));
  return {total};
}

std::vector<Tensor> scale_shift(const Tensor& x, const Optional& scale, const Optional& shift) {
  const int64_t rows = x.shape()[0], width = x.shape()[1];
  PD_CHECK((!scale || scale->numel() == width) && (!shift || shift->numel() == width),
           "qinfer_scale_shift: scale and shift must be [width]");
  Tensor y = result({rows, width}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::scale_shift(floats(x, "x"), floats(scale, "scale"), floats(shift, "shift"),
                                     written(y), rows, width),
                 rows > kFew);
  return {y};
}

std::vector<Tensor> take_columns(const Tensor& x, const Tensor& columns) {
  const int64_t rows = x.shape()[0], from = x.shape()[1], width = columns.numel();
  const int64_t* which = int64s(columns, "columns");
  PD_CHECK(std::all_of(which, which + width, [=](int64_t i) { return 0 <= i && i < from; }),
           "qinfer_take_columns: there is no such column");
  Tensor y = result({rows, width}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::take_columns(floats(x, "x"), which, written(y), rows, from, width),
                 rows > kFew);
  return {y};
}

std::vector<Tensor> join_columns(const std::vector<Tensor>& parts) {
  std::vector<const float*> from;
  std::vector<int64_t> widths;
  int64_t width = 0;
  const int64_t rows = parts.at(0).shape()[0];
  for (const Tensor& part : parts) {
    PD_CHECK(part.shape()[0] == rows, "qinfer_join_columns: all must have as many rows");
    from.push_back(floats(part, "a part"));
    widths.push_back(part.shape()[1]);
    width += widths.back();
  }
  Tensor y = result({rows, width}, DataType::FLOAT32, parts[0]);
  qinfer::submit(qinfer::join_columns(from, widths, written(y), rows), rows > kFew);
  return {y};
}

std::vector<Tensor> expert_linear_a8w8(const Tensor& x, const Tensor& packed, const Tensor& scale,
                                       const Tensor& experts, const Optional& input_scale,
                                       int64_t out) {
  const int64_t rows = x.shape()[0], in = x.shape()[1], pairs = experts.numel();
  const int64_t each = qinfer::packed_bytes(qinfer::Format::kInt8, out, in);
  const int64_t count = packed.numel() / each;
  PD_CHECK(out % qinfer::kPanelOutputs == 0 && packed.numel() == count * each &&
               scale.numel() == count * out,
           "qinfer_expert_linear_a8w8: the packed weights or scales do not have this shape");
  PD_CHECK(rows > 0 && pairs % rows == 0, "qinfer_expert_linear_a8w8: rows must divide the pairs");
  PD_CHECK(!input_scale || input_scale->numel() == 1,
           "qinfer_expert_linear_a8w8: the input's scale must be one number");
  Tensor y = result({pairs, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::expert_linear_a8w8(
      floats(x, "qinfer_expert_linear_a8w8: x"), read(packed), floats(scale, "scale"),
      floats(input_scale, "input_scale"), int32s(experts, "experts"), written(y), pairs, rows, in,
      out, count));
  return {y};
}

}  // namespace

PD_BUILD_OP(qinfer_pack_e4m3)
    .Inputs({"weight"})
    .Outputs({"packed"})
    .SetKernelFn(PD_KERNEL(pack_e4m3));

PD_BUILD_OP(qinfer_linear_e4m3)
    .Inputs({"x", "packed", "scale", "input_scale", paddle::Optional("bias")})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(linear_e4m3))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::scaled_linear))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_linear_e4m3_blocks)
    .Inputs({"x", "packed", "scale", paddle::Optional("bias")})
    .Outputs({"y"})
    .Attrs({"block: int64_t"})
    .SetKernelFn(PD_KERNEL(linear_e4m3_blocks))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::packed_linear))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_pack_groups)
    .Inputs({"weight", "scale"})
    .Outputs({"packed", "scales"})
    .SetKernelFn(PD_KERNEL(pack_groups));

PD_BUILD_OP(qinfer_linear_groups)
    .Inputs({"x", "packed", "scale", paddle::Optional("bias")})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(linear_groups))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::scaled_linear))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_add_zero_points)
    .Inputs({"y", "x", "zero"})
    .Outputs({"total"})
    .SetKernelFn(PD_KERNEL(add_zero_points))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::alike))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_scale_shift)
    .Inputs({"x", paddle::Optional("scale"), paddle::Optional("shift")})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(scale_shift))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::alike))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_take_columns)
    .Inputs({"x", "columns"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(take_columns))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::columns))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_join_columns)
    .Inputs({paddle::Vec("parts")})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(join_columns))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::joined))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::joined_floats));

PD_BUILD_OP(qinfer_expert_linear_a8w8)
    .Inputs({"x", "packed", "scale", "experts", paddle::Optional("input_scale")})
    .Outputs({"y"})
    .Attrs({"out: int64_t"})
    .SetKernelFn(PD_KERNEL(expert_linear_a8w8))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::expert_linear_a8w8))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));
