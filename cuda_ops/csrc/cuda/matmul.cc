#include "matmul.h"

#include <stdexcept>
#include <string>

#ifdef QINFER_CUBLASLT
#include <cublasLt.h>

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

namespace qinfer::cuda {
namespace {

constexpr size_t kWorkspace = 32 << 20;

void checked(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string("cuBLASLt: ") + what +
                             " failed: " + cublasLtGetStatusString(status));
}

cublasLtHandle_t handle() {
  static std::mutex mutex;
  static std::map<int, cublasLtHandle_t> handles;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  const std::lock_guard<std::mutex> lock(mutex);
  cublasLtHandle_t& found = handles[device];
  if (!found) checked(cublasLtCreate(&found), "starting");
  return found;
}

cudaDataType_t of(Type type) { return type == Type::kBF16 ? CUDA_R_16BF : CUDA_R_16F; }

// A product's description, and the algorithm found for it. W^T is column-major as it lies, so the
// product is computed as y^T [out, rows] = W x^T.
struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
  bool found = false;

  template <class V>
  bool set(cublasLtMatmulDescAttributes_t what, V value) {
    return cublasLtMatmulDescSetAttribute(product, what, &value, sizeof value) ==
           CUBLAS_STATUS_SUCCESS;
  }

  void describe(cudaDataType_t from, cudaDataType_t to, int64_t rows, int64_t in, int64_t out) {
    checked(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing");
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    checked(cublasLtMatrixLayoutCreate(&w, from, in, out, in), "describing a matrix");
    checked(cublasLtMatrixLayoutCreate(&x, from, in, rows, in), "describing a matrix");
    checked(cublasLtMatrixLayoutCreate(&y, to, out, rows, out), "describing a matrix");
  }

  void search() {
    cublasLtMatmulPreference_t preference;
    checked(cublasLtMatmulPreferenceCreate(&preference), "preparing a search");
    checked(
        cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &kWorkspace, sizeof kWorkspace),
        "preparing a search");
    cublasLtMatmulHeuristicResult_t result = {};
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle(), product, w, x, y, y,
                                                                 preference, 1, &result, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    found = status == CUBLAS_STATUS_SUCCESS && count > 0;
    algorithm = result.algo;
  }

  void run(const Product& p, const Workspace& workspace, cudaStream_t stream) {
    const float one = 1, zero = 0;
    checked(cublasLtMatmul(handle(), product, &one, p.weight, w, p.x, x, &zero, p.y, y, p.y, y,
                           &algorithm, workspace(kWorkspace), kWorkspace, stream),
            "a product");
  }
};

using Key = std::tuple<int, int, bool, bool, int64_t, int64_t, int64_t>;

// The plan of that shape on this device; `make` fills a new one.
template <class Make>
Plan& plan_of(Key key, Make make) {
  static std::mutex mutex;
  static std::map<Key, std::unique_ptr<Plan>> plans;
  check(cudaGetDevice(&std::get<0>(key)), "asking for the current device");
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Plan>& plan = plans[key];
  if (!plan) {
    plan = std::make_unique<Plan>();
    make(*plan);
    plan->search();
  }
  return *plan;
}

void add_bias(Plan& plan, const Product& p, cudaDataType_t type) {
  if (!p.bias) return;
  plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  plan.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
  plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
}

}  // namespace

bool has_matmul() { return true; }

void matmul(Type type, const Product& p, const Workspace& workspace, cudaStream_t stream) {
  const Key key{0, static_cast<int>(type), false, p.bias != nullptr, p.rows, p.in, p.out};
  Plan& plan = plan_of(key, [&](Plan& made) {
    made.describe(of(type), of(type), p.rows, p.in, p.out);
    add_bias(made, p, of(type));
  });
  if (!plan.found)
    throw std::runtime_error("cuBLASLt has no algorithm for a product of " +
                             std::to_string(p.rows) + " rows, " + std::to_string(p.in) +
                             " inputs and " + std::to_string(p.out) + " outputs");
  if (p.bias) plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  plan.run(p, workspace, stream);
}

#if CUBLAS_VERSION >= 120900
namespace {

Plan& e4m3_plan(Type type, const Product& p) {
  const Key key{0, static_cast<int>(type), true, p.bias != nullptr, p.rows, p.in, p.out};
  const auto point = [&](Plan& plan) {
    plan.set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(p.scale));
    plan.set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(p.x_scale));
    if (p.bias) plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  };
  Plan& plan = plan_of(key, [&](Plan& made) {
    made.describe(CUDA_R_8F_E4M3, of(type), p.rows, p.in, p.out);
    made.set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    made.set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    add_bias(made, p, of(type));
    point(made);
  });
  if (plan.found) point(plan);
  return plan;
}

}  // namespace

bool matmul_e4m3_knows(Type type, const Product& p) {
  return p.in % 16 == 0 && p.out % 16 == 0 && e4m3_plan(type, p).found;
}

bool matmul_e4m3(Type type, const Product& p, const Workspace& workspace, cudaStream_t stream) {
  if (!matmul_e4m3_knows(type, p)) return false;
  e4m3_plan(type, p).run(p, workspace, stream);
  return true;
}
#else
bool matmul_e4m3_knows(Type, const Product&) { return false; }
bool matmul_e4m3(Type, const Product&, const Workspace&, cudaStream_t) { return false; }
#endif

}  // namespace qinfer::cuda

#else

namespace qinfer::cuda {
bool has_matmul() { return false; }
void matmul(Type, const Product&, const Workspace&, cudaStream_t) {
  throw std::runtime_error("these operators were built without cuBLASLt");
}
bool matmul_e4m3_knows(Type, const Product&) { return false; }
bool matmul_e4m3(Type, const Product&, const Workspace&, cudaStream_t) { return false; }
}  // namespace qinfer::cuda

#endif
