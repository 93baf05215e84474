// What an operation of the interpreter is: types inferred once, a kernel run
// often.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "device/emulated/numerics.h"
#include "mil/program.h"

namespace mlx_ane::emulated {

using mil::DType;
using mil::Type;
using Shape = std::vector<int64_t>;

/// Values in memory: fp16 and fp32 as float (fp16 rounded at every op
/// boundary), integers and booleans as int32_t. Four bytes an element,
/// row-major, dense.
inline constexpr int64_t element_size = 4;

/// Elements of a shape; std::invalid_argument past 2^40 or with negative sizes.
int64_t elements(const Shape& shape);
/// Size of the last axis, and the product of the others.
int64_t columns_of(const Shape& shape);
int64_t rows_of(const Shape& shape);
std::string to_string(const Shape& shape);
std::string to_string(const Type& type);
Shape strides_of(const Shape& shape);

/// A value known when the program is compiled.
struct Literal {
  std::vector<float> floats;
  std::vector<int32_t> ints;
  std::vector<std::string> strings;

  void* data() {
    return floats.empty() ? static_cast<void*>(ints.data()) : floats.data();
  }
};

/// Where kernels find their data during one evaluation.
struct Frame {
  void* const* slots = nullptr;
  std::byte* scratch = nullptr;
  Numerics numerics = Numerics::fast;
};

/// An argument of an operation. Without `slot`, it was not given.
struct Operand {
  int slot = -1;
  Type type;
  std::shared_ptr<const Literal> literal;  // set if known at compile time

  explicit operator bool() const {
    return slot >= 0;
  }
  const Shape& shape() const {
    return type.shape;
  }
  int64_t size() const {
    return elements(type.shape);
  }
  template <class T>
  T* data(const Frame& frame) const {
    return static_cast<T*>(frame.slots[slot]);
  }
  float* floats(const Frame& frame) const {
    return data<float>(frame);
  }
  int32_t* ints(const Frame& frame) const {
    return data<int32_t>(frame);
  }
};

using Kernel = std::function<void(const Frame&)>;
/// Fills rows [first, last) of the one result: rows of its last axis. Of
/// operands with as many rows, it reads the same ones.
using RowKernel =
    std::function<void(const Frame&, int64_t first, int64_t last)>;

/// Arguments of one operation with their types, and what the program declares
/// of its results. Accessors throw std::invalid_argument naming op and
/// argument.
class Call {
 public:
  struct Argument {
    std::string name;
    std::vector<Operand> operands;  // several for a tuple
    bool tuple = false;
  };

  std::string op;
  std::vector<Argument> arguments;
  std::vector<Operand> results;  // slots given, types as declared
  int generation;                // of the chip

  bool has(std::string_view name) const;
  const Operand& operand(std::string_view name) const;
  /// The operand, or one that converts to false.
  Operand optional(std::string_view name) const;
  /// The elements of a tuple, or a single operand.
  const std::vector<Operand>& list(std::string_view name) const;

  /// Values that must be known at compile time.
  std::vector<int64_t> integers(std::string_view name) const;
  std::vector<int64_t> integers(
      std::string_view name, std::vector<int64_t> otherwise) const;
  int64_t integer(std::string_view name) const;
  int64_t integer(std::string_view name, int64_t otherwise) const;
  float number(std::string_view name) const;
  float number(std::string_view name, float otherwise) const;
  bool flag(std::string_view name, bool otherwise) const;
  std::string text(std::string_view name, std::string otherwise) const;

  /// `axis` counted from the front, checked against a rank.
  int64_t axis(int64_t axis, size_t rank) const;
  /// All axes of an argument, sorted, distinct; every axis if it is not given.
  std::vector<int64_t> axes(std::string_view name, size_t rank) const;

  [[noreturn]] void fail(const std::string& why) const;
  /// fail(why) unless ok.
  void need(bool ok, const std::string& why) const {
    if (!ok) {
      fail(why);
    }
  }

 private:
  const Argument* find(std::string_view name) const;
};

/// An operation lowered to its result types and the kernel that fills them.
struct LoweredOp {
  explicit LoweredOp(std::vector<Type> types, Kernel kernel = {})
      : types(std::move(types)), kernel(std::move(kernel)) {
  }
  static LoweredOp by_rows(Type type, RowKernel rows) {
    LoweredOp out({std::move(type)});
    out.rows = std::move(rows);
    return out;
  }
  static LoweredOp view(const Operand& x, Shape shape) {
    LoweredOp out({{x.type.dtype, std::move(shape)}});
    out.view_of = x.slot;
    return out;
  }

  /// Fills the results, by rows or as a whole.
  void run(const Frame& frame) const {
    if (rows) {
      rows(frame, 0, rows_of(types[0].shape));
    } else {
      kernel(frame);
    }
  }

  std::vector<Type> types;
  Kernel kernel;
  /// In the place of a kernel: rows are shared among threads, and what one step
  /// made of a few rows is still in the cache when the next reads it.
  RowKernel rows;
  /// `rows` reads any rows of its operands.
  bool gathers = false;
  /// The result is this operand's data under another shape; no kernel.
  int view_of = -1;
  /// Results are copies of operands' values, already rounded.
  bool moves = false;
  /// The kernel reads no operand: the result is known at compile time.
  bool known = false;
  int64_t scratch_bytes = 0;
};

using Builder = LoweredOp (*)(const Call&);

struct Op {
  const char* name;
  Builder build;
  /// Page of the MIL specification (coremltools' MIL ops).
  const char* page;
};

/// The operation of that name, or nullptr.
const Op* find_op(std::string_view name);
std::vector<Op> all_ops();

/// One list a family, each in the file of that name.
std::span<const Op> activation_ops();
std::span<const Op> attention_ops();
std::span<const Op> conv_ops();
std::span<const Op> elementwise_ops();
std::span<const Op> gather_ops();
std::span<const Op> generate_ops();
std::span<const Op> matmul_ops();
std::span<const Op> normalization_ops();
std::span<const Op> pool_ops();
std::span<const Op> quantization_ops();
std::span<const Op> reduce_ops();
std::span<const Op> resize_ops();
std::span<const Op> shape_ops();
std::span<const Op> slice_ops();
std::span<const Op> state_ops();

}  // namespace mlx_ane::emulated
