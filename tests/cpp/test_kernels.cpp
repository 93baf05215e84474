// Half conversion, packing, unpacking and Adam against plain float64
// arithmetic.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <random>

#include "check.h"
#include "host/half.h"
#include "host/loops.h"
#include "host/rounding.h"
#include "kernels/adam.h"
#include "kernels/pack.h"

using namespace mlx_ane;
using namespace mlx_ane::kernels;

namespace {

const int64_t sizes[] = {0, 1, 2, 7, 15, 16, 17, 31, 33, 64, 100, 257, 1025};

/// Every instruction set that this CPU runs.
template <class Body>
void each_target(Body body) {
  for (auto& name : host::targets()) {
    host::set_target(name);
    int before = check::failures();
    body();
    if (check::failures() != before) {
      std::printf("  with target %s\n", name.c_str());
    }
  }
  host::set_target("");
}

/// n elements that start `offset` bytes past an aligned address, with guards
/// after them that `intact` checks.
template <class T>
class Unaligned {
 public:
  explicit Unaligned(int64_t n, size_t offset = 8)
      : n_(n), offset_(offset), bytes_(offset + 64 + n * sizeof(T) + 64, 0xa5) {
    base_ = (64 - reinterpret_cast<uintptr_t>(bytes_.data()) % 64) % 64;
  }
  T* data() {
    return reinterpret_cast<T*>(bytes_.data() + base_ + offset_);
  }
  T& operator[](int64_t i) {
    return data()[i];
  }
  bool intact() {
    auto end = reinterpret_cast<uint8_t*>(data() + n_);
    return std::all_of(end, bytes_.data() + bytes_.size(), [](uint8_t b) {
      return b == 0xa5;
    });
  }

 private:
  int64_t n_;
  size_t offset_;
  std::vector<uint8_t> bytes_;
  size_t base_;
};

uint32_t bits(float f) {
  return std::bit_cast<uint32_t>(f);
}

/// Finite floats of any magnitude, NaN, infinities, zeros, subnormals.
float any_float(std::mt19937& random) {
  return std::bit_cast<float>(static_cast<uint32_t>(random()));
}

float any_finite(std::mt19937& random) {
  float f = any_float(random);
  return std::isfinite(f) ? f : 1.5f;
}

/// fp16 by its definition: the nearest multiple of the spacing at |f|.
double nearest_half(double f) {
  if (std::isnan(f) || std::isinf(f)) {
    return f;
  }
  int exponent = f == 0.0 ? -14 : std::max(std::ilogb(f), -14);
  double rounded =
      std::ldexp(std::nearbyint(std::ldexp(f, 10 - exponent)), exponent - 10);
  return std::abs(rounded) > 65504.0
             ? std::copysign(std::numeric_limits<double>::infinity(), f)
             : rounded;
}

}  // namespace

TEST(every_half_converts_both_ways) {
  for (uint32_t h = 0; h < 65536; ++h) {
    auto half = static_cast<uint16_t>(h);
    float value = host::half_to_float(half);
    int exponent = (h >> 10) & 31, mantissa = h & 1023;
    double magnitude = exponent == 0 ? std::ldexp(mantissa, -24)
                       : exponent == 31
                           ? (mantissa ? NAN : INFINITY)
                           : std::ldexp(1024 + mantissa, exponent - 25);
    if (std::isnan(magnitude)) {
      CHECK(std::isnan(value));
      CHECK(host::float_to_half(value) == (half | 0x200));
    } else {
      CHECK(value == (h & 0x8000 ? -magnitude : magnitude));
      CHECK(host::float_to_half(value) == half);
    }
    float wide = host::bfloat_to_float(half);
    CHECK(bits(wide) == h << 16);
    CHECK(
        host::float_to_bfloat(wide) ==
        (std::isnan(wide) ? static_cast<uint16_t>(h | 0x40) : half));
  }
}

