// mlx_ane._ext.kernels: signatures and docstrings of the host kernels, on NumPy
// arrays. For the benchmark and the tests; models use mlx_ane.ops.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>

#include "bindings.h"
#include "blas/blas.h"
#include "host/cores.h"
#include "host/loops.h"
#include "kernels/adam.h"
#include "kernels/adam_accelerate.h"
#include "kernels/gemm.h"
#include "kernels/pack.h"
#include "kernels/probe.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mlx_ane {

namespace {

using Array = nb::ndarray<nb::numpy, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::numpy, nb::device::cpu, nb::c_contig>;
using ReadFloats =
    nb::ndarray<const float, nb::numpy, nb::device::cpu, nb::c_contig>;

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[mlx_ane.kernels] " + what);
}

/// uint16 arrays hold bfloat16, which NumPy lacks.
Float type_of(const Array& x) {
  if (x.dtype() == nb::dtype<float>()) {
    return Float::f32;
  }
  if (x.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) &&
      x.dtype().bits == 16) {
    return Float::f16;
  }
  if (x.dtype() == nb::dtype<uint16_t>()) {
    return Float::bf16;
  }
  refuse("got an array of another type, need float32, float16 or uint16.");
}

MatrixView matrix(const Array& x) {
  if (x.ndim() != 2) {
    refuse("got " + std::to_string(x.ndim()) + " axes, need 2; reshape it.");
  }
  return {
      x.data(),
      type_of(x),
      static_cast<int64_t>(x.shape(0)),
      static_cast<int64_t>(x.shape(1)),
      x.stride(0),
      x.stride(1)};
}

MatrixOut matrix_out(const Array& x) {
  MatrixView view = matrix(x);
  if (view.col_stride != 1 && view.cols > 1) {
    refuse("got an output with a strided last axis, need stride 1; copy it.");
  }
  return {x.data(), view.type, view.rows, view.cols, view.row_stride};
}

MatrixOut surface(const Array& out, int64_t rows, int64_t cols) {
  MatrixOut surface = matrix_out(out);
  if (surface.type != Float::f16 || surface.rows < rows ||
      surface.cols < cols) {
    refuse(
        "got an output that does not hold " + std::to_string(rows) + " x " +
        std::to_string(cols) + " halves, need float16 of at least that shape.");
  }
  return surface;
}

void pack(const Array& x, const Array& out, bool transposed) {
  MatrixView view = matrix(x);
  auto [rows, cols] = transposed ? std::pair(view.cols, view.rows)
                                 : std::pair(view.rows, view.cols);
  MatrixOut to = surface(out, rows, cols);
  auto dst = static_cast<uint16_t*>(to.data);
  if (transposed) {
    kernels::pack_transposed(view, {}, dst, to.row_stride, to.cols, to.rows);
  } else {
    kernels::pack(view, {}, dst, to.row_stride, to.rows, to.cols);
  }
}

std::vector<int> pack_scaled(
    const Array& x, const Array& out, int log2_norm, bool transposed) {
  MatrixView view = matrix(x);
  auto [rows, cols] = transposed ? std::pair(view.cols, view.rows)
                                 : std::pair(view.rows, view.cols);
  MatrixOut to = surface(out, rows, cols);
  auto dst = static_cast<uint16_t*>(to.data);
  auto scales =
      transposed ? kernels::pack_scaled_transposed(
                       view, log2_norm, dst, to.row_stride, to.cols, to.rows)
                 : kernels::pack_scaled(
                       view, log2_norm, dst, to.row_stride, to.rows, to.cols);
  return {scales.exponent.begin(), scales.exponent.end()};
}

void unpack(const Array& x, const Array& out, bool transposed) {
  MatrixOut to = matrix_out(out);
  auto [rows, cols] =
      transposed ? std::pair(to.cols, to.rows) : std::pair(to.rows, to.cols);
  MatrixOut from = surface(x, rows, cols);
  if (to.type != Float::f32) {
    refuse("got an output of another type, need float32.");
  }
  auto src = static_cast<const uint16_t*>(from.data);
  auto y = static_cast<float*>(to.data);
  if (transposed) {
    kernels::unpack_transposed(
        src, from.row_stride, to.rows, to.cols, y, to.row_stride);
  } else {
    kernels::unpack(
        src,
        from.row_stride,
        to.rows,
        to.cols,
        {},
        {},
        {},
        {},
        y,
        to.row_stride,
        false);
  }
}

void adam(
    const Floats& p,
    const ReadFloats& g,
    const Floats& m,
    const Floats& v,
    float learning_rate,
    double weight_decay,
    float gradient_scale,
    bool reference,
    bool passes) {
  if (g.size() != p.size() || m.size() != p.size() || v.size() != p.size()) {
    refuse("got arrays of different sizes, need one size.");
  }
  kernels::AdamStep step;
  step.learning_rate = step.c1 = learning_rate;
  step.options.weight_decay = weight_decay;
  step.gradient_scale = gradient_scale;
  auto n = static_cast<int64_t>(p.size());
  if (passes) {
    static std::vector<float> work;
    work.resize(p.size());
    host::loops().adam_passes(
        p.data(),
        g.data(),
        m.data(),
        v.data(),
        work.data(),
        n,
        kernels::constants_of(step));
    return;
  }
  (reference ? kernels::adam_reference : kernels::adam)(
      {p.data(),
       g.data(),
       m.data(),
       v.data(),
       p.data(),
       m.data(),
       v.data(),
       n,
       Float::f32,
       Float::f32,
       Float::f32},
      step);
}

void adam_traffic(
    const Floats& p, const ReadFloats& g, const Floats& m, const Floats& v) {
  if (g.size() != p.size() || m.size() != p.size() || v.size() != p.size()) {
    refuse("got arrays of different sizes, need one size.");
  }
  kernels::adam_traffic(
      p.data(), g.data(), m.data(), v.data(), static_cast<int64_t>(p.size()));
}

