// SwiGLU: forward and backward each one task.
#include "ops/swiglu.h"

#include "host/bytes.h"
#include "kernels/swiglu.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"
#include "ops/streams.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

std::vector<mx::array> composed_swiglu(
    const std::vector<mx::array>& in, mx::Stream s) {
  auto silu = mx::multiply(in[0], mx::sigmoid(in[0], s), s);
  return {mx::multiply(silu, in[1], s)};
}

}  // namespace

mx::array swiglu(
    const mx::array& gate,
    const mx::array& up,
    const mx::StreamOrDevice& stream) {
  check_float("fast.swiglu", "gate", gate);
  if (gate.shape() != up.shape() || gate.dtype() != up.dtype()) {
    throw std::invalid_argument(
        "[mlx_ane.fast.swiglu] got gate " + to_string(gate.shape()) + " of " +
        to_string(gate.dtype()) + " and up " + to_string(up.shape()) + " of " +
        to_string(up.dtype()) + ", need equal shapes and dtypes.");
  }
  auto s = resolve_stream("fast.swiglu", stream);
  auto composition = [s](const std::vector<mx::array>& in) {
    return composed_swiglu(in, s);
  };
  return mx::array(
      gate.shape(),
      gate.dtype(),
      std::make_shared<SwiGLU>(s, composition),
      {gate, up});
}

void SwiGLU::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  encoder(inputs, outputs)
      .dispatch([gate = HostMatrix::flat(inputs[0]),
                 up = HostMatrix::flat(inputs[1]),
                 type = float_type(outputs[0].dtype()),
                 out = outputs[0].data<void>(),
                 n = static_cast<int64_t>(outputs[0].size())] {
        trace::Span span("swiglu", "", 3 * bytes_of(gate.view()), 0);
        kernels::swiglu_forward(gate.view().data, up.view().data, type, out, n);
      });
}

std::vector<mx::array> SwiGLU::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  auto s = stream();
  auto composition = [s](const std::vector<mx::array>& in) {
    auto forward = [&](const std::vector<mx::array>& x) {
      return composed_swiglu(x, s);
    };
    return mx::vjp(forward, {in[0], in[1]}, {in[2]}).second;
  };
  auto dtype = primals[0].dtype();
  auto both = mx::array::make_arrays(
      {primals[0].shape(), primals[0].shape()},
      {dtype, dtype},
      std::make_shared<SwiGLUVJP>(s, composition),
      {primals[0], primals[1], mx::astype(cotangents[0], dtype, s)});
  std::vector<mx::array> asked;
  for (int i : argnums) {
    asked.push_back(both[i]);
  }
  return asked;
}

void SwiGLUVJP::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  encoder(inputs, outputs)
      .dispatch([gate = HostMatrix::flat(inputs[0]),
                 up = HostMatrix::flat(inputs[1]),
                 d_out = HostMatrix::flat(inputs[2]),
                 type = float_type(outputs[0].dtype()),
                 d_gate = outputs[0].data<void>(),
                 d_up = outputs[1].data<void>(),
                 n = static_cast<int64_t>(outputs[0].size())] {
        trace::Span span("swiglu_vjp", "", 5 * bytes_of(gate.view()), 0);
        kernels::swiglu_backward(
            gate.view().data,
            up.view().data,
            d_out.view().data,
            type,
            d_gate,
            d_up,
            n);
      });
}

}  // namespace mlx_ane