TEST(floats_round_to_nearest_even) {
  std::mt19937 random(1);
  for (int i = 0; i < 500000; ++i) {
    float f = any_float(random);
    if (i % 2 == 0 && std::isfinite(f)) {
      // Most of these fall in the range of fp16.
      int unused;
      f = std::ldexp(
          std::frexp(f, &unused), static_cast<int>(random() % 45) - 28);
    }
    float back = host::half_to_float(host::float_to_half(f));
    double want = nearest_half(f);
    CHECK(std::isnan(want) ? std::isnan(back) : back == want);
    if (!std::isnan(f)) {
      uint32_t b = bits(f);
      uint32_t low = b & 0xffff0000u, tail = b & 0xffffu;
      bool up = tail > 0x8000 || (tail == 0x8000 && (low & 0x10000));
      CHECK(host::float_to_bfloat(f) == (low + (up ? 0x10000 : 0)) >> 16);
    }
  }
  CHECK(host::float_to_half(65519.9f) == 0x7bff);
  CHECK(host::float_to_half(65520.0f) == 0x7c00);
  CHECK(host::float_to_half(0x1p-25f) == 0);
  CHECK(host::float_to_half(0x1.000002p-25f) == 1);
}

TEST(array_conversion_equals_scalar_at_any_size_and_alignment) {
  std::mt19937 random(2);
  each_target([&] {
    for (int64_t n : sizes) {
      for (size_t offset : {0, 2, 8, 14}) {
        for (Float type : {Float::f16, Float::bf16}) {
          Unaligned<float> wide(n, offset / 4 * 4);
          Unaligned<uint16_t> halves(n, offset), back(n, offset + 2);
          for (int64_t i = 0; i < n; ++i) {
            halves[i] = static_cast<uint16_t>(random());
          }
          host::to_float(halves.data(), type, wide.data(), n);
          bool f16 = type == Float::f16;
          for (int64_t i = 0; i < n; ++i) {
            float want = f16 ? host::half_to_float(halves[i])
                             : host::bfloat_to_float(halves[i]);
            CHECK(bits(wide[i]) == bits(want));
            wide[i] = any_float(random) * (i % 3 == 0 ? 1e-30f : 1.0f);
          }
          host::from_float(wide.data(), type, back.data(), n);
          for (int64_t i = 0; i < n; ++i) {
            CHECK(
                back[i] == (f16 ? host::float_to_half(wide[i])
                                : host::float_to_bfloat(wide[i])));
          }
          CHECK(wide.intact() && halves.intact() && back.intact());
        }
      }
    }
  });
}

namespace {

/// A view of random values with the strides of `kind`, and its values.
struct Matrix {
  std::vector<uint8_t> bytes;
  MatrixView view;
  std::vector<float> values;  // (rows, cols)

  Matrix(
      int64_t rows,
      int64_t cols,
      Float type,
      const std::string& kind,
      std::mt19937& random,
      double scale = 1.0) {
    int64_t pad = kind == "padded" ? 5 : 0;
    int64_t row = cols + pad, col = 1;
    if (kind == "transposed") {
      row = 1, col = rows + 3;
    } else if (kind == "strided") {
      row = 2 * cols + 1, col = 2;
    } else if (kind == "negative") {
      row = -cols, col = 1;
    } else if (kind == "reversed") {
      row = cols, col = -1;
    } else if (kind == "broadcast rows") {
      row = 0;
    } else if (kind == "broadcast cols") {
      col = 0, row = 1;
    }
    int64_t span = std::abs(row) * std::max<int64_t>(rows, 1) +
                   std::abs(col) * std::max<int64_t>(cols, 1) + 1;
    auto size = static_cast<int64_t>(size_of(type));
    bytes.resize(static_cast<size_t>((2 * span + 8) * size + 8));
    auto base = bytes.data() + 8 + span * size;
    std::normal_distribution<double> normal(0.0, scale);
    for (int64_t i = -span; i < span; ++i) {
      auto value = static_cast<float>(normal(random));
      host::from_float(&value, type, base + i * size, 1);
    }
    view = {base, type, rows, cols, row, col};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        float value;
        host::to_float(base + (r * row + c * col) * size, type, &value, 1);
        values.push_back(value);
      }
    }
  }
};

