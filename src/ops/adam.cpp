// Adam: a gate that depends on all gradients, then one fused loop per tensor.
#include "ops/adam.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "device/weight_update.h"
#include "host/bytes.h"
#include "ops/failure.h"
#include "ops/host_matrix.h"
#include "ops/streams.h"
#include "trace/counters.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

// Tensors of one AdamUpdate. MLX copies all inputs and all other outputs into
// each output: O(n²), more than a node and a task cost from four tensors on.
constexpr size_t group_size = 4;

/// Layout of the gate's output.
enum Gate { learning_rate, c1, c2, step_number, clip, skip, gate_size };

void check_tensor(
    size_t i,
    const mx::array& p,
    const mx::array& g,
    const mx::array& m,
    const mx::array& v) {
  check_float("adam", "a parameter", p);
  check_float("adam", "a gradient", g);
  check_float("adam", "m", m);
  check_float("adam", "v", v);
  if (g.shape() != p.shape() || m.shape() != p.shape() ||
      v.shape() != p.shape()) {
    throw std::invalid_argument(
        "[mlx_ane.adam] got tensor " + std::to_string(i) + " with parameter " +
        to_string(p.shape()) + ", gradient " + to_string(g.shape()) + ", m " +
        to_string(m.shape()) + " and v " + to_string(v.shape()) +
        ", need equal shapes.");
  }
  if (m.dtype() != v.dtype()) {
    throw std::invalid_argument(
        "[mlx_ane.adam] got m of dtype " + to_string(m.dtype()) +
        " and v of dtype " + to_string(v.dtype()) + ", need equal dtypes.");
  }
}

/// The norm of all gradients together, in double.
double global_norm(const std::vector<HostMatrix>& gradients) {
  double sum = 0;
  for (auto& gradient : gradients) {
    auto g = gradient.view();
    sum += kernels::sum_of_squares(g.data, g.type, g.cols);
  }
  return std::sqrt(sum);
}

struct GateTask {
  const float* scalars;
  std::vector<HostMatrix> gradients;
  std::optional<double> max_norm;
  std::shared_ptr<FailureScope> scope;
  float* out;

  void operator()() const {
    std::memcpy(out, scalars, 4 * sizeof(float));
    std::optional<double> norm;
    auto global_norm_once = [&] {
      if (!norm) {
        int64_t bytes = 0;
        for (auto& gradient : gradients) {
          bytes += bytes_of(gradient.view());
        }
        trace::Span span("gradient_norm", "", bytes, 0);
        norm = global_norm(gradients);
      }
      return *norm;
    };
    bool skipped =
        scope->must_skip([&] { return std::isfinite(global_norm_once()); });
    if (skipped) {
      trace::add(trace::Counter::adam_skipped);
    }
    // As mlx.optimizers.clip_grad_norm.
    out[clip] = max_norm ? static_cast<float>(std::min(
                               *max_norm / (global_norm_once() + 1e-6), 1.0))
                         : 1.0f;
    out[skip] = skipped ? 1.0f : 0.0f;
    trace::add(trace::Counter::adam_steps);
  }
};

/// One tensor of an update.
struct TensorTask {
  HostMatrix p, g, m, v;
  void* p_out;
  void* m_out;
  void* v_out;
  std::vector<std::shared_ptr<WeightUpdate>> staged;
};

/// Rows of a parameter that are updated and then packed at a time: what they
/// take stays in L2.
constexpr int64_t band_elements = 16384;

/// The rows of `staged` that are the parameter's elements one by one, as wide
/// as a row; 0 where an entry has others.
int64_t common_row(
    const std::vector<std::shared_ptr<WeightUpdate>>& staged,
    const void* p,
    int64_t n) {
  auto row = staged[0]->weight().cols;
  bool common = std::all_of(staged.begin(), staged.end(), [&](auto& update) {
    auto& w = update->weight();
    return w.data == p && w.rows * w.cols == n && w.cols == row &&
           w.col_stride == 1 && w.row_stride == row;
  });
  return common ? row : 0;
}

/// Adam on a parameter that engines hold: its new rows are packed while they
/// are in cache.
void adam_and_pack(
    const kernels::AdamTensor& tensor,
    const kernels::AdamStep& step,
    const std::vector<std::shared_ptr<WeightUpdate>>& staged) {
  for (auto& update : staged) {
    update->begin();
  }
  auto row = common_row(staged, tensor.p_out, tensor.n);
  auto rows = row ? std::max<int64_t>(1, band_elements / row / 32) * 32 : 0;
  auto band = row ? rows * row : tensor.n;
  for (int64_t i = 0; i < tensor.n; i += band) {
    auto n = std::min(band, tensor.n - i);
    kernels::adam(kernels::part(tensor, i, n), step);
    for (auto& update : staged) {
      update->write(row ? i / row : 0, row ? (i + n) / row : update->rows());
    }
  }
  for (auto& update : staged) {
    update->finish();
  }
}

