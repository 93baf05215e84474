// Packs the ports of a block program, evaluates it, and checks what comes back.
#include "device/block.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "device/emulated/graph.h"
#include "device/executables.h"
#include "device/runner.h"
#include "device/weights.h"
#include "host/half.h"
#include "host/loops.h"
#include "host/rows.h"
#include "kernels/pack.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

using trace::Counter;
using trace::Placement;

// The largest cotangent lies in [8, 16) after scaling: at 2^11 backward
// programs overflow, below 2^-6 an accumulator in fixed point loses them.
constexpr int log2_cotangent = 4;
// A second try after a result overflowed: seven bits more of room.
constexpr int log2_retry = log2_cotangent - 7;

int64_t rows_of(const Port& port) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < port.shape.size(); ++i) {
    rows *= port.shape[i];
  }
  return rows;
}

MatrixView as_packed(const MatrixView& x, const BlockPart& part) {
  return part.transposed ? x.transposed() : x;
}

/// What the parts of a port hold, as they are packed.
struct Values {
  Values(const BlockCall& call, const BlockPort& port)
      : dense(port.parts.size()) {
    for (auto& part : port.parts) {
      auto all = call.values(part.input, dense[x.size()]);
      x.push_back(as_packed(all, part));
    }
  }
  std::vector<std::vector<float>> dense;  // of quantised parts
  std::vector<MatrixView> x;
};

class DeviceBlock {
 public:
  DeviceBlock(Device& device, const BlockCall& call)
      : device_(device), call_(call), block_(*call.program) {
  }

  /// Whether inputs are in the device's range and its program has room. Packs
  /// the inputs: what is frozen is looked at when it is staged.
  std::optional<Placement> supports() {
    if (!choose_scale()) {
      return Placement::out_of_range;
    }
    auto found = executable_cache().get(device_, BlockShape{call_.program});
    program_ = found.program;
    if (!program_) {
      return found.reason;
    }
    std::unique_lock lock(program_->mutex);
    for (size_t i = 0; i < block_.inputs.size(); ++i) {
      surfaces_.push_back(port(i));
      if (!surfaces_.back()) {
        return Placement::out_of_range;
      }
    }
    lock_ = std::move(lock);
    return std::nullopt;
  }

  void run() {
    auto lock = std::move(lock_);
    evaluate(surfaces_);
    bool finite = unpack();
    if (!finite && block_.cotangents > 0) {
      trace::add(Counter::block_retried);
      exponent_ += log2_retry - log2_cotangent;
      for (size_t i = 0; i < block_.inputs.size(); ++i) {
        if (is_cotangent(block_.inputs[i])) {
          surfaces_[i] = port(i);
        }
      }
      evaluate(surfaces_);
      finite = unpack();
    }
    if (!finite) {
      throw DeviceError(
          Cause::nonfinite, "a result of finite operands is not finite");
    }
    lock.unlock();
    static std::atomic<int64_t> calls{0};
    auto interval = runner_settings().spot_check;
    if (interval > 0 && ++calls % interval == 0) {
      spot_check();
    }
  }

 private:
  /// Compares the results with the host's. Their rounding is a few thousandths;
  /// more than an eighth of the norm is no rounding.
  void spot_check() const {
    trace::add(Counter::spot_checks);
    std::vector<std::vector<float>> expected;
    std::vector<float*> y;
    for (auto& result : block_.outputs) {
      expected.emplace_back(rows_of(result.port) * result.columns);
      y.push_back(expected.back().data());
    }
    block_.run_on_host(call_, y);
    for (size_t i = 0; i < expected.size(); ++i) {
      auto& result = block_.outputs[i];
      // Below fp16's normal numbers, nothing is asked of the engine.
      auto least = std::ldexp(1.0, -14 - (result.scaled ? exponent_ : 0));
      double norm = 0.0, off = 0.0;
      for (size_t j = 0; j < expected[i].size(); ++j) {
        double want = expected[i][j], got = call_.y[i][j];
        norm += want * want + least * least;
        off += (got - want) * (got - want);
      }
      if (off > norm / 64) {
        throw DeviceError(
            Cause::wrong_values,
            result.port.name + " is off by " + std::to_string(std::sqrt(off)) +
                " in norm, need less than an eighth of " +
                std::to_string(std::sqrt(norm)));
      }
    }
  }

