// Fused attention: tiles of query rows, scores by sgemm, softmax while in
// cache.
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "host/half.h"
#include "host/loops.h"
#include "host/rows.h"
#include "host/scratch.h"
#include "kernels/gemm.h"

namespace mlx_ane::kernels {

namespace {

/// Query rows at a time: long enough for sgemm, short enough that a causal mask
/// skips most of the hidden keys.
constexpr int64_t tile_rows = 64;

constexpr float hidden = -std::numeric_limits<float>::infinity();

struct KeyUse {};
struct ValueUse {};
struct QueryUse {};
struct ScoreUse {};
struct OutUse {};
struct OutGradUse {};
struct ScoreGradUse {};
struct QueryGradUse {};
struct KeyGradUse {};
struct ValueGradUse {};

/// The problem's sizes: q (B, H, S, D), k (B, G, T, D), v (B, G, T, E).
struct Sizes {
  explicit Sizes(const Attention& a)
      : B(a.q.shape[0]),
        H(a.q.shape[1]),
        S(a.q.shape[2]),
        D(a.q.shape[3]),
        G(a.k.shape[1]),
        T(a.k.shape[2]),
        E(a.v.shape[3]) {
  }
  int64_t B, H, S, D, G, T, E;
};

template <class Use>
host::FloatRows as_float(const MatrixView& x) {
  bool in_place = x.type == Float::f32 && x.col_stride == 1;
  return host::float_rows(
      x, in_place ? nullptr : host::scratch<Use, float>(x.rows * x.cols));
}

MatrixView rows_of(const MatrixView& x, int64_t first, int64_t n) {
  return x.block(first, 0, n, x.cols);
}

/// Where fp32 results of a matrix go: the matrix itself, or scratch that
/// `finish` converts.
template <class Use>
class FloatOut {
 public:
  explicit FloatOut(const MatrixView& target) : target_(target) {
    bool direct = target.type == Float::f32;
    data = direct ? static_cast<float*>(const_cast<void*>(target.data))
                  : host::scratch<Use, float>(target.rows * target.cols);
    ld = direct ? target.row_stride : target.cols;
  }

  void zero() {
    for (int64_t r = 0; r < target_.rows; ++r) {
      std::fill_n(data + r * ld, target_.cols, 0.0f);
    }
  }

  void finish() const {
    auto bytes = static_cast<char*>(const_cast<void*>(target_.data));
    auto row_bytes =
        target_.row_stride * static_cast<int64_t>(size_of(target_.type));
    for (int64_t r = 0; target_.type != Float::f32 && r < target_.rows; ++r) {
      host::from_float(
          data + r * ld, target_.type, bytes + r * row_bytes, target_.cols);
    }
  }

  float* data;
  int64_t ld;

