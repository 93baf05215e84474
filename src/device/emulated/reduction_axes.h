// Visits a tensor along chosen axes: the positions that one reduction reads.
#pragma once

#include <vector>

#include "device/emulated/op.h"

namespace mlx_ane::emulated {

/// Splits the axes of `shape` into reduced and kept ones.
class ReductionAxes {
 public:
  ReductionAxes(const Shape& shape, const std::vector<int64_t>& axes);

  /// Elements of one reduction, and number of reductions.
  int64_t length() const {
    return length_;
  }
  int64_t count() const {
    return count_;
  }

  /// start(i) is where reduction i begins; calls body(i, start).
  template <class Body>
  void each(Body&& body) const {
    visit(kept_sizes_, kept_strides_, 0, 0, [&](int64_t i, int64_t at) {
      body(i, at);
    });
  }

  /// The positions of one reduction, in row-major order.
  template <class Body>
  void along(int64_t start, Body&& body) const {
    visit(sizes_, strides_, start, 0, [&](int64_t, int64_t at) { body(at); });
  }

 private:
  template <class Body>
  static void visit(
      const Shape& sizes,
      const Shape& strides,
      int64_t start,
      int64_t number,
      Body&& body) {
    auto rank = sizes.size();
    int64_t outer = 1;
    for (size_t d = 0; d + 1 < rank; ++d) {
      outer *= sizes[d];
    }
    int64_t index[16] = {};
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < sizes[rank - 1]; ++i) {
        body(number++, start + i * strides[rank - 1]);
      }
      for (size_t d = rank - 1; d-- > 0;) {
        start += strides[d];
        if (++index[d] < sizes[d]) {
          break;
        }
        start -= strides[d] * sizes[d];
        index[d] = 0;
      }
    }
  }

  Shape sizes_, strides_;            // reduced axes; never empty
  Shape kept_sizes_, kept_strides_;  // never empty
  int64_t length_ = 1, count_ = 1;
};

/// Shape without `axes`, or with size 1 there.
Shape reduced_shape(
    const Shape& shape, const std::vector<int64_t>& axes, bool keep_dims);

}  // namespace mlx_ane::emulated
