// Writes a parameter's new values into the surfaces that hold its old ones.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "device/weights.h"

namespace mlx_ane {

/// One entry of the store while an optimizer updates its parameter. Made while
/// encoding, used by one task, which calls keep(), or begin(), write() until
/// all rows are written, and finish().
class WeightUpdate {
 public:
  /// `w` views the new values, `old` holds those before, `fresh` the entry that
  /// becomes ready. `in_place`: nobody can ask for `old` any more.
  WeightUpdate(
      Device& device,
      const MatrixView& w,
      std::shared_ptr<StagedWeight> old,
      std::shared_ptr<StagedWeight> fresh,
      bool in_place);
  /// Leaves an entry that was not finished to the call that needs it.
  ~WeightUpdate();
  WeightUpdate(const WeightUpdate&) = delete;
  WeightUpdate& operator=(const WeightUpdate&) = delete;

  const MatrixView& weight() const {
    return w_;
  }

  int64_t rows() const {
    return w_.rows;
  }

  /// The new values are the old ones.
  void keep();
  /// Takes the old surfaces where no call holds them, else makes new ones.
  void begin();
  /// Rows begin .. end of the weight have their new values.
  void write(int64_t begin, int64_t end);
  void finish();

 private:
  Device& device_;
  MatrixView w_;
  std::shared_ptr<StagedWeight> old_, fresh_;
  bool in_place_;
  bool claimed_;
  bool fits_ = true;  // all values are within fp16's range
  std::vector<WeightTile> tiles_;
};

}  // namespace mlx_ane
