// gemm and sgemm against float64, at odd sizes, strides, types and thread
// counts.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <thread>

#include "blas/blas.h"
#include "check.h"
#include "host/half.h"
#include "host/pool.h"
#include "kernels/gemm.h"
#include "kernels/partition.h"

using namespace mlx_ane;

namespace {

/// A matrix of small random values behind a view of any strides.
struct Matrix {
  std::vector<uint8_t> bytes;
  MatrixView view;
  std::vector<double> values;  // (rows, cols)

  Matrix(
      int64_t rows,
      int64_t cols,
      Float type,
      int64_t row_stride,
      int64_t col_stride,
      std::mt19937& random) {
    int64_t span = std::abs(row_stride) * (rows + 1) +
                   std::abs(col_stride) * (cols + 1) + 1;
    auto size = static_cast<int64_t>(size_of(type));
    // MLX's buffers are 8-byte aligned only.
    bytes.resize(static_cast<size_t>(2 * span * size + 72));
    auto base = bytes.data() + 8 + span * size;
    std::normal_distribution<float> normal;
    for (int64_t i = -span; i < span; ++i) {
      float value = normal(random);
      host::from_float(&value, type, base + i * size, 1);
    }
    view = {base, type, rows, cols, row_stride, col_stride};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        float value;
        auto at = base + (r * row_stride + c * col_stride) * size;
        host::to_float(at, type, &value, 1);
        values.push_back(value);
      }
    }
  }
};

Matrix make(
    int64_t rows, int64_t cols, Float type, int layout, std::mt19937& random) {
  switch (layout) {
    case 0:
      return {rows, cols, type, cols, 1, random};
    case 1:
      return {rows, cols, type, 1, rows, random};
    case 2:
      return {rows, cols, type, cols + 5, 1, random};
    case 3:
      return {rows, cols, type, 0, 1, random};
    case 4:
      return {rows, cols, type, -cols, 1, random};
    case 5:
      return {rows, cols, type, 3 * cols, 3, random};
    case 6:
      return {rows, cols, type, 0, 0, random};
    default:
      return {rows, cols, type, 1, -rows, random};
  }
}

double tolerance(Float type) {
  return type == Float::f32 ? 3e-6 : type == Float::f16 ? 1e-3 : 8e-3;
}

void check_gemm(
    const Matrix& a, const Matrix& b, const Matrix* bias, Float out_type) {
  int64_t m = a.view.rows, n = b.view.cols, k = a.view.cols;
  int64_t ld = n + 3;
  auto size = size_of(out_type);
  // NaN shows whatever is read before it is written, and guards the padding.
  std::vector<uint8_t> out(static_cast<size_t>(m * ld) * size + 8, 0xff);
  MatrixOut c{out.data() + 8, out_type, m, n, ld};
  kernels::gemm(a.view, b.view, bias ? &bias->view : nullptr, c);
  bool right = true, untouched = true;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < ld; ++j) {
      float got;
      auto at = out.data() + 8 + static_cast<size_t>(i * ld + j) * size;
      host::to_float(at, out_type, &got, 1);
      if (j >= n) {
        untouched &= std::isnan(got);
        continue;
      }
      double want = bias ? bias->values[j] : 0.0, magnitude = std::abs(want);
      for (int64_t p = 0; p < k; ++p) {
        double product = a.values[i * k + p] * b.values[p * n + j];
        want += product;
        magnitude += std::abs(product);
      }
      double bound = 1e-6 * magnitude + tolerance(out_type) * std::abs(want);
      right &= std::abs(got - want) <= bound + 1e-7;
    }
  }
  CHECK(right);
  CHECK(untouched);
}

const Float types[] = {Float::f32, Float::f16, Float::bf16};

}  // namespace

TEST(gemm_takes_any_strides_and_types) {
  std::mt19937 random(1);
  for (int a_layout = 0; a_layout < 8; ++a_layout) {
    for (int b_layout = 0; b_layout < 8; ++b_layout) {
      Float a_type = types[(a_layout + b_layout) % 3];
      Float b_type = types[(a_layout + 2 * b_layout) % 3];
      Matrix a = make(17, 15, a_type, a_layout, random);
      Matrix b = make(15, 31, b_type, b_layout, random);
      Matrix bias = make(1, 31, b_type, b_layout, random);
      for (Float out : types) {
        check_gemm(a, b, nullptr, out);
        check_gemm(a, b, &bias, out);
      }
    }
  }
}

