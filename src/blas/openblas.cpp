// The sgemm seam over OpenBLAS (scipy-openblas32, whose symbols are prefixed).
#include <cblas.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "blas/backend.h"
#include "kernels/pool.h"

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
    open_ = (running_.fetch_add(1) & closed) == 0;
  }
  ~Call() {
    running_.fetch_sub(1);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  bool open() const {
    return open_;
  }

 private:
  static constexpr int64_t closed = int64_t{1} << 62;
  static void close() {
    running_.fetch_or(closed);
    // Bounded: a forked child counts calls of threads that it does not have.
    for (int i = 0; i < 50'000 && (running_ & ~closed) != 0; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
  inline static std::atomic<int64_t> running_{0};
  bool open_;
};

/// A call below this many multiplications is over before a worker wakes up.
constexpr double parallel_size = 4e6;
/// Tiles for each thread: enough to even out, few enough to pack cheaply.
constexpr int64_t tiles_per_thread = 4;
constexpr int64_t smallest_side = 96;

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

/// How many parts of at least smallest_side a side is cut into.
int64_t parts(int64_t side, int64_t wanted) {
  return std::clamp<int64_t>(side / smallest_side, 1, wanted);
}

/// Length of each of `count` parts, in whole register tiles of the BLAS.
int64_t part_length(int64_t side, int64_t count) {
  constexpr int64_t unit = 16;
  return ((side + count - 1) / count + unit - 1) / unit * unit;
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
  int threads = thread_count.load(std::memory_order_relaxed);
  bool large = static_cast<double>(m) * n * k > parallel_size;
  int64_t wanted = threads > 1 && large ? threads * tiles_per_thread : 1;
  // The longer side first: its tiles repack the shorter operand only.
  int64_t rows = m >= n ? parts(m, wanted) : 1;
  int64_t cols = parts(n, (wanted + rows - 1) / rows);
  rows = m >= n ? rows : parts(m, (wanted + cols - 1) / cols);
  int64_t height = part_length(m, rows), width = part_length(n, cols);
  rows = (m + height - 1) / height;
  cols = (n + width - 1) / width;
  kernels::parallel_for(rows * cols, threads, [&](int64_t tile) {
    int64_t i = tile / cols * height, j = tile % cols * width;
    scipy_cblas_sgemm(
        CblasRowMajor,
        transpose(trans_a),
        transpose(trans_b),
        narrow(std::min(height, m - i)),
        narrow(std::min(width, n - j)),
        narrow(k),
        alpha,
        a + (trans_a ? i : i * lda),
        narrow(lda),
        b + (trans_b ? j * ldb : j),
        narrow(ldb),
        beta,
        c + i * ldc + j,
        narrow(ldc));
  });
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
