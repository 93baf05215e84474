// Attention: forward and backward each one task over kernels/attention.
#include "ops/attention.h"

#include "mlx/backend/cpu/encoder.h"
#include "mlx/fast.h"

#include "device/device_attention.h"
#include "device/runner.h"
#include "ops/failure.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"
#include "ops/streams.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

using Kind = kernels::Mask::Kind;
constexpr const char* op = "fast.scaled_dot_product_attention";

[[noreturn]] void bad(const std::string& got, const std::string& need) {
  throw std::invalid_argument(
      std::string("[mlx_ane.") + op + "] got " + got + ", need " + need + ".");
}

void check_shapes(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    const std::optional<mx::array>& sinks) {
  for (auto* x : {&q, &k, &v}) {
    if (x->ndim() != 4) {
      bad("an operand of shape " + to_string(x->shape()),
          "four axes (batch, heads, tokens, features)");
    }
  }
  auto shapes = "q " + to_string(q.shape()) + ", k " + to_string(k.shape()) +
                " and v " + to_string(v.shape());
  if (q.shape(0) != k.shape(0) || k.shape(0) != v.shape(0)) {
    bad(shapes, "equal batch sizes");
  }
  if (k.shape(1) != v.shape(1) || k.shape(1) == 0 ||
      q.shape(1) % k.shape(1) != 0) {
    bad(shapes, "k and v of equal heads that divide those of q");
  }
  if (q.shape(3) != k.shape(3) || k.shape(2) != v.shape(2)) {
    bad(shapes, "q and k of equal features, k and v of equal tokens");
  }
  if (sinks && sinks->shape() != mx::Shape{q.shape(1)}) {
    bad("sinks of shape " + to_string(sinks->shape()),
        "one value a head (" + std::to_string(q.shape(1)) + ",)");
  }
}

kernels::Heads heads(const mx::array& x) {
  kernels::Heads out;
  out.data = const_cast<void*>(x.data<void>());
  out.type = float_type(x.dtype());
  for (int i = 0; i < 4; ++i) {
    out.shape[i] = x.shape(i);
    out.strides[i] = x.strides(i);
  }
  return out;
}

/// The kernel's view of (q, k, v, [mask], [sinks]).
kernels::Attention kernel_call(
    const std::vector<mx::array>& inputs, const AttentionOptions& options) {
  kernels::Attention call{
      heads(inputs[0]),
      heads(inputs[1]),
      heads(inputs[2]),
      options.scale,
      {},
      nullptr};
  call.mask.kind = options.mask;
  size_t next = 3;
  if (options.mask == Kind::boolean || options.mask == Kind::additive) {
    auto& mask = inputs[next++];
    call.mask.data = mask.data<void>();
    call.mask.type = float_type(mask.dtype());
    for (int i = 0; i < 4; ++i) {
      call.mask.strides[i] = mask.shape(i) == 1 ? 0 : mask.strides(i);
    }
  }
  if (options.sinks) {
    call.sinks = inputs[next].data<float>();
  }
  return call;
}

size_t operands(const AttentionOptions& options) {
  bool array = options.mask == Kind::boolean || options.mask == Kind::additive;
  return 3 + array + options.sinks;
}

int64_t flops(const kernels::Attention& call) {
  auto& q = call.q.shape;
  return 2 * q[0] * q[1] * q[2] * call.k.shape[2] * (q[3] + call.v.shape[3]);
}

/// The gradient of the exact layer after a forward on a device: its fp32 output
/// and logsumexp are computed here.
void backward_of_exact(
    const kernels::Attention& call,
    const kernels::Heads& d_out,
    const kernels::Heads& dq,
    const kernels::Heads& dk,
    const kernels::Heads& dv,
    float* d_sinks) {
  auto [batch, count, rows, features] = call.q.shape;
  auto values = call.v.shape[3];
  std::vector<float> exact(batch * count * rows * values);
  std::vector<float> logsumexp(batch * count * rows);
  kernels::Heads out{
      exact.data(),
      Float::f32,
      {batch, count, rows, values},
      {count * rows * values, rows * values, values, 1}};
  kernels::attention_forward(call, out, logsumexp.data());
  kernels::attention_backward(
      call, out, logsumexp.data(), d_out, dq, dk, dv, d_sinks);
}

