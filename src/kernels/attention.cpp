// Fused attention: tiles of query rows, scores by sgemm, softmax while in
// cache.
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>

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

struct KeyUse {};
struct ValueUse {};
struct QueryUse {};
struct MaskUse {};
struct HalfUse {};
struct ScoreUse {};
struct OutUse {};
struct OutGradUse {};
struct ScoreGradUse {};
struct QueryGradUse {};
struct KeyGradUse {};
struct ValueGradUse {};

/// fp32 matrix (rows, cols) of sgemm, rows `ld` apart; transposed: the memory
/// holds (cols, rows).
struct Matrix {
  float* data;
  int64_t rows;
  int64_t cols;
  int64_t ld;
  bool transposed = false;

  Matrix t() const {
    return {data, cols, rows, ld, !transposed};
  }
  Matrix top(int64_t n) const {
    return {data, n, cols, ld};
  }
  float* row(int64_t r) const {
    return data + r * ld;
  }
};

/// c = alpha a b + beta c.
void multiply(
    float alpha,
    const Matrix& a,
    const Matrix& b,
    float beta,
    const Matrix& c) {
  if (a.cols == 0 || c.cols == 0) {  // sizes that not every BLAS takes
    for (int64_t r = 0; beta == 0.0f && r < c.rows; ++r) {
      std::fill_n(c.row(r), c.cols, 0.0f);
    }
    return;
  }
  sgemm(
      {.trans_a = a.transposed,
       .trans_b = b.transposed,
       .m = c.rows,
       .n = c.cols,
       .k = a.cols,
       .alpha = alpha,
       .a = a.data,
       .lda = a.ld,
       .b = b.data,
       .ldb = b.ld,
       .beta = beta,
       .c = c.data,
       .ldc = c.ld});
}

/// The matrix in fp32, to be read: in place, or in scratch where the type
/// differs or rows overlap or run backwards, which no BLAS takes.
template <class Use>
Matrix as_float(const MatrixView& x) {
  if (x.type == Float::f32 && x.col_stride == 1 &&
      (x.row_stride >= x.cols || x.rows == 1)) {
    auto data = static_cast<float*>(const_cast<void*>(x.data));
    return {data, x.rows, x.cols, std::max(x.row_stride, x.cols)};
  }
  auto data = host::scratch<Use, float>(x.rows * x.cols);
  host::copy_rows(x, data, x.cols);
  return {data, x.rows, x.cols, x.cols};
}

/// Where fp32 results of a matrix go: the matrix itself, or scratch that
/// `finish` converts.
template <class Use>
class FloatOut {
 public:
  explicit FloatOut(const MatrixView& target) : target_(target) {
    floats = {nullptr, target.rows, target.cols, target.cols};
    if (target.type == Float::f32) {
      floats.data = static_cast<float*>(const_cast<void*>(target.data));
      floats.ld = target.row_stride;
    } else {
      floats.data = host::scratch<Use, float>(target.rows * target.cols);
    }
  }

  void zero() {
    for (int64_t r = 0; r < target_.rows; ++r) {
      std::fill_n(floats.row(r), target_.cols, 0.0f);
    }
  }

  void finish() const {
    auto bytes = static_cast<char*>(const_cast<void*>(target_.data));
    auto row_bytes =
        target_.row_stride * static_cast<int64_t>(size_of(target_.type));
    for (int64_t r = 0; target_.type != Float::f32 && r < target_.rows; ++r) {
      host::from_float(
          floats.row(r), target_.type, bytes + r * row_bytes, target_.cols);
    }
  }

  Matrix floats;

 private:
  MatrixView target_;
};

/// Query rows of one head, and the first keys that any of them needs.
struct Tile {
  int64_t batch;
  int64_t head;
  const float* sink;  // or nullptr
  int64_t first;
  int64_t rows;
  int64_t keys;

  MatrixView of(const Heads& x) const {
    auto all = x.head(batch, head);
    return all.block(first, 0, rows, all.cols);
  }
};

/// Keys that query row i sees under a causal mask; all without one.
int64_t visible_keys(const Attention& a, int64_t i) {
  auto rows = a.q.shape[2], keys = a.k.shape[2];
  return a.mask.kind == Mask::Kind::causal
             ? std::clamp<int64_t>(i + keys - rows + 1, 0, keys)
             : keys;
}

/// Calls f(tile, row of (B, H, S)) for all rows of head h, in order.
template <class F>
void each_tile(const Attention& a, int64_t b, int64_t h, F f) {
  auto rows = a.q.shape[2];
  Tile tile{b, h, a.sinks != nullptr ? a.sinks + h : nullptr, 0, 0, 0};
  for (; tile.first < rows; tile.first += tile.rows) {
    tile.rows = std::min(tile_rows, rows - tile.first);
    // A row that sees no key averages them all.
    tile.keys = visible_keys(a, tile.first) == 0
                    ? a.k.shape[2]
                    : visible_keys(a, tile.first + tile.rows - 1);
    f(tile, (b * a.q.shape[1] + h) * rows + tile.first);
  }
}

