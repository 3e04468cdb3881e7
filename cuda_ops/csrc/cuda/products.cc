#include "products.h"

#include <algorithm>
#include <functional>

#include "hopper_products.h"
#include "rounding.h"

namespace qinfer::cuda {
namespace {

DataType held_as(Format format, DataType plain) {
  switch (format) {
    case Format::kPlain:
      return plain;
    case Format::kInt8:
      return DataType::INT8;
    case Format::kE4M3:
      return DataType::FLOAT8_E4M3FN;
    default:
      return DataType::UINT8;
  }
}

const float* scale_of(const Operands& o) {
  return o.scale ? floats(*o.scale, "qinfer_cuda_linear: scale") : nullptr;
}

// Above so many rows cuBLASLt is faster, unpacking of weights included (benchmarks/gpu/NOTES.md).
int64_t most_streamed(Format format) {
  if (!has_matmul()) return INT64_MAX;
  if (format == Format::kPlain || format == Format::kE4M3) return 16;
  return is_sm90() ? 2 * kMostRows : format == Format::kInt8 ? kStreamRows : 16;
}

Product whole(const Operands& o, const void* x, const float* x_scale, const void* weight, void* y) {
  return {x, weight, scale_of(o), x_scale, o.bias ? o.bias->data() : nullptr,
          y, o.rows, o.in,        o.out};
}

// As many rows at a time as a kernel takes; e4m3 with inputs that are numbers of 16 bits.
void stream_rows(const Operands& o, const void* x, const float* x_scale, void* y) {
  const bool is_few_bits = o.format == Format::kInt8 || o.format == Format::kInt4;
  const int64_t most = is_sm90() && is_few_bits ? kMostRows : kStreamRows;
  for (int64_t row = 0; row < o.rows; row += most) {
    Product p =
        whole(o, static_cast<const uint16_t*>(x) + row * o.in, x_scale ? x_scale + row : nullptr,
              o.weight.data(), static_cast<uint16_t*>(y) + row * o.out);
    p.rows = std::min(most, o.rows - row);
    if (o.format != Format::kE4M3 && rows_hopper_suits(o.format, p.rows, o.in, o.out))
      rows_hopper(o.type, o.format, p, o.stream);
    else
      product(o.type, o.format, p, o.stream);
  }
}

// How a product of rounded inputs is computed: all but the first of e4m3 take codes as bytes.
enum class Path { kStream, kRows, kTiles, kLibrary };
Path path_of(const Operands& o, const float* x_scale) {
  const bool is_e4m3 = o.format == Format::kE4M3;
  if (is_e4m3 && rows_hopper_suits(o.format, o.rows, o.in, o.out)) return Path::kRows;
  if (o.rows <= most_streamed(o.format)) return Path::kStream;
  if (matmul_hopper_suits(o.rows, o.in, o.out, false)) return Path::kTiles;
  const Product p = whole(o, nullptr, x_scale, o.weight.data(), nullptr);
  return is_e4m3 && matmul_e4m3_knows(o.type, p) ? Path::kLibrary : Path::kStream;
}

}  // namespace

Operands operands(const Tensor& like, int64_t in, const Tensor& weight, const Optional& scale,
                  const Optional& bias, int64_t number, int64_t out) {
  PD_CHECK(number >= 0 && number <= 3, "qinfer_cuda_linear: unknown weight format");
  const auto format = static_cast<Format>(number);
  PD_CHECK(in % 16 == 0, "qinfer_cuda_linear: the inputs must be a multiple of 16, not ", in);
  PD_CHECK(format != Format::kInt4 || in % 64 == 0, "qinfer_cuda_linear: int4 needs groups of 64");
  const int64_t size = format == Format::kInt4 ? int4_bytes(out, in) : out * in;
  PD_CHECK(weight.dtype() == held_as(format, like.dtype()) && weight.numel() == size,
           "qinfer_cuda_linear: the weight has another type or size");
  PD_CHECK(!bias || (bias->numel() == out && bias->dtype() == like.dtype()),
           "qinfer_cuda_linear: the bias must be [out] of x's type");
  const int64_t scales = format == Format::kInt4 ? out * (in / 64) : out;
  PD_CHECK((format == Format::kPlain) == !scale && (!scale || scale->numel() == scales),
           "qinfer_cuda_linear: the scale has another size");
  const Type type = type_of(like, "qinfer_cuda_linear: x");
  return {weight, scale, bias, format, like.shape()[0], in, out, type, stream_of(like)};
}

Rounded rounded_inputs(const Operands& o, bool gated, Spaces& spaces) {
  Rounded x{nullptr, static_cast<float*>(spaces(o.rows * sizeof(float))), false};
  const bool is_e4m3 = o.format == Format::kE4M3;
  x.as_bytes = is_e4m3 && (gated || path_of(o, x.scale) != Path::kStream);
  x.numbers = spaces(o.rows * o.in * (x.as_bytes ? 1 : 2));
  return x;
}

void multiply_rounded(const Operands& o, const Rounded& x, void* y, Spaces& spaces) {
  Product p = whole(o, x.numbers, x.scale, o.weight.data(), y);
  switch (path_of(o, x.scale)) {
    case Path::kStream:
      return stream_rows(o, x.numbers, x.scale, y);
    case Path::kRows:
      return rows_hopper(o.type, o.format, p, o.stream);
    case Path::kTiles:
      if (o.format == Format::kInt8) {  // its numbers, which are scaled afterwards
        void* unpacked = spaces(o.in * o.out * 2);
        dequantise(o.type, o.format, p.weight, nullptr, unpacked, o.out, o.in, o.stream);
        p.weight = unpacked;
      }
      return matmul_hopper(o.type, o.format == Format::kE4M3, false, p, o.stream);
    case Path::kLibrary:
      matmul_e4m3(o.type, p, std::ref(spaces), o.stream);
  }
}

void multiply(const Operands& o, const void* x, void* y, Spaces& spaces) {
  const Workspace workspace = std::ref(spaces);
  if (fused_knows(o.type, o.format, o.rows, o.in, o.out)) {
    fused_product(o.format, fused(o, x, y), o.stream);
  } else if (o.format == Format::kE4M3) {
    const Rounded to = rounded_inputs(o, false, spaces);
    Rounding r{};
    r.x = x, r.rounded = to.numbers, r.scale = to.scale, r.as_bytes = to.as_bytes;
    r.rows = o.rows, r.width = o.in;
    round_inputs(o.type, Code::kE4M3, r, o.stream);
    multiply_rounded(o, to, y, spaces);
  } else if (o.rows <= most_streamed(o.format)) {
    stream_rows(o, x, nullptr, y);
  } else if (o.format == Format::kPlain) {
    matmul(o.type, whole(o, x, nullptr, o.weight.data(), y), workspace, o.stream);
  } else {
    void* unpacked = spaces(o.in * o.out * 2);
    dequantise(o.type, o.format, o.weight.data(), scale_of(o), unpacked, o.out, o.in, o.stream);
    matmul(o.type, whole(o, x, nullptr, unpacked, y), workspace, o.stream);
  }
}

bool gates_itself(const Operands& o) {
  return (o.format == Format::kE4M3 || o.format == Format::kPlain) &&
         matmul_hopper_suits(o.rows, o.in, o.out, true);
}

void multiply_gated(const Operands& o, const void* x, const float* x_scale, void* y) {
  const Product p = whole(o, x, x_scale, o.weight.data(), y);
  matmul_hopper(o.type, o.format == Format::kE4M3, true, p, o.stream);
}

FusedProduct fused(const Operands& o, const void* x, void* y) {
  FusedProduct p = {};
  p.x = x, p.weight = o.weight.data(), p.y = y, p.scale = scale_of(o);
  p.bias = o.bias ? o.bias->data() : nullptr;
  p.rows = o.rows, p.in = o.in, p.out = o.out;
  return p;
}

}  // namespace qinfer::cuda
