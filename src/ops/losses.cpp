// Cross-entropy and SwiGLU: forward and backward each one task.
#include "ops/losses.h"

#include "mlx/backend/cpu/encoder.h"

#include "kernels/losses.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"
#include "ops/streams.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

std::vector<mx::array> composed_cross_entropy(
    const std::vector<mx::array>& in, float smoothing, mx::Stream s) {
  auto logits = mx::astype(in[0], mx::float32, s);
  auto targets = mx::expand_dims(in[1], -1, s);
  auto lse = mx::logsumexp(logits, -1, false, s);
  auto score = mx::squeeze(mx::take_along_axis(logits, targets, -1, s), -1, s);
  auto loss =
      mx::subtract(lse, mx::multiply(mx::array(1.0f - smoothing), score, s), s);
  if (smoothing != 0.0f) {
    auto mean = mx::mean(logits, -1, false, s);
    loss = mx::subtract(loss, mx::multiply(mx::array(smoothing), mean, s), s);
  }
  return {loss, lse};
}

std::vector<mx::array> composed_swiglu(
    const std::vector<mx::array>& in, mx::Stream s) {
  auto silu = mx::multiply(in[0], mx::sigmoid(in[0], s), s);
  return {mx::multiply(silu, in[1], s)};
}

}  // namespace

mx::array cross_entropy(
    const mx::array& logits,
    const mx::array& targets,
    float label_smoothing,
    const mx::StreamOrDevice& stream) {
  check_float("fast.cross_entropy", "logits", logits);
  auto tokens = logits.shape();
  if (!tokens.empty()) {
    tokens.pop_back();
  }
  if (logits.ndim() == 0 || targets.shape() != tokens ||
      !mx::issubdtype(targets.dtype(), mx::integer)) {
    throw std::invalid_argument(
        "[mlx_ane.fast.cross_entropy] got logits of shape " +
        to_string(logits.shape()) + " and targets of shape " +
        to_string(targets.shape()) + " and dtype " +
        to_string(targets.dtype()) +
        ", need integer targets of logits' shape without its last axis.");
  }
  if (!(label_smoothing >= 0.0f && label_smoothing < 1.0f)) {
    throw std::invalid_argument(
        "[mlx_ane.fast.cross_entropy] got label_smoothing " +
        std::to_string(label_smoothing) + ", need a value in [0, 1).");
  }
  auto s = resolve_stream("fast.cross_entropy", stream);
  auto composition = [label_smoothing, s](const std::vector<mx::array>& in) {
    return composed_cross_entropy(in, label_smoothing, s);
  };
  auto ids = mx::contiguous(mx::astype(targets, mx::int32, s), false, s);
  return mx::array::make_arrays(
      {tokens, tokens},
      {mx::float32, mx::float32},
      std::make_shared<CrossEntropy>(s, label_smoothing, composition),
      {logits, ids})[0];
}

void CrossEntropy::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  if (outputs[0].size() == 0) {
    return;
  }
  mx::cpu::get_command_encoder(stream()).dispatch(
      [logits = HostMatrix::rows(inputs[0]),
       targets = inputs[1].data<int32_t>(),
       smoothing = smoothing_,
       loss = outputs[0].data<float>(),
       lse = outputs[1].data<float>()] {
        trace::Span span("cross_entropy", "", 0, 0);
        kernels::cross_entropy_forward(
            logits.view(), targets, smoothing, loss, lse);
      });
}

std::vector<mx::array> CrossEntropy::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>& outputs) {
  if (argnums != std::vector<int>{0}) {
    throw std::invalid_argument(
        "[mlx_ane.fast.cross_entropy] got a gradient asked for the targets, "
        "need one for the logits only.");
  }
  auto s = stream();
  // Inputs are (logits, targets, logsumexp, d_loss).
  auto composition = [smoothing = smoothing_,
                      s](const std::vector<mx::array>& in) {
    auto loss = [&](const std::vector<mx::array>& x) {
      return std::vector<mx::array>{
          composed_cross_entropy({x[0], in[1]}, smoothing, s)[0]};
    };
    return mx::vjp(loss, {in[0]}, {in[3]}).second;
  };
  auto d_loss =
      mx::contiguous(mx::astype(cotangents[0], mx::float32, s), false, s);
  return {mx::array(
      primals[0].shape(),
      primals[0].dtype(),
      std::make_shared<CrossEntropyVJP>(s, smoothing_, composition),
      {primals[0], primals[1], outputs[1], d_loss})};
}

bool CrossEntropy::is_equivalent(const mx::Primitive& other) const {
  return smoothing_ == static_cast<const CrossEntropy&>(other).smoothing_;
}

std::vector<mx::Shape> CrossEntropy::output_shapes(
    const std::vector<mx::array>& inputs) {
  return {inputs[1].shape(), inputs[1].shape()};
}

void CrossEntropyVJP::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  auto& out = outputs[0];
  if (out.size() == 0) {
    return;
  }
  auto vocabulary = static_cast<int64_t>(out.shape(-1));
  MatrixOut d_logits{
      out.data<void>(),
      float_type(out.dtype()),
      static_cast<int64_t>(out.size()) / vocabulary,
      vocabulary,
      vocabulary};
  mx::cpu::get_command_encoder(stream()).dispatch(
      [logits = HostMatrix::rows(inputs[0]),
       targets = inputs[1].data<int32_t>(),
       smoothing = smoothing_,
       lse = inputs[2].data<float>(),
       d_loss = inputs[3].data<float>(),
       d_logits] {
        trace::Span span("cross_entropy_vjp", "", 0, 0);
        kernels::cross_entropy_backward(
            logits.view(), targets, smoothing, lse, d_loss, d_logits);
      });
}

bool CrossEntropyVJP::is_equivalent(const mx::Primitive& other) const {
  return smoothing_ == static_cast<const CrossEntropyVJP&>(other).smoothing_;
}

std::vector<mx::Shape> CrossEntropyVJP::output_shapes(
    const std::vector<mx::array>& inputs) {
  return {inputs[0].shape()};
}

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
  mx::cpu::get_command_encoder(stream()).dispatch(
      [gate = HostMatrix::flat(inputs[0]),
       up = HostMatrix::flat(inputs[1]),
       type = float_type(outputs[0].dtype()),
       out = outputs[0].data<void>(),
       n = static_cast<int64_t>(outputs[0].size())] {
        trace::Span span("swiglu", "", 0, 0);
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
  mx::cpu::get_command_encoder(stream()).dispatch(
      [gate = HostMatrix::flat(inputs[0]),
       up = HostMatrix::flat(inputs[1]),
       d_out = HostMatrix::flat(inputs[2]),
       type = float_type(outputs[0].dtype()),
       d_gate = outputs[0].data<void>(),
       d_up = outputs[1].data<void>(),
       n = static_cast<int64_t>(outputs[0].size())] {
        trace::Span span("swiglu_vjp", "", 0, 0);
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
