// Gemm: the BLAS or a device per batch element, with its own gradients as
// Gemms.
#include "ops/gemm.h"

#include "device/device_matmul.h"
#include "host/bytes.h"
#include "kernels/gemm.h"
#include "ops/failure.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"
#include "ops/streams.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

const char* span_name(Role role) {
  switch (role) {
    case Role::forward:
      return "gemm_forward";
    case Role::dx:
      return "gemm_dx";
    case Role::dw:
      return "gemm_dw";
    case Role::other:
      break;
  }
  return "gemm_other";
}

trace::Counter counter(Role role) {
  switch (role) {
    case Role::forward:
      return trace::Counter::gemm_forward;
    case Role::dx:
      return trace::Counter::gemm_dx;
    case Role::dw:
      return trace::Counter::gemm_dw;
    case Role::other:
      break;
  }
  return trace::Counter::gemm_other;
}

struct GemmTask {
  std::vector<HostMatrix> a;  // one per batch element
  std::vector<HostMatrix> b;
  MatrixOut c;  // of the first batch element; the others follow it
  GemmOptions options;
  std::shared_ptr<trace::Layer> layer;
  std::optional<TrackedTask> tracked;  // on a device

  void operator()() const {
    auto out = c;
    for (size_t i = 0; i < a.size(); ++i) {
      auto left = options.trans_a ? a[i].view().transposed() : a[i].view();
      auto right = options.trans_b ? b[i].view().transposed() : b[i].view();
      if (options.place.device && left.cols > 0) {
        tracked->run([&] {
          run_matmul(
              *options.place.device,
              {left, right.transposed(), {}, out, nullptr, layer});
        });
      } else {
        run_on_blas(left, right, out);
      }
      out.data =
          static_cast<char*>(out.data) +
          out.rows * out.row_stride * static_cast<int64_t>(size_of(out.type));
    }
  }

  void run_on_blas(
      const MatrixView& left,
      const MatrixView& right,
      const MatrixOut& out) const {
    trace::Span span(
        span_name(options.role),
        options.layer,
        bytes_of(left, right, out),
        2 * left.rows * left.cols * right.cols);
    trace::add(counter(options.role));
    kernels::gemm(left, right, nullptr, out);
  }
};

}  // namespace

mx::array gemm(
    const mx::array& a,
    const mx::array& b,
    const GemmOptions& options,
    mx::Stream stream) {
  auto primitive = std::make_shared<Gemm>(stream, options);
  auto shape = primitive->output_shapes({a, b})[0];
  return mx::array(shape, options.dtype, std::move(primitive), {a, b});
}

mx::array folded(const mx::array& x, mx::Stream s) {
  if (x.ndim() == 2) {
    return x;
  }
  return x.ndim() == 1 ? mx::expand_dims(x, 0, s) : mx::flatten(x, 0, -2, s);
}

mx::array matmul(
    const mx::array& a,
    const mx::array& b,
    const std::string& device,
    const std::string& layer,
    const mx::StreamOrDevice& stream) {
  auto dtype = product_type("matmul", {{"a", a}, {"b", b}});
  if (a.ndim() == 0 || b.ndim() == 0) {
    throw std::invalid_argument(
        "[mlx_ane.matmul] got a scalar, need arrays of at least one axis; "
        "multiply scalars with *.");
  }
  auto place = resolve_place("matmul", device);
  auto s = resolve_stream("matmul", stream, place);
  bool vector_a = a.ndim() == 1;
  bool vector_b = b.ndim() == 1;
  auto left = as_float(a, dtype, s);
  auto right = as_float(b, dtype, s);
  left = vector_a ? mx::expand_dims(left, 0, s) : left;
  right = vector_b ? mx::expand_dims(right, 1, s) : right;
  if (left.shape(-1) != right.shape(-2)) {
    throw std::invalid_argument(
        "[mlx_ane.matmul] got a " + to_string(a.shape()) + " and b " +
        to_string(b.shape()) +
        ", need a's last axis equal to b's second to last; transpose one.");
  }
  GemmOptions options;
  options.dtype = dtype;
  options.role = Role::forward;
  options.place = place;
  options.layer = layer;
  auto rows = left.shape();
  bool fold = left.ndim() > 2 && right.ndim() == 2;
  if (fold) {
    left = mx::flatten(left, 0, -2, s);
  } else if (left.ndim() > 2 || right.ndim() > 2) {
    auto batch = [](const mx::array& x) {
      return mx::Shape(x.shape().begin(), x.shape().end() - 2);
    };
    auto common = mx::broadcast_shapes(batch(left), batch(right));
    auto broadcast = [&](const mx::array& x) {
      auto shape = common;
      shape.push_back(x.shape(-2));
      shape.push_back(x.shape(-1));
      return shape == x.shape() ? x : mx::broadcast_to(x, shape, s);
    };
    left = broadcast(left);
    right = broadcast(right);
  }
  auto out = gemm(left, right, options, s);
  if (fold) {
    rows.back() = out.shape(-1);
    out = mx::reshape(out, rows, s);
  }
  if (vector_b) {
    out = mx::squeeze(out, -1, s);
  }
  return vector_a ? mx::squeeze(out, vector_b ? -1 : -2, s) : out;
}