TEST(gemm_takes_sizes_of_zero_and_one) {
  std::mt19937 random(2);
  for (int64_t m : {0, 1, 2, 33}) {
    for (int64_t n : {0, 1, 2, 33}) {
      for (int64_t k : {0, 1, 2, 33}) {
        for (Float type : {Float::f32, Float::bf16}) {
          for (int layout : {0, 1, 2}) {
            Matrix a = make(m, k, type, layout, random);
            Matrix b = make(k, n, type, layout, random);
            Matrix bias = make(1, n, Float::f32, 0, random);
            check_gemm(a, b, nullptr, type);
            check_gemm(a, b, &bias, type);
          }
        }
      }
    }
  }
}

TEST(gemm_crosses_its_panels_and_tiles) {
  std::mt19937 random(3);
  for (int threads : {1, 3}) {
    blas::set_threads(threads);
    for (Float type : types) {
      Matrix a = make(70, 2100, type, 0, random);
      Matrix b = make(2100, 60, type, 1, random);
      check_gemm(a, b, nullptr, type);
      Matrix wide = make(33, 2051, type, 1, random);
      Matrix left = make(1203, 33, type, 1, random);
      Matrix bias = make(1, 2051, type, 0, random);
      check_gemm(left, wide, &bias, type);
    }
  }
  blas::set_threads(0);
}

TEST(cut_covers_a_product_once) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    int64_t m = 1 + random() % 3000, n = 1 + random() % 3000;
    int64_t k = 1 + random() % 9000;
    int threads = 1 + static_cast<int>(random() % 4);
    auto c = kernels::partition(random() % 2 == 0, m, n, k, threads);
    CHECK((c.rows - 1) * c.height < m && c.rows * c.height >= m);
    CHECK((c.cols - 1) * c.width < n && c.cols * c.width >= n);
    CHECK((c.depth - 1) * c.length < k && c.depth * c.length >= k);
    CHECK(c.parts() <= 8 * threads);
    CHECK(threads > 1 || c.parts() == 1);
  }
  // A long product of few rows and columns is cut in depth, a tall one in rows.
  CHECK(kernels::partition(false, 256, 768, 32000, 2).depth == 8);
  CHECK(kernels::partition(true, 32000, 768, 256, 2).rows == 8);
}

TEST(sgemm_adds_the_parts_of_k) {
  std::mt19937 random(8);
  constexpr int64_t m = 41, n = 37, k = 3001, ldc = n + 5;
  blas::set_threads(3);
  CHECK(kernels::partition(false, m, n, k, 3).depth > 1);
  Matrix a = make(m, k, Float::f32, 0, random);
  Matrix b = make(k, n, Float::f32, 0, random);
  auto a_data = static_cast<const float*>(a.view.data);
  auto b_data = static_cast<const float*>(b.view.data);
  std::vector<float> c(m * ldc, 2.0f);
  kernels::sgemm(
      {.m = m,
       .n = n,
       .k = k,
       .alpha = 0.5f,
       .a = a_data,
       .lda = k,
       .b = b_data,
       .ldb = n,
       .beta = 3.0f,
       .c = c.data(),
       .ldc = ldc});
  bool right = true, untouched = true;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < ldc; ++j) {
      double want = j < n ? 6.0 : 2.0;
      for (int64_t p = 0; j < n && p < k; ++p) {
        want += 0.5 * a.values[i * k + p] * b.values[p * n + j];
      }
      double error = std::abs(c[i * ldc + j] - want);
      right &= j >= n || error < 2e-3;
      untouched &= j < n || error == 0.0;
    }
  }
  CHECK(right);
  CHECK(untouched);
  blas::set_threads(0);
}
TEST(sgemm_takes_vectors_with_padding) {
  std::mt19937 random(6);
  for (auto [m, n] : {std::pair<int64_t, int64_t>{1, 5}, {5, 1}, {1, 1}}) {
    for (bool trans_a : {false, true}) {
      for (bool trans_b : {false, true}) {
        constexpr int64_t k = 7, ld = 11;
        std::vector<float> a(k * ld), b(k * ld), c(5 * ld, 2.0f);
        std::normal_distribution<float> normal;
        for (auto* x : {&a, &b}) {
          std::generate(x->begin(), x->end(), [&] { return normal(random); });
        }
        kernels::sgemm(
            {.trans_a = trans_a,
             .trans_b = trans_b,
             .m = m,
             .n = n,
             .k = k,
             .alpha = 0.5f,
             .a = a.data(),
             .lda = ld,
             .b = b.data(),
             .ldb = ld,
             .beta = 3.0f,
             .c = c.data(),
             .ldc = ld});
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            double want = 6.0;
            for (int64_t p = 0; p < k; ++p) {
              want += 0.5 * (trans_a ? a[p * ld + i] : a[i * ld + p]) *
                      (trans_b ? b[j * ld + p] : b[p * ld + j]);
            }
            CHECK(std::abs(c[i * ld + j] - want) < 1e-5);
          }
        }
        CHECK(c[n] == 2.0f);
      }
    }
  }
}

