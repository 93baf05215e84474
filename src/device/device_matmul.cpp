// Packs tiles of x and w, evaluates, and sums checked products in fp32.
#include "device/device_matmul.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "device/executables.h"
#include "host/bytes.h"
#include "host/half.h"
#include "host/loops.h"
#include "host/rows.h"
#include "kernels/gemm.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

using kernels::RowScales;
using trace::Counter;

// Rows and columns of a tile that are probed when they come out all zero.
constexpr int max_probes = 4;

float element(const MatrixView& m, int64_t r, int64_t c) {
  float value;
  host::to_float(m.block(r, c, 1, 1).data, m.type, &value, 1);
  return value;
}

struct Dot {
  double sum = 0;        // Σ x w
  double magnitude = 0;  // Σ |x w|
};

/// w (n, k) as a view or, without data, as the rows of its quantised form.
struct Weight {
  MatrixView view;
  const std::function<void(int64_t, int64_t, float*)>* rows = nullptr;

  MatrixView block(const Tile& columns, const Tile& depth) const {
    return view.block(columns.begin, depth.begin, columns.size, depth.size);
  }

  /// w(n, depth)
  std::vector<float> row(int64_t n, const Tile& depth) const {
    std::vector<float> out(view.cols);
    if (view.data) {
      host::copy_rows(view.block(n, 0, 1, view.cols), out.data(), view.cols);
    } else {
      (*rows)(n, 1, out.data());
    }
    auto begin = out.begin() + depth.begin;
    return {begin, begin + depth.size};
  }
};

Dot dot(const MatrixView& x, int64_t r, const std::vector<float>& w) {
  Dot out;
  for (int64_t k = 0; k < x.cols; ++k) {
    double product = static_cast<double>(element(x, r, k)) * w[k];
    out.sum += product;
    out.magnitude += std::abs(product);
  }
  return out;
}

/// One (rows, depth, columns) call in host terms.
struct TileCall {
  MatrixView x;  // (rows, depth)
  int64_t columns;
  std::function<std::vector<float>(int64_t n)> w_row;  // (depth) of column n
  const RowScales& x_scales;
  const RowScales& w_scales;
  float* y;  // (rows, columns), rows y_ld apart
  int64_t y_ld;
  bool accumulate;
};

/// A zero where fp32 sees more than the engine may flush, products that are too
/// small after scaling, is a wrong answer.
void probe_zero(const TileCall& tile, int64_t r, int64_t n) {
  auto exact = dot(tile.x, r, tile.w_row(n)).sum;
  auto floor = std::ldexp(
      static_cast<double>(tile.x.cols + 1),
      Limits::log2_min_product - tile.x_scales.exponent[r] -
          tile.w_scales.exponent[n]);
  if (std::abs(exact) > floor) {
    throw DeviceError(
        Cause::wrong_values,
        "output (" + std::to_string(r) + ", " + std::to_string(n) +
            ") is zero, need " + std::to_string(exact));
  }
}

/// Probes all-zero rows of y whose operands are not: `nonzero` is y's, `lines`
/// the operand rows that belong to it, `others` those it was multiplied with.
template <typename Probe>
void probe_zero_lines(
    const std::vector<uint8_t>& nonzero,
    const RowScales& lines,
    const RowScales& others,
    Probe probe) {
  auto partners = static_cast<int64_t>(others.nonzero.size());
  int probed = 0;
  for (size_t i = 0; i < nonzero.size() && probed < max_probes; ++i) {
    if (nonzero[i] || !lines.nonzero[i] || !lines.finite[i]) {
      continue;
    }
    ++probed;
    for (int64_t j = 0; j < partners;
         j += std::max<int64_t>(1, partners / max_probes)) {
      if (others.nonzero[j] && others.finite[j]) {
        probe(static_cast<int64_t>(i), j);
      }
    }
  }
}

