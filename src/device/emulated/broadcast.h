// NumPy broadcasting: shapes, and loops over two or three operands.
#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>

#include "device/emulated/op.h"

namespace mlx_ane::emulated {

/// Shape of a result; std::invalid_argument if the shapes do not broadcast.
Shape broadcast(const Shape& a, const Shape& b);

/// Loop over an output of `count` operands, each with a stride per axis (0
/// where it is broadcast); neighbouring axes are merged where every stride
/// allows.
template <size_t count>
struct Loop {
  Shape sizes;  // inner axis last; never empty
  std::array<Shape, count> strides;

  Loop(const Shape& out, const std::array<const Shape*, count>& shapes) {
    std::array<Shape, count> full;
    for (size_t i = 0; i < count; ++i) {
      auto own = strides_of(*shapes[i]);
      full[i].assign(out.size(), 0);
      auto lead = out.size() - shapes[i]->size();
      for (size_t d = 0; d < own.size(); ++d) {
        full[i][lead + d] = (*shapes[i])[d] == 1 ? 0 : own[d];
      }
    }
    for (size_t d = 0; d < out.size(); ++d) {
      if (out[d] == 1) {
        continue;
      }
      if (!sizes.empty() && merges(full, d, out[d])) {
        sizes.back() *= out[d];
        for (size_t i = 0; i < count; ++i) {
          strides[i].back() = full[i][d];
        }
      } else {
        sizes.push_back(out[d]);
        for (size_t i = 0; i < count; ++i) {
          strides[i].push_back(full[i][d]);
        }
      }
    }
    if (sizes.empty()) {
      sizes = {1};
      for (auto& own : strides) {
        own = {0};
      }
    }
  }

  /// body(position in out, offsets of the operands, inner size, inner strides).
  template <class Body>
  void run(Body&& body) const {
    run(0, elements(sizes), body);
  }

  /// The same of elements [begin, end) of out.
  template <class Body>
  void run(int64_t begin, int64_t end, Body&& body) const {
    if (begin == end) {
      return;
    }
    auto inner = sizes.back(), within = begin % inner;
    std::array<int64_t, count> step{}, offset{};
    for (size_t i = 0; i < count; ++i) {
      step[i] = strides[i].back();
      offset[i] = within * step[i];
    }
    std::array<int64_t, 8> index{};
    auto before = begin / inner;
    for (size_t d = sizes.size() - 1; d-- > 0; before /= sizes[d]) {
      index[d] = before % sizes[d];
      for (size_t i = 0; i < count; ++i) {
        offset[i] += index[d] * strides[i][d];
      }
    }
    while (begin < end) {
      auto n = std::min(inner - within, end - begin);
      body(begin, offset, n, step);
      begin += n;
      for (size_t i = 0; i < count; ++i) {
        offset[i] -= within * step[i];
      }
      within = 0;
      for (size_t d = sizes.size() - 1; d-- > 0;) {
        ++index[d];
        for (size_t i = 0; i < count; ++i) {
          offset[i] += strides[i][d];
        }
        if (index[d] < sizes[d]) {
          break;
        }
        for (size_t i = 0; i < count; ++i) {
          offset[i] -= strides[i][d] * sizes[d];
        }
        index[d] = 0;
      }
    }
  }

 private:
  bool merges(
      const std::array<Shape, count>& full, size_t d, int64_t size) const {
    for (size_t i = 0; i < count; ++i) {
      if (strides[i].back() != full[i][d] * size) {
        return false;
      }
    }
    return true;
  }
};

}  // namespace mlx_ane::emulated
