#include "linear.h"

#include "experts.h"
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
  Job job{};
  job.x = x;
  job.x_stride = job.in = in;
  job.out = out;
  job.rows = rows;
  job.w = static_cast<const char*>(packed);
  job.panel = panel_bytes(format, in);
  job.scale = scale;
  job.bias = bias;
  job.y = y;
  return job;
}

Task product(Format format, const Job& job) {
  switch (format) {
    case Format::kF32:
      return f32_product(job);
    case Format::kBF16:
      return bf16_product(job);
    case Format::kE4M3:
      return e4m3_product(job, nullptr);
    case Format::kInt8:
      return int8_product(job);
    case Format::kInt4:
      return int4_product(job);
  }
  return {};
}

}  // namespace

int64_t packed_bytes(Format format, int64_t out, int64_t in) {
  return divide_up(out, kLanes) * panel_bytes(format, in);
}

int64_t packed_scales(int64_t out, int64_t groups) {
  return divide_up(out, kLanes) * kLanes * groups;
}

void pack_scales(const float* scale, float* packed, int64_t out, int64_t groups) {
  for (int64_t p = 0; p < divide_up(out, kLanes); ++p)
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t o = p * kLanes; o < (p + 1) * kLanes; ++o)
        *packed++ = o < out ? scale[o * groups + g] : 0;
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
            const float* bias, float* y, int64_t rows, int64_t in, int64_t out, int64_t scales) {
  Job job = make_job(format, x, packed, scale, bias, y, rows, in, out);
  job.scales = scales;
  return product(format, job);
}

Task linear_a8w8(const float* x, const void* packed, const float* scale, const float* input_scale,
                 const float* bias, float* y, int64_t rows, int64_t in, int64_t out) {
  return a8w8_product(make_job(Format::kInt8, x, packed, scale, bias, y, rows, in, out),
                      input_scale);
}

Task linear_e4m3(const float* x, const void* packed, const float* scale, const float* input_scale,
                 const float* bias, float* y, int64_t rows, int64_t in, int64_t out) {
  return e4m3_product(make_job(Format::kE4M3, x, packed, scale, bias, y, rows, in, out),
                      input_scale);
}

Task linear_e4m3_blocks(const float* x, const void* packed, const float* scale, int64_t block,
                        const float* bias, float* y, int64_t rows, int64_t in, int64_t out) {
  return e4m3_block_product(make_job(Format::kE4M3, x, packed, scale, bias, y, rows, in, out),
                            block);
}

int64_t packed_group_bytes(int bits, int64_t out, int64_t in, int64_t groups) {
  const int64_t panel =
      bits == 4 ? group4_panel_bytes(in, in / groups) : group8_panel_bytes(in, in / groups);
  return divide_up(out, kLanes) * panel;
}

void pack_groups(int bits, const int8_t* weight, char* packed, int64_t out, int64_t in,
                 int64_t groups) {
  (bits == 4 ? pack_group4 : pack_group8)(weight, packed, out, in, in / groups);
}

Task linear_groups(int bits, const float* x, const void* packed, const float* scale,
                   const float* bias, float* y, int64_t rows, int64_t in, int64_t out,
                   int64_t groups) {
  Job job = make_job(Format::kInt8, x, packed, scale, bias, y, rows, in, out);
  job.panel = packed_group_bytes(bits, kLanes, in, groups);
  return (bits == 4 ? group4_product : group8_product)(job, in / groups);
}

namespace {

// multiply(job) over pairs in the order of their experts.
template <typename Multiply>
Task of_experts(Job job, const int32_t* experts, int64_t x_rows, int64_t count,
                const Multiply& multiply) {
  const int64_t pairs = job.rows;
  auto order = std::make_shared<Order>(Order{experts, pairs, count, pairs / x_rows,
                                             scratch<int64_t>(pairs), scratch<int64_t>(count + 1)});
  job.order = order.get();
  const Task task = multiply(job);
  return [=](const Worker& me) {
    if (me.index == 0) order->sort();
    me.wait();
    task(me);
  };
}

}  // namespace

Task expert_linear(Format format, const float* x, const void* packed, const float* scale,
                   const int32_t* experts, float* y, int64_t pairs, int64_t x_rows, int64_t in,
                   int64_t out, int64_t count, int64_t scales) {
  Job job = make_job(format, x, packed, scale, nullptr, y, pairs, in, out);
  job.scales = scales;
  return of_experts(job, experts, x_rows, count,
                    [=](const Job& sorted) { return product(format, sorted); });
}

Task expert_linear_a8w8(const float* x, const void* packed, const float* scale,
                        const float* input_scale, const int32_t* experts, float* y, int64_t pairs,
                        int64_t x_rows, int64_t in, int64_t out, int64_t count) {
  Job job = make_job(Format::kInt8, x, packed, scale, nullptr, y, pairs, in, out);
  job.scales = out;
  return of_experts(job, experts, x_rows, count,
                    [=](const Job& sorted) { return a8w8_product(sorted, input_scale); });
}

Task expert_linear_e4m3_blocks(const float* x, const void* packed, const float* scale,
                               int64_t block, const int32_t* experts, float* y, int64_t pairs,
                               int64_t x_rows, int64_t in, int64_t out, int64_t count) {
  Job job = make_job(Format::kE4M3, x, packed, scale, nullptr, y, pairs, in, out);
  job.scales = divide_up(out, block) * divide_up(in, block);
  return of_experts(job, experts, x_rows, count,
                    [=](const Job& sorted) { return e4m3_block_product(sorted, block); });
}

}  // namespace qinfer

extern "C" int64_t qinfer_lanes() { return qinfer::kLanes; }