/// Adds the tile to y and checks it: nothing unwritten, nothing non-finite that
/// the operands do not explain, no zero that they contradict.
void unpack_checked(const TileCall& tile, const uint16_t* src, int64_t ld) {
  auto rows = tile.x.rows;
  auto columns = tile.columns;
  std::vector<uint8_t> row_nonzero(rows), column_nonzero(columns);
  auto report = kernels::unpack(
      src,
      ld,
      rows,
      columns,
      tile.x_scales.exponent,
      tile.w_scales.exponent,
      tile.x_scales.finite,
      tile.w_scales.finite,
      tile.y,
      tile.y_ld,
      tile.accumulate,
      row_nonzero,
      column_nonzero);
  if (report.canaries > 0) {
    throw DeviceError(
        Cause::wrote_nothing,
        std::to_string(report.canaries) + " of " +
            std::to_string(rows * columns) + " outputs were not written");
  }
  if (report.bad_row >= 0) {
    throw DeviceError(
        Cause::nonfinite,
        std::to_string(report.nonfinite) +
            " non-finite outputs of finite operands, the first at (" +
            std::to_string(report.bad_row) + ", " +
            std::to_string(report.bad_col) + ")");
  }
  probe_zero_lines(
      row_nonzero, tile.x_scales, tile.w_scales, [&](int64_t r, int64_t n) {
        probe_zero(tile, r, n);
      });
  probe_zero_lines(
      column_nonzero, tile.w_scales, tile.x_scales, [&](int64_t n, int64_t r) {
        probe_zero(tile, r, n);
      });
}

/// Where an operand goes, from the start of its surface.
struct Place {
  size_t row_bytes;
  int64_t rows;   // padded
  int64_t depth;  // padded
  bool transposed;
  int64_t first_row = 0;
};

RowScales pack_operand(
    const MatrixView& m,  // (rows, depth)
    Surface& surface,
    const Place& place,
    const Limits& limits) {
  SurfaceLock lock(surface, Surface::Access::write);
  auto ld = static_cast<int64_t>(place.row_bytes / sizeof(uint16_t));
  auto* dst = reinterpret_cast<uint16_t*>(lock.data()) + place.first_row * ld;
  auto pack =
      place.transposed ? kernels::pack_scaled_transposed : kernels::pack_scaled;
  return pack(m, limits.log2_max_sum / 2, dst, ld, place.rows, place.depth);
}

/// dst (rows, columns) = the transpose of src, whose rows are ld apart.
void transpose(
    const uint16_t* src,
    int64_t ld,
    int64_t rows,
    int64_t columns,
    uint16_t* dst) {
  constexpr int64_t block = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += block) {
    for (int64_t c0 = 0; c0 < columns; c0 += block) {
      for (int64_t r = r0; r < std::min(r0 + block, rows); ++r) {
        for (int64_t c = c0; c < std::min(c0 + block, columns); ++c) {
          dst[r * columns + c] = src[c * ld + r];
        }
      }
    }
  }
}

void fill_canaries(Surface& y, size_t y_row_bytes, int64_t rows, int64_t n) {
  SurfaceLock lock(y, Surface::Access::write);
  for (int64_t r = 0; r < rows; ++r) {
    auto* row = reinterpret_cast<uint16_t*>(lock.data() + r * y_row_bytes);
    std::fill_n(row, n, host::canary);
  }
}

/// x minus its fp16 rounding at the scale of its row, (rows, cols) in fp32.
std::vector<float> residual(const MatrixView& x, const Limits& limits) {
  auto scales = kernels::row_scales(x, limits.log2_max_sum / 2);
  std::vector<uint16_t> halves(x.rows * x.cols);
  kernels::pack(x, scales.exponent, halves.data(), x.cols, x.rows, x.cols);
  std::vector<float> rest(x.rows * x.cols);
  std::vector<int16_t> none(x.cols, 0);
  std::vector<uint8_t> rows_finite(x.rows, 1), cols_finite(x.cols, 1);
  kernels::unpack(
      halves.data(),
      x.cols,
      x.rows,
      x.cols,
      scales.exponent,
      none,
      rows_finite,
      cols_finite,
      rest.data(),
      x.cols,
      false);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      auto& value = rest[r * x.cols + c];
      value = scales.finite[r] ? element(x, r, c) - value : 0.0f;
    }
  }
  return rest;
}

MatrixView dense(const std::vector<float>& data, int64_t rows, int64_t cols) {
  return {data.data(), Float::f32, rows, cols, cols, 1};
}