const std::string kinds[] = {
    "dense",
    "padded",
    "transposed",
    "strided",
    "negative",
    "reversed",
    "broadcast rows",
    "broadcast cols"};

void check_pack(
    Matrix& x,
    const std::vector<int16_t>& exponent,
    bool transposed,
    size_t offset) {
  int64_t rows = x.view.rows, cols = x.view.cols;
  int64_t rows_padded = (rows + 31) / 32 * 32, cols_padded = cols + 3;
  int64_t ld = (transposed ? rows_padded : cols_padded) + 32;
  ld -= transposed ? ld % 32 : 0;
  int64_t lines = transposed ? cols_padded : rows_padded;
  int64_t width = transposed ? rows_padded : cols_padded;
  Unaligned<uint16_t> dst(lines * ld, offset);
  std::fill_n(dst.data(), lines * ld, uint16_t{0x1234});
  (transposed ? pack_transposed : pack)(
      x.view, exponent, dst.data(), ld, rows_padded, cols_padded);
  bool equal = true;
  for (int64_t i = 0; i < lines; ++i) {
    for (int64_t j = 0; j < ld; ++j) {
      int64_t r = transposed ? j : i, c = transposed ? i : j;
      uint16_t want = 0;
      if (j >= width) {
        want = 0x1234;
      } else if (r < rows && c < cols) {
        int e = exponent.empty() ? 0 : exponent[r];
        want = host::float_to_half(std::ldexp(x.values[r * cols + c], e));
      }
      equal &= dst[i * ld + j] == want;
    }
  }
  CHECK(equal);
  CHECK(dst.intact());
}

}  // namespace

TEST(pack_takes_any_strides_types_and_sizes) {
  std::mt19937 random(3);
  each_target([&] {
    for (Float type : {Float::f32, Float::f16, Float::bf16}) {
      for (auto& kind : kinds) {
        for (auto [rows, cols] :
             {std::pair<int64_t, int64_t>{1, 1},
              {0, 5},
              {5, 0},
              {17, 15},
              {33, 100},
              {130, 65},
              {257, 31}}) {
          Matrix x(rows, cols, type, kind, random);
          std::vector<int16_t> exponent(rows);
          for (auto& e : exponent) {
            e = static_cast<int16_t>(random() % 40 - 20);
          }
          for (bool transposed : {false, true}) {
            check_pack(x, {}, transposed, 2);
            check_pack(x, exponent, transposed, 0);
          }
        }
      }
    }
  });
}

TEST(pack_streams_large_matrices_from_any_alignment) {
  std::mt19937 random(4);
  each_target([&] {
    for (size_t offset : {0, 8, 30}) {
      Matrix x(1100, 520, Float::f32, "dense", random);
      check_pack(x, {}, true, offset);
      check_pack(x, {}, false, offset);
    }
  });
}

TEST(pack_scales_any_fp32_exactly) {
  std::mt19937 random(5);
  each_target([&] {
    Matrix x(40, 33, Float::f32, "dense", random);
    std::vector<int16_t> exponent(40);
    auto data = const_cast<float*>(static_cast<const float*>(x.view.data));
    for (int64_t i = 0; i < 40 * 33; ++i) {
      x.values[i] = data[i] = any_finite(random);
    }
    for (auto& e : exponent) {
      e = static_cast<int16_t>(random() % 700 - 350);
    }
    check_pack(x, exponent, false, 2);
    check_pack(x, exponent, true, 2);
  });
}

namespace {

double norm_in_half(const float* x, int64_t n, int exponent) {
  double sum = 0.0;
  for (int64_t c = 0; c < n; ++c) {
    double value =
        nearest_half(std::ldexp(static_cast<double>(x[c]), exponent));
    sum += value * value;
  }
  return std::sqrt(sum);
}

}  // namespace