  /// False where an input is not finite or does not fit fp16. Frozen ones are
  /// looked at when they are staged.
  bool choose_scale() {
    float cotangent = 0.0f;
    for (int i = 0; i < static_cast<int>(call_.x.size()); ++i) {
      if (i < block_.cotangents) {
        auto value = host::largest(call_.x[i]);
        cotangent = std::isnan(value) ? value : std::max(cotangent, value);
      } else if (!call_.frozen[i] && !fits(call_.x[i])) {
        return false;
      }
    }
    if (!std::isfinite(cotangent)) {
      return false;
    }
    int exponent = 0;
    std::frexp(cotangent, &exponent);
    exponent_ = cotangent > 0.0f ? log2_cotangent - exponent : 0;
    return true;
  }

  static bool fits(const MatrixView& x) {
    return host::largest(x) <= 65504.0f;  // false for NaN
  }

  bool is_cotangent(const BlockPort& port) const {
    return !port.parts.empty() && port.parts[0].input < block_.cotangents;
  }

  bool is_frozen(const BlockPort& port) const {
    return !port.parts.empty() &&
           std::all_of(port.parts.begin(), port.parts.end(), [&](auto& part) {
             return call_.frozen[part.input] != nullptr;
           });
  }

  /// The surface of a port, filled; null if a frozen input does not fit fp16.
  std::shared_ptr<Surface> port(size_t i) {
    auto& port = block_.inputs[i];
    auto& own = program_->inputs[i];
    if (!port.table.empty()) {
      if (!program_->tables_written) {
        write_table(port, *own);
      }
      return own;
    }
    if (!is_frozen(port)) {
      pack(
          port,
          Values(call_, port),
          *own,
          "pack_x",
          Counter::block_packed_bytes);
      return own;
    }
    auto staged = stored(port, *own);
    if (staged && staged->ready()) {
      return staged->tiles()[0].surface;
    }
    Values values(call_, port);
    if (!std::all_of(values.x.begin(), values.x.end(), fits)) {
      return nullptr;
    }
    if (!staged || !staged->claim()) {
      pack(port, values, *own, "pack_w", Counter::weights_packed_bytes);
      return own;
    }
    try {
      auto surface = device_.make_surface(own->bytes(), port.port);
      pack(port, values, *surface, "stage", Counter::weights_staged_bytes);
      auto& part = port.parts[0];  // optimizers write ports of one part
      auto x = as_packed(call_.x[part.input], part);
      auto stride = row_bytes(port.port);
      staged->fill(
          {{surface,
            {},
            {.rows = x.rows,
             .columns = x.cols,
             .first = part.row,
             .row_bytes = stride,
             .port = port.port}}});
      return surface;
    } catch (...) {
      staged->abandon();
      throw;
    }
  }

  std::shared_ptr<StagedWeight> stored(
      const BlockPort& port, const Surface& own) {
    std::vector<WeightStore::Part> parts;
    for (auto& part : port.parts) {
      auto quantized = call_.quantized.find(part.input);
      parts.push_back(
          {call_.frozen[part.input],
           as_packed(call_.x[part.input], part),
           part.row,
           quantized == call_.quantized.end()
               ? std::vector<WeightStore::Owner>{}
               : quantized->second.companions});
    }
    return weight_store().get(device_, parts, own.bytes(), port.port);
  }