TEST(sgemm_without_a_depth_scales_c) {
  float nan = std::numeric_limits<float>::quiet_NaN();
  for (auto* product : {blas::sgemm, blas::sgemm_reference}) {
    std::vector<float> kept{1, 2, nan, 3, 4, nan}, cleared(6, nan);
    blas::Sgemm p{
        .m = 2,
        .n = 2,
        .k = 0,
        .a = nullptr,
        .lda = 0,
        .b = nullptr,
        .ldb = 0,
        .beta = 3.0f,
        .c = kept.data(),
        .ldc = 3};
    product(p);
    CHECK(kept[0] == 3 && kept[1] == 6 && kept[3] == 9 && kept[4] == 12);
    p.beta = 0.0f;
    p.c = cleared.data();
    product(p);
    CHECK(cleared[0] == 0 && cleared[1] == 0 && cleared[4] == 0);
    CHECK(std::isnan(kept[2]) && std::isnan(cleared[2]));
  }
}

TEST(sgemm_reference_is_sgemm) {
  std::mt19937 random(7);
  constexpr int64_t m = 5, n = 6, k = 7, ld = 9;
  Matrix a = make(ld, ld, Float::f32, 0, random);
  Matrix b = make(ld, ld, Float::f32, 0, random);
  for (bool trans_a : {false, true}) {
    for (bool trans_b : {false, true}) {
      std::vector<float> fast(m * ld, 2.0f), plain = fast;
      blas::Sgemm p{
          trans_a,
          trans_b,
          m,
          n,
          k,
          0.5f,
          static_cast<const float*>(a.view.data),
          ld,
          static_cast<const float*>(b.view.data),
          ld,
          3.0f,
          fast.data(),
          ld};
      blas::sgemm(p);
      p.c = plain.data();
      blas::sgemm_reference(p);
      for (int64_t i = 0; i < m * ld; ++i) {
        CHECK(std::abs(fast[i] - plain[i]) < 1e-5);
      }
    }
  }
}

TEST(gemm_passes_nan_and_infinity_on) {
  std::mt19937 random(4);
  Matrix a = make(20, 20, Float::f32, 0, random);
  Matrix b = make(20, 20, Float::f32, 0, random);
  auto data = static_cast<float*>(const_cast<void*>(a.view.data));
  data[3 * 20 + 4] = NAN;
  data[5 * 20 + 6] = INFINITY;
  std::vector<float> c(400);
  kernels::gemm(a.view, b.view, nullptr, {c.data(), Float::f32, 20, 20, 20});
  for (int i = 0; i < 400; ++i) {
    CHECK(std::isfinite(c[i]) == (i / 20 != 3 && i / 20 != 5));
  }
}

TEST(gemm_runs_from_several_threads_at_once) {
  std::mt19937 random(5);
  blas::set_threads(3);
  Matrix a = make(200, 190, Float::bf16, 0, random);
  Matrix b = make(190, 210, Float::f32, 1, random);
  auto product = [&] {
    std::vector<float> c(200 * 210);
    kernels::gemm(
        a.view, b.view, nullptr, {c.data(), Float::f32, 200, 210, 210});
    return c;
  };
  auto want = product();
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([&] {
      for (int round = 0; round < 10; ++round) {
        wrong += product() != want;
      }
    });
  }
  for (auto& caller : callers) {
    caller.join();
  }
  CHECK(wrong == 0);
  blas::set_threads(0);
}

TEST(parallel_for_runs_each_task_once_and_rethrows) {
  for (int threads : {1, 2, 5}) {
    std::vector<std::atomic<int>> runs(100);
    std::atomic<int> nested{0};
    host::parallel_for(100, threads, [&](int64_t i) {
      ++runs[i];
      host::parallel_for(3, threads, [&](int64_t) { ++nested; });
    });
    CHECK(
        std::all_of(runs.begin(), runs.end(), [](auto& n) { return n == 1; }));
    CHECK(nested == 300);
    CHECK_THROWS(std::runtime_error, "task 7", {
      host::parallel_for(20, threads, [](int64_t i) {
        if (i == 7) {
          throw std::runtime_error("task 7");
        }
      });
    });
  }
}

TEST(settings_are_checked) {
  CHECK_THROWS(
      std::invalid_argument, "need 0 or more", { blas::set_threads(-1); });
  blas::set_threads(2);
  CHECK(blas::threads() == 2);
  blas::set_threads(0);
  CHECK(blas::threads() >= 1);
  CHECK(blas::name().find("OpenBLAS") == 0 || blas::name() == "Accelerate");
}

CHECK_MAIN()