void Gemm::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& a = inputs[0];
  auto& b = inputs[1];
  auto& c = outputs[0];
  allocate(c);
  if (c.size() == 0) {
    return;
  }
  if (options_.role == Role::forward) {
    trace::add(trace::Counter::matmul_calls);
    layer_->calls += 1;
    if (!options_.place.device) {
      layer_->place(trace::Placement::device_cpu);
    }
  }
  int64_t m = c.shape(-2);
  int64_t n = c.shape(-1);
  GemmTask task{
      {},
      {},
      {c.data<void>(), float_type(c.dtype()), m, n, n},
      options_,
      layer_,
      {}};
  if (options_.place.device) {
    task.tracked.emplace(stream(), c);
  }
  auto batches = static_cast<int64_t>(c.size()) / (m * n);
  for (int64_t i = 0; i < batches; ++i) {
    task.a.push_back(HostMatrix::batch(a, i));
    task.b.push_back(HostMatrix::batch(b, i));
  }
  encoder(inputs, outputs).dispatch(std::move(task));
}

std::vector<mx::array> Gemm::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  auto& a = primals[0];
  auto& b = primals[1];
  auto& dc = cotangents[0];
  auto s = stream();
  auto [ta, tb] = std::pair(options_.trans_a, options_.trans_b);
  GemmOptions options;
  options.layer = options_.layer;
  bool forward = options_.role == Role::forward;
  std::vector<mx::array> gradients;
  for (int argument : argnums) {
    options.dtype = primals[argument].dtype();
    if (argument == 0) {
      // da = dc op(b)ᵀ, or its transpose op(b) dcᵀ
      options.role = forward ? Role::dx : Role::other;
      options.trans_a = ta && tb;
      options.trans_b = ta || !tb;
      gradients.push_back(
          ta ? gemm(b, dc, options, s) : gemm(dc, b, options, s));
    } else {
      // db = op(a)ᵀ dc, or its transpose dcᵀ op(a)
      options.role = forward ? Role::dw : Role::other;
      options.trans_a = tb || !ta;
      options.trans_b = tb && ta;
      gradients.push_back(
          tb ? gemm(dc, a, options, s) : gemm(a, dc, options, s));
    }
  }
  return gradients;
}

std::vector<mx::array> Gemm::jvp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& tangents,
    const std::vector<int>& argnums) {
  // The derivative of the exact product: on the BLAS, whatever the forward.
  auto options = options_;
  options.role = Role::other;
  options.place = {};
  std::optional<mx::array> sum;
  for (size_t i = 0; i < argnums.size(); ++i) {
    auto operands = primals;
    operands[argnums[i]] = tangents[i];
    auto term = gemm(operands[0], operands[1], options, stream());
    sum = sum ? mx::add(*sum, term, stream()) : term;
  }
  return {*sum};
}

std::pair<std::vector<mx::array>, std::vector<int>> Gemm::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto s = stream();
  int64_t size =
      axes[0] >= 0 ? inputs[0].shape(axes[0]) : inputs[1].shape(axes[1]);
  auto batched = [&](int i) {
    if (axes[i] >= 0) {
      return mx::moveaxis(inputs[i], axes[i], 0, s);
    }
    auto shape = inputs[i].shape();
    shape.insert(shape.begin(), size);
    return mx::broadcast_to(inputs[i], shape, s);
  };
  return {{gemm(batched(0), batched(1), options_, s)}, {0}};
}

std::vector<mx::Shape> Gemm::output_shapes(
    const std::vector<mx::array>& inputs) {
  auto shape = inputs[0].shape();
  shape[shape.size() - 2] = inputs[0].shape(options_.trans_a ? -1 : -2);
  shape[shape.size() - 1] = inputs[1].shape(options_.trans_b ? -2 : -1);
  return {shape};
}

}  // namespace mlx_ane
