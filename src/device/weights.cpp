// The store of staged weights; an entry lives while its buffer has users.
#include "device/weights.h"

#include <algorithm>
#include <utility>

#include "device/programs.h"
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
    auto offset = static_cast<const char*>(part.x.data) -
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

void WeightStore::release(const void* owner) {
  std::lock_guard lock(mutex_);
  if (auto buffer = buffers_.find(owner); buffer != buffers_.end()) {
    drop(buffer);
  }
}

void WeightStore::sweep() {
  for (auto buffer = buffers_.begin(); buffer != buffers_.end();) {
    auto next = std::next(buffer);
    if (buffer->second.owner.use_count() == 1) {
      drop(buffer);
    }
    buffer = next;
  }
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