/// What a hidden key scores in MLX.
float lowest(Float type) {
  return type == Float::f32   ? -3.40282347e38f
         : type == Float::f16 ? -65504.0f
                              : -3.38953139e38f;
}

void round_to(Float type, float* x, int64_t n) {
  if (type != Float::f32) {
    auto halves = host::scratch<HalfUse, uint16_t>(n);
    host::from_float(x, type, halves, n);
    host::to_float(halves, type, x, n);
  }
}

/// scores += mask, both and the sum in `type` as in MLX: in half precision a
/// mask of -1e4 swallows the scores.
void add_mask(
    const Mask& mask, int64_t offset, Float type, float* scores, int64_t keys) {
  auto size = static_cast<int64_t>(size_of(mask.type));
  MatrixView row{
      static_cast<const char*>(mask.data) + offset * size,
      mask.type,
      1,
      keys,
      0,
      mask.strides[3]};
  auto added = as_float<MaskUse>(row);
  round_to(type, scores, keys);
  for (int64_t j = 0; j < keys; ++j) {
    scores[j] += added.data[j];
  }
  round_to(type, scores, keys);
}

void hide_keys(
    const Mask& mask,
    int64_t offset,
    float hidden,
    float* scores,
    int64_t keys) {
  auto seen = static_cast<const uint8_t*>(mask.data) + offset;
  auto step = mask.strides[3];
  for (int64_t j = 0; j < keys; ++j) {
    scores[j] = seen[j * step] ? scores[j] : hidden;
  }
}

/// Masks row r of a tile's scores; returns how many of its keys may have a
/// probability, the others being behind them.
int64_t mask_row(const Attention& a, const Tile& tile, int64_t r, float* row) {
  auto& mask = a.mask;
  auto& strides = mask.strides;
  auto i = tile.first + r;
  auto offset =
      tile.batch * strides[0] + tile.head * strides[1] + i * strides[2];
  switch (mask.kind) {
    case Mask::Kind::none:
      break;
    case Mask::Kind::causal:
      if (auto visible = visible_keys(a, i); visible > 0) {
        return visible;
      }
      std::fill_n(row, tile.keys, lowest(a.q.type));
      break;
    case Mask::Kind::boolean:
      hide_keys(mask, offset, lowest(a.q.type), row, tile.keys);
      break;
    case Mask::Kind::additive:
      add_mask(mask, offset, a.q.type, row, tile.keys);
      break;
  }
  return tile.keys;
}

/// Scaled scores of a tile (rows, keys), not masked yet.
Matrix scores_of(
    const Attention& a, const Tile& tile, const Matrix& q, const Matrix& k) {
  // Of the largest tile's size, so that it grows once.
  auto data = host::scratch<ScoreUse, float>(tile_rows * k.rows);
  Matrix scores{data, tile.rows, tile.keys, tile.keys};
  multiply(a.scale, q, k.top(tile.keys).t(), 0.0f, scores);
  return scores;
}

/// Row r of a tile's scores -> exp(scores - maximum), not yet normalised.
RowSoftmax softmax_row(
    const Attention& a, const Tile& tile, int64_t r, float* row) {
  auto count = mask_row(a, tile, r, row);
  float maximum = host::loops().maximum(row, count);
  if (tile.sink != nullptr) {
    maximum = std::max(maximum, *tile.sink);
  }
  float sum = host::loops().exp_sum(row, 1.0f, maximum, row, count);
  std::fill(row + count, row + tile.keys, 0.0f);
  if (tile.sink != nullptr) {
    sum += std::exp(*tile.sink - maximum);
  }
  return {maximum, 1.0f / sum};
}

void forward_tile(
    const Attention& a,
    const Tile& tile,
    const Matrix& k,
    const Matrix& v,
    const Heads& out,
    RowSoftmax* softmax) {
  auto q = as_float<QueryUse>(tile.of(a.q));
  auto p = scores_of(a, tile, q, k);
  RowSoftmax rows[tile_rows];
  for (int64_t r = 0; r < tile.rows; ++r) {
    rows[r] = softmax_row(a, tile, r, p.row(r));
  }
  FloatOut<OutUse> y(tile.of(out));
  multiply(1.0f, p, v.top(tile.keys), 0.0f, y.floats);
  for (int64_t r = 0; r < tile.rows; ++r) {
    host::loops().scale_add(y.floats.row(r), rows[r].reciprocal, 0.0f, v.cols);
  }
  y.finish();
  if (softmax != nullptr) {
    std::copy_n(rows, tile.rows, softmax);
  }
}

