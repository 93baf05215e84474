// A program of many ports, as the translator made it of a function, and its
// call.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "device/device.h"
#include "host/matrix.h"
#include "kernels/dequantize.h"
#include "mil/program.h"
#include "trace/counters.h"

namespace mlx_ane {

namespace emulated {
class Graph;
}

/// Where an input of the function lies in a port.
struct BlockPart {
  /// Index into the inputs: (..., columns), read as rows of its last axis.
  int input;
  /// First row of the port, whose other rows are zero or of other parts.
  int64_t row = 0;
  /// The port holds the transpose.
  bool transposed = false;
};

/// An input of the program: parts of the function's inputs, or fixed fp16
/// values (a dense table).
struct BlockPort {
  Port port;
  std::vector<BlockPart> parts;
  std::vector<uint16_t> table;
};

/// An output of the program. Columns past `columns` are padding.
struct BlockResult {
  Port port;
  int64_t columns;
  /// Linear in the cotangents: divided by the power of two that they were
  /// multiplied with.
  bool scaled = false;
};

struct BlockCall;

class BlockProgram {
 public:
  BlockProgram(
      mil::Program program,
      std::vector<BlockPort> inputs,
      std::vector<BlockResult> outputs,
      int cotangents);
  ~BlockProgram();

  const std::vector<BlockPort> inputs;
  const std::vector<BlockResult> outputs;
  /// So many inputs, the first, are multiplied by a power of two before they
  /// are packed: a backward program is linear in them.
  const int cotangents;
  /// Distinguishes programs, never reused.
  const uint64_t id;

  Source source(mil::Dialect dialect) const;

  /// Whether no port holds this input beside others.
  bool has_own_port(int input) const;

  /// The program in fp32 on the CPU, nothing rounded: what a placed or failed
  /// call is computed by. y: one dense (rows, columns) array an output, without
  /// padding.
  void run_on_host(const BlockCall& call, const std::vector<float*>& y) const;

 private:
  mil::Program program_;
  mutable std::mutex mutex_;
  mutable std::unique_ptr<emulated::Graph> graph_;
};

/// A quantised matrix in the place of an input.
struct BlockQuantized {
  kernels::QuantizedMatrix matrix;
  /// Owners of scales and biases, each of which points to its first value.
  std::vector<std::shared_ptr<const void>> companions;
};

/// One call. Owners name the buffers of inputs that are frozen, or kept up to
/// date by an optimizer: their ports stay on the device between calls.
struct BlockCall {
  std::shared_ptr<const BlockProgram> program;
  std::vector<MatrixView> x;  // of a quantised input only what names it
  std::vector<std::shared_ptr<const void>> frozen;  // null: packed each time
  std::map<int, BlockQuantized> quantized;          // by input; they are frozen
  std::vector<float*> y;
  std::shared_ptr<trace::Layer> layer;

  /// Values of an input: `dense` holds those that had to be dequantised.
  MatrixView values(int input, std::vector<float>& dense) const;
};

/// Runs the call on the device or, where it is placed or fails, on the host.
/// Throws DeviceFailure under Fallback::error.
void run_block(Device& device, const BlockCall& call);

}  // namespace mlx_ane
