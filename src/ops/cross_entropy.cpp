// Cross-entropy: forward and backward each one task.
#include "ops/cross_entropy.h"

#include <limits>

#include "host/bytes.h"
#include "kernels/cross_entropy.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"
#include "ops/streams.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

/// (loss, maximum, sum) as the kernel gives them.
std::vector<mx::array> composed(
    const std::vector<mx::array>& in, float smoothing, mx::Stream s) {
  auto size = in[0].shape(-1);
  auto maximum = mx::stop_gradient(
      mx::max(mx::astype(in[0], mx::float32, s), -1, true, s), s);
  auto x = mx::subtract(mx::astype(in[0], mx::float32, s), maximum, s);
  auto zero = mx::array(0.0f);
  auto counted = mx::where(
      mx::less(in[1], mx::array(0), s),
      mx::add(in[1], mx::array(size), s),
      in[1],
      s);
  auto valid = mx::logical_and(
      mx::greater_equal(counted, mx::array(0), s),
      mx::less(counted, mx::array(size), s),
      s);
  auto column =
      mx::expand_dims(mx::where(valid, counted, mx::array(0), s), -1, s);
  auto score = mx::squeeze(mx::take_along_axis(x, column, -1, s), -1, s);
  auto loss = mx::subtract(
      mx::logsumexp(x, -1, false, s),
      mx::multiply(mx::array(1.0f - smoothing), score, s),
      s);
  if (smoothing != 0.0f) {
    auto mean = mx::mean(x, -1, false, s);
    loss = mx::subtract(loss, mx::multiply(mx::array(smoothing), mean, s), s);
  }
  return {
      mx::where(valid, loss, zero, s),
      mx::squeeze(maximum, -1, s),
      mx::stop_gradient(mx::sum(mx::exp(x, s), -1, false, s), s)};
}

/// Targets as int32; those beyond its range stay outside any vocabulary.
mx::array indices(mx::array targets, mx::Stream s) {
  auto dtype = targets.dtype();
  constexpr int64_t highest = std::numeric_limits<int32_t>::max();
  if (dtype == mx::int64) {
    targets = mx::maximum(targets, mx::array(-highest, dtype), s);
  }
  if (dtype == mx::int64 || dtype == mx::uint64 || dtype == mx::uint32) {
    targets = mx::minimum(targets, mx::array(highest, dtype), s);
  }
  return mx::contiguous(mx::astype(targets, mx::int32, s), false, s);
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
    return composed(in, label_smoothing, s);
  };
  return mx::array::make_arrays(
      {tokens, tokens, tokens},
      {mx::float32, mx::float32, mx::float32},
      std::make_shared<CrossEntropy>(
          s, CrossEntropyOptions{label_smoothing}, composition),
      {logits, indices(targets, s)})[0];
}

void CrossEntropy::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  if (outputs[0].size() == 0) {
    return;
  }
  encoder(inputs, outputs)
      .dispatch([logits = HostMatrix::rows(inputs[0]),
                 targets = inputs[1].data<int32_t>(),
                 smoothing = options_.label_smoothing,
                 loss = outputs[0].data<float>(),
                 maximum = outputs[1].data<float>(),
                 sum = outputs[2].data<float>()] {
        trace::Span span("cross_entropy", "", bytes_of(logits.view()), 0);
        kernels::cross_entropy_forward(
            logits.view(), targets, smoothing, loss, maximum, sum);
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
  // Inputs are (logits, targets, maximum, sum, d_loss).
  auto composition = [smoothing = options_.label_smoothing,
                      s](const std::vector<mx::array>& in) {
    auto loss = [&](const std::vector<mx::array>& x) {
      return std::vector<mx::array>{composed({x[0], in[1]}, smoothing, s)[0]};
    };
    return mx::vjp(loss, {in[0]}, {in[4]}).second;
  };
  auto d_loss =
      mx::contiguous(mx::astype(cotangents[0], mx::float32, s), false, s);
  return {mx::array(
      primals[0].shape(),
      primals[0].dtype(),
      std::make_shared<CrossEntropyVJP>(s, options_, composition),
      {primals[0], primals[1], outputs[1], outputs[2], d_loss})};
}

std::vector<mx::Shape> CrossEntropy::output_shapes(
    const std::vector<mx::array>& inputs) {
  return {inputs[1].shape(), inputs[1].shape(), inputs[1].shape()};
}

void CrossEntropyVJP::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  if (outputs[0].size() == 0) {
    return;
  }
  encoder(inputs, outputs)
      .dispatch([logits = HostMatrix::rows(inputs[0]),
                 targets = inputs[1].data<int32_t>(),
                 smoothing = options_.label_smoothing,
                 maximum = inputs[2].data<float>(),
                 sum = inputs[3].data<float>(),
                 d_loss = inputs[4].data<float>(),
                 d_logits = rows_of(outputs[0])] {
        trace::Span span(
            "cross_entropy_vjp", "", bytes_of(logits.view(), d_logits), 0);
        kernels::cross_entropy_backward(
            logits.view(), targets, smoothing, maximum, sum, d_loss, d_logits);
      });
}

std::vector<mx::Shape> CrossEntropyVJP::output_shapes(
    const std::vector<mx::array>& inputs) {
  return {inputs[0].shape()};
}

}  // namespace mlx_ane