  void pack(
      const BlockPort& port,
      const Values& values,
      Surface& surface,
      const char* span_name,
      Counter counter) {
    auto bytes = static_cast<int64_t>(surface_bytes(port.port));
    trace::Span span(span_name, call_.layer->name, bytes, 0);
    trace::add(counter, bytes);
    call_.layer->bytes += bytes;
    SurfaceLock lock(surface, Surface::Access::write);
    auto* dst = reinterpret_cast<uint16_t*>(lock.data());
    auto ld = static_cast<int64_t>(row_bytes(port.port) / sizeof(uint16_t));
    int64_t rows = rows_of(port.port), next = 0;
    for (size_t i = 0; i < port.parts.size(); ++i) {
      auto& part = port.parts[i];
      auto& x = values.x[i];
      std::fill(dst + next * ld, dst + part.row * ld, uint16_t{0});
      std::vector<int16_t> exponents(
          part.input < block_.cotangents ? x.rows : 0,
          static_cast<int16_t>(exponent_));
      kernels::pack(x, exponents, dst + part.row * ld, ld, x.rows, ld);
      next = part.row + x.rows;
    }
    std::fill(dst + next * ld, dst + rows * ld, uint16_t{0});
  }

  void write_table(const BlockPort& port, Surface& surface) {
    SurfaceLock lock(surface, Surface::Access::write);
    int64_t columns = port.port.shape.back();
    auto stride = row_bytes(port.port);
    for (int64_t r = 0; r < rows_of(port.port); ++r) {
      auto* row = lock.data() + r * stride;
      std::memset(row, 0, stride);
      std::memcpy(
          row, port.table.data() + r * columns, columns * sizeof(uint16_t));
    }
  }

  void evaluate(const std::vector<std::shared_ptr<Surface>>& surfaces) {
    program_->tables_written = true;
    for (size_t i = 0; i < block_.outputs.size(); ++i) {
      SurfaceLock lock(*program_->outputs[i], Surface::Access::write);
      auto* data = reinterpret_cast<uint16_t*>(lock.data());
      auto bytes = surface_bytes(block_.outputs[i].port);
      std::fill_n(data, bytes / sizeof(uint16_t), host::canary);
    }
    int64_t bytes = 0;
    auto add = [&](auto& ports) {
      for (auto& port : ports) {
        bytes += static_cast<int64_t>(surface_bytes(port.port));
      }
    };
    add(block_.inputs);
    add(block_.outputs);
    LoadedProgram::evaluate(
        device_, program_, surfaces, *call_.layer, bytes, 0);
  }

  /// Results to y; false if one is not finite. Throws if one was not written.
  bool unpack() {
    bool finite = true;
    for (size_t i = 0; i < block_.outputs.size(); ++i) {
      auto& result = block_.outputs[i];
      auto rows = rows_of(result.port);
      auto bytes = static_cast<int64_t>(surface_bytes(result.port));
      trace::Span span("unpack", call_.layer->name, bytes, 0);
      call_.layer->bytes += bytes;
      SurfaceLock lock(*program_->outputs[i], Surface::Access::read);
      auto ld = static_cast<int64_t>(row_bytes(result.port) / sizeof(uint16_t));
      std::vector<int16_t> row_exponents(
          rows, static_cast<int16_t>(result.scaled ? exponent_ : 0));
      std::vector<int16_t> column_exponents(result.columns, 0);
      std::vector<uint8_t> row_finite(rows, 1),
          column_finite(result.columns, 1);
      auto report = kernels::unpack(
          reinterpret_cast<const uint16_t*>(lock.data()),
          ld,
          rows,
          result.columns,
          row_exponents,
          column_exponents,
          row_finite,
          column_finite,
          call_.y[i],
          result.columns,
          false,
          {},
          {});
      if (report.canaries > 0) {
        throw DeviceError(
            Cause::wrote_nothing,
            std::to_string(report.canaries) + " of " +
                std::to_string(rows * result.columns) + " elements of " +
                result.port.name + " were not written");
      }
      finite &= report.nonfinite == 0;
    }
    return finite;
  }

  Device& device_;
  const BlockCall& call_;
  const BlockProgram& block_;
  std::shared_ptr<LoadedProgram> program_;
  std::vector<std::shared_ptr<Surface>> surfaces_;
  std::unique_lock<std::mutex> lock_;  // of the program, from supports to run
  int exponent_ = 0;
};