/// Compares samples of y (rows, n), without bias, with dot products in double.
/// The bound is the rounding of fp16 operands and outputs: 2^-9 of Σ|x w|.
void spot_check(
    const MatmulCall& call, const Weight& w, const float* y, int64_t y_ld) {
  trace::add(Counter::spot_checks);
  for (int64_t i = 0; i < max_probes; ++i) {
    auto r = (i * 7919 + 13) % call.x.rows;
    auto n = (i * 104729 + 7) % call.w.rows;
    auto [sum, magnitude] =
        dot(call.x, r, w.row(n, {0, w.view.cols, w.view.cols}));
    auto got = y[r * y_ld + n];
    if (std::isfinite(sum) &&
        !(std::abs(got - sum) <= std::ldexp(magnitude, -9))) {
      throw DeviceError(
          Cause::wrong_values,
          "output (" + std::to_string(r) + ", " + std::to_string(n) + ") is " +
              std::to_string(got) + ", need " + std::to_string(sum));
    }
  }
}

void store(const std::vector<float>& sums, const MatmulCall& call) {
  auto& y = call.y;
  std::vector<float> bias(call.bias ? y.cols : 0);
  for (size_t c = 0; c < bias.size(); ++c) {
    bias[c] = element(*call.bias, 0, c);
  }
  std::vector<float> row(y.cols);
  for (int64_t r = 0; r < y.rows; ++r) {
    auto* source = sums.data() + r * y.cols;
    auto* out = static_cast<char*>(y.data) +
                r * y.row_stride * static_cast<int64_t>(size_of(y.type));
    if (call.bias) {
      for (int64_t c = 0; c < y.cols; ++c) {
        row[c] = source[c] + bias[c];
      }
      source = row.data();
    }
    host::from_float(source, y.type, out, y.cols);
  }
}

/// One call: its plan of tiles, and its programs once supports() loaded them.
class DeviceMatmul {
 public:
  DeviceMatmul(Device& device, const MatmulCall& call)
      : device_(device),
        call_(call),
        layer_(*call.layer),
        plan_(plan_matmul(
            call.x.rows,
            call.x.cols,
            call.w.rows,
            device.limits(),
            runner_settings().layout)) {
  }

  /// Loads the call's programs, at most two: depth tiles are of one size, and
  /// so are column tiles.
  std::optional<trace::Placement> supports() {
    auto found = get(plan_.rows.front());
    program_ = found.program;
    if (!program_) {
      if (call_.staged) {
        weight_store().discard(call_.staged);
      }
      return found.reason;
    }
    // Where x and w share a surface, w lies below the rows of one program.
    bool one =
        single() || plan_.rows.back().padded == plan_.rows.front().padded;
    tail_ = one ? program_ : get(plan_.rows.back()).program;
    if (!tail_) {
      tail_ = program_;
    }
    // Tiles of a quantised weight that are too small: the BLAS dequantises
    // panels, not all of it.
    auto* staged = call_.staged.get();
    bool too_small =
        !call_.w.data && staged && staged->ready() && !serves(*staged);
    return too_small ? std::optional(trace::Placement::over_budget)
                     : std::nullopt;
  }

  void run() {
    auto& x = call_.x;
    auto& y = call_.y;
    Weight w{call_.w, &call_.w_rows};
    auto* staged = call_.staged.get();
    std::vector<float> dequantized;
    if (!w.view.data && !(staged && serves(*staged))) {
      dequantized.resize(w.view.rows * w.view.cols);
      call_.w_rows(0, w.view.rows, dequantized.data());
      w.view = dense(dequantized, w.view.rows, w.view.cols);
    }
    // Without a bias, fp32 outputs take the sums directly.
    bool direct = y.type == Float::f32 && !call_.bias;
    static thread_local std::vector<float> sums;
    if (!direct) {
      sums.resize(y.rows * y.cols);
    }
    auto* out = direct ? static_cast<float*>(y.data) : sums.data();
    auto ld = direct ? y.row_stride : y.cols;
    multiply(x, w, call_.high_precision ? nullptr : staged, out, ld, false);
    if (call_.high_precision) {
      auto x_rest = residual(x, device_.limits());
      auto w_rest = residual(w.view, device_.limits());
      multiply(dense(x_rest, x.rows, x.cols), w, nullptr, out, ld, true);
      multiply(
          x, {dense(w_rest, w.view.rows, w.view.cols)}, nullptr, out, ld, true);
    }
    static std::atomic<int64_t> calls{0};
    auto interval = runner_settings().spot_check;
    if (interval > 0 && ++calls % interval == 0) {
      spot_check(call_, w, out, ld);
    }
    if (!direct) {
      store(sums, call_);
    }
  }

