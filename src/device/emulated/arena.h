// Placement of values in one block of memory by their lifetimes.
#pragma once

#include <cstdint>
#include <vector>

namespace mlx_ane::emulated {

/// A piece of memory in use from step `first` to step `last`, both included.
struct Piece {
  int64_t bytes = 0;
  int first = 0;
  int last = 0;
  int64_t offset = 0;  // result
};

/// Sets the offsets so that no two pieces alive at one step overlap; returns
/// the bytes of the block. Largest first, each at the lowest free place.
int64_t place(std::vector<Piece>& pieces);

}  // namespace mlx_ane::emulated
