// Dequantises W by panels for the BLAS, or once for the device.
#include "ops/quantized_linear.h"

#include <algorithm>

#include "device/device_matmul.h"
#include "host/bytes.h"
#include "host/half.h"
#include "host/rows.h"
#include "kernels/gemm.h"
#include "ops/failure.h"
#include "ops/gemm.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"
#include "ops/row_sum.h"
#include "ops/streams.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

using kernels::QuantizationMode;
using kernels::QuantizedMatrix;

constexpr const char* op = "quantized_linear";

// Rows of W that are dequantised at a time: 256 x 4096 values are 4 MiB.
constexpr int64_t panel_rows = 256;

const char* mode_name(QuantizationMode mode) {
  static constexpr const char* names[] = {"affine", "mxfp4", "mxfp8", "nvfp4"};
  return names[static_cast<int>(mode)];
}

/// The matrix at inputs[1 .. 3].
QuantizedMatrix matrix(
    const std::vector<mx::array>& inputs, const QuantizedOptions& options) {
  return quantized_matrix(
      inputs[1],
      inputs[2],
      options.has_biases ? &inputs[3] : nullptr,
      options.mode,
      options.bits,
      options.group_size);
}

/// Without scales and biases.
int64_t packed_bytes(const QuantizedMatrix& w) {
  return w.rows * w.cols * w.bits / 8;
}

/// y = x Wᵀ + bias, W by panels of rows, which are panels of columns of y.
void run_on_blas(
    const MatrixView& x,
    const QuantizedMatrix& w,
    const std::optional<MatrixView>& bias,
    const MatrixOut& y,
    const std::string& layer) {
  trace::Span span(
      "gemm_forward",
      layer,
      bytes_of(x, y) + packed_bytes(w),
      2 * x.rows * x.cols * w.rows);
  trace::add(trace::Counter::gemm_forward);
  std::vector<float> panel(std::min(panel_rows, w.rows) * w.cols);
  for (int64_t begin = 0; begin < w.rows; begin += panel_rows) {
    auto rows = std::min(panel_rows, w.rows - begin);
    kernels::dequantize_rows(w, begin, rows, panel.data());
    MatrixView view{panel.data(), Float::f32, rows, w.cols, w.cols, 1};
    std::optional<MatrixView> part;
    if (bias) {
      part = bias->block(0, begin, 1, rows);
    }
    auto out = y;
    out.cols = rows;
    out.data = static_cast<char*>(y.data) +
               begin * static_cast<int64_t>(size_of(y.type));
    kernels::gemm(x, view.transposed(), part ? &*part : nullptr, out);
  }
}

/// dx = dy W, summed over the panels in fp32.
void run_dx(
    const MatrixView& dy,
    const QuantizedMatrix& w,
    const MatrixOut& dx,
    const std::string& layer) {
  trace::Span span(
      "gemm_dx",
      layer,
      bytes_of(dy, dx) + packed_bytes(w),
      2 * dy.rows * w.cols * w.rows);
  trace::add(trace::Counter::gemm_dx);
  std::vector<float> panel(std::min(panel_rows, w.rows) * w.cols);
  std::vector<float> left(dy.rows * std::min(panel_rows, w.rows));
  bool direct = dx.type == Float::f32;
  std::vector<float> sums(direct ? 0 : dx.rows * dx.cols);
  auto* out = direct ? static_cast<float*>(dx.data) : sums.data();
  std::fill_n(out, dx.rows * dx.cols, 0.0f);
  for (int64_t begin = 0; begin < w.rows; begin += panel_rows) {
    auto rows = std::min(panel_rows, w.rows - begin);
    kernels::dequantize_rows(w, begin, rows, panel.data());
    host::copy_rows(dy.block(0, begin, dy.rows, rows), left.data(), rows);
    kernels::sgemm(
        {.m = dy.rows,
         .n = w.cols,
         .k = rows,
         .a = left.data(),
         .lda = rows,
         .b = panel.data(),
         .ldb = w.cols,
         .beta = 1.0f,
         .c = out,
         .ldc = w.cols});
  }
  if (!direct) {
    host::from_float(out, dx.type, dx.data, dx.rows * dx.cols);
  }
}