 private:
  bool single() const {
    return plan_.layout == Layout::single;
  }

  /// Whether tiles are there, and of a size with x: inputs share one, and the
  /// program may be of a larger bucket than the weight was staged for.
  bool serves(const StagedWeight& staged) const {
    auto& shape = std::get<MatmulShape>(program_->shape);
    return staged.ready() &&
           staged.tiles()[0].surface->bytes() >= input_surface_bytes(shape);
  }

  /// y (+)= x wᵀ in fp32. `staged` keeps w's tiles between calls, or is null.
  void multiply(
      const MatrixView& x,
      const Weight& w,
      StagedWeight* staged,
      float* y,
      int64_t y_ld,
      bool accumulate) {
    bool ready = staged && serves(*staged);
    bool fill = staged && !ready && staged->claim();
    std::vector<WeightTile> filled;
    try {
      size_t index = 0;
      for (auto& depth : plan_.depth) {
        auto x_depth = x.block(0, depth.begin, x.rows, depth.size);
        for (auto& columns : plan_.columns) {
          // The largest bucket's program: its w surface serves every row tile.
          // Locks are taken from large buckets to small ones everywhere.
          std::unique_lock lock(program_->mutex);
          auto weight = ready ? staged->tiles()[index++]
                              : pack_weight(w, depth, columns, fill);
          if (fill) {
            filled.push_back(weight);
          }
          for (auto& rows : plan_.rows) {
            Operands operands{
                x_depth.block(rows.begin, 0, rows.size, depth.size),
                columns.size,
                [&](int64_t n) { return w.row(columns.begin + n, depth); },
                weight};
            auto* out = y + rows.begin * y_ld + columns.begin;
            bool add = accumulate || depth.begin > 0;
            bool first = single() || rows.padded == plan_.rows[0].padded;
            auto& program = first ? program_ : tail_;
            std::unique_lock<std::mutex> tail_lock;
            if (program != program_) {
              tail_lock = std::unique_lock(program->mutex);
            }
            run_tile(operands, program, depth, out, y_ld, add);
          }
        }
      }
    } catch (...) {
      if (fill) {
        staged->abandon();
      }
      throw;
    }
    if (fill) {
      staged->fill(std::move(filled));
    }
  }

  struct Operands {
    MatrixView x;  // (rows, depth)
    int64_t columns;
    std::function<std::vector<float>(int64_t n)> w_row;  // (depth) of column n
    const WeightTile& weight;
  };

  FoundProgram get(const Tile& rows) {
    return executable_cache().get(
        device_,
        MatmulShape{
            rows.padded,
            plan_.depth[0].padded,
            plan_.columns[0].padded,
            plan_.layout});
  }

  WeightTile pack_weight(
      const Weight& weight, const Tile& depth, const Tile& columns, bool keep) {
    auto w = weight.block(columns, depth);
    auto bytes = w.rows * w.cols * static_cast<int64_t>(sizeof(uint16_t));
    trace::Span span(
        keep ? "stage" : "pack_w", layer_.name, bytes_of(w) + bytes, 0);
    trace::add(
        keep ? Counter::weights_staged_bytes : Counter::weights_packed_bytes,
        bytes);
    auto& own = program_->inputs.back();
    auto& port = program_->input_ports.back();
    auto surface = keep ? device_.make_surface(own->bytes(), port) : own;
    TilePlace place{
        columns.begin,
        columns.size,
        depth.begin,
        depth.size,
        single() ? std::get<MatmulShape>(program_->shape).s : 0,
        program_->input_row_bytes.back(),
        plan_.layout,
        device_.limits().log2_max_sum / 2,
        port};
    auto scales = pack_operand(
        w,
        *surface,
        {place.row_bytes,
         columns.padded,
         depth.padded,
         w_transposed(plan_.layout),
         place.first},
        device_.limits());
    return {std::move(surface), std::move(scales), std::move(place)};
  }

