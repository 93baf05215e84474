// Weights kept on the device between calls: packed fp16 surfaces, by buffer.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "device/device.h"
#include "device/plan.h"
#include "kernels/pack.h"

namespace mlx_ane {

/// Where a tile's values come from and how they lie in its surface.
struct TilePlace {
  int64_t row = 0;  // of the weight, as are the next three
  int64_t rows = 0;
  int64_t column = 0;
  int64_t columns = 0;
  int64_t first = 0;  // row of the surface where they begin
  size_t row_bytes = 0;
  Layout layout = Layout::natural;
  /// Norm of scaled rows (kernels::row_scales); none: values as they are.
  std::optional<int> log2_norm = {};
  Port port = {};  // that the surface is for
};

/// One (depth, column) tile of a weight on the device.
struct WeightTile {
  std::shared_ptr<Surface> surface;
  kernels::RowScales scales;
  TilePlace place;
};

/// A weight's tiles, depth-major, filled by the first task that claims them.
/// Another task that finds them unready packs for itself and never waits.
class StagedWeight {
 public:
  /// True for exactly one caller, who must then fill() or abandon().
  bool claim() {
    auto expected = State::empty;
    return state_.compare_exchange_strong(expected, State::claimed);
  }
  bool ready() const {
    return state_.load(std::memory_order_acquire) == State::ready;
  }
  void fill(std::vector<WeightTile> tiles) {
    tiles_ = std::move(tiles);
    state_.store(State::ready, std::memory_order_release);
  }
  void abandon() {
    state_ = State::empty;
  }
  const std::vector<WeightTile>& tiles() const {
    return tiles_;
  }

 private:
  enum class State { empty, claimed, ready };
  std::atomic<State> state_{State::empty};
  std::vector<WeightTile> tiles_;
};

class WeightUpdate;

/// An entry shares ownership of the buffer it was packed from, so that its
/// address can neither be freed nor written in place while the entry lives.
class WeightStore {
  struct Key;
  struct Entry;

 public:
  using Owner = std::shared_ptr<const void>;
  using Entries = std::map<Key, Entry>;

  /// The entry of this view of `owner`'s buffer, made if new, or null where it
  /// would exceed the budget. Scan-resistant LRU as ExecutableCache. Call while
  /// encoding. `companions` are other buffers that the staged values depend on,
  /// as a quantised weight's scales: owned too, and part of the key.
  std::shared_ptr<StagedWeight> get(
      Device& device,
      const Owner& owner,
      const MatrixView& w,
      const MatmulPlan& plan,
      const std::vector<Owner>& companions = {});

  /// A frozen input of a block's port: its rows begin at `row` there.
  struct Part {
    Owner owner;
    MatrixView x;
    int64_t row;
    std::vector<Owner> companions = {};
  };
  /// The entry of a block's port: one tile, a surface of `bytes`, which may be
  /// more than the port needs.
  std::shared_ptr<StagedWeight> get(
      Device& device,
      const std::vector<Part>& parts,
      size_t bytes,
      const Port& port);

  /// Drops an entry that no call has filled: its call was placed on the BLAS.
  void discard(const std::shared_ptr<StagedWeight>& weight);

  /// Whether an entry shares ownership of this buffer.
  bool owns(const Owner& owner);

  /// Takes every entry made from this buffer out of the store, which shares its
  /// ownership no more: an optimizer is about to write it.
  Entries take(const Owner& owner);

  /// Entries taken from a parameter, now of its updated values, which `owner`'s
  /// buffer will hold at `to`: each is filled by the update that is returned
  /// for it. The parameter was `bytes` contiguous bytes at `from` (0: entries
  /// are dropped); `in_place` if nobody else can read it any more. Call while
  /// encoding the optimizer's task.
  std::vector<std::shared_ptr<WeightUpdate>> renew(
      Entries taken,
      const Owner& owner,
      const void* from,
      void* to,
      size_t bytes,
      bool in_place);

  /// Whether renew() knows this buffer: an optimizer keeps its entries up to
  /// date, so that they are worth making.
  bool trained(const Owner& owner);

  void clear();

  /// Budget of surface bytes; returns the previous one.
  size_t set_limit(size_t bytes);
  size_t bytes();

 private:
  struct Key {
    Device* device;
    const void* data;
    Float type;
    int64_t rows;
    int64_t cols;
    int64_t row_stride;
    int64_t col_stride;
    Layout layout;
    std::vector<Owner> companions;
    std::vector<int64_t> port;  // geometry of a block's port
    // Vectors have no operator<=> in Xcode 15, so it cannot be defaulted.
    auto fields() const {
      return std::tie(
          device,
          data,
          type,
          rows,
          cols,
          row_stride,
          col_stride,
          layout,
          companions,
          port);
    }
    bool operator<(const Key& other) const {
      return fields() < other.fields();
    }
  };
  struct Entry {
    std::shared_ptr<StagedWeight> weight;
    int64_t rows;  // most rows of x that its surfaces have room for
    size_t bytes;
    uint64_t used;  // value of clock_ at the last lookup
  };
  struct Buffer {
    Owner owner;
    Entries entries;
  };

  std::shared_ptr<StagedWeight> get(
      const Owner& owner, const Key& key, int64_t rows, size_t bytes);
  /// Drops entries whose buffer nobody else owns any more.
  void sweep();
  bool make_room(size_t bytes, uint64_t asked);
  void drop(std::map<const void*, Buffer>::iterator buffer);

  std::mutex mutex_;
  std::map<const void*, Buffer> buffers_;
  std::map<const void*, uint64_t> asked_;  // clock_ at the last refusal
  std::map<const void*, std::weak_ptr<const void>> trained_;
  size_t bytes_ = 0;
  size_t limit_ = quarter_of_memory();
  uint64_t clock_ = 0;
};

WeightStore& weight_store();

}  // namespace mlx_ane