struct DeviceTask {
  HostMatrix x;
  QuantizedMatrix w;
  MatmulCall call;  // all but x and the rows of w
  Device* device;
  TrackedTask tracked;

  void operator()() const {
    auto ready = call;
    ready.x = x.view();
    ready.w_rows = [this](int64_t begin, int64_t rows, float* out) {
      kernels::dequantize_rows(w, begin, rows, out);
    };
    ready.on_blas = [&] {
      run_on_blas(ready.x, w, call.bias, call.y, call.layer->name);
    };
    tracked.run([&] { run_matmul(*device, ready); });
  }
};

/// mx.quantized_matmul of (x, weight, scales, [biases]).
mx::array composed_product(
    const std::vector<mx::array>& in,
    bool transpose,
    const QuantizedOptions& options,
    mx::Stream s) {
  return mx::quantized_matmul(
      in[0],
      in[1],
      in[2],
      options.has_biases ? std::optional(in[3]) : std::nullopt,
      transpose,
      options.group_size,
      options.bits,
      mode_name(options.mode),
      s);
}

void check_shapes(
    const mx::array& x,
    const mx::array& weight,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    int group_size,
    int bits,
    const std::string& mode) {
  if (weight.ndim() != 2 || weight.dtype() != mx::uint32 || bits < 1 ||
      bits > 8 || group_size < 1 || group_size > 256) {
    throw std::invalid_argument(
        "[mlx_ane.quantized_linear] got weight " + to_string(weight.shape()) +
        " of " + to_string(weight.dtype()) + " with " + std::to_string(bits) +
        " bits in groups of " + std::to_string(group_size) +
        ", need what mx.quantize returns.");
  }
  auto n = weight.shape(0);
  auto k = weight.shape(1) * 32 / bits;
  if (x.ndim() == 0 || x.shape(-1) != k ||
      scales.shape() != mx::Shape{n, k / group_size}) {
    throw std::invalid_argument(
        "[mlx_ane.quantized_linear] got x " + to_string(x.shape()) +
        ", scales " + to_string(scales.shape()) +
        " and a weight that stands for (" + std::to_string(n) + ", " +
        std::to_string(k) + "), need x.shape[-1] equal to " +
        std::to_string(k) + " and a scale for each group.");
  }
  bool affine = mode == "affine";
  if (affine != biases.has_value() ||
      (biases && biases->shape() != scales.shape())) {
    throw std::invalid_argument(
        "[mlx_ane.quantized_linear] got mode \"" + mode + "\" with biases " +
        (biases ? to_string(biases->shape()) : "None") +
        ", need them of scales' shape in mode \"affine\" only.");
  }
}

/// The type of mx.quantized_matmul(x, ...) + bias. Scales of the modes without
/// biases are codes: there, as in MLX, x itself is a float.
mx::Dtype result_type(
    const mx::array& x,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    const std::optional<mx::array>& bias) {
  auto dtype = x.dtype();
  if (biases) {
    product_type(op, {{"scales", scales}, {"biases", *biases}});
    dtype =
        product_type(op, {{"x", x}, {"scales", scales}, {"biases", *biases}});
  } else {
    check_float(op, "x", x);
  }
  if (bias && mx::issubdtype(bias->dtype(), mx::inexact)) {
    check_float(op, "bias", *bias);
  }
  return bias ? mx::promote_types(dtype, bias->dtype()) : dtype;
}

/// dx = dy W, of x's shape and type.
mx::array dx_of(
    const std::vector<mx::array>& primals,
    const mx::array& dy,
    QuantizedOptions options,
    mx::Stream s) {
  std::vector<mx::array> inputs{dy, primals[1], primals[2]};
  if (options.has_biases) {
    inputs.push_back(primals[3]);
  }
  options.dtype = primals[0].dtype();
  auto composition = [options, s](const std::vector<mx::array>& in) {
    auto dx = composed_product(in, false, options, s);
    return std::vector<mx::array>{mx::astype(dx, options.dtype, s)};
  };
  return mx::array(
      primals[0].shape(),
      options.dtype,
      std::make_shared<QuantizedLinearVJP>(s, options, composition),
      std::move(inputs));
}