 private:
  MatrixView target_;
};

/// Keys that query row i sees under a causal mask; T without one.
int64_t visible_keys(const Attention& a, const Sizes& n, int64_t i) {
  return a.mask.kind == Mask::Kind::causal
             ? std::clamp<int64_t>(i + n.T - n.S + 1, 0, n.T)
             : n.T;
}

/// Adds the mask to the scaled scores of one row; hidden keys become -infinity.
void apply_mask(
    const Mask& mask,
    int64_t batch,
    int64_t head,
    int64_t row,
    float* scores,
    int64_t keys) {
  int64_t offset =
      batch * mask.strides[0] + head * mask.strides[1] + row * mask.strides[2];
  int64_t stride = mask.strides[3];
  if (mask.kind == Mask::Kind::boolean) {
    auto data = static_cast<const uint8_t*>(mask.data) + offset;
    for (int64_t j = 0; j < keys; ++j) {
      scores[j] = data[j * stride] ? scores[j] : hidden;
    }
  } else if (mask.kind == Mask::Kind::additive) {
    auto data = static_cast<const char*>(mask.data);
    auto size = static_cast<int64_t>(size_of(mask.type));
    for (int64_t j = 0; j < keys; ++j) {
      float value;
      host::to_float(data + (offset + j * stride) * size, mask.type, &value, 1);
      scores[j] += value;
    }
  }
}

/// Scaled scores of query rows `first` .. `first` + rows against `keys` keys.
void score_tile(
    const Attention& a,
    const host::FloatRows& q,
    const host::FloatRows& k,
    int64_t rows,
    int64_t keys,
    float* scores) {
  sgemm(
      {.trans_b = true,
       .m = rows,
       .n = keys,
       .k = a.q.shape[3],
       .alpha = a.scale,
       .a = q.data,
       .lda = q.ld,
       .b = k.data,
       .ldb = k.ld,
       .c = scores,
       .ldc = keys});
}

/// Keys that any row of a tile needs. A row that sees none averages them all.
int64_t tile_keys(
    const Attention& a, const Sizes& n, int64_t first, int64_t rows) {
  return visible_keys(a, n, first) == 0 ? n.T
                                        : visible_keys(a, n, first + rows - 1);
}

/// One head's place: which batch and head, and its sink.
struct Head {
  int64_t batch;
  int64_t head;
  const float* sink;
};

/// A row in which every key is hidden, and no sink takes the probability: all
/// keys count alike, as with MLX's finite lowest score.
bool averages_all(const Attention& a, const Head& at, float maximum) {
  return maximum == hidden && at.sink == nullptr &&
         a.mask.kind != Mask::Kind::additive;
}

/// scores -> exp(scores - maximum); returns the sum, and log-sum-exp in *lse.
float softmax_row(
    const Attention& a,
    const Sizes& n,
    const Head& at,
    int64_t row,
    float* scores,
    int64_t keys,
    float* lse) {
  int64_t visible = visible_keys(a, n, row);
  apply_mask(a.mask, at.batch, at.head, row, scores, visible);
  float maximum = host::loops().maximum(scores, visible);
  if (averages_all(a, at, maximum)) {
    std::fill_n(scores, keys, 1.0f);
    *lse = 0.0f;
    return static_cast<float>(keys);
  }
  if (at.sink != nullptr) {
    maximum = std::max(maximum, *at.sink);
  }
  float sum = host::loops().exp_sum(scores, 1.0f, maximum, scores, visible);
  std::fill(scores + visible, scores + keys, 0.0f);
  if (at.sink != nullptr) {
    sum += std::exp(*at.sink - maximum);
  }
  *lse = maximum + std::log(sum);
  return sum;
}

void forward_tile(
    const Attention& a,
    const Sizes& n,
    const Head& at,
    const host::FloatRows& k,
    const host::FloatRows& v,
    int64_t first,
    const Heads& out,
    float* logsumexp) {
  int64_t rows = std::min(tile_rows, n.S - first);
  int64_t keys = tile_keys(a, n, first, rows);
  auto scores = host::scratch<ScoreUse, float>(tile_rows * n.T);
  auto q =
      as_float<QueryUse>(rows_of(a.q.head(at.batch, at.head), first, rows));
  score_tile(a, q, k, rows, keys, scores);
  float sums[tile_rows];
  for (int64_t r = 0; r < rows; ++r) {
    float lse;
    sums[r] = softmax_row(a, n, at, first + r, scores + r * keys, keys, &lse);
    if (logsumexp != nullptr) {
      logsumexp[first + r] = lse;
    }
  }
  FloatOut<OutUse> y(rows_of(out.head(at.batch, at.head), first, rows));
  sgemm(
      {.m = rows,
       .n = n.E,
       .k = keys,
       .a = scores,
       .lda = keys,
       .b = v.data,
       .ldb = v.ld,
       .c = y.data,
       .ldc = y.ld});
  for (int64_t r = 0; r < rows; ++r) {
    host::loops().scale_add(y.data + r * y.ld, 1.0f / sums[r], 0.0f, n.E);
  }
  y.finish();
}

/// What one backward tile reads and accumulates into.
struct Gradients {
  const Heads& out;
  const Heads& d_out;
  const Heads& dq;
  float* dk;  // (T, D) or nullptr
  int64_t dk_ld;
  float* dv;  // (T, E) or nullptr
  int64_t dv_ld;
  float* d_sink;
};

/// Probabilities of a tile from the saved log-sum-exp; `free[r]` is 0 in rows
/// whose scores do not matter.
void probabilities(
    const Attention& a,
    const Sizes& n,
    const Head& at,
    int64_t first,
    int64_t rows,
    int64_t keys,
    const float* logsumexp,
    float* scores,
    float* free) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * keys;
    int64_t visible = visible_keys(a, n, first + r);
    apply_mask(a.mask, at.batch, at.head, first + r, row, visible);
    bool averages = averages_all(a, at, host::loops().maximum(row, visible));
    free[r] = averages ? 0.0f : 1.0f;
    if (averages) {
      std::fill_n(row, keys, 1.0f / static_cast<float>(keys));
      continue;
    }
    host::loops().exp_sum(row, 1.0f, logsumexp[first + r], row, visible);
    std::fill(row + visible, row + keys, 0.0f);
  }
}

