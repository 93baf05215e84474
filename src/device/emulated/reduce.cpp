// Reductions over axes: fp32 sums, or the engine's fp16 ones in exact numerics.
#include <cmath>

#include "device/emulated/reduction_axes.h"
#include "host/half.h"

namespace mlx_ane::emulated {

namespace {

float to_half(float x) {
  return host::half_to_float(host::float_to_half(x));
}

/// A reduction as a fold: start, step(accumulator, value), finish(result, n).
struct Sum {
  static constexpr bool in_any_order = false;  // and in floats
  static constexpr double start = 0;
  static double step(double a, float x) {
    return a + x;
  }
  static double finish(double a, int64_t) {
    return a;
  }
};
struct Mean : Sum {
  static double finish(double a, int64_t n) {
    return a / static_cast<double>(n);
  }
};
struct SumSquare : Sum {
  static double step(double a, float x) {
    return a + static_cast<double>(x) * x;
  }
};
struct L1 : Sum {
  static double step(double a, float x) {
    return a + std::fabs(x);
  }
};
struct L2 : SumSquare {
  static double finish(double a, int64_t) {
    return std::sqrt(a);
  }
};
struct LogSum : Sum {
  static double finish(double a, int64_t) {
    return std::log(a);
  }
};
struct Product {
  static constexpr bool in_any_order = false;
  static constexpr double start = 1;
  static double step(double a, float x) {
    return a * x;
  }
  static double finish(double a, int64_t) {
    return a;
  }
};
struct Largest {
  static constexpr bool in_any_order = true;
  static constexpr double start = -INFINITY;
  template <class T>
  static T step(T a, float x) {
    return a > x || a != a ? a : x;
  }
  static double finish(double a, int64_t) {
    return a;
  }
};
struct Least {
  static constexpr bool in_any_order = true;
  static constexpr double start = INFINITY;
  template <class T>
  static T step(T a, float x) {
    return a < x || a != a ? a : x;
  }
  static double finish(double a, int64_t) {
    return a;
  }
};

struct Reduction {
  Operand x, z;
  ReductionAxes reduction;
  Type type;
  /// Over the last axis alone: elements of one reduction lie side by side.
  bool of_rows;
};

Reduction reduction(const Call& call) {
  auto x = call.operand("x");
  call.need(x.type.dtype != DType::string, "x must hold numbers");
  auto axes = call.axes("axes", x.shape().size());
  auto shape = reduced_shape(x.shape(), axes, call.flag("keep_dims", false));
  bool of_rows = axes.size() == 1 && axes[0] + 1 == std::ssize(x.shape());
  return {
      x,
      call.results[0],
      ReductionAxes(x.shape(), axes),
      {x.type.dtype, shape},
      of_rows};
}

/// The fold of n elements side by side.
template <class Fold>
float fold_row(const float* x, int64_t n) {
  if constexpr (Fold::in_any_order) {
    constexpr int64_t lanes = 16;
    float totals[lanes];
    std::fill_n(totals, lanes, static_cast<float>(Fold::start));
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        totals[lane] = Fold::step(totals[lane], x[i + lane]);
      }
    }
    auto total = static_cast<float>(Fold::start);
    for (float value : totals) {
      total = Fold::step(total, value);
    }
    for (; i < n; ++i) {
      total = Fold::step(total, x[i]);
    }
    return total;
  } else {
    double total = Fold::start;
    for (int64_t i = 0; i < n; ++i) {
      total = Fold::step(total, x[i]);
    }
    return static_cast<float>(Fold::finish(total, n));
  }
}

template <class Fold, class T>
void fold(const ReductionAxes& reduction, const T* x, T* out) {
  reduction.each([&](int64_t i, int64_t at) {
    double total = Fold::start;
    reduction.along(at, [&](int64_t p) {
      total = Fold::step(total, static_cast<float>(x[p]));
    });
    out[i] = static_cast<T>(Fold::finish(total, reduction.length()));
  });
}

// Every partial result is an fp16 (ANEForge: integer totals stall at 2048).
template <class Fold>
void narrow_fold(const ReductionAxes& reduction, const float* x, float* out) {
  reduction.each([&](int64_t i, int64_t at) {
    float total = static_cast<float>(Fold::start);
    reduction.along(at, [&](int64_t p) {
      total = to_half(static_cast<float>(Fold::step(total, x[p])));
    });
    out[i] = static_cast<float>(Fold::finish(total, reduction.length()));
  });
}