struct UpdateTask {
  const float* gate;
  std::vector<TensorTask> tensors;
  AdamOptions options;
  int first;

  void operator()() const {
    kernels::AdamStep step{
        .options = options,
        .learning_rate = gate[Gate::learning_rate],
        .c1 = gate[Gate::c1],
        .c2 = gate[Gate::c2],
        .gradient_scale = gate[Gate::clip]};
    auto number = static_cast<uint64_t>(gate[Gate::step_number]);
    for (size_t i = 0; i < tensors.size(); ++i) {
      auto& t = tensors[i];
      auto p = t.p.view();
      auto m = t.m.view();
      auto v = t.v.view();
      auto size = static_cast<int64_t>(size_of(p.type));
      auto state_size = static_cast<int64_t>(size_of(m.type));
      trace::Span span("adam", "", p.cols * (2 * size + 4 * state_size + 4), 0);
      if (gate[Gate::skip] != 0.0f) {
        pass_through(p, t.p_out);
        pass_through(m, t.m_out);
        pass_through(v, t.v_out);
        for (auto& update : t.staged) {
          update->keep();
        }
        continue;
      }
      auto g = t.g.view();
      step.seed = number << 20 | (first + i);
      kernels::AdamTensor tensor{
          p.data,
          g.data,
          m.data,
          v.data,
          t.p_out,
          t.m_out,
          t.v_out,
          p.cols,
          p.type,
          g.type,
          m.type};
      if (t.staged.empty()) {
        kernels::adam(tensor, step);
      } else {
        adam_and_pack(tensor, step, t.staged);
      }
    }
  }

  static void pass_through(const MatrixView& from, void* to) {
    if (from.data != to) {
      std::memcpy(to, from.data, from.cols * size_of(from.type));
    }
  }
};

/// Takes the staged copies of the parameters, which share their ownership.
/// Waits first, once a step, for encoded tasks that still read a parameter,
/// such as its dx product: they keep it from being donated, and may stage it.
std::vector<WeightStore::Entries> take_staged(
    const std::vector<mx::array>& inputs, mx::Stream s) {
  bool held = false;
  for (size_t i = 1; i < inputs.size(); i += 4) {
    auto& buffer = inputs[i].data_shared_ptr();
    int owners = weight_store().owns(buffer) ? 2 : 1;
    held |= !inputs[i].is_tracer() && buffer.use_count() > owners;
  }
  if (held) {
    wait_for(s);
  }
  std::vector<WeightStore::Entries> staged;
  for (size_t i = 1; i < inputs.size(); i += 4) {
    staged.push_back(weight_store().take(inputs[i].data_shared_ptr()));
  }
  return staged;
}

/// Gives `out` the buffer of `in` if nobody else holds it, else a new one; true
/// if it is the old one.
bool donate_or_allocate(const mx::array& in, mx::array& out) {
  bool donated = in.is_donatable() && in.flags().row_contiguous;
  if (donated) {
    out.copy_shared_buffer(in);
  } else {
    out.set_data(mx::allocator::malloc(out.nbytes()));
  }
  return donated;
}

}  // namespace

AdamResult adam(
    const std::vector<mx::array>& parameters,
    const std::vector<mx::array>& gradients,
    const std::vector<mx::array>& m,
    const std::vector<mx::array>& v,
    const mx::array& scalars,
    const AdamOptions& options,
    const mx::StreamOrDevice& stream) {
  auto n = parameters.size();
  if (gradients.size() != n || m.size() != n || v.size() != n) {
    throw std::invalid_argument(
        "[mlx_ane.adam] got " + std::to_string(n) + " parameters, " +
        std::to_string(gradients.size()) + " gradients, " +
        std::to_string(m.size()) + " m and " + std::to_string(v.size()) +
        " v, need as many of each.");
  }
  if (scalars.dtype() != mx::float32 || scalars.shape() != mx::Shape{4}) {
    throw std::invalid_argument(
        "[mlx_ane.adam] got scalars of shape " + to_string(scalars.shape()) +
        " and dtype " + to_string(scalars.dtype()) +
        ", need float32 of shape (4,).");
  }
  for (size_t i = 0; i < n; ++i) {
    check_tensor(i, parameters[i], gradients[i], m[i], v[i]);
  }
  auto s = resolve_stream("adam", stream);
  std::vector<mx::array> gate_inputs{mx::contiguous(scalars, false, s)};
  gate_inputs.insert(gate_inputs.end(), gradients.begin(), gradients.end());
  mx::array gate(
      mx::Shape{gate_size},
      mx::float32,
      std::make_shared<AdamGate>(s, options),
      std::move(gate_inputs));
  AdamResult result;
  for (size_t first = 0; first < n; first += group_size) {
    auto last = std::min(n, first + group_size);
    std::vector<mx::array> inputs{gate};
    std::vector<mx::Shape> shapes;
    std::vector<mx::Dtype> dtypes;
    inputs.reserve(1 + 4 * (last - first));
    for (size_t i = first; i < last; ++i) {
      inputs.insert(inputs.end(), {parameters[i], gradients[i], m[i], v[i]});
      shapes.insert(shapes.end(), 3, parameters[i].shape());
      dtypes.insert(
          dtypes.end(), {parameters[i].dtype(), m[i].dtype(), v[i].dtype()});
    }
    auto outputs = mx::array::make_arrays(
        std::move(shapes),
        dtypes,
        std::make_shared<AdamUpdate>(
            s, AdamUpdateOptions{options, static_cast<int>(first)}),
        inputs);
    for (size_t i = 0; i < outputs.size(); i += 3) {
      result.parameters.push_back(outputs[i]);
      result.m.push_back(outputs[i + 1]);
      result.v.push_back(outputs[i + 2]);
    }
  }
  return result;
}

