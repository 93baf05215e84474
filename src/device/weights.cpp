// The store of staged weights; an entry lives while its buffer has users.
#include "device/weights.h"

#include <algorithm>
#include <utility>

#include "device/programs.h"
#include "device/weight_update.h"
#include "trace/counters.h"

namespace mlx_ane {

namespace {

// Lookups between two sweeps: often enough for flat memory, rare enough to cost
// nothing beside a matmul.
constexpr uint64_t sweep_interval = 32;
// Refused weights that are remembered; a model has fewer than this.
constexpr size_t max_asked = 1 << 16;

size_t staged_bytes(const Device& device, const MatmulPlan& plan) {
  size_t total = 0;
  for (auto& depth : plan.depth) {
    for (auto& columns : plan.columns) {
      MatmulShape shape{
          plan.max_bucket(), depth.padded, columns.padded, plan.layout};
      total += std::max(
          input_surface_bytes(shape), device.limits().min_surface_bytes);
    }
  }
  return total;
}

}  // namespace

std::shared_ptr<StagedWeight> WeightStore::get(
    Device& device,
    const Owner& owner,
    const MatrixView& w,
    const MatmulPlan& plan,
    const std::vector<Owner>& companions) {
  Key key{
      &device,
      w.data,
      w.type,
      w.rows,
      w.cols,
      w.row_stride,
      w.col_stride,
      plan.layout,
      companions,
      {}};
  return get(owner, key, plan.max_bucket(), staged_bytes(device, plan));
}

std::shared_ptr<StagedWeight> WeightStore::get(
    Device& device,
    const std::vector<Part>& parts,
    size_t bytes,
    const Port& port) {
  auto& x = parts[0].x;
  Key key{
      &device,
      x.data,
      x.type,
      x.rows,
      x.cols,
      x.row_stride,
      x.col_stride,
      Layout::natural,
      {},
      port.shape};
  key.port.push_back(static_cast<int64_t>(bytes));
  for (auto& part : parts) {
    // The first is the entry's owner: held twice, it would never be swept.
    if (&part != &parts[0]) {
      key.companions.push_back(part.owner);
    }
    key.companions.insert(
        key.companions.end(), part.companions.begin(), part.companions.end());
    // The first's address is in the key.
    auto offset = &part == &parts[0]
                      ? 0
                      : static_cast<const char*>(part.x.data) -
                            static_cast<const char*>(part.owner.get());
    key.port.insert(
        key.port.end(),
        {part.row,
         static_cast<int64_t>(offset),
         static_cast<int64_t>(part.x.type),
         part.x.rows,
         part.x.cols,
         part.x.row_stride,
         part.x.col_stride});
  }
  return get(
      parts[0].owner,
      key,
      0,
      std::max(bytes, device.limits().min_surface_bytes));
}

std::shared_ptr<StagedWeight> WeightStore::get(
    const Owner& owner, const Key& key, int64_t rows, size_t bytes) {
  std::lock_guard lock(mutex_);
  if (++clock_ % sweep_interval == 0) {
    sweep();
  }
  if (auto buffer = buffers_.find(owner.get()); buffer != buffers_.end()) {
    auto& entries = buffer->second.entries;
    auto entry = entries.find(key);
    if (entry != entries.end() && entry->second.rows >= rows) {
      entry->second.used = clock_;
      trace::add(trace::Counter::weight_store_hits);
      return entry->second.weight;
    }
    if (entry != entries.end()) {
      drop(buffer);  // too small for this many rows: staged anew
    }
  }
  trace::add(trace::Counter::weight_store_misses);
  sweep();
  auto asked = asked_.find(owner.get());
  if (!make_room(bytes, asked == asked_.end() ? 0 : asked->second)) {
    trace::add(trace::Counter::weight_store_over_budget);
    if (asked_.size() >= max_asked) {
      asked_.clear();
    }
    asked_[owner.get()] = clock_;
    return nullptr;
  }
  asked_.erase(owner.get());
  auto& buffer = buffers_[owner.get()];
  buffer.owner = owner;
  auto weight = std::make_shared<StagedWeight>();
  buffer.entries[key] = {weight, rows, bytes, clock_};
  bytes_ += bytes;
  return weight;
}

// Least recently used first, down to what was used since `asked`.
bool WeightStore::make_room(size_t bytes, uint64_t asked) {
  if (bytes > limit_) {
    return false;
  }
  while (bytes_ + bytes > limit_) {
    auto oldest = buffers_.end();
    uint64_t oldest_use = asked;
    for (auto buffer = buffers_.begin(); buffer != buffers_.end(); ++buffer) {
      uint64_t used = 0;
      for (auto& [key, entry] : buffer->second.entries) {
        used = std::max(used, entry.used);
      }
      if (used < oldest_use) {
        oldest = buffer;
        oldest_use = used;
      }
    }
    if (oldest == buffers_.end()) {
      return false;
    }
    drop(oldest);
  }
  return true;
}

void WeightStore::drop(std::map<const void*, Buffer>::iterator buffer) {
  for (auto& [key, entry] : buffer->second.entries) {
    bytes_ -= entry.bytes;
  }
  buffers_.erase(buffer);
}

void WeightStore::discard(const std::shared_ptr<StagedWeight>& weight) {
  std::lock_guard lock(mutex_);
  for (auto buffer = buffers_.begin(); buffer != buffers_.end(); ++buffer) {
    auto& entries = buffer->second.entries;
    auto entry = std::find_if(entries.begin(), entries.end(), [&](auto& e) {
      return e.second.weight == weight && !weight->ready();
    });
    if (entry != entries.end()) {
      bytes_ -= entry->second.bytes;
      entries.erase(entry);
      if (entries.empty()) {
        buffers_.erase(buffer);
      }
      return;
    }
  }
}

bool WeightStore::owns(const Owner& owner) {
  std::lock_guard lock(mutex_);
  return buffers_.contains(owner.get());
}

WeightStore::Entries WeightStore::take(const Owner& owner) {
  std::lock_guard lock(mutex_);
  auto buffer = buffers_.find(owner.get());
  if (buffer == buffers_.end()) {
    return {};
  }
  auto entries = buffer->second.entries;
  drop(buffer);
  return entries;
}

std::vector<std::shared_ptr<WeightUpdate>> WeightStore::renew(
    Entries taken,
    const Owner& owner,
    const void* from,
    void* to,
    size_t bytes,
    bool in_place) {
  std::vector<std::shared_ptr<WeightUpdate>> updates;
  std::lock_guard lock(mutex_);
  trained_[owner.get()] = owner;
  if (!in_place && ++clock_ % sweep_interval == 0) {
    sweep();
  }
  for (auto& [old_key, entry] : taken) {
    auto offset =
        static_cast<const char*>(old_key.data) - static_cast<const char*>(from);
    MatrixView w{
        static_cast<const char*>(to) + offset,
        old_key.type,
        old_key.rows,
        old_key.cols,
        old_key.row_stride,
        old_key.col_stride};
    auto elements =
        (w.rows - 1) * w.row_stride + (w.cols - 1) * w.col_stride + 1;
    auto end = offset + elements * static_cast<int64_t>(size_of(w.type));
    bool inside = offset >= 0 && w.row_stride >= 0 && w.col_stride >= 0 &&
                  end <= static_cast<int64_t>(bytes);
    // Entries of several buffers would have to wait for all of them.
    if (!inside || !old_key.companions.empty() || !make_room(entry.bytes, 0)) {
      continue;
    }
    auto key = old_key;
    key.data = w.data;
    auto& buffer = buffers_[owner.get()];
    buffer.owner = owner;
    auto fresh = std::make_shared<StagedWeight>();
    buffer.entries[key] = {fresh, entry.rows, entry.bytes, entry.used};
    bytes_ += entry.bytes;
    updates.push_back(
        std::make_shared<WeightUpdate>(
            *key.device, w, std::move(entry.weight), fresh, in_place));
  }
  return updates;
}

bool WeightStore::trained(const Owner& owner) {
  std::lock_guard lock(mutex_);
  auto known = trained_.find(owner.get());
  return known != trained_.end() && !known->second.expired();
}

void WeightStore::sweep() {
  for (auto buffer = buffers_.begin(); buffer != buffers_.end();) {
    auto next = std::next(buffer);
    if (buffer->second.owner.use_count() == 1) {
      drop(buffer);
    }
    buffer = next;
  }
  std::erase_if(trained_, [](auto& known) { return known.second.expired(); });
}

void WeightStore::clear() {
  std::lock_guard lock(mutex_);
  buffers_.clear();
  asked_.clear();
  bytes_ = 0;
}

size_t WeightStore::set_limit(size_t bytes) {
  std::lock_guard lock(mutex_);
  auto previous = std::exchange(limit_, bytes);
  while (bytes_ > limit_ && !buffers_.empty()) {
    drop(buffers_.begin());
  }
  return previous;
}

size_t WeightStore::bytes() {
  std::lock_guard lock(mutex_);
  sweep();
  return bytes_;
}

// Leaked: stream threads may use it while the process exits.
WeightStore& weight_store() {
  static auto* instance = new WeightStore;
  return *instance;
}

}  // namespace mlx_ane
