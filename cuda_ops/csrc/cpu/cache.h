// The paged KV cache: what a layer's key and value tensors hold, and where.
//
// Values lie as [slots, kv_heads, dim], keys in groups of sixteen slots as
// [slots / 16, kv_heads, dim, 16], so that sixteen scores are computed side by side.
#pragma once

#include "simd.h"

namespace qinfer {

enum class CacheType : int { kF32, kBF16, kInt8, kE4M3 };

// One layer. int8 and e4m3 numbers stand for number * scale; the scale of a slot's KV head lies at
// [slot / 16, kv_head, slot % 16], or at [kv_head] where it is static.
struct Cache {
  CacheType type;
  void *keys, *values;
  float *key_scales, *value_scales;  // null for floats
  bool is_static;
  int64_t block_size, kv_heads, dim;

  // Where what belongs to one KV head of sixteen slots starts: scales, and keys times `dim`.
  int64_t group(int64_t slot, int64_t head) const { return slot * kv_heads + head * kLanes; }
};

// Sixteen numbers of each type as floats.
struct HoldsF32 {
  using Item = float;
  static constexpr float kMost = 0;  // not scaled
  static F32 read(const Item* at) { return load<F32>(at); }
  static void write(Item* to, F32 v) { store(to, v); }
};

struct HoldsBF16 {
  using Item = uint16_t;
  static constexpr float kMost = 0;
  static F32 read(const Item* at) { return from_bf16(load<U16>(at)); }
  static void write(Item* to, F32 v) { store(to, to_bf16(v)); }
};

struct HoldsInt8 {
  using Item = int8_t;
  static constexpr float kMost = 127;
  static F32 read(const Item* at) { return __builtin_convertvector(load<I8>(at), F32); }
  static void write(Item* to, F32 v) {
    const F32 clipped = max(min(nearest(v), splat(127)), splat(-127));
    store(to, __builtin_convertvector(__builtin_convertvector(clipped, I32), I8));
  }
};

struct HoldsE4M3 {
  using Item = uint8_t;
  static constexpr float kMost = 448;
  static F32 read(const Item* at) { return decode_e4m3(at) * 256.0f; }
  static void write(Item* to, F32 v) { store(to, encode_e4m3(v)); }
};

// work.operator()<Holds>() for the type.
template <typename Work>
auto with_type(CacheType type, const Work& work) {
  switch (type) {
    case CacheType::kBF16:
      return work(HoldsBF16{});
    case CacheType::kInt8:
      return work(HoldsInt8{});
    case CacheType::kE4M3:
      return work(HoldsE4M3{});
    default:
      return work(HoldsF32{});
  }
}

}  // namespace qinfer
