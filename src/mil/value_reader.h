// Reads types and values of MIL text: the part of the parser below operations.
#pragma once

#include <string_view>

#include "mil/cursor.h"
#include "mil/program.h"

namespace mlx_ane::mil {

/// Bounds far above any program that a device takes; they keep hostile text
/// from costing more memory than a small multiple of its size.
inline constexpr int max_depth = 32;
inline constexpr size_t max_rank = 32;
inline constexpr size_t max_list = 65536;

class ValueReader {
 public:
  explicit ValueReader(std::string_view text) : in_(text) {
  }

 protected:
  /// fp16, tensor<fp16, [1, 2]>, state<tensor<...>> or tensor_buffer<...>.
  Type type();
  /// Whether a type comes next.
  bool at_type();
  /// A reference, a literal or a tuple. `hint`: the type that a literal without
  /// one gets.
  Argument argument(const Type* hint);
  /// type(value)
  Constant constant();

  Cursor in_;
  /// Forms of scalars seen so far.
  bool shorthand_scalars_ = false;
  bool verbose_scalars_ = false;

 private:
  std::vector<Argument> tuple();
  Constant nested_const(const Type* hint);
  Constant bare_literal(const Type* hint);
  Constant constant_of(Type type);
  Blob blob();
  std::string blob_path();
  uint64_t blob_offset();
  Type tensor_type();
  Type buffer_type();
  DType element_type();
  std::vector<int64_t> shape();
  void enter();

  // Elements of a literal: literal.cpp.
  void elements(Constant& constant);
  void numbers(Constant& constant, int rank, int64_t count);
  void number_list(
      const Type& type,
      std::vector<uint8_t>& bytes,
      int64_t& done,
      int level,
      int levels);
  void element(const Type& type, uint8_t* out);
  int brackets();
  void strings(Constant& constant);

  int depth_ = 0;
};

}  // namespace mlx_ane::mil
