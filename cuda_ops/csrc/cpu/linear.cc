#include "linear.h"

#include "panels.h"

namespace qinfer {
namespace {

int64_t panel_bytes(Format format, int64_t in) {
  switch (format) {
    case Format::kF32:
      return float_panel_bytes(in);
    case Format::kBF16:
      return bf16_panel_bytes(in);
    case Format::kInt8:
      return int8_panel_bytes(in);
    case Format::kE4M3:
      return e4m3_panel_bytes(in);
    case Format::kInt4:
      return int4_panel_bytes(in);
  }
  return 0;
}

Job make_job(Format format, const float* x, const void* packed, const float* scale,
             const float* bias, float* y, int64_t rows, int64_t in, int64_t out) {
  return {
      x,     in,      in,   out, rows, static_cast<const char*>(packed), panel_bytes(format, in),
      scale, nullptr, bias, y};
}

}  // namespace

int64_t packed_bytes(Format format, int64_t out, int64_t in) {
  return divide_up(out, kLanes) * panel_bytes(format, in);
}

void pack_weight(Format format, const void* weight, void* packed, int64_t out, int64_t in) {
  const auto* bytes = static_cast<const int8_t*>(weight);
  switch (format) {
    case Format::kF32:
      return pack_panels(static_cast<const float*>(weight), static_cast<float*>(packed), out, in,
                         1);
    case Format::kBF16:
      return pack_panels(static_cast<const uint16_t*>(weight), static_cast<uint16_t*>(packed), out,
                         in, 2);
    case Format::kE4M3:
      return pack_e4m3(static_cast<const uint8_t*>(weight), static_cast<uint8_t*>(packed), out, in);
    case Format::kInt8:
      return pack_int8(bytes, static_cast<char*>(packed), out, in);
    case Format::kInt4:
      return pack_int4(bytes, static_cast<char*>(packed), out, in);
  }
}

Task linear(Format format, const float* x, const void* packed, const float* scale,
            const float* bias, float* y, int64_t rows, int64_t in, int64_t out) {
  const Job job = make_job(format, x, packed, scale, bias, y, rows, in, out);
  switch (format) {
    case Format::kF32:
      return f32_product(job);
    case Format::kBF16:
      return bf16_product(job);
    case Format::kE4M3:
      return e4m3_product(job);
    case Format::kInt8:
      return int8_product(job);
    case Format::kInt4:
      return int4_product(job);
  }
  return {};
}

Task linear_a8w8(const float* x, const void* packed, const float* scale, const float* input_scale,
                 const float* bias, float* y, int64_t rows, int64_t in, int64_t out) {
  return a8w8_product(make_job(Format::kInt8, x, packed, scale, bias, y, rows, in, out),
                      input_scale);
}

}  // namespace qinfer