uint64_t next_id() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

BlockProgram::BlockProgram(
    mil::Program program,
    std::vector<BlockPort> inputs,
    std::vector<BlockResult> outputs,
    int cotangents)
    : inputs(std::move(inputs)),
      outputs(std::move(outputs)),
      cotangents(cotangents),
      id(next_id()),
      program_(std::move(program)) {
}

BlockProgram::~BlockProgram() = default;

bool BlockProgram::has_own_port(int input) const {
  return std::all_of(inputs.begin(), inputs.end(), [&](auto& port) {
    auto& parts = port.parts;
    return parts.size() == 1 ||
           std::none_of(parts.begin(), parts.end(), [&](auto& part) {
             return part.input == input;
           });
  });
}

Source BlockProgram::source(mil::Dialect dialect) const {
  Source source{mil::write(program_, dialect), {}, {}, {}};
  for (auto& input : inputs) {
    source.inputs.push_back(input.port);
  }
  for (auto& output : outputs) {
    source.outputs.push_back(output.port);
  }
  return source;
}

void BlockProgram::run_on_host(
    const BlockCall& call, const std::vector<float*>& y) const {
  std::lock_guard lock(mutex_);
  if (!graph_) {
    graph_ = std::make_unique<emulated::Graph>(
        program_.functions.at(0),
        emulated::Weights{},
        16,  // any: no program of ours asks
        std::numeric_limits<int64_t>::max());
  }
  std::map<std::string, float*> slots;
  for (size_t i = 0; i < graph_->inputs().size(); ++i) {
    slots[graph_->inputs()[i].name] = static_cast<float*>(graph_->input(i));
  }
  for (auto& input : inputs) {
    auto* dst = slots.at(input.port.name);
    int64_t columns = input.port.shape.back();
    int64_t rows = rows_of(input.port);
    if (!input.table.empty()) {
      host::to_float(input.table.data(), Float::f16, dst, rows * columns);
      continue;
    }
    std::fill_n(dst, rows * columns, 0.0f);
    for (auto& part : input.parts) {
      std::vector<float> dense;
      auto x = as_packed(call.values(part.input, dense), part);
      host::copy_rows(x, dst + part.row * columns, columns);
    }
  }
  graph_->run(emulated::Numerics::single);
  for (size_t i = 0; i < graph_->outputs().size(); ++i) {
    auto result =
        std::find_if(outputs.begin(), outputs.end(), [&](auto& output) {
          return output.port.name == graph_->outputs()[i].name;
        });
    auto* from = static_cast<const float*>(graph_->output(i));
    auto* to = y[result - outputs.begin()];
    int64_t padded = result->port.shape.back();
    for (int64_t r = 0; r < rows_of(result->port); ++r) {
      std::copy_n(from + r * padded, result->columns, to + r * result->columns);
    }
  }
}

MatrixView BlockCall::values(int input, std::vector<float>& dense) const {
  auto found = quantized.find(input);
  if (found == quantized.end()) {
    return x[input];
  }
  auto& w = found->second.matrix;
  dense.resize(w.rows * w.cols);
  kernels::dequantize_rows(w, 0, w.rows, dense.data());
  return {dense.data(), Float::f32, w.rows, w.cols, w.cols, 1};
}

void run_block(Device& device, const BlockCall& call) {
  int64_t rows = 0;
  for (auto& x : call.x) {
    rows = std::max(rows, x.rows);
  }
  DeviceBlock block(device, call);
  run_placed(
      device,
      rows,
      *call.layer,
      {[&] { return block.supports(); },
       [&] { block.run(); },
       [&] {
         trace::Span span("block", call.layer->name, 0, 0);
         call.program->run_on_host(call, call.y);
       },
       [&] {
         for (size_t i = 0; i < call.y.size(); ++i) {
           auto& result = call.program->outputs[i];
           std::fill_n(
               call.y[i],
               rows_of(result.port) * result.columns,
               std::numeric_limits<float>::quiet_NaN());
         }
       }});
}

}  // namespace mlx_ane
