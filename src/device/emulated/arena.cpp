// First fit over a step-ordered list of live pieces.
#include "device/emulated/arena.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace mlx_ane::emulated {

// Pieces are taken in the order of their first step, with a map of free ranges:
// n log n, as a program of ten thousand operations must compile at once.
int64_t place(std::vector<Piece>& pieces) {
  constexpr int64_t alignment = 64;
  std::vector<Piece*> order;
  for (auto& piece : pieces) {
    piece.bytes = (piece.bytes + alignment - 1) / alignment * alignment;
    order.push_back(&piece);
  }
  std::stable_sort(order.begin(), order.end(), [](auto* a, auto* b) {
    return std::pair(a->first, -a->bytes) < std::pair(b->first, -b->bytes);
  });
  std::map<int64_t, int64_t> free;        // offset -> bytes
  std::set<std::pair<int, Piece*>> live;  // by last step
  int64_t end = 0;
  auto release = [&](Piece* piece) {
    auto [at, inserted] = free.emplace(piece->offset, piece->bytes);
    auto after = std::next(at);
    if (after != free.end() && at->first + at->second == after->first) {
      at->second += after->second;
      free.erase(after);
    }
    if (at != free.begin()) {
      auto before = std::prev(at);
      if (before->first + before->second == at->first) {
        before->second += at->second;
        free.erase(at);
      }
    }
  };
  for (auto* piece : order) {
    while (!live.empty() && live.begin()->first < piece->first) {
      release(live.begin()->second);
      live.erase(live.begin());
    }
    auto hole = std::find_if(free.begin(), free.end(), [&](auto& range) {
      return range.second >= piece->bytes;
    });
    if (piece->bytes == 0) {
      piece->offset = 0;
      continue;
    }
    if (hole != free.end()) {
      piece->offset = hole->first;
      auto rest = hole->second - piece->bytes;
      free.erase(hole);
      if (rest > 0) {
        free.emplace(piece->offset + piece->bytes, rest);
      }
    } else {
      piece->offset = end;
      end += piece->bytes;
    }
    live.emplace(piece->last, piece);
  }
  return end;
}

}  // namespace mlx_ane::emulated
