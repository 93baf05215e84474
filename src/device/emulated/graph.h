// A function of a MIL program made ready to run: typed, folded and laid out.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/emulated/op.h"

namespace mlx_ane::emulated {

/// "@model_path/..." -> bytes of the weight file.
using Weights =
    std::map<std::string, std::shared_ptr<const std::vector<std::byte>>>;

/// A refusal of the interpreter; `op` is the operation that caused it, if any.
class GraphError : public std::invalid_argument {
 public:
  GraphError(const std::string& what, std::string op = {})
      : std::invalid_argument(what), op(std::move(op)) {
  }
  const std::string op;
};

/// A program needs more memory than the emulated device's budget.
class MemoryError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Not reentrant: evaluations of one graph share its memory.
class Graph {
 public:
  /// Infers every type, reads constants and plans memory. Throws GraphError, or
  /// MemoryError past `memory_budget` bytes.
  Graph(
      const mil::Function& function,
      const Weights& weights,
      int generation,
      int64_t memory_budget);

  const std::vector<mil::Value>& inputs() const {
    return inputs_;
  }
  const std::vector<mil::Value>& outputs() const {
    return outputs_;
  }
  /// Dense values of input or output i, in the representation of op.h.
  void* input(size_t i);
  const void* output(size_t i) const;
  /// Bytes held between calls: constants and the arena.
  int64_t bytes() const {
    return bytes_;
  }

  void run(Numerics numerics);

 private:
  friend class GraphBuilder;
  struct Step {
    Kernel kernel;
    RowKernel rows;                 // instead of a kernel
    std::vector<Operand> to_round;  // fp16 results that were computed
    std::byte* scratch = nullptr;
  };
  /// A value that no later stage reads: a tile of it at a time.
  struct Local {
    int slot;
    int64_t columns;
    int64_t offset;  // bytes, in the memory of a tile
  };
  /// One step, or several by rows that run tile by tile.
  struct Stage {
    size_t first, last;  // steps, last included
    int64_t rows = 0;    // 0: one step as a whole
    int64_t tile = 0;    // rows of a tile
    std::vector<Local> locals;
    int64_t local_bytes = 0;
  };

  void run_rows(const Stage& stage, Numerics numerics) const;
  void run_tile(
      const Stage& stage,
      std::span<void*> slots,
      int64_t first,
      int64_t last,
      Numerics numerics) const;

  std::vector<mil::Value> inputs_;
  std::vector<mil::Value> outputs_;
  std::vector<int> input_slots_;
  std::vector<int> output_slots_;
  std::vector<std::shared_ptr<Literal>> constants_;
  std::vector<Step> steps_;
  std::vector<Stage> stages_;
  std::vector<void*> slots_;
  std::unique_ptr<std::byte[]> arena_;
  int64_t bytes_ = 0;
};

}  // namespace mlx_ane::emulated
