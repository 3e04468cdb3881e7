// The CUDA kernels' launchers: plain pointers, sizes and a stream. No Paddle header is seen here
// or in a .cu file. Sizes are checked by the bindings; a failed launch throws std::runtime_error
// with CUDA's own words.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace qinfer::cuda {

enum class Type { kBF16, kF16 };                    // what activations are computed in
enum class Format { kPlain, kInt8, kE4M3, kInt4 };  // how a weight is held; kPlain: as Type

void check(cudaError_t code, const char* what);
constexpr int kMostDevices = 64;
int multiprocessors();  // of the current device
int most_shared();      // bytes of shared memory that a block can have
bool is_hopper();       // compute capability 9.0 or above: programmatic dependent launch
bool is_sm90();         // 9.0 itself: the matrix units of hopper.cuh

// out[i] = table[rows[i]], rows of `bytes` bytes, a multiple of 16. A row that is out of range
// reads row 0: padding of a batch may hold anything.
void gather_rows(const void* table, const int64_t* rows, void* out, int64_t count, int64_t limit,
                 int64_t bytes, cudaStream_t stream);
void silu_gate(Type type, const void* x, void* y, int64_t rows, int64_t width, cudaStream_t stream);
void read_memory(const void* x, int64_t bytes, unsigned* sum, cudaStream_t stream);
void to_float32(Type type, const void* x, float* y, int64_t count, cudaStream_t stream);

// y = norm(x + residual) * weight, total = x + residual; residual and total null: y = norm(x). With
// `scale` y is rounded to e4m3, each row over its scale: absmax / 448.
struct Norm {
  const void *x, *residual;  // [rows, width]
  const void* weight;        // [width]
  float eps;
  void *y, *total;  // [rows, width]
  int64_t rows, width;
  float* scale;   // [rows] or null
  bool as_bytes;  // y holds codes, else numbers of `type`
};
void rms_norm(Type type, const Norm& n, cudaStream_t stream);

// A negative slot is not written: such a token is padding. A cache of kInt8 or kE4M3 has scales:
// [kv_heads] static ones, or [blocks, block_size, kv_heads], each head's largest magnitude over
// 127 or 448.
struct Rotary {
  const void* qkv;       // [tokens, (heads + 2 kv_heads) dim]
  const float* table;    // [positions, 2 dim]: cos twice, then -sin, sin
  const int64_t* at;     // [tokens]
  const int64_t* slots;  // [tokens]
  void* keys;            // [slots, kv_heads, dim]
  void* values;
  void* queries;  // [tokens, heads, dim]
  int64_t tokens, heads, kv_heads, dim;
  Format held;
  float *key_scales, *value_scales;
  bool is_static;               // the scales
  const void *q_norm, *k_norm;  // [dim] or null
  const void* query_scale;      // [positions] or null
  float eps;
};
bool head_size_known(int64_t dim);  // 16, 32, 64, 128 or 256
void rotary_kv_write(Type type, const Rotary& r, cudaStream_t stream);

struct Paged {
  const void* queries;  // [tokens, heads, dim]
  const void* keys;     // [blocks, block_size, kv_heads, dim]
  const void* values;
  const int32_t* starts;   // [sequences + 1]
  const int32_t* lengths;  // [sequences]
  const int32_t* tables;   // [sequences, width]
  void* out;               // [tokens, heads, dim]
  float* scratch;          // attention_scratch(...) floats
  int64_t tokens, sequences, width, block_size, heads, kv_heads, dim;
  float scale;
  int64_t blocks;  // of the cache
  int window;      // the last tokens that are seen; 0: all
  Format held;     // kInt8 and kE4M3: with scales, as in Rotary
  const float *key_scales, *value_scales;
  bool is_static;
};
bool attention_knows(const Paged& p);
int64_t attention_scratch(const Paged& p);  // floats, from sizes alone
void paged_attention(Type type, const Paged& p, cudaStream_t stream);

