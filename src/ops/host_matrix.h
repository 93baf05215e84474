// Views of evaluated MLX arrays as host matrices, copied only where they must
// be.
#pragma once

#include <memory>
#include <vector>

#include "mlx/mlx.h"

#include "host/matrix.h"

namespace mlx_ane {

namespace mx = mlx::core;

/// The kernels' type of an MLX dtype; the op functions admit no other.
Float float_type(mx::Dtype dtype);

/// An evaluated array seen as rows x columns by its last two axes, or as rows
/// of its last axis. Build it while encoding; call view() inside the task,
/// where the values exist. Strides that no matrix can express are copied there.
class HostMatrix {
 public:
  /// (..., K) as (S, K), all leading axes folded.
  static HostMatrix rows(const mx::array& x);

  /// Matrix `batch` of (B..., M, N), its leading axes counted in row-major
  /// order.
  static HostMatrix batch(const mx::array& x, int64_t batch);

  /// All elements as one row, in row-major order.
  static HostMatrix flat(const mx::array& x);

  MatrixView view() const;

 private:
  MatrixView view_;
  // Set where leading axes do not fold: their shape and strides.
  std::vector<int64_t> shape_;
  std::vector<int64_t> strides_;
  mutable std::shared_ptr<std::vector<char>> copy_;
};

}  // namespace mlx_ane
