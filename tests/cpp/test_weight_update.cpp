// Surfaces that an optimizer rewrites: as packed anew, whole or by bands.
#include <algorithm>
#include <memory>
#include <vector>

#include "check.h"
#include "device/weight_update.h"

using namespace mlx_ane;

namespace {

std::vector<float> values(int64_t n, float scale) {
  std::vector<float> x(n);
  for (int64_t i = 0; i < n; ++i) {
    x[i] = scale * static_cast<float>((i * 7919 + 13) % 101 - 50);
  }
  return x;
}

MatrixView view(const std::vector<float>& x, int64_t rows, int64_t cols) {
  return {x.data(), Float::f32, rows, cols, cols, 1};
}

std::vector<std::byte> bytes_of(Surface& surface) {
  SurfaceLock lock(surface, Surface::Access::read);
  return {lock.data(), lock.data() + surface.bytes()};
}

Device& device() {
  return get_device("emulated");
}

std::shared_ptr<Surface> blank() {
  auto surface = device().make_surface(1 << 16);
  SurfaceLock lock(*surface, Surface::Access::write);
  std::fill_n(lock.data(), surface->bytes(), std::byte{0});
  return surface;
}

/// The tiles of w as a call packs them.
std::vector<WeightTile> packed(
    const MatrixView& w, const std::vector<TilePlace>& places) {
  std::vector<WeightTile> tiles;
  for (auto& place : places) {
    auto surface = blank();
    auto x = w.block(place.row, place.column, place.rows, place.columns);
    SurfaceLock lock(*surface, Surface::Access::write);
    auto ld = static_cast<int64_t>(place.row_bytes / 2);
    auto* dst = reinterpret_cast<uint16_t*>(lock.data()) + place.first * ld;
    kernels::RowScales scales;
    if (!place.log2_norm) {
      kernels::pack(x, {}, dst, ld, x.rows, x.cols);
    } else {
      auto pack = place.layout == Layout::natural
                      ? kernels::pack_scaled
                      : kernels::pack_scaled_transposed;
      scales = pack(x, *place.log2_norm, dst, ld, x.rows, x.cols);
    }
    tiles.push_back({surface, scales, place});
  }
  return tiles;
}

bool equal(const std::vector<WeightTile>& a, const std::vector<WeightTile>& b) {
  return std::equal(
      a.begin(), a.end(), b.begin(), b.end(), [](auto& x, auto& y) {
        return bytes_of(*x.surface) == bytes_of(*y.surface) &&
               x.scales.exponent == y.scales.exponent &&
               x.scales.finite == y.scales.finite &&
               x.scales.nonzero == y.scales.nonzero;
      });
}

// (70, 45): two tiles each way, in both tilings, and a block's port.
const std::vector<std::vector<TilePlace>> tilings = {
    {{0, 64, 0, 32, 0, 128, Layout::natural, 7},
     {64, 6, 0, 32, 0, 128, Layout::natural, 7},
     {0, 64, 32, 13, 0, 128, Layout::natural, 7},
     {64, 6, 32, 13, 0, 128, Layout::natural, 7}},
    {{0, 64, 0, 45, 0, 128, Layout::channels_first, 7},
     {64, 6, 0, 45, 0, 128, Layout::channels_first, 7}},
    {{0, 70, 0, 45, 3, 128, Layout::natural, {}}},
};

struct Updated {
  std::shared_ptr<StagedWeight> fresh = std::make_shared<StagedWeight>();
  std::vector<Surface*> before;
};

/// An entry of w, updated to `next` in bands of so many rows.
Updated update(
    const MatrixView& w,
    const MatrixView& next,
    const std::vector<TilePlace>& places,
    int64_t band,
    bool in_place,
    const std::function<void(const std::shared_ptr<StagedWeight>&)>& hold) {
  Updated out;
  auto old = std::make_shared<StagedWeight>();
  old->claim();
  old->fill(packed(w, places));
  for (auto& tile : old->tiles()) {
    out.before.push_back(tile.surface.get());
  }
  hold(old);
  WeightUpdate update(device(), next, std::move(old), out.fresh, in_place);
  CHECK(!out.fresh->claim());
  update.begin();
  for (int64_t r = 0; r < next.rows; r += band) {
    update.write(r, std::min(r + band, next.rows));
  }
  update.finish();
  return out;
}

int in_old_surfaces(const Updated& updated) {
  int count = 0;
  for (size_t i = 0; i < updated.before.size(); ++i) {
    count += updated.fresh->tiles()[i].surface.get() == updated.before[i];
  }
  return count;
}

}  // namespace