/// dW = dyᵀ x by group: (N, K / group_size, group_size) in fp32.
mx::array dw_of(
    const mx::array& x,
    const mx::array& dy,
    const QuantizedOptions& options,
    mx::Stream s) {
  GemmOptions gemm_options;
  gemm_options.trans_a = true;
  gemm_options.role = Role::dw;
  gemm_options.layer = options.layer;
  auto dw = gemm(folded(dy, s), folded(x, s), gemm_options, s);
  return mx::unflatten(dw, -1, {-1, options.group_size}, s);
}

/// The integers q of W = scales q + biases, by group as dW.
mx::array codes_of(
    const std::vector<mx::array>& primals,
    const QuantizedOptions& options,
    mx::Stream s) {
  auto& shape = primals[2].shape();
  auto q = mx::dequantize(
      primals[1],
      mx::ones(shape, mx::float32, s),
      mx::zeros(shape, mx::float32, s),
      options.group_size,
      options.bits,
      mode_name(options.mode),
      std::nullopt,
      std::nullopt,
      s);
  return mx::unflatten(q, -1, {-1, options.group_size}, s);
}

}  // namespace

kernels::QuantizationMode quantization_mode(const std::string& name) {
  if (name == "affine") {
    return QuantizationMode::affine;
  }
  if (name == "mxfp4") {
    return QuantizationMode::mxfp4;
  }
  if (name == "mxfp8") {
    return QuantizationMode::mxfp8;
  }
  if (name == "nvfp4") {
    return QuantizationMode::nvfp4;
  }
  throw std::invalid_argument(
      "[mlx_ane.quantized_linear] got mode \"" + name +
      "\", need \"affine\", \"mxfp4\", \"mxfp8\" or \"nvfp4\".");
}

QuantizedMatrix quantized_matrix(
    const mx::array& weight,
    const mx::array& scales,
    const mx::array* biases,
    QuantizationMode mode,
    int bits,
    int group_size) {
  QuantizedMatrix w;
  w.data = weight.data<uint8_t>();
  w.scales = scales.data<void>();
  w.biases = biases ? biases->data<void>() : nullptr;
  w.scale_type = biases ? float_type(scales.dtype()) : Float::f32;
  w.mode = mode;
  w.bits = bits;
  w.group_size = group_size;
  w.rows = weight.shape(0);
  w.cols = static_cast<int64_t>(weight.shape(1)) * 32 / bits;
  return w;
}

mx::array quantized_linear(
    const mx::array& x,
    const mx::array& weight,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    const std::optional<mx::array>& bias,
    int group_size,
    int bits,
    const std::string& mode,
    const std::string& device,
    const std::string& layer,
    bool frozen,
    const mx::StreamOrDevice& stream) {
  auto kind = quantization_mode(mode);
  check_shapes(x, weight, scales, biases, group_size, bits, mode);
  auto dtype = result_type(x, scales, biases, bias);
  auto place = resolve_place(op, device);
  auto s = resolve_stream(op, stream, place);
  std::vector<mx::array> inputs{
      as_float(x, dtype, s), mx::contiguous(weight, false, s)};
  if (biases) {
    // Both in one type, as the kernel reads them.
    auto type = mx::promote_types(scales.dtype(), biases->dtype());
    for (auto& part : {scales, *biases}) {
      inputs.push_back(mx::contiguous(mx::astype(part, type, s), false, s));
    }
  } else {
    inputs.push_back(mx::contiguous(scales, false, s));
  }
  if (bias) {
    inputs.push_back(as_float(*bias, dtype, s));
  }
  QuantizedOptions options{
      kind,
      bits,
      group_size,
      biases.has_value(),
      bias.has_value(),
      frozen,
      place,
      layer,
      dtype};
  auto composition = [options, s](const std::vector<mx::array>& in) {
    auto y = composed_product(in, true, options, s);
    if (options.has_bias) {
      y = mx::add(y, in.back(), s);
    }
    return std::vector<mx::array>{mx::astype(y, options.dtype, s)};
  };
  auto shape = x.shape();
  shape.back() = weight.shape(0);
  return mx::array(
      std::move(shape),
      dtype,
      std::make_shared<QuantizedLinear>(s, options, composition),
      std::move(inputs));
}