TEST(row_scales_are_the_largest_within_the_bound) {
  std::mt19937 random(6);
  each_target([&] {
    for (int round = 0; round < 3000; ++round) {
      int64_t n = 1 + static_cast<int64_t>(random() % 70);
      std::vector<float> x(n);
      int kind = round % 5;
      float power = std::ldexp(1.0f, static_cast<int>(random() % 277) - 149);
      for (auto& value : x) {
        double u = static_cast<double>(random()) / 0xffffffffu;
        value = kind == 0   ? any_finite(random)
                : kind == 1 ? power
                : kind == 2 ? static_cast<float>(power * (0.999 + 0.002 * u))
                : kind == 3 ? (random() % 3 ? 0.0f : power)
                            : static_cast<float>(power * (2.0 * u - 1.0));
        if (!std::isfinite(value)) {
          value = std::numeric_limits<float>::max();
        }
      }
      int log2_norm = static_cast<int>(random() % 15) + 1;
      MatrixView view{x.data(), Float::f32, 1, n, n, 1};
      RowScales scales = row_scales(view, log2_norm);
      bool nonzero =
          std::any_of(x.begin(), x.end(), [](float f) { return f != 0.0f; });
      CHECK(scales.finite[0] == 1);
      CHECK(scales.nonzero[0] == nonzero);
      int e = scales.exponent[0];
      double bound = std::ldexp(1.0, log2_norm);
      CHECK(nonzero || e == 0);
      CHECK(!nonzero || norm_in_half(x.data(), n, e) <= bound);
      CHECK(!nonzero || norm_in_half(x.data(), n, e + 1) > bound);
    }
    float special[] = {1.0f, NAN, 2.0f, INFINITY, -0.0f, 0.0f, 3e38f, 3e38f};
    MatrixView view{special, Float::f32, 4, 2, 2, 1};
    RowScales scales = row_scales(view, 7);
    CHECK(scales.finite == (std::vector<uint8_t>{0, 0, 1, 1}));
    CHECK(scales.nonzero == (std::vector<uint8_t>{1, 1, 0, 1}));
    CHECK(scales.exponent[0] == 0 && scales.exponent[1] == 0);
  });
}

TEST(pack_scaled_equals_row_scales_then_pack) {
  std::mt19937 random(7);
  for (Float type : {Float::f32, Float::f16}) {
    for (auto& kind : kinds) {
      Matrix x(67, 41, type, kind, random, 1e-3);
      RowScales want = row_scales(x.view, 7);
      for (bool transposed : {false, true}) {
        int64_t ld = 96;
        std::vector<uint16_t> a(96 * ld), b(96 * ld);
        RowScales got = (transposed ? pack_scaled_transposed : pack_scaled)(
            x.view, 7, a.data(), ld, 96, 64);
        (transposed ? pack_transposed : pack)(
            x.view, want.exponent, b.data(), ld, 96, 64);
        CHECK(got.exponent == want.exponent);
        CHECK(got.finite == want.finite && got.nonzero == want.nonzero);
        CHECK(a == b);
      }
    }
  }
}