void memory_copy(const Array& dst, const Array& src, size_t bytes) {
  if (bytes > dst.nbytes() || bytes > src.nbytes()) {
    refuse("got arrays smaller than the bytes to copy.");
  }
  std::memcpy(dst.data(), src.data(), bytes);
}

/// The BLAS on what it reads as it is: no conversion, no copy.
void sgemm(
    const ReadFloats& a,
    const ReadFloats& b,
    const Floats& c,
    bool trans_a,
    bool trans_b,
    bool reference) {
  auto m = static_cast<int64_t>(c.shape(0));
  auto n = static_cast<int64_t>(c.shape(1));
  auto k = static_cast<int64_t>(a.shape(trans_a ? 0 : 1));
  bool fits = static_cast<int64_t>(a.shape(trans_a ? 1 : 0)) == m &&
              static_cast<int64_t>(b.shape(trans_b ? 1 : 0)) == k &&
              static_cast<int64_t>(b.shape(trans_b ? 0 : 1)) == n;
  if (!fits) {
    refuse("got shapes that do not multiply.");
  }
  (reference ? blas::sgemm_reference : kernels::sgemm)(
      {.trans_a = trans_a,
       .trans_b = trans_b,
       .m = m,
       .n = n,
       .k = k,
       .a = a.data(),
       .lda = a.stride(0),
       .b = b.data(),
       .ldb = b.stride(0),
       .c = c.data(),
       .ldc = c.stride(0)});
}

void gemm(const Array& a, const Array& b, const Array& c) {
  MatrixView left = matrix(a), right = matrix(b);
  MatrixOut out = matrix_out(c);
  if (left.rows != out.rows || left.cols != right.rows ||
      right.cols != out.cols) {
    refuse("got shapes that do not multiply.");
  }
  kernels::gemm(left, right, nullptr, out);
}

void bind_adam_implementation(nb::module_& m) {
  m.def(
      "adam_implementation",
      [] {
        bool loop =
            kernels::adam_implementation() == kernels::AdamImplementation::loop;
        return loop ? "loop" : "accelerate";
      },
      "What computes Adam's steps: \"loop\" or \"accelerate\".");
  m.def(
      "set_adam_implementation",
      [](const std::string& name) {
        kernels::set_adam_implementation(
            kernels::adam_implementation_from(name));
      },
      "name"_a,
      "Computes the steps from here on by this implementation.");
  m.def(
      "has_accelerate",
      &kernels::has_accelerate,
      "Whether \"accelerate\" calls Accelerate, not loops that stand in.");
}

void bind_machine(nb::module_& m) {
  m.def(
      "targets",
      &host::targets,
      "Instruction sets that this CPU runs, best first.");
  m.def(
      "target",
      [] { return std::string(host::loops().name); },
      "The instruction set in use.");
  m.def(
      "fma_peak",
      &kernels::fma_peak,
      "seconds"_a,
      nb::call_guard<nb::gil_scoped_release>(),
      "fp32 fused multiply-adds of one thread, in GFLOP/s.");
  m.def(
      "usable_cores",
      &host::usable_cores,
      "Cores that this process may keep busy.");
  m.def(
      "cpu_quota",
      [](const std::string& root) { return host::cpu_quota(root); },
      "root"_a = "/",
      "The control group's CPU quota in cores, or None; files are looked for "
      "below root.");
  m.def(
      "memory_copy",
      &memory_copy,
      "dst"_a,
      "src"_a,
      "bytes"_a,
      "memcpy of the first `bytes` bytes.");
}

}  // namespace

void bind_kernels(nb::module_& m) {
  bind_machine(m);
  bind_adam_implementation(m);
  m.def(
      "pack",
      &pack,
      "x"_a,
      "out"_a,
      nb::kw_only(),
      "transposed"_a = false,
      "float16 of x (rows, cols) in out, or in out.T; out is zero-padded.");
  m.def(
      "pack_scaled",
      &pack_scaled,
      "x"_a,
      "out"_a,
      "log2_norm"_a,
      nb::kw_only(),
      "transposed"_a = false,
      "pack, each row times the power of two that brings its norm to at most "
      "2^log2_norm. Returns the exponents.");
  m.def(
      "unpack",
      &unpack,
      "x"_a,
      "out"_a,
      nb::kw_only(),
      "transposed"_a = false,
      "float32 of the float16 x, or x.T, in out.");
  m.def(
      "adam",
      &adam,
      "p"_a,
      "g"_a,
      "m"_a,
      "v"_a,
      nb::kw_only(),
      "learning_rate"_a = 1e-3f,
      "weight_decay"_a = 0.0,
      "gradient_scale"_a = 1.0f,
      "reference"_a = false,
      "passes"_a = false,
      "One AdamW step in place on float32 arrays: fused, as plain loops, or in "
      "ten passes, whose gradient_scale must be 1.");
  m.def(
      "adam_traffic",
      &adam_traffic,
      "p"_a,
      "g"_a,
      "m"_a,
      "v"_a,
      "The memory traffic of adam alone; leaves meaningless values.");
  m.def(
      "sgemm",
      &sgemm,
      "a"_a,
      "b"_a,
      "c"_a,
      nb::kw_only(),
      "trans_a"_a = false,
      "trans_b"_a = false,
      "reference"_a = false,
      "c = op(a) @ op(b) on float32 arrays: the library's own call, or plain "
      "loops.");
  m.def(
      "gemm",
      &gemm,
      "a"_a,
      "b"_a,
      "c"_a,
      "c = a @ b for any strides of float32, float16 or bfloat16 (as uint16).");
}

}  // namespace mlx_ane
