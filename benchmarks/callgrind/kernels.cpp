// Runs one kernel twice, for valgrind to count the second run: kernels NAME.
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <new>
#include <string>
#include <vector>

#include "blas/blas.h"
#include "host/half.h"
#include "kernels/adam.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/gemm.h"
#include "kernels/pack.h"
#include "kernels/swiglu.h"

using namespace mlx_ane;
using namespace mlx_ane::kernels;

namespace {

constexpr int64_t rows = 128, cols = 192;
constexpr int64_t n = rows * cols;

/// Whole lines: kernels treat the first, partial one apart, so that counts
/// would depend on what else is allocated.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class Other>
  LineAllocator(const LineAllocator<Other>&) {
  }
  T* allocate(size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), line));
  }
  void deallocate(T* p, size_t) {
    ::operator delete(p, line);
  }
  bool operator==(const LineAllocator&) const = default;
  static constexpr std::align_val_t line{64};
};
template <class T>
using Array = std::vector<T, LineAllocator<T>>;

/// Values in [-0.5, 0.5), the same in every run.
Array<float> values(int64_t count) {
  Array<float> x(static_cast<size_t>(count));
  uint32_t state = 1;
  for (auto& value : x) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
  }
  return x;
}

Array<float> a = values(n), b = values(n), c = values(n), d(n, 0.5f);
Array<uint16_t> halves(n);
MatrixView matrix{a.data(), Float::f32, rows, cols, cols, 1};

AdamTensor tensor() {
  return {
      a.data(),
      b.data(),
      c.data(),
      d.data(),
      a.data(),
      c.data(),
      d.data(),
      n,
      Float::f32,
      Float::f32,
      Float::f32};
}

void attention(bool backward) {
  // q, k, v: (1, 2, 64, 32)
  auto heads = [](Array<float>& x) {
    return Heads{x.data(), Float::f32, {1, 2, 64, 32}, {4096, 2048, 32, 1}};
  };
  static Array<float> out(4096), dq(4096), dk(4096), dv(4096);
  static Array<RowSoftmax> softmax(128);
  Attention problem{heads(a), heads(b), heads(c), 0.2f, {Mask::Kind::causal}};
  attention_forward(problem, heads(out), softmax.data());
  if (backward) {
    attention_backward(
        problem,
        heads(out),
        softmax.data(),
        heads(a),
        heads(dq),
        heads(dk),
        heads(dv),
        nullptr);
  }
}

void cross_entropy() {
  static Array<int32_t> targets(rows, 3);
  static Array<float> loss(rows), top(rows), sum(rows), ones(rows, 1.0f);
  cross_entropy_forward(
      matrix, targets.data(), 0.0f, loss.data(), top.data(), sum.data());
  cross_entropy_backward(
      matrix,
      targets.data(),
      0.0f,
      top.data(),
      sum.data(),
      ones.data(),
      {b.data(), Float::f32, rows, cols, cols});
}

/// (128, 192) @ (192, 128)
void multiply() {
  MatrixView right{b.data(), Float::f32, cols, rows, rows, 1};
  kernels::gemm(
      matrix, right, nullptr, {c.data(), Float::f32, rows, rows, rows});
}

void multiply_reference() {
  blas::sgemm_reference(
      {.m = rows,
       .n = rows,
       .k = cols,
       .a = a.data(),
       .lda = cols,
       .b = b.data(),
       .ldb = rows,
       .c = c.data(),
       .ldc = rows});
}

const std::map<std::string, std::function<void()>> kernels_by_name{
    {"adam", [] { adam(tensor(), AdamStep{}); }},
    {"adam_reference", [] { adam_reference(tensor(), AdamStep{}); }},
    {"sum_of_squares",
     [] { d[0] = (float)sum_of_squares(a.data(), Float::f32, n); }},
    {"float_to_half",
     [] { host::from_float(a.data(), Float::f16, halves.data(), n); }},
    {"half_to_float",
     [] { host::to_float(halves.data(), Float::f16, b.data(), n); }},
    {"pack", [] { pack(matrix, {}, halves.data(), cols, rows, cols); }},
    {"pack_scaled",
     [] { pack_scaled(matrix, 7, halves.data(), cols, rows, cols); }},
    {"pack_transposed",
     [] { pack_transposed(matrix, {}, halves.data(), rows, rows, cols); }},
    {"unpack",
     [] {
       unpack(
           halves.data(),
           cols,
           rows,
           cols,
           {},
           {},
           {},
           {},
           b.data(),
           cols,
           false);
     }},
    {"unpack_transposed",
     [] {
       unpack_transposed(halves.data(), rows, rows, cols, b.data(), cols);
     }},
    {"gemm", multiply},
    {"gemm_reference", multiply_reference},
    {"attention_forward", [] { attention(false); }},
    {"attention_backward", [] { attention(true); }},
    {"cross_entropy", [] { cross_entropy(); }},
    {"swiglu",
     [] {
       swiglu_forward(a.data(), b.data(), Float::f32, c.data(), n);
       swiglu_backward(
           a.data(), b.data(), c.data(), Float::f32, d.data(), c.data(), n);
     }},
};

}  // namespace

/// valgrind counts in here alone, by this name.
extern "C" __attribute__((noinline)) void counted(
    const std::function<void()>& kernel) {
  kernel();
}

int main(int argc, char** argv) {
  if (argc != 2) {
    for (auto& [name, kernel] : kernels_by_name) {
      std::printf("%s\n", name.c_str());
    }
    return 2;
  }
  auto kernel = kernels_by_name.find(argv[1]);
  if (kernel == kernels_by_name.end()) {
    std::fprintf(stderr, "[callgrind] no kernel is named %s.\n", argv[1]);
    return 1;
  }
  blas::set_threads(1);
  // Tables, scratch and threads are made on the first run.
  kernel->second();
  counted(kernel->second);
}
