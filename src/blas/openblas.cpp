// The sgemm seam over OpenBLAS (scipy-openblas32, whose symbols are prefixed).
#include <cblas.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "blas/backend.h"
#include "blas/cut.h"
#include "kernels/pool.h"
#include "host/process.h"
#include "kernels/scratch.h"

namespace mlx_ane::blas::vendor {

namespace {

/// OpenBLAS's own threads wait for each other at barriers, so that one busy
/// neighbour can stall them all: its calls run on one thread each, on tiles of
/// C that our workers take one by one.
std::atomic<int> thread_count{1};

/// OpenBLAS frees its buffers when the process ends: exit waits for the calls
/// that run, and later ones (from streams that nobody waited for) stay out.
class Call {
 public:
  Call() {
    [[maybe_unused]] static const int registered = std::atexit(&close);
    open_ = (running().fetch_add(1) & closed) == 0;
  }
  ~Call() {
    running().fetch_sub(1);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  bool open() const {
    return open_;
  }

 private:
  static constexpr int64_t closed = int64_t{1} << 62;
  static std::atomic<int64_t>& running() {
    return host::of_process<Running>().calls;
  }
  struct Running {
    std::atomic<int64_t> calls{0};
  };
  static void close() {
    running().fetch_or(closed);
    // Bounded: no call of ours takes as long.
    for (int i = 0; i < 50'000 && (running() & ~closed) != 0; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
  bool open_;
};

struct PartialUse {};

CBLAS_TRANSPOSE transpose(bool trans) {
  return trans ? CblasTrans : CblasNoTrans;
}

blasint narrow(int64_t n) {
  return static_cast<blasint>(n);
}

/// A product with one row or column of C reads its matrix once, unpacked.
bool as_vector(
    bool trans_a,
    bool trans_b,
    int64_t m,
    int64_t n,
    int64_t k,
    float alpha,
    const float* a,
    int64_t lda,
    const float* b,
    int64_t ldb,
    float beta,
    float* c,
    int64_t ldc) {
  if (m == 1) {
    scipy_cblas_sgemv(
        CblasRowMajor,
        transpose(!trans_b),
        narrow(trans_b ? n : k),
        narrow(trans_b ? k : n),
        alpha,
        b,
        narrow(ldb),
        a,
        narrow(trans_a ? lda : 1),
        beta,
        c,
        1);
  } else if (n == 1) {
    scipy_cblas_sgemv(
        CblasRowMajor,
        transpose(trans_a),
        narrow(trans_a ? k : m),
        narrow(trans_a ? m : k),
        alpha,
        a,
        narrow(lda),
        b,
        narrow(trans_b ? 1 : ldb),
        beta,
        c,
        narrow(ldc));
  }
  return m == 1 || n == 1;
}

/// c (rows, cols) += the partial sums, in their order.
void add_partial(
    const float* partial,
    int64_t count,
    float* c,
    int64_t ldc,
    int64_t rows,
    int64_t cols,
    int threads) {
  kernels::parallel_for(rows, threads, [&](int64_t r) {
    for (int64_t i = 0; i < count; ++i) {
      const float* from = partial + (i * rows + r) * cols;
      float* to = c + r * ldc;
      for (int64_t col = 0; col < cols; ++col) {
        to[col] += from[col];
      }
    }
  });
}

}  // namespace

void sgemm(
    bool trans_a,
    bool trans_b,
    int64_t m,
    int64_t n,
    int64_t k,
    float alpha,
    const float* a,
    int64_t lda,
    const float* b,
    int64_t ldb,
    float beta,
    float* c,
    int64_t ldc) {
  Call call;
  if (!call.open()) {
    reference::sgemm(
        trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  if (as_vector(
          trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)) {
    return;
  }
  int threads =
      kernels::inside_task() ? 1 : thread_count.load(std::memory_order_relaxed);
  Cut parts = cut(trans_a, m, n, k, threads);
  // Of all parts of k but the first: depth - 1 matrices (m, n).
  float* partial =
      kernels::scratch<PartialUse, float>((parts.depth - 1) * m * n);
  kernels::parallel_for(parts.parts(), threads, [&](int64_t part) {
    int64_t tile = part / parts.depth, d = part % parts.depth;
    int64_t i = tile / parts.cols * parts.height;
    int64_t j = tile % parts.cols * parts.width;
    int64_t p = d * parts.length;
    float* out = d == 0 ? c : partial + (d - 1) * m * n;
    int64_t ld_out = d == 0 ? ldc : n;
    scipy_cblas_sgemm(
        CblasRowMajor,
        transpose(trans_a),
        transpose(trans_b),
        narrow(std::min(parts.height, m - i)),
        narrow(std::min(parts.width, n - j)),
        narrow(std::min(parts.length, k - p)),
        alpha,
        a + (trans_a ? p * lda + i : i * lda + p),
        narrow(lda),
        b + (trans_b ? j * ldb + p : p * ldb + j),
        narrow(ldb),
        d == 0 ? beta : 0.0f,
        out + i * ld_out + j,
        narrow(ld_out));
  });
  if (parts.depth > 1) {
    add_partial(partial, parts.depth - 1, c, ldc, m, n, threads);
  }
}

std::string name() {
  // get_config() reads "OpenBLAS 0.3.34 DYNAMIC_ARCH ...".
  std::string config = scipy_openblas_get_config();
  auto end = config.find(' ', config.find(' ') + 1);
  return config.substr(0, end) + " " + scipy_openblas_get_corename();
}

void set_threads(int threads) {
  scipy_openblas_set_num_threads(1);
  thread_count = threads;
}

}  // namespace mlx_ane::blas::vendor
