// Base of our primitives: CPU streams only, equivalent where options are equal.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"

namespace mlx_ane {

namespace mx = mlx::core;
using mx::array;  // MLX's DEFINE_GRADS() and DEFINE_VMAP() say it unqualified

/// A primitive that runs on the CPU's streams, whatever device its task calls.
class CpuPrimitive : public mx::Primitive {
 public:
  using mx::Primitive::Primitive;

  void eval_gpu(
      const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(
        std::string("[mlx_ane] got a GPU stream for ") + name() +
        ", need a CPU stream; pass stream=mx.cpu.");
  }

 protected:
  /// The encoder of this stream, told what the next task reads and writes.
  mx::cpu::CommandEncoder& encoder(
      const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (auto& x : inputs) {
      encoder.set_input_array(x);
    }
    for (auto& out : outputs) {
      encoder.set_output_array(out);
    }
    return encoder;
  }
};

/// A Base with options: a struct with ==, all that tells two primitives of one
/// type apart.
template <typename Options, typename Base = CpuPrimitive>
class PrimitiveOf : public Base {
 public:
  /// `base` is what Base takes after the stream.
  template <typename... Args>
  PrimitiveOf(mx::Stream stream, Options options, Args&&... base)
      : Base(stream, std::forward<Args>(base)...),
        options_(std::move(options)) {
  }

  /// MLX asks this of primitives of one type only.
  bool is_equivalent(const mx::Primitive& other) const override {
    return options_ == static_cast<const PrimitiveOf&>(other).options_;
  }

 protected:
  const Options options_;
};

}  // namespace mlx_ane
