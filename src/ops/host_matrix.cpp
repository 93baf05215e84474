// Folds leading axes where their strides allow it, else gathers rows in the
// task.
#include "ops/host_matrix.h"

#include <cstring>

namespace mlx_ane {

namespace {

template <typename T>
void gather_row(const T* src, int64_t stride, int64_t n, T* dst) {
  for (int64_t i = 0; i < n; ++i) {
    dst[i] = src[i * stride];
  }
}

}  // namespace

Float float_type(mx::Dtype dtype) {
  if (dtype == mx::float16) {
    return Float::f16;
  }
  return dtype == mx::bfloat16 ? Float::bf16 : Float::f32;
}

HostMatrix HostMatrix::rows(const mx::array& x) {
  HostMatrix out;
  auto last = x.ndim() - 1;
  int64_t cols = x.shape(last);
  int64_t count = cols ? static_cast<int64_t>(x.size()) / cols : 0;
  int64_t stride = cols;
  bool folds = true;
  // Walk outwards: every axis must step over exactly what lies inside it.
  int64_t inner = 0;
  for (int i = static_cast<int>(last) - 1; i >= 0; --i) {
    if (x.shape(i) == 1) {
      continue;
    }
    if (inner == 0) {
      stride = x.strides(i);
      inner = x.shape(i);
    } else {
      folds &= x.strides(i) == stride * inner;
      inner *= x.shape(i);
    }
  }
  out.view_ = {
      x.data<void>(),
      float_type(x.dtype()),
      count,
      cols,
      stride,
      cols == 1 ? 1 : x.strides(last)};
  if (!folds) {
    for (size_t i = 0; i < last; ++i) {
      out.shape_.push_back(x.shape(i));
      out.strides_.push_back(x.strides(i));
    }
  }
  return out;
}

HostMatrix HostMatrix::batch(const mx::array& x, int64_t batch) {
  HostMatrix out;
  int64_t offset = 0;
  for (int i = x.ndim() - 3; i >= 0; --i) {
    offset += batch % x.shape(i) * x.strides(i);
    batch /= x.shape(i);
  }
  auto* data = x.data<char>() + offset * static_cast<int64_t>(x.itemsize());
  out.view_ = {
      data,
      float_type(x.dtype()),
      x.shape(-2),
      x.shape(-1),
      x.strides(-2),
      x.strides(-1)};
  return out;
}

HostMatrix HostMatrix::flat(const mx::array& x) {
  HostMatrix out;
  auto n = static_cast<int64_t>(x.size());
  if (x.flags().row_contiguous || n <= 1) {
    out.view_ = {x.data<void>(), float_type(x.dtype()), 1, n, n, 1};
    return out;
  }
  out = rows(x);
  if (out.shape_.empty()) {
    out.shape_ = {out.view_.rows};
    out.strides_ = {out.view_.row_stride};
  }
  // Gathered rows lie behind one another: the copy is the flat array.
  out.view_.rows = 1;
  out.view_.row_stride = n;
  return out;
}

MatrixView HostMatrix::view() const {
  if (shape_.empty()) {
    return view_;
  }
  auto row_elements = view_.cols;
  int64_t count = 1;
  for (auto extent : shape_) {
    count *= extent;
  }
  auto size = static_cast<int64_t>(size_of(view_.type));
  if (!copy_) {
    copy_ = std::make_shared<std::vector<char>>(count * row_elements * size);
    for (int64_t row = 0; row < count; ++row) {
      int64_t offset = 0;
      auto rest = row;
      for (int i = static_cast<int>(shape_.size()) - 1; i >= 0; --i) {
        offset += rest % shape_[i] * strides_[i];
        rest /= shape_[i];
      }
      auto* src = static_cast<const char*>(view_.data) + offset * size;
      auto* dst = copy_->data() + row * row_elements * size;
      if (view_.type == Float::f32) {
        gather_row(
            reinterpret_cast<const float*>(src),
            view_.col_stride,
            row_elements,
            reinterpret_cast<float*>(dst));
      } else {
        gather_row(
            reinterpret_cast<const uint16_t*>(src),
            view_.col_stride,
            row_elements,
            reinterpret_cast<uint16_t*>(dst));
      }
    }
  }
  auto total = count * row_elements;
  bool flat = view_.rows == 1 && view_.row_stride == total;
  return {
      copy_->data(),
      view_.type,
      flat ? 1 : count,
      flat ? total : row_elements,
      flat ? total : row_elements,
      1};
}

}  // namespace mlx_ane