void AdamGate::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  // A step may have no device task before it that clears an old mark.
  auto scope = FailureScope::enter();
  auto& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  GateTask task{
      inputs[0].data<float>(), {}, options_.max_norm, scope, out.data<float>()};
  for (size_t i = 1; i < inputs.size(); ++i) {
    task.gradients.push_back(HostMatrix::flat(inputs[i]));
  }
  encoder(inputs, outputs).dispatch(std::move(task));
}

std::vector<mx::Shape> AdamGate::output_shapes(const std::vector<mx::array>&) {
  return {{gate_size}};
}

void AdamUpdate::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  // A sibling of an update that was encoded before an exception ended its eval:
  // its task has run.
  if (inputs.empty()) {
    return;
  }
  // Each sibling's copy of the inputs would keep them from being donated; MLX
  // drops these copies right after this call anyway.
  std::vector<mx::array*> cleared;
  for (auto& out : outputs) {
    if (!out.is_tracer() && &out.inputs() != &inputs) {
      out.inputs().clear();
      cleared.push_back(&out);
    }
  }
  try {
    encode(inputs, outputs);
  } catch (...) {
    // An earlier task's exception: a retry of this graph needs its inputs.
    for (auto* out : cleared) {
      out->inputs() = inputs;
    }
    throw;
  }
}

void AdamUpdate::encode(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto staged = take_staged(inputs, stream());
  UpdateTask task{inputs[0].data<float>(), {}, options_.adam, options_.first};
  task.tensors.reserve(outputs.size() / 3);
  int64_t donated = 0;
  for (size_t i = 0; 3 * i < outputs.size(); ++i) {
    auto& p = inputs[1 + 4 * i];
    auto& g = inputs[2 + 4 * i];
    auto& m = inputs[3 + 4 * i];
    auto& v = inputs[4 + 4 * i];
    TensorTask tensor{
        HostMatrix::flat(p),
        HostMatrix::flat(g),
        HostMatrix::flat(m),
        HostMatrix::flat(v),
        nullptr,
        nullptr,
        nullptr,
        {}};
    bool in_place = donate_or_allocate(p, outputs[3 * i]);
    donated += in_place;
    donated += donate_or_allocate(m, outputs[3 * i + 1]);
    donated += donate_or_allocate(v, outputs[3 * i + 2]);
    tensor.p_out = outputs[3 * i].data<void>();
    tensor.m_out = outputs[3 * i + 1].data<void>();
    tensor.v_out = outputs[3 * i + 2].data<void>();
    tensor.staged = weight_store().renew(
        std::move(staged[i]),
        outputs[3 * i].data_shared_ptr(),
        p.data<void>(),
        tensor.p_out,
        p.flags().row_contiguous ? p.nbytes() : 0,
        in_place);
    task.tensors.push_back(std::move(tensor));
  }
  auto allocated = static_cast<int64_t>(outputs.size()) - donated;
  trace::add(trace::Counter::adam_donated, donated);
  trace::add(trace::Counter::adam_allocated, allocated);
  trace::add(trace::Counter::adam_tensors, task.tensors.size());
  encoder(inputs, outputs).dispatch(std::move(task));
}

std::vector<mx::Shape> AdamUpdate::output_shapes(
    const std::vector<mx::array>& inputs) {
  std::vector<mx::Shape> shapes;
  for (size_t i = 1; i + 3 < inputs.size(); i += 4) {
    shapes.insert(shapes.end(), 3, inputs[i].shape());
  }
  return shapes;
}

}  // namespace mlx_ane