/// The same in MLX's ops: (out, logsumexp).
Fused::Function composed(const AttentionOptions& options, mx::Stream s) {
  return [options, s](const std::vector<mx::array>& in) {
    std::optional<mx::array> mask, sinks;
    if (options.mask == Kind::boolean || options.mask == Kind::additive) {
      mask = in[3];
    }
    if (options.sinks) {
      sinks = in.back();
    }
    bool causal = options.mask == Kind::causal;
    auto out = mx::fast::scaled_dot_product_attention(
        in[0],
        in[1],
        in[2],
        options.scale,
        causal ? "causal" : "",
        mask,
        sinks ? std::optional(mx::astype(*sinks, in[0].dtype(), s)) : sinks,
        false,
        s);
    auto repeats = in[0].shape(1) / in[1].shape(1);
    auto k = mx::swapaxes(mx::repeat(in[1], repeats, 1, s), -1, -2, s);
    auto scores = mx::multiply(
        mx::astype(mx::matmul(in[0], k, s), mx::float32, s),
        mx::array(options.scale),
        s);
    auto hidden = mx::array(-std::numeric_limits<float>::infinity());
    if (causal) {
      auto rows = in[0].shape(2), keys = in[1].shape(2);
      auto seen = mx::tri(rows, keys, keys - rows, mx::bool_, s);
      scores = mx::where(seen, scores, hidden, s);
    } else if (options.mask == Kind::boolean) {
      scores = mx::where(*mask, scores, hidden, s);
    } else if (mask) {
      scores = mx::add(scores, *mask, s);
    }
    if (sinks) {
      auto shape = scores.shape();
      shape.back() = 1;
      auto column = mx::reshape(*sinks, {1, shape[1], 1, 1}, s);
      scores =
          mx::concatenate({mx::broadcast_to(column, shape, s), scores}, -1, s);
    }
    return std::vector<mx::array>{out, mx::logsumexp(scores, -1, false, s)};
  };
}

}  // namespace

mx::array attention(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    float scale,
    const std::optional<mx::array>& mask,
    const std::optional<mx::array>& sinks,
    bool causal,
    const std::string& device,
    const mx::StreamOrDevice& stream) {
  check_float(op, "q", q);
  check_float(op, "k", k);
  check_float(op, "v", v);
  check_shapes(q, k, v, sinks);
  if (causal && mask) {
    bad("both causal and a mask array", "one of them");
  }
  auto place = resolve_place(op, device);
  auto s = resolve_stream(op, stream, place);
  auto dtype =
      mx::promote_types(mx::promote_types(q.dtype(), k.dtype()), v.dtype());
  std::vector<mx::array> inputs{
      mx::astype(q, dtype, s),
      mx::astype(k, dtype, s),
      mx::astype(v, dtype, s)};
  AttentionOptions options{
      scale, causal ? Kind::causal : Kind::none, sinks.has_value(), place};
  mx::Shape scores{q.shape(0), q.shape(1), q.shape(2), k.shape(2)};
  if (mask) {
    bool boolean = mask->dtype() == mx::bool_;
    if (!boolean) {
      check_float(op, "mask", *mask);
    }
    if (mx::broadcast_shapes(mask->shape(), scores) != scores) {
      bad("mask of shape " + to_string(mask->shape()),
          "one that broadcasts to " + to_string(scores));
    }
    options.mask = boolean ? Kind::boolean : Kind::additive;
    inputs.push_back(mx::broadcast_to(*mask, scores, s));
  }
  if (sinks) {
    check_float(op, "sinks", *sinks);
    inputs.push_back(
        mx::contiguous(mx::astype(*sinks, mx::float32, s), false, s));
  }
  auto primitive =
      std::make_shared<Attention>(s, options, composed(options, s));
  auto shapes = primitive->output_shapes(inputs);
  return mx::array::make_arrays(
      shapes, {dtype, mx::float32}, primitive, inputs)[0];
}