/// The probabilities of row r of a tile, from its scores and what the forward
/// pass kept.
void probabilities(
    const Attention& a,
    const Tile& tile,
    int64_t r,
    const RowSoftmax& softmax,
    float* row) {
  auto count = mask_row(a, tile, r, row);
  auto [maximum, reciprocal] = softmax;
  host::loops().exp_scale(row, maximum, reciprocal, 0.0f, row, count);
  std::fill(row + count, row + tile.keys, 0.0f);
}

/// A row whose every key is hidden: its scores were replaced, so they have no
/// gradient. An additive mask replaces none.
bool hides_all(const Attention& a, const RowSoftmax& softmax) {
  return (a.mask.kind == Mask::Kind::causal ||
          a.mask.kind == Mask::Kind::boolean) &&
         softmax.maximum <= lowest(a.q.type);
}

/// What the tiles of one head's backward pass write and add to.
struct Gradients {
  Heads dq;
  Matrix dk;      // (T, D)
  Matrix dv;      // (T, E)
  float* d_sink;  // or nullptr
};

void backward_tile(
    const Attention& a,
    const Tile& tile,
    const Matrix& k,
    const Matrix& v,
    const Heads& out,
    const RowSoftmax* softmax,
    const Heads& d_out,
    const Gradients& to) {
  auto q = as_float<QueryUse>(tile.of(a.q));
  auto y = as_float<OutUse>(tile.of(out));
  auto dy = as_float<OutGradUse>(tile.of(d_out));
  auto p = scores_of(a, tile, q, k);
  for (int64_t r = 0; r < tile.rows; ++r) {
    probabilities(a, tile, r, softmax[r], p.row(r));
  }
  multiply(1.0f, p.t(), dy, 1.0f, to.dv.top(tile.keys));

  // ds = p (dy vᵀ - rowsum(dy y)) scale
  Matrix ds = p;
  ds.data = host::scratch<ScoreGradUse, float>(tile_rows * k.rows);
  multiply(1.0f, dy, v.top(tile.keys).t(), 0.0f, ds);
  for (int64_t r = 0; r < tile.rows; ++r) {
    auto [maximum, reciprocal] = softmax[r];
    float delta = host::loops().dot(dy.row(r), y.row(r), v.cols);
    float scale = hides_all(a, softmax[r]) ? 0.0f : a.scale;
    host::loops().softmax_backward(
        p.row(r), delta, scale, ds.row(r), tile.keys);
    if (to.d_sink != nullptr) {
      *to.d_sink -= std::exp(*tile.sink - maximum) * reciprocal * delta;
    }
  }
  FloatOut<QueryGradUse> dq(tile.of(to.dq));
  multiply(1.0f, ds, k.top(tile.keys), 0.0f, dq.floats);
  dq.finish();
  multiply(1.0f, ds.t(), q, 1.0f, to.dk.top(tile.keys));
}

/// Calls f(b, g, k, v, first head, end of heads) for each key and value head.
template <class F>
void each_group(const Attention& a, F f) {
  auto groups = a.k.shape[1],
       heads = a.q.shape[1] / std::max<int64_t>(groups, 1);
  for (int64_t b = 0; b < a.q.shape[0]; ++b) {
    for (int64_t g = 0; g < groups; ++g) {
      auto k = as_float<KeyUse>(a.k.head(b, g));
      auto v = as_float<ValueUse>(a.v.head(b, g));
      f(b, g, k, v, g * heads, (g + 1) * heads);
    }
  }
}

}  // namespace

void attention_forward(
    const Attention& a, const Heads& out, RowSoftmax* softmax) {
  each_group(a, [&](auto b, auto, auto& k, auto& v, auto begin, auto end) {
    for (auto h = begin; h < end; ++h) {
      each_tile(a, b, h, [&](const Tile& tile, int64_t row) {
        auto* rows = softmax == nullptr ? nullptr : softmax + row;
        forward_tile(a, tile, k, v, out, rows);
      });
    }
  });
}

void attention_backward(
    const Attention& a,
    const Heads& out,
    const RowSoftmax* softmax,
    const Heads& d_out,
    const Heads& dq,
    const Heads& dk,
    const Heads& dv,
    float* d_sinks) {
  if (d_sinks != nullptr) {
    std::fill_n(d_sinks, a.q.shape[1], 0.0f);
  }
  each_group(a, [&](auto b, auto g, auto& k, auto& v, auto begin, auto end) {
    FloatOut<KeyGradUse> dk_out(dk.head(b, g));
    FloatOut<ValueGradUse> dv_out(dv.head(b, g));
    dk_out.zero();
    dv_out.zero();
    for (auto h = begin; h < end; ++h) {
      auto* d_sink = d_sinks == nullptr ? nullptr : d_sinks + h;
      Gradients to{dq, dk_out.floats, dv_out.floats, d_sink};
      each_tile(a, b, h, [&](const Tile& tile, int64_t row) {
        backward_tile(a, tile, k, v, out, softmax + row, d_out, to);
      });
    }
    dk_out.finish();
    dv_out.finish();
  });
}

}  // namespace mlx_ane::kernels