void backward_tile(
    const Attention& a,
    const Sizes& n,
    const Head& at,
    const host::FloatRows& k,
    const host::FloatRows& v,
    int64_t first,
    const float* logsumexp,
    const Gradients& to) {
  int64_t rows = std::min(tile_rows, n.S - first);
  int64_t keys = tile_keys(a, n, first, rows);
  auto tile_of = [&](const Heads& x) {
    return rows_of(x.head(at.batch, at.head), first, rows);
  };
  auto q = as_float<QueryUse>(tile_of(a.q));
  auto y = as_float<OutUse>(tile_of(to.out));
  auto dy = as_float<OutGradUse>(tile_of(to.d_out));
  // p, ds: (rows, keys)
  auto p = host::scratch<ScoreUse, float>(tile_rows * n.T);
  auto ds = host::scratch<ScoreGradUse, float>(tile_rows * n.T);
  float free[tile_rows];
  score_tile(a, q, k, rows, keys, p);
  probabilities(a, n, at, first, rows, keys, logsumexp, p, free);
  if (to.dv != nullptr) {
    // dv += p' dy
    sgemm(
        {.trans_a = true,
         .m = keys,
         .n = n.E,
         .k = rows,
         .a = p,
         .lda = keys,
         .b = dy.data,
         .ldb = dy.ld,
         .beta = 1.0f,
         .c = to.dv,
         .ldc = to.dv_ld});
  }
  // ds = p (dy v' - rowsum(dy y)) scale
  sgemm(
      {.trans_b = true,
       .m = rows,
       .n = keys,
       .k = n.E,
       .a = dy.data,
       .lda = dy.ld,
       .b = v.data,
       .ldb = v.ld,
       .c = ds,
       .ldc = keys});
  for (int64_t r = 0; r < rows; ++r) {
    float delta =
        host::loops().dot(dy.data + r * dy.ld, y.data + r * y.ld, n.E);
    host::loops().softmax_backward(
        p + r * keys, delta, a.scale * free[r], ds + r * keys, keys);
    if (to.d_sink != nullptr) {
      *to.d_sink -= std::exp(*at.sink - logsumexp[first + r]) * delta;
    }
  }
  if (to.dq.data != nullptr) {
    FloatOut<QueryGradUse> dq(tile_of(to.dq));
    sgemm(
        {.m = rows,
         .n = n.D,
         .k = keys,
         .a = ds,
         .lda = keys,
         .b = k.data,
         .ldb = k.ld,
         .c = dq.data,
         .ldc = dq.ld});
    dq.finish();
  }
  if (to.dk != nullptr) {
    // dk += ds' q
    sgemm(
        {.trans_a = true,
         .m = keys,
         .n = n.D,
         .k = rows,
         .a = ds,
         .lda = keys,
         .b = q.data,
         .ldb = q.ld,
         .beta = 1.0f,
         .c = to.dk,
         .ldc = to.dk_ld});
  }
}

/// Backward of the query heads that share key and value head g.
void backward_group(
    const Attention& a,
    const Sizes& n,
    int64_t b,
    int64_t g,
    const Heads& out,
    const float* logsumexp,
    const Heads& d_out,
    const Heads& dq,
    const Heads& dk,
    const Heads& dv,
    float* d_sinks) {
  auto k = as_float<KeyUse>(a.k.head(b, g));
  auto v = as_float<ValueUse>(a.v.head(b, g));
  FloatOut<KeyGradUse> dk_out(dk.head(b, g));
  FloatOut<ValueGradUse> dv_out(dv.head(b, g));
  if (dk.data != nullptr) {
    dk_out.zero();
  }
  if (dv.data != nullptr) {
    dv_out.zero();
  }
  int64_t heads = n.H / n.G;
  for (int64_t h = g * heads; h < (g + 1) * heads; ++h) {
    Gradients to{
        out,
        d_out,
        dq,
        dk.data != nullptr ? dk_out.data : nullptr,
        dk_out.ld,
        dv.data != nullptr ? dv_out.data : nullptr,
        dv_out.ld,
        d_sinks != nullptr ? d_sinks + h : nullptr};
    Head at{b, h, a.sinks != nullptr ? a.sinks + h : nullptr};
    for (int64_t first = 0; first < n.S; first += tile_rows) {
      backward_tile(a, n, at, k, v, first, logsumexp + (b * n.H + h) * n.S, to);
    }
  }
  if (dk.data != nullptr) {
    dk_out.finish();
  }
  if (dv.data != nullptr) {
    dv_out.finish();
  }
}

}  // namespace

void attention_forward(const Attention& a, const Heads& out, float* logsumexp) {
  Sizes n(a);
  int64_t heads = n.G == 0 ? 0 : n.H / n.G;
  for (int64_t b = 0; b < n.B; ++b) {
    for (int64_t g = 0; g < n.G; ++g) {
      auto k = as_float<KeyUse>(a.k.head(b, g));
      auto v = as_float<ValueUse>(a.v.head(b, g));
      for (int64_t h = g * heads; h < (g + 1) * heads; ++h) {
        Head at{b, h, a.sinks != nullptr ? a.sinks + h : nullptr};
        float* lse =
            logsumexp == nullptr ? nullptr : logsumexp + (b * n.H + h) * n.S;
        for (int64_t first = 0; first < n.S; first += tile_rows) {
          forward_tile(a, n, at, k, v, first, out, lse);
        }
      }
    }
  }
}

void attention_backward(
    const Attention& a,
    const Heads& out,
    const float* logsumexp,
    const Heads& d_out,
    const Heads& dq,
    const Heads& dk,
    const Heads& dv,
    float* d_sinks) {
  Sizes n(a);
  if (d_sinks != nullptr) {
    std::fill_n(d_sinks, n.H, 0.0f);
  }
  for (int64_t b = 0; b < n.B; ++b) {
    for (int64_t g = 0; g < n.G; ++g) {
      backward_group(a, n, b, g, out, logsumexp, d_out, dq, dk, dv, d_sinks);
    }
  }
}

}  // namespace mlx_ane::kernels