  void run_tile(
      const Operands& operands,
      const std::shared_ptr<LoadedProgram>& program,
      const Tile& depth,
      float* y,
      int64_t y_ld,
      bool accumulate) {
    auto rows = operands.x.rows, n = operands.columns;
    auto padded = std::get<MatmulShape>(program->shape).s;
    trace::add(Counter::padded_rows, padded - rows);
    // Both inputs in surfaces of one size: staged weights may have grown.
    auto& w_surface = operands.weight.surface;
    auto& x_surface = program->inputs[0];
    if (x_surface->bytes() != w_surface->bytes()) {
      x_surface =
          device_.make_surface(w_surface->bytes(), program->input_ports[0]);
    }
    auto& y_surface = *program->outputs[0];
    auto y_row_bytes = program->output_row_bytes[0];
    bool turned = y_transposed(plan_.layout);
    RowScales x_scales;
    {
      auto bytes = rows * depth.size * static_cast<int64_t>(sizeof(uint16_t));
      trace::Span span("pack_x", layer_.name, bytes_of(operands.x) + bytes, 0);
      layer_.bytes += bytes;
      x_scales = pack_operand(
          operands.x,
          *x_surface,
          {program->input_row_bytes[0],
           padded,
           depth.padded,
           x_transposed(plan_.layout)},
          device_.limits());
      fill_canaries(
          y_surface, y_row_bytes, turned ? n : rows, turned ? rows : n);
    }
    std::vector<std::shared_ptr<Surface>> inputs{x_surface};
    if (!single()) {
      inputs.push_back(w_surface);
    }
    LoadedProgram::evaluate(
        device_,
        program,
        std::move(inputs),
        layer_,
        2 * (rows * depth.size + depth.size * n + rows * n),
        2 * rows * depth.size * n);
    trace::Span span(
        "unpack", layer_.name, rows * n * (accumulate ? 10 : 6), 0);
    SurfaceLock lock(y_surface, Surface::Access::read);
    auto* halves = reinterpret_cast<const uint16_t*>(lock.data());
    auto ld = static_cast<int64_t>(y_row_bytes / sizeof(uint16_t));
    static thread_local std::vector<uint16_t> straight;
    if (turned) {
      straight.resize(rows * n);
      transpose(halves, ld, rows, n, straight.data());
      halves = straight.data();
      ld = n;
    }
    unpack_checked(
        {operands.x,
         operands.columns,
         operands.w_row,
         x_scales,
         operands.weight.scales,
         y,
         y_ld,
         accumulate},
        halves,
        ld);
  }

  Device& device_;
  const MatmulCall& call_;
  trace::Layer& layer_;
  MatmulPlan plan_;
  std::shared_ptr<LoadedProgram> program_;  // of the largest bucket
  std::shared_ptr<LoadedProgram> tail_;     // of the last row tile
};

void run_on_blas(const MatmulCall& call) {
  if (call.on_blas) {
    call.on_blas();
    return;
  }
  auto flops = 2 * call.x.rows * call.x.cols * call.w.rows;
  trace::Span span(
      "gemm_forward",
      call.layer->name,
      bytes_of(call.x, call.w, call.y),
      flops);
  trace::add(Counter::gemm_forward);
  kernels::gemm(
      call.x, call.w.transposed(), call.bias ? &*call.bias : nullptr, call.y);
}

void fill_nan(const MatrixOut& y) {
  std::vector<float> nan(y.cols, std::numeric_limits<float>::quiet_NaN());
  auto* row = static_cast<char*>(y.data);
  for (int64_t r = 0; r < y.rows; ++r) {
    host::from_float(nan.data(), y.type, row, y.cols);
    row += y.row_stride * static_cast<int64_t>(size_of(y.type));
  }
}

}  // namespace

void run_matmul(Device& device, const MatmulCall& call) {
  std::optional<DeviceMatmul> matmul;  // planned when asked
  run_placed(
      device,
      call.x.rows,
      *call.layer,
      {[&] { return matmul.emplace(device, call).supports(); },
       [&] { matmul->run(); },
       [&] { run_on_blas(call); },
       [&] { fill_nan(call.y); }});
}

std::shared_ptr<StagedWeight> staged_weight(
    Device& device,
    int64_t rows,
    const trace::Layer& layer,
    const WeightStore::Owner& owner,
    const MatrixView& w,
    const std::vector<WeightStore::Owner>& companions) {
  auto layout = runner_settings().layout;
  if (layout == Layout::single || placement(device, rows, layer)) {
    return nullptr;  // a surface with x is each call's own
  }
  auto plan = plan_matmul(rows, w.cols, w.rows, device.limits(), layout);
  return weight_store().get(device, owner, w, plan, companions);
}

}  // namespace mlx_ane