TEST(updated_tiles_are_those_packed_anew) {
  auto x = values(70 * 45, 0.01f), y = values(70 * 45, -3.0f);
  std::fill_n(y.begin() + 5 * 45, 45, 0.0f);
  auto w = view(x, 70, 45), next = view(y, 70, 45);
  for (auto& places : tilings) {
    // Rows with a scale say that they are not finite; ports of blocks refuse.
    y[9 * 45 + 2] = places[0].log2_norm ? INFINITY : 0.0f;
    auto want = packed(next, places);
    for (int64_t band : {1, 3, 32, 70}) {
      for (bool in_place : {false, true}) {
        auto got = update(w, next, places, band, in_place, [](auto&) {});
        CHECK(got.fresh->ready());
        CHECK(equal(got.fresh->tiles(), want));
        auto tiles = static_cast<int>(places.size());
        CHECK(in_old_surfaces(got) == (in_place ? tiles : 0));
      }
    }
  }
}

TEST(surfaces_that_a_call_holds_are_not_written) {
  auto x = values(70 * 45, 0.01f), y = values(70 * 45, 0.5f);
  auto w = view(x, 70, 45), next = view(y, 70, 45);
  for (auto& places : tilings) {
    auto before = packed(w, places);
    std::shared_ptr<StagedWeight> entry;
    auto got =
        update(w, next, places, 32, true, [&](auto& old) { entry = old; });
    CHECK(in_old_surfaces(got) == 0);
    CHECK(equal(entry->tiles(), before));
    CHECK(equal(got.fresh->tiles(), packed(next, places)));
    std::shared_ptr<Surface> surface;
    got = update(w, next, places, 32, true, [&](auto& old) {
      surface = old->tiles()[0].surface;
    });
    CHECK(in_old_surfaces(got) == static_cast<int>(places.size()) - 1);
    CHECK(bytes_of(*surface) == bytes_of(*before[0].surface));
  }
}

TEST(a_skipped_update_keeps_the_tiles) {
  auto x = values(70 * 45, 0.01f);
  auto w = view(x, 70, 45);
  auto old = std::make_shared<StagedWeight>();
  auto fresh = std::make_shared<StagedWeight>();
  old->claim();
  old->fill(packed(w, tilings[0]));
  WeightUpdate(device(), w, old, fresh, true).keep();
  CHECK(fresh->ready());
  CHECK(fresh->tiles()[1].surface == old->tiles()[1].surface);
  CHECK(equal(fresh->tiles(), old->tiles()));
}

TEST(what_was_not_finished_is_left_to_a_call) {
  auto x = values(70 * 45, 0.01f);
  auto w = view(x, 70, 45);
  auto big = values(70 * 45, 1e4f);
  for (bool empty : {true, false}) {
    auto old = std::make_shared<StagedWeight>();
    auto fresh = std::make_shared<StagedWeight>();
    if (!empty) {
      old->claim();
      old->fill(packed(w, tilings[2]));
    }
    {
      WeightUpdate update(device(), view(big, 70, 45), old, fresh, true);
      update.begin();
      update.write(0, 70);  // 5e5: no half
      update.finish();
    }
    CHECK(!fresh->ready());
    CHECK(fresh->claim());
  }
}

CHECK_MAIN()