void Attention::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  if (outputs[0].size() == 0) {
    return;
  }
  layer_->calls += 1;
  auto& encoder = mx::cpu::get_command_encoder(stream());
  auto call = kernel_call(inputs, options_);
  auto out = heads(outputs[0]);
  if (!options_.place.device) {
    layer_->place(trace::Placement::device_cpu);
    encoder.dispatch([call, out, logsumexp = outputs[1].data<float>()] {
      trace::Span span("attention", op, 0, flops(call));
      kernels::attention_forward(call, out, logsumexp);
    });
    return;
  }
  auto scope = FailureScope::enter();
  auto id = outputs[0].id();
  scope->encode(id);
  encoder.dispatch([call,
                    out,
                    scope,
                    id,
                    stream = stream(),
                    layer = layer_,
                    device = options_.place.device] {
    try {
      run_attention(*device, call, out, *layer);
    } catch (const DeviceFailure&) {
      scope->fail(stream, id);
      throw;
    }
  });
}

std::vector<mx::array> Attention::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>& outputs) {
  auto n = operands(options_);
  bool array_mask = n > 3u + options_.sinks;
  for (int i : argnums) {
    if (i == 3 && array_mask) {
      // A trained mask has no kernel.
      return Fused::vjp(primals, cotangents, argnums, outputs);
    }
  }
  auto s = stream();
  auto inputs = primals;
  inputs.insert(inputs.end(), outputs.begin(), outputs.end());
  inputs.push_back(cotangents[0]);
  std::vector<int> trained{0, 1, 2};
  if (options_.sinks) {
    trained.push_back(static_cast<int>(n) - 1);
  }
  // The gradient of the gradient, where it is asked for, goes through MLX's
  // ops.
  auto gradients_of =
      [forward = composition_, trained, n](const std::vector<mx::array>& in) {
        std::vector<mx::array> asked;
        for (int i : trained) {
          asked.push_back(in[i]);
        }
        auto out_only = [&](const std::vector<mx::array>& some) {
          std::vector<mx::array> all(in.begin(), in.begin() + n);
          for (size_t j = 0; j < trained.size(); ++j) {
            all[trained[j]] = some[j];
          }
          return std::vector<mx::array>{forward(all)[0]};
        };
        return mx::vjp(out_only, asked, {in.back()}).second;
      };
  auto primitive = std::make_shared<AttentionVJP>(s, options_, gradients_of);
  std::vector<mx::Dtype> dtypes;
  for (int i : trained) {
    dtypes.push_back(primals[i].dtype());
  }
  auto gradients = mx::array::make_arrays(
      primitive->output_shapes(inputs), dtypes, primitive, inputs);
  std::vector<mx::array> asked;
  for (int i : argnums) {
    asked.push_back(gradients[i < 3 ? i : 3]);
  }
  return asked;
}

bool Attention::is_equivalent(const mx::Primitive& other) const {
  return options_ == static_cast<const Attention&>(other).options_;
}

std::vector<mx::Shape> Attention::output_shapes(
    const std::vector<mx::array>& inputs) {
  auto out = inputs[0].shape();
  out[3] = inputs[2].shape(3);
  return {out, {out[0], out[1], out[2]}};
}

void AttentionVJP::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  auto n = operands(options_);
  if (inputs[n].size() == 0) {
    for (auto& out : outputs) {
      std::fill_n(out.data<char>(), out.nbytes(), 0);
    }
    return;
  }
  mx::cpu::get_command_encoder(stream()).dispatch(
      [call = kernel_call(inputs, options_),
       out = heads(inputs[n]),
       logsumexp = inputs[n + 1].data<float>(),
       d_out = heads(inputs[n + 2]),
       dq = heads(outputs[0]),
       dk = heads(outputs[1]),
       dv = heads(outputs[2]),
       d_sinks = options_.sinks ? outputs[3].data<float>() : nullptr,
       recompute = options_.place.device != nullptr] {
        trace::Span span("attention_vjp", op, 0, 5 * flops(call) / 2);
        if (recompute) {
          backward_of_exact(call, d_out, dq, dk, dv, d_sinks);
        } else {
          kernels::attention_backward(
              call, out, logsumexp, d_out, dq, dk, dv, d_sinks);
        }
      });
}

bool AttentionVJP::is_equivalent(const mx::Primitive& other) const {
  return options_ == static_cast<const AttentionVJP&>(other).options_;
}

std::vector<mx::Shape> AttentionVJP::output_shapes(
    const std::vector<mx::array>& inputs) {
  std::vector<mx::Shape> shapes{
      inputs[0].shape(), inputs[1].shape(), inputs[2].shape()};
  if (options_.sinks) {
    shapes.push_back(inputs[operands(options_) - 1].shape());
  }
  return shapes;
}

}  // namespace mlx_ane
