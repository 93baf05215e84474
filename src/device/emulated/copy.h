// Copies between strided layouts, and conversions of elements.
#pragma once

#include "device/emulated/op.h"

namespace mlx_ane::emulated {

/// A dense output filled from an input with any strides (in elements).
class StridedCopy {
 public:
  StridedCopy(const Shape& shape, const Shape& strides);
  /// `from` is where the first element stands.
  void run(const int32_t* from, int32_t* to) const {
    run(from, to, 0, elements(sizes_));
  }
  /// Elements [begin, end) of the output alone.
  void run(const int32_t* from, int32_t* to, int64_t begin, int64_t end) const;

 private:
  Shape sizes_, strides_;  // inner axis last, neighbours merged
};

/// Rounds nothing: cuts towards zero, saturates at the ends of `type`, NaN is
/// 0; for booleans, whether the value differs from zero.
void to_integers(const float* from, DType type, int32_t* to, int64_t n);

/// An integer stored in `type`, modulo its range; 0 or 1 for booleans.
int32_t wrap(int32_t value, DType type);

/// Smallest and largest value of an integer type, within int32.
std::pair<int64_t, int64_t> range_of(DType type);

}  // namespace mlx_ane::emulated
