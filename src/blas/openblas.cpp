// The sgemm seam over OpenBLAS (scipy-openblas32, whose symbols are prefixed).
#include <cblas.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "blas/backend.h"
#include "host/process.h"

namespace mlx_ane::blas {

namespace {

/// OpenBLAS's own threads wait for each other at barriers, so that one busy
/// neighbour can stall them all: a call runs on one thread.
void use_one_thread() {
  [[maybe_unused]] static const bool once =
      (scipy_openblas_set_num_threads(1), true);
}

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

CBLAS_TRANSPOSE transpose(bool trans) {
  return trans ? CblasTrans : CblasNoTrans;
}

blasint narrow(int64_t n) {
  return static_cast<blasint>(n);
}

/// A product with one row or column of C reads its matrix once, unpacked.
bool as_vector(const Sgemm& p) {
  if (p.m == 1) {
    scipy_cblas_sgemv(
        CblasRowMajor,
        transpose(!p.trans_b),
        narrow(p.trans_b ? p.n : p.k),
        narrow(p.trans_b ? p.k : p.n),
        p.alpha,
        p.b,
        narrow(p.ldb),
        p.a,
        narrow(p.trans_a ? p.lda : 1),
        p.beta,
        p.c,
        1);
  } else if (p.n == 1) {
    scipy_cblas_sgemv(
        CblasRowMajor,
        transpose(p.trans_a),
        narrow(p.trans_a ? p.k : p.m),
        narrow(p.trans_a ? p.m : p.k),
        p.alpha,
        p.a,
        narrow(p.lda),
        p.b,
        narrow(p.trans_b ? 1 : p.ldb),
        p.beta,
        p.c,
        narrow(p.ldc));
  }
  return p.m == 1 || p.n == 1;
}

}  // namespace

void vendor::sgemm(const Sgemm& p) {
  Call call;
  if (!call.open()) {
    sgemm_reference(p);
    return;
  }
  use_one_thread();
  if (as_vector(p)) {
    return;
  }
  scipy_cblas_sgemm(
      CblasRowMajor,
      transpose(p.trans_a),
      transpose(p.trans_b),
      narrow(p.m),
      narrow(p.n),
      narrow(p.k),
      p.alpha,
      p.a,
      narrow(p.lda),
      p.b,
      narrow(p.ldb),
      p.beta,
      p.c,
      narrow(p.ldc));
}

std::string name() {
  // get_config() reads "OpenBLAS 0.3.34 DYNAMIC_ARCH ...".
  std::string config = scipy_openblas_get_config();
  auto end = config.find(' ', config.find(' ') + 1);
  return config.substr(0, end) + " " + scipy_openblas_get_corename();
}

bool spreads_calls() {
  return false;
}

}  // namespace mlx_ane::blas
