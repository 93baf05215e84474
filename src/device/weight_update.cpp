// Repacks tiles of a weight, band by band, as an optimizer writes it.
#include "device/weight_update.h"

#include <algorithm>
#include <cstring>

#include "host/loops.h"
#include "host/rows.h"
#include "trace/counters.h"

namespace mlx_ane {

namespace {

/// Packs rows begin .. end of `w`, as far as the tile holds them.
void pack_rows(
    const MatrixView& w, int64_t begin, int64_t end, WeightTile& tile) {
  auto& place = tile.place;
  begin = std::max(begin, place.row);
  end = std::min(end, place.row + place.rows);
  if (begin >= end) {
    return;
  }
  auto x = w.block(begin, place.column, end - begin, place.columns);
  auto row = begin - place.row;
  auto ld = static_cast<int64_t>(place.row_bytes / sizeof(uint16_t));
  SurfaceLock lock(*tile.surface, Surface::Access::write);
  auto* dst = reinterpret_cast<uint16_t*>(lock.data()) + place.first * ld;
  bool transposed = w_transposed(place.layout);
  dst += transposed ? row : row * ld;
  if (!place.log2_norm) {
    kernels::pack(x, {}, dst, ld, x.rows, x.cols);
    return;
  }
  auto pack =
      transposed ? kernels::pack_scaled_transposed : kernels::pack_scaled;
  auto scales = pack(x, *place.log2_norm, dst, ld, x.rows, x.cols);
  auto& all = tile.scales;
  auto replace = [row](const auto& part, auto& whole) {
    std::copy(part.begin(), part.end(), whole.begin() + row);
  };
  replace(scales.exponent, all.exponent);
  replace(scales.finite, all.finite);
  replace(scales.nonzero, all.nonzero);
}

}  // namespace

WeightUpdate::WeightUpdate(
    Device& device,
    const MatrixView& w,
    std::shared_ptr<StagedWeight> old,
    std::shared_ptr<StagedWeight> fresh,
    bool in_place)
    : device_(device),
      w_(w),
      old_(std::move(old)),
      fresh_(std::move(fresh)),
      in_place_(in_place),
      claimed_(fresh_->claim()) {
}

WeightUpdate::~WeightUpdate() {
  if (claimed_) {
    fresh_->abandon();
  }
}

void WeightUpdate::keep() {
  if (claimed_ && old_->ready()) {
    fresh_->fill(old_->tiles());
    claimed_ = false;
  }
}

void WeightUpdate::begin() {
  if (!old_->ready()) {
    return;
  }
  tiles_ = old_->tiles();
  // Calls that were encoded before hold the entry, and with it its surfaces;
  // abandoned calls hold these alone.
  old_.reset();
  try {
    for (auto& tile : tiles_) {
      if (in_place_ && tile.surface.use_count() == 1) {
        continue;
      }
      auto surface = device_.make_surface(tile.surface->bytes(), tile.place.port);
      SurfaceLock lock(*surface, Surface::Access::write);
      std::memset(lock.data(), 0, surface->bytes());
      tile.surface = surface;
    }
  } catch (const DeviceError&) {
    tiles_.clear();  // no memory: the next call packs for itself
  }
}

void WeightUpdate::write(int64_t begin, int64_t end) {
  for (auto& tile : tiles_) {
    pack_rows(w_, begin, end, tile);
    if (!tile.place.log2_norm) {
      auto x = w_.block(begin, 0, end - begin, w_.cols);
      fits_ &= host::largest(x) <= 65504.0f;
    }
  }
}

void WeightUpdate::finish() {
  if (!claimed_ || tiles_.empty() || !fits_) {
    return;
  }
  for (auto& tile : tiles_) {
    auto& place = tile.place;
    trace::add(
        trace::Counter::weights_updated_bytes,
        place.rows * place.columns * static_cast<int64_t>(sizeof(uint16_t)));
  }
  fresh_->fill(std::move(tiles_));
  claimed_ = false;
}

}  // namespace mlx_ane