void QuantizedLinear::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& y = outputs[0];
  allocate(y);
  if (y.size() == 0) {
    return;
  }
  trace::add(trace::Counter::linear_calls);
  layer_->calls += 1;
  auto w = matrix(inputs, options_);
  std::optional<MatrixView> bias;
  if (options_.has_bias) {
    auto& b = inputs.back();
    bias = MatrixView{
        b.data<void>(), float_type(b.dtype()), 1, w.rows, 0, b.strides(0)};
  }
  auto out = rows_of(y);
  auto& tasks = encoder(inputs, outputs);
  auto* device = options_.place.device;
  auto x = HostMatrix::rows(inputs[0]);
  if (!device) {
    layer_->place(trace::Placement::device_cpu);
    tasks.dispatch([x, w, bias, out, layer = layer_] {
      run_on_blas(x.view(), w, bias, out, layer->name);
    });
    return;
  }
  MatrixView shape{nullptr, Float::f32, w.rows, w.cols, w.cols, 1};
  MatmulCall call{{}, shape, bias, out, nullptr, layer_};
  if (options_.frozen) {
    // Known by its packed form; the rows' stride tells bit widths apart.
    MatrixView key{w.data, Float::f32, w.rows, w.cols, w.bits, w.group_size};
    std::vector<WeightStore::Owner> companions{inputs[2].data_shared_ptr()};
    if (options_.has_biases) {
      companions.push_back(inputs[3].data_shared_ptr());
    }
    call.staged = staged_weight(
        *device,
        out.rows,
        *layer_,
        inputs[1].data_shared_ptr(),
        key,
        companions);
  }
  tasks.dispatch(
      DeviceTask{x, w, std::move(call), device, TrackedTask(stream(), y)});
}

std::vector<mx::array> QuantizedLinear::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  auto s = stream();
  auto& dy = cotangents[0];
  auto last = static_cast<int>(primals.size()) - 1;
  std::optional<mx::array> dw;  // of scales and biases alike
  std::vector<mx::array> gradients;
  for (int i : argnums) {
    if (i == 0) {
      gradients.push_back(dx_of(primals, dy, options_, s));
      continue;
    }
    if (options_.has_bias && i == last) {
      gradients.push_back(row_sum(dy, primals[i].dtype(), s));
      continue;
    }
    check_trained(i);
    dw = dw ? dw : dw_of(primals[0], dy, options_, s);
    // dbiases = sum of dW, dscales = sum of dW q, over each group.
    auto terms =
        i == 3 ? *dw : mx::multiply(*dw, codes_of(primals, options_, s), s);
    auto sums = mx::sum(terms, -1, false, s);
    gradients.push_back(mx::astype(sums, primals[i].dtype(), s));
  }
  return gradients;
}

void QuantizedLinear::check_trained(int argument) const {
  if (argument == 1) {
    throw std::invalid_argument(
        "[mlx_ane.quantized_linear] got a gradient asked for the quantised "
        "weight of \"" +
        options_.layer + "\", need it frozen; call freeze() on the layer.");
  }
  if (!options_.has_biases) {
    throw std::invalid_argument(
        "[mlx_ane.quantized_linear] got a gradient asked for the scales of \"" +
        options_.layer + "\" in mode \"" + mode_name(options_.mode) +
        "\", need mode \"affine\", whose scales are floats; freeze them.");
  }
}

std::vector<mx::Shape> QuantizedLinear::output_shapes(
    const std::vector<mx::array>& inputs) {
  auto shape = inputs[0].shape();
  shape.back() = inputs[1].shape(0);
  return {shape};
}

void QuantizedLinearVJP::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& dx = outputs[0];
  allocate(dx);
  if (dx.size() == 0) {
    return;
  }
  auto w = matrix(inputs, options_);
  encoder(inputs, outputs)
      .dispatch([dy = HostMatrix::rows(inputs[0]),
                 w,
                 out = rows_of(dx),
                 layer = options_.layer] { run_dx(dy.view(), w, out, layer); });
}

std::vector<mx::Shape> QuantizedLinearVJP::output_shapes(
    const std::vector<mx::array>& inputs) {
  auto shape = inputs[0].shape();
  shape.back() = inputs[1].shape(1) * 32 / options_.bits;
  return {shape};
}

}  // namespace mlx_ane
