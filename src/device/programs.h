// The MIL programs of this project: matmul and attention over runtime inputs.
#pragma once

#include <compare>
#include <memory>
#include <variant>

#include "device/device.h"
#include "device/plan.h"
#include "mil/program.h"

namespace mlx_ane {

class BlockProgram;

/// Shape of one matmul program: y (s, n) = x (s, k) w (n, k)ᵀ, all padded.
struct MatmulShape {
  int64_t s;
  int64_t k;
  int64_t n;
  Layout layout;
  auto operator<=>(const MatmulShape&) const = default;
};

/// Bytes of the surfaces of both inputs. Orion requires equal sizes, others
/// accept them, so a weight is given room for the x of the most rows it meets.
size_t input_surface_bytes(const MatmulShape& shape);

mil::Program matmul_program(const MatmulShape& shape);

/// Text and interface: inputs x, w (or both in one) and output o0_y, named so
/// that the engine's ASCII order is that of the program's operands. Every name
/// of a value is prefixed: M1 gives zeros for some short ones (ane-train).
Source matmul_source(const MatmulShape& shape, mil::Dialect dialect);

/// Shape of one attention program, all padded: for each of `heads` key heads,
/// o (rows, values) = softmax(q (rows, features) k (keys, features)ᵀ + mask) v.
/// The query heads of a group are folded into rows; the scale is in q.
struct AttentionShape {
  int64_t heads;
  int64_t rows;
  int64_t keys;
  int64_t features;
  int64_t values;
  bool mask_per_head;  // mask (heads, rows, keys), else (1, rows, keys)
  auto operator<=>(const AttentionShape&) const = default;
};

mil::Program attention_program(const AttentionShape& shape);

/// Text and interface: inputs a0_q, a1_k, a2_mask, a3_v and output o0_y.
Source attention_source(const AttentionShape& shape, mil::Dialect dialect);

/// A program of many ports, by its id.
struct BlockShape {
  std::shared_ptr<const BlockProgram> program;
  std::strong_ordering operator<=>(const BlockShape& other) const;
  bool operator==(const BlockShape& other) const {
    return program == other.program;
  }
};

/// What identifies a program in the cache of executables.
using ProgramShape = std::variant<MatmulShape, AttentionShape, BlockShape>;
Source program_source(const ProgramShape& shape, mil::Dialect dialect);

}  // namespace mlx_ane
