// Matrix products as MLX primitives: every gradient GEMM, and ane.matmul.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "mlx/mlx.h"
#include "mlx/primitives.h"

#include "ops/checks.h"
#include "trace/counters.h"

namespace mlx_ane {

/// What a GEMM is for, as the counters and the timeline name it.
enum class Role { forward, dx, dw, other };

/// c = op(a) op(b) over equal batch axes; op transposes the last two axes.
struct GemmOptions {
  bool trans_a = false;
  bool trans_b = false;
  mx::Dtype dtype = mx::float32;  // of c
  Role role = Role::other;
  Place place = {};
  std::string layer = "";
};
mx::array gemm(
    const mx::array& a,  // (B..., m, k), or (B..., k, m) with trans_a
    const mx::array& b,  // (B..., k, n), or (B..., n, k) with trans_b
    const GemmOptions& options,
    mx::Stream stream);

/// x (..., K) with its rows along one axis: (S, K).
mx::array folded(const mx::array& x, mx::Stream stream);

///// Operation

/// a (..., m, k) @ b (..., k, n) with mx.matmul's rules for vectors and
/// broadcasting; the result has the promoted type.
mx::array matmul(
    const mx::array& a,
    const mx::array& b,
    const std::string& device,
    const std::string& layer,
    const mx::StreamOrDevice& stream);

///// Primitive

class Gemm : public mx::Primitive {
 public:
  Gemm(mx::Stream stream, const GemmOptions& options)
      : mx::Primitive(stream),
        options_(options),
        layer_(trace::layer(options.layer)) {
  }

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  void eval_gpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  std::vector<mx::array> jvp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& tangents,
      const std::vector<int>& argnums) override;
  std::vector<mx::array> vjp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs,
      const std::vector<int>& axes) override;
  const char* name() const override {
    return "ANEGemm";
  }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  GemmOptions options_;
  std::shared_ptr<trace::Layer> layer_;
};

}  // namespace mlx_ane