template <class Fold, bool narrow = false>
LoweredOp reduce(const Call& call) {
  auto r = reduction(call);
  auto x = r.x, z = r.z;
  if (!mil::is_float(x.type.dtype)) {
    return LoweredOp({r.type}, [=](const Frame& frame) {
      fold<Fold>(r.reduction, x.ints(frame), z.ints(frame));
    });
  }
  bool halves = narrow && x.type.dtype == DType::fp16;
  if (!r.of_rows || halves) {
    return LoweredOp({r.type}, [=](const Frame& frame) {
      if (halves && frame.numerics > Numerics::fast) {
        narrow_fold<Fold>(r.reduction, x.floats(frame), z.floats(frame));
      } else {
        fold<Fold>(r.reduction, x.floats(frame), z.floats(frame));
      }
    });
  }
  auto n = r.reduction.length(), columns = columns_of(r.type.shape);
  return LoweredOp::by_rows(
      r.type, [=](const Frame& frame, int64_t first, int64_t last) {
        auto *a = x.floats(frame), *out = z.floats(frame);
        for (int64_t i = first * columns; i < last * columns; ++i) {
          out[i] = fold_row<Fold>(a + i * n, n);
        }
      });
}

LoweredOp reduce_log_sum_exp(const Call& call) {
  auto r = reduction(call);
  call.need(mil::is_float(r.x.type.dtype), "x must be fp16 or fp32");
  auto x = r.x, z = r.z;
  auto& reduction = r.reduction;
  return LoweredOp({r.type}, [=](const Frame& frame) {
    auto *a = x.floats(frame), *out = z.floats(frame);
    reduction.each([&](int64_t i, int64_t at) {
      float largest = -INFINITY;
      reduction.along(
          at, [&](int64_t p) { largest = std::max(largest, a[p]); });
      double sum = 0;
      reduction.along(at, [&](int64_t p) { sum += std::exp(a[p] - largest); });
      out[i] = largest + static_cast<float>(std::log(sum));
    });
  });
}

template <bool largest>
LoweredOp reduce_arg(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  auto rank = x.shape().size();
  call.need(rank > 0, "x must not be a scalar");
  auto axis = call.axis(call.integer("axis", -1), rank);
  auto name = call.text("output_dtype", "int32");
  auto dtype = mil::dtype_named(name);
  call.need(
      dtype && mil::is_integer(*dtype), "output_dtype must be an integer type");
  call.need(x.type.dtype != DType::string, "x must hold numbers");
  bool floats = mil::is_float(x.type.dtype);
  ReductionAxes reduction(x.shape(), {axis});
  auto shape = reduced_shape(x.shape(), {axis}, call.flag("keep_dims", false));
  return LoweredOp({{*dtype, shape}}, [=](const Frame& frame) {
    auto at = [&](int64_t p) {
      return floats ? static_cast<double>(x.floats(frame)[p])
                    : static_cast<double>(x.ints(frame)[p]);
    };
    reduction.each([&](int64_t i, int64_t start) {
      int32_t index = 0, best = 0;
      double value = 0;
      reduction.along(start, [&](int64_t p) {
        auto v = at(p);
        if (index == 0 || (largest ? v > value : v < value)) {
          value = v;
          best = index;
        }
        ++index;
      });
      z.ints(frame)[i] = best;
    });
  });
}

constexpr Op table[] = {
    {"reduce_argmax", reduce_arg<true>, "iOS15 reduction: reduce_argmax"},
    {"reduce_argmin", reduce_arg<false>, "iOS15 reduction: reduce_argmin"},
    {"reduce_l1_norm", reduce<L1, true>, "iOS15 reduction: reduce_l1_norm"},
    {"reduce_l2_norm", reduce<L2>, "iOS15 reduction: reduce_l2_norm"},
    {"reduce_log_sum", reduce<LogSum>, "iOS15 reduction: reduce_log_sum"},
    {"reduce_log_sum_exp",
     reduce_log_sum_exp,
     "iOS15 reduction: reduce_log_sum_exp"},
    {"reduce_max", reduce<Largest>, "iOS15 reduction: reduce_max"},
    {"reduce_mean", reduce<Mean, true>, "iOS15 reduction: reduce_mean"},
    {"reduce_min", reduce<Least>, "iOS15 reduction: reduce_min"},
    {"reduce_prod", reduce<Product>, "iOS15 reduction: reduce_prod"},
    {"reduce_sum", reduce<Sum, true>, "iOS15 reduction: reduce_sum"},
    {"reduce_sum_square",
     reduce<SumSquare>,
     "iOS15 reduction: reduce_sum_square"},
};

}  // namespace

std::span<const Op> reduce_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