// One query for each sequence: norms of the heads, rotary embedding, the new key and value into the
// cache, attention over all of it. A cache of kInt8 or kE4M3 has scales [blocks, block_size,
// kv_heads]. A negative slot is not written, a length of 0 gives zeros: such a row is padding.
struct Decode {
  const void* qkv;           // [sequences, (heads + 2 kv_heads) dim]
  const float* rotary;       // as in Rotary
  const int64_t* positions;  // [sequences]: rows of the table
  const int64_t* slots;      // [sequences]
  const int32_t* lengths;    // [sequences], the new token included
  const int32_t* tables;     // [sequences, width]
  void *keys, *values;       // [blocks, block_size, kv_heads, dim]
  float *key_scales, *value_scales;
  const void *q_norm, *k_norm;  // [dim] or null
  const void* query_scale;      // [positions] or null
  void* out;                    // [sequences, heads, dim]
  float* scratch;               // decode_scratch(...) floats
  int64_t sequences, width, block_size, heads, kv_heads, dim;
  float eps, scale;
  int window;  // the last tokens that are seen; 0: all
  Format held;
  bool is_static;  // scales [kv_heads] instead, for every token
};
bool decode_knows(int64_t dim);
int64_t decode_scratch(const Decode& d);  // floats, from sizes alone
void decode(Type type, const Decode& d, cudaStream_t stream);

// y[rows, out] = (x[rows, in] W^T) * x_scale[row] * scale[channel] + bias; int4: a scale for each
// group of 64 inputs. Weights [out, in] as they come, int4 packed by pack_int4. At most 64 rows.
constexpr int64_t kStreamRows = 64;
struct Product {
  const void* x;
  const void* weight;
  const float* scale;    // [out]; int4: [out, in / 64]; kPlain: null
  const float* x_scale;  // [rows] or null
  const void* bias;      // [out] or null
  void* y;
  int64_t rows, in, out;
};
void product(Type type, Format format, const Product& p, cudaStream_t stream);

// product(...) of norm(x + residual) * norm_weight, for up to 8 rows of bfloat16; with `gated` the
// first half of the channels becomes silu(half) * other half. Which are to be had, fused_knows
// says.
struct FusedProduct {
  const void *x, *residual, *norm;  // [rows, in], the same or null, [in] or null
  void* total;                      // x + residual, where there is a residual
  const void* weight;
  const float* scale;
  const void* bias;
  void* y;  // [rows, out], or half as many
  float eps;
  int64_t rows, in, out;
  bool gated;
};
bool fused_knows(Type type, Format format, int64_t rows, int64_t in, int64_t out);
void fused_product(Format format, const FusedProduct& p, cudaStream_t stream);

int64_t int4_bytes(int64_t out, int64_t in);
void pack_int4(const int8_t* weight, uint8_t* packed, int64_t out, int64_t in, cudaStream_t stream);
// Of int8 or int4: w[out, in] in `type`, scales multiplied in; int8 without where there are none
void dequantise(Type type, Format format, const void* weight, const float* scale, void* w,
                int64_t out, int64_t in, cudaStream_t stream);

void argmax(const float* logits, int64_t* out, int64_t rows, int64_t width, cudaStream_t stream);
struct Sampling {
  const float *logits, *temperature, *top_p, *min_p, *uniform;
  const int64_t* top_k;
  int64_t* out;
  int64_t rows, width;
};
void sample(const Sampling& s, cudaStream_t stream);
// Natural log-probabilities of `chosen`, and of the `count` best with their indices.
struct Logprobs {
  const float* logits;    // [rows, width]
  const int64_t* chosen;  // [rows]
  float* picked;
  float* top;    // [rows, count]
  int64_t* ids;  // the same
  int64_t rows, width, count;
};
void token_logprobs(const Logprobs& l, cudaStream_t stream);
void edit_logits(const float* logits, const int64_t* rows, const int64_t* tokens,
                 const float* scale, const float* bias, float* out, int64_t count, int64_t batch,
                 int64_t width, cudaStream_t stream);

}  // namespace qinfer::cuda
