// Matmul on a device: tiles of one or two programs, summed and checked on the
// host.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "device/device.h"
#include "device/runner.h"
#include "device/weights.h"
#include "host/matrix.h"
#include "trace/counters.h"

namespace mlx_ane {

/// y (s, n) = x (s, k) @ w (n, k)ᵀ [+ bias (n)].
struct MatmulCall {
  MatrixView x;
  MatrixView w;  // no data, but a shape, for a quantised weight
  std::optional<MatrixView> bias;
  MatrixOut y;
  /// The weight's entry in the store, or null to pack it for this call.
  std::shared_ptr<StagedWeight> staged;
  std::shared_ptr<trace::Layer> layer;
  /// Two-term split of both operands: three products, error near fp32's.
  bool high_precision = false;
  /// Rows of a quantised w in fp32, (rows, k).
  std::function<void(int64_t begin, int64_t rows, float* out)> w_rows = {};
  /// The product of a quantised w on the BLAS.
  std::function<void()> on_blas = {};
};

/// Runs a matmul by run_placed.
void run_matmul(Device& device, const MatmulCall& call);

/// The entry of a frozen weight (see WeightStore::get) for a call of so many
/// rows, or null where the call is to be placed or the store is full. Call
/// while encoding.
std::shared_ptr<StagedWeight> staged_weight(
    Device& device,
    int64_t rows,
    const trace::Layer& layer,
    const WeightStore::Owner& owner,
    const MatrixView& w,
    const std::vector<WeightStore::Owner>& companions = {});

}  // namespace mlx_ane