namespace {

struct UnpackCase {
  int64_t rows, cols;
  bool accumulate;
  /// Range of the exponents; beyond 126 their factors do not fit fp32.
  int spread;
};

void check_unpack(const UnpackCase& k, std::mt19937& random) {
  int64_t ld = k.cols + 7, y_ld = k.cols + 3;
  Unaligned<uint16_t> src(k.rows * ld, 2);
  Unaligned<float> y(k.rows * y_ld, 8);
  std::vector<float> before(k.rows * y_ld);
  std::vector<int16_t> row_exp(k.rows), col_exp(k.cols);
  std::vector<uint8_t> row_finite(k.rows), col_finite(k.cols);
  std::vector<uint8_t> row_nonzero(k.rows), col_nonzero(k.cols);
  auto exponent = [&] {
    return static_cast<int16_t>(
        static_cast<int>(random() % (2 * k.spread + 1)) - k.spread);
  };
  std::generate(row_exp.begin(), row_exp.end(), exponent);
  std::generate(col_exp.begin(), col_exp.end(), exponent);
  for (auto* flags : {&row_finite, &col_finite}) {
    std::generate(
        flags->begin(), flags->end(), [&] { return random() % 4 > 0; });
  }
  for (int64_t i = 0; i < k.rows * ld; ++i) {
    uint32_t kind = random() % 50;
    src[i] = kind == 0   ? host::canary
             : kind == 1 ? 0x7c00
             : kind < 5  ? 0
                         : static_cast<uint16_t>(random() & 0xbbff);
  }
  if (k.rows > 2) {
    std::fill_n(&src[2 * ld], k.cols, uint16_t{0x8000});
  }
  for (int64_t i = 0; i < k.rows * y_ld; ++i) {
    before[i] = y[i] = static_cast<float>(i % 17) - 8.0f;
  }
  UnpackReport want;
  std::vector<uint8_t> want_row(k.rows), want_col(k.cols);
  bool equal = true;
  UnpackReport got = unpack(
      src.data(),
      ld,
      k.rows,
      k.cols,
      row_exp,
      col_exp,
      row_finite,
      col_finite,
      y.data(),
      y_ld,
      k.accumulate,
      row_nonzero,
      col_nonzero);
  for (int64_t r = 0; r < k.rows; ++r) {
    for (int64_t c = 0; c < y_ld; ++c) {
      float out = y[r * y_ld + c], old = before[r * y_ld + c];
      if (c >= k.cols) {
        equal &= out == old;
        continue;
      }
      uint16_t h = src[r * ld + c];
      float value =
          std::ldexp(host::half_to_float(h), -(row_exp[r] + col_exp[c]));
      value = k.accumulate ? value + old : value;
      equal &= std::isnan(value) ? std::isnan(out) : out == value;
      want.canaries += h == host::canary;
      bool finite = (h & 0x7c00) != 0x7c00;
      if (!finite && row_finite[r] && col_finite[c] && want.nonfinite++ == 0) {
        want.bad_row = r;
        want.bad_col = c;
      }
      bool nonzero = (h & 0x7fff) != 0;
      want_row[r] |= nonzero;
      want_col[c] |= nonzero;
    }
  }
  CHECK(equal);
  CHECK(y.intact());
  CHECK(got.canaries == want.canaries && got.nonfinite == want.nonfinite);
  CHECK(got.bad_row == want.bad_row && got.bad_col == want.bad_col);
  CHECK(row_nonzero == want_row && col_nonzero == want_col);
}

}  // namespace

TEST(unpack_undoes_scales_and_reports) {
  std::mt19937 random(8);
  each_target([&] {
    for (auto [rows, cols] :
         {std::pair<int64_t, int64_t>{1, 1},
          {0, 3},
          {3, 0},
          {5, 15},
          {17, 17},
          {9, 100},
          {700, 900}}) {
      for (bool accumulate : {false, true}) {
        for (int spread : {20, 170}) {
          check_unpack({rows, cols, accumulate, spread}, random);
        }
      }
    }
  });
}

TEST(unpack_transposed_inverts_pack_transposed) {
  std::mt19937 random(9);
  each_target([&] {
    for (auto [rows, cols] :
         {std::pair<int64_t, int64_t>{1, 1},
          {0, 4},
          {15, 17},
          {130, 33},
          {640, 1100}}) {
      int64_t ld = (rows + 31) / 32 * 32, y_ld = cols + 1;
      Unaligned<uint16_t> src(cols * ld, 2);
      Unaligned<float> y(rows * y_ld, 8);
      for (int64_t i = 0; i < cols * ld; ++i) {
        src[i] = static_cast<uint16_t>(random() & 0xbbff);
      }
      unpack_transposed(src.data(), ld, rows, cols, y.data(), y_ld);
      bool equal = true;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          equal &= y[r * y_ld + c] == host::half_to_float(src[c * ld + r]);
        }
      }
      CHECK(equal);
      CHECK(y.intact());
    }
  });
}
CHECK_MAIN()
