// Builds a Graph: resolves names, infers types, folds constants, plans memory.
#include "device/emulated/graph.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "blas/blas.h"
#include "device/emulated/arena.h"
#include "device/emulated/constants.h"
#include "device/emulated/surface_io.h"
#include "host/pool.h"
#include "host/scratch.h"
#include "mil/ops.h"

namespace mlx_ane::emulated {

/// State of one compilation; the result is moved out of `graph`.
class GraphBuilder {
 public:
  GraphBuilder(
      Graph& graph,
      const Weights& weights,
      int generation,
      int64_t memory_budget)
      : graph_(graph),
        weights_(weights),
        generation_(generation),
        memory_budget_(memory_budget) {
  }

  void build(const mil::Function& function) {
    for (auto& input : function.inputs) {
      check_type(input.type, "input " + input.name);
      auto slot = add_slot();
      lives_[slot].bytes = elements(input.type.shape) * element_size;
      define(input.name, {slot, input.type, nullptr});
      graph_.inputs_.push_back(input);
      graph_.input_slots_.push_back(slot);
    }
    for (auto& operation : function.operations) {
      try {
        add(operation);
      } catch (const GraphError&) {
        throw;
      } catch (const std::invalid_argument& e) {
        throw GraphError(at(operation) + e.what(), operation.op);
      }
    }
    for (auto& name : function.outputs) {
      auto& value = resolve(name);
      if (value.type.dtype == DType::string) {
        throw GraphError("output " + name + " is a string");
      }
      graph_.outputs_.push_back({name, value.type});
      graph_.output_slots_.push_back(value.slot);
    }
    skip_rounding();
    auto end = static_cast<int>(graph_.steps_.size());
    for (auto slot : graph_.output_slots_) {
      touch(slot, end);
    }
    for (size_t i = 0; i < graph_.inputs_.size(); ++i) {
      if (graph_.inputs_[i].type.state) {
        touch(graph_.input_slots_[i], end);
      }
    }
    for (size_t i = 0; i < graph_.steps_.size();) {
      graph_.stages_.push_back(stage(i));
      i = graph_.stages_.back().last + 1;
    }
    allocate();
  }

 private:
  /// A result that is only stored as fp16 is rounded by the store.
  void skip_rounding() {
    std::set<int> rounded_by_store, others;
    for (size_t i = 0; i < graph_.outputs_.size(); ++i) {
      bool half = graph_.outputs_[i].type.dtype == DType::fp16;
      (half ? rounded_by_store : others).insert(graph_.output_slots_[i]);
    }
    for (auto& step : graph_.steps_) {
      std::erase_if(step.to_round, [&](auto& result) {
        auto& life = lives_[result.slot];
        return life.last == life.first && !others.contains(result.slot) &&
               rounded_by_store.contains(result.slot);
      });
    }
  }

  /// What is known of a step before memory is planned.
  struct Shapes {
    std::vector<Operand> reads;
    Operand result;  // of steps by rows
    bool gathers = false;
  };

  /// The longest run of steps from `first` on that can go tile by tile.
  Graph::Stage stage(size_t first) {
    Graph::Stage stage{first, first};
    if (!graph_.steps_[first].rows) {
      return stage;
    }
    stage.rows = rows_of(shapes_[first].result.shape());
    std::set<int> made{shapes_[first].result.slot};
    while (stage.last + 1 < graph_.steps_.size() &&
           joins(stage.last + 1, stage.rows, made)) {
      ++stage.last;
      made.insert(shapes_[stage.last].result.slot);
    }
    keep_local(stage, made);
    return stage;
  }

  bool joins(size_t step, int64_t rows, const std::set<int>& made) const {
    auto& shapes = shapes_[step];
    return graph_.steps_[step].rows && rows_of(shapes.result.shape()) == rows &&
           std::all_of(
               shapes.reads.begin(), shapes.reads.end(), [&](auto& operand) {
                 return !made.contains(operand.slot) ||
                        (!shapes.gathers && rows_of(operand.shape()) == rows);
               });
  }

  /// Plans the memory of a tile; what else the stage touches lives as long as
  /// it.
  void keep_local(Graph::Stage& stage, const std::set<int>& made) {
    constexpr int64_t tile_elements = 2048;  // 8 KiB: three stay in L1
    auto first = static_cast<int>(stage.first);
    auto last = static_cast<int>(stage.last);
    int64_t widest = 1;
    for (auto i = stage.first; i <= stage.last; ++i) {
      widest = std::max(widest, columns_of(shapes_[i].result.shape()));
    }
    stage.tile = std::clamp<int64_t>(
        tile_elements / widest, 1, std::max<int64_t>(stage.rows, 1));
    std::vector<Piece> pieces;
    for (auto i = stage.first; i <= stage.last; ++i) {
      auto& result = shapes_[i].result;
      auto& life = lives_[result.slot];
      if (life.last <= last) {
        auto columns = columns_of(result.shape());
        pieces.push_back(
            {stage.tile * columns * element_size, life.first, life.last});
        stage.locals.push_back({result.slot, columns, 0});
        life.bytes = 0;
      } else {
        life.first = first;
      }
    }
    for (auto i = stage.first; i <= stage.last; ++i) {
      for (auto& operand : shapes_[i].reads) {
        if (!made.contains(operand.slot)) {
          touch(operand.slot, last);
        }
      }
    }
    stage.local_bytes = place(pieces);
    for (size_t i = 0; i < pieces.size(); ++i) {
      stage.locals[i].offset = pieces[i].offset;
    }
  }

  static std::string at(const mil::Operation& operation) {
    std::string out;
    if (operation.location.line > 0) {
      out = "line " + std::to_string(operation.location.line) + ", ";
    }
    if (!operation.outputs.empty()) {
      out += "value " + operation.outputs[0].name + ": ";
    }
    return out;
  }

  void reserve(int64_t bytes, const std::string& what) {
    if (bytes > memory_budget_ || used_ > memory_budget_ - bytes) {
      throw MemoryError(
          what + " needs " + std::to_string(bytes) +
          " bytes, more than is left of the budget of " +
          std::to_string(memory_budget_) + " bytes");
    }
    used_ += bytes;
  }

  void check_type(const Type& type, const std::string& what) const {
    int64_t n = 0;
    size_t surface = 0;
    if (type.shape.size() > 8) {
      throw GraphError(
          what + " has rank " + std::to_string(type.shape.size()) +
          ", but at most 8 axes are held");
    }
    try {
      n = elements(type.shape);
      surface = type.is_buffer() ? surface_bytes(type) : 0;
    } catch (const std::invalid_argument& e) {
      throw GraphError(what + ": " + e.what());
    }
    if (n > memory_budget_ / element_size ||
        surface > static_cast<size_t>(memory_budget_)) {
      throw MemoryError(
          what + " of type " + to_string(type) + " exceeds the budget of " +
          std::to_string(memory_budget_) + " bytes");
    }
  }

  int add_slot() {
    lives_.push_back({});
    pointers_.push_back(nullptr);
    return static_cast<int>(lives_.size()) - 1;
  }

  Operand constant(const mil::Constant& value) {
    check_type(value.type, "constant");
    if (value.type.dtype != DType::string) {
      reserve(
          elements(value.type.shape) * element_size,
          "a constant of type " + to_string(value.type));
    }
    auto literal = read_constant(value, weights_);
    auto slot = add_slot();
    pointers_[slot] = literal->data();
    graph_.constants_.push_back(literal);
    return {slot, value.type, literal};
  }

  void define(const std::string& name, Operand value) {
    if (!values_.emplace(name, std::move(value)).second) {
      throw GraphError("value " + name + " is defined twice");
    }
  }

  const Operand& resolve(const std::string& name) const {
    auto found = values_.find(name);
    if (found == values_.end()) {
      throw GraphError("value " + name + " is not defined before its use");
    }
    return found->second;
  }

  void touch(int slot, int step) {
    if (slot >= 0) {
      lives_[slot].last = std::max(lives_[slot].last, step);
    }
  }

  void append(const mil::Argument& argument, Call::Argument& to, int depth) {
    if (auto* reference = std::get_if<mil::Reference>(&argument.value)) {
      to.operands.push_back(resolve(reference->name));
    } else if (auto* value = std::get_if<mil::Constant>(&argument.value)) {
      to.operands.push_back(constant(*value));
    } else {
      if (depth > 0) {
        throw GraphError("a tuple within a tuple is not an argument");
      }
      to.tuple = true;
      auto& tuple = std::get<std::vector<mil::Argument>>(argument.value);
      for (auto& element : tuple) {
        append(element, to, depth + 1);
      }
    }
  }

  void add(const mil::Operation& operation) {
    if (operation.op == "const") {
      add_const(operation);
      return;
    }
    auto* op = find_op(operation.op);
    if (op == nullptr) {
      throw GraphError(
          at(operation) +
              (mil::find_op(operation.op)
                   ? "the emulated engine does not run MIL's operation "
                   : "unknown operation ") +
              operation.op,
          operation.op);
    }
    if (operation.outputs.empty() && operation.op != "write_state") {
      throw GraphError(
          at(operation) + operation.op + " has no result", operation.op);
    }
    Call call{
        .op = operation.op,
        .arguments = {},
        .results = {},
        .generation = generation_};
    for (auto& [name, argument] : operation.inputs) {
      call.arguments.push_back({name, {}, false});
      append(argument, call.arguments.back(), 0);
    }
    for (auto& [name, attribute] : operation.attributes) {
      if (name != "name" && name != "milId") {
        call.arguments.push_back({name, {constant(attribute)}, false});
      }
    }
    for (auto& output : operation.outputs) {
      call.results.push_back({add_slot(), output.type, nullptr});
    }
    if (operation.op != "tensor_buffer_to_tensor") {
      refuse_buffers(operation, call);
    }
    finish(operation, call, op->build(call));
  }

  void refuse_buffers(const mil::Operation& operation, const Call& call) {
    for (auto& argument : call.arguments) {
      for (auto& operand : argument.operands) {
        if (operand.type.is_buffer()) {
          throw GraphError(
              at(operation) + operation.op + " has the tensor_buffer " +
                  argument.name + "; give it tensor_buffer_to_tensor of that",
              operation.op);
        }
      }
    }
  }

  void finish(
      const mil::Operation& operation, const Call& call, LoweredOp lowered) {
    if (lowered.types.size() != operation.outputs.size()) {
      throw GraphError(
          at(operation) + operation.op + " has " +
          std::to_string(lowered.types.size()) + " results, not " +
          std::to_string(operation.outputs.size()));
    }
    for (size_t i = 0; i < lowered.types.size(); ++i) {
      check_declared(operation, operation.outputs[i].type, lowered.types[i]);
    }
    if (lowered.view_of >= 0) {
      auto& source = operand_of(call, lowered.view_of);
      define(
          operation.outputs[0].name,
          {lowered.view_of, lowered.types[0], source.literal});
      return;
    }
    if (foldable(call, lowered)) {
      fold(operation, call, lowered);
      return;
    }
    emit(operation, call, std::move(lowered));
  }

  static const Operand& operand_of(const Call& call, int slot) {
    for (auto& argument : call.arguments) {
      for (auto& operand : argument.operands) {
        if (operand.slot == slot) {
          return operand;
        }
      }
    }
    throw std::logic_error(call.op + " returned a view of a foreign value");
  }

  void check_declared(
      const mil::Operation& operation,
      const Type& declared,
      const Type& inferred) const {
    check_type(inferred, at(operation) + operation.op);
    bool same = declared.dtype == inferred.dtype &&
                declared.shape.size() == inferred.shape.size() &&
                declared.strides == inferred.strides &&
                declared.interleave_factors == inferred.interleave_factors;
    for (size_t d = 0; same && d < inferred.shape.size(); ++d) {
      same = declared.shape[d] == inferred.shape[d] ||
             declared.shape[d] == mil::unknown_dim;
    }
    if (!same) {
      throw GraphError(
          at(operation) + operation.op + " gives " + to_string(inferred) +
              ", but " + to_string(declared) + " is declared",
          operation.op);
    }
  }

  // Shapes computed in the program must be known to later operations; large
  // results are cheaper to compute than to keep.
  static bool foldable(const Call& call, const LoweredOp& lowered) {
    constexpr int64_t most = 1 << 16;
    if (lowered.known) {
      return true;
    }
    int64_t size = 0;
    for (auto& argument : call.arguments) {
      for (auto& operand : argument.operands) {
        if (!operand.literal) {
          return false;
        }
        size += operand.literal->strings.empty() ? operand.size() : 0;
      }
    }
    for (auto& type : lowered.types) {
      size += elements(type.shape);
    }
    return size <= most || call.op.starts_with("constexpr_");
  }

  void fold(
      const mil::Operation& operation, const Call& call, LoweredOp& lowered) {
    std::vector<std::shared_ptr<Literal>> literals;
    for (size_t i = 0; i < lowered.types.size(); ++i) {
      auto& type = lowered.types[i];
      auto literal = std::make_shared<Literal>();
      auto n = elements(type.shape);
      reserve(n * element_size, at(operation) + operation.op);
      if (mil::is_float(type.dtype)) {
        literal->floats.resize(n);
      } else {
        literal->ints.resize(n);
      }
      pointers_[call.results[i].slot] = literal->data();
      literals.push_back(std::move(literal));
    }
    reserve(lowered.scratch_bytes, at(operation) + operation.op);
    std::vector<std::byte> scratch(lowered.scratch_bytes);
    used_ -= lowered.scratch_bytes;
    lowered.run({pointers_.data(), scratch.data(), Numerics::fast});
    for (size_t i = 0; i < lowered.types.size(); ++i) {
      auto& type = lowered.types[i];
      auto& values = literals[i]->floats;
      if (type.dtype == DType::fp16 && !lowered.moves) {
        round_to_half(values.data(), static_cast<int64_t>(values.size()));
      }
      graph_.constants_.push_back(literals[i]);
      define(
          operation.outputs[i].name, {call.results[i].slot, type, literals[i]});
    }
  }

  void emit(
      const mil::Operation& operation, const Call& call, LoweredOp lowered) {
    auto step = static_cast<int>(graph_.steps_.size());
    if (lowered.scratch_bytes < 0 || lowered.scratch_bytes > memory_budget_) {
      throw MemoryError(
          at(operation) + operation.op + " needs " +
          std::to_string(lowered.scratch_bytes) +
          " bytes to work in, more than the budget of " +
          std::to_string(memory_budget_) + " bytes");
    }
    Shapes shapes{{}, {}, lowered.gathers};
    for (auto& argument : call.arguments) {
      for (auto& operand : argument.operands) {
        touch(operand.slot, step);
        shapes.reads.push_back(operand);
      }
    }
    Graph::Step out;
    out.kernel = std::move(lowered.kernel);
    out.rows = std::move(lowered.rows);
    for (size_t i = 0; i < lowered.types.size(); ++i) {
      auto& type = lowered.types[i];
      auto slot = call.results[i].slot;
      lives_[slot] = {elements(type.shape) * element_size, step, step};
      Operand result{slot, type, nullptr};
      if (type.dtype == DType::fp16 && !lowered.moves) {
        out.to_round.push_back(result);
      }
      define(operation.outputs[i].name, result);
      shapes.result = std::move(result);
    }
    shapes_.push_back(std::move(shapes));
    scratch_.push_back({lowered.scratch_bytes, step, step});
    graph_.steps_.push_back(std::move(out));
  }

  // Slots with a pointer are constants; the others get a place in the arena.
  void allocate() {
    auto pieces = scratch_;
    for (size_t i = 0; i < lives_.size(); ++i) {
      if (pointers_[i] == nullptr) {
        pieces.push_back(lives_[i]);
      }
    }
    auto bytes = place(pieces);
    reserve(bytes, "the values of the program");
    graph_.arena_ = std::make_unique_for_overwrite<std::byte[]>(bytes + 64);
    auto address = reinterpret_cast<uintptr_t>(graph_.arena_.get());
    auto* base = graph_.arena_.get() + (64 - address % 64);
    for (size_t i = 0; i < scratch_.size(); ++i) {
      graph_.steps_[i].scratch = base + pieces[i].offset;
    }
    auto next = scratch_.size();
    for (auto& pointer : pointers_) {
      if (pointer == nullptr) {
        pointer = base + pieces[next++].offset;
      }
    }
    graph_.slots_ = std::move(pointers_);
    graph_.bytes_ = used_;
  }

  void add_const(const mil::Operation& operation) {
    auto* value = mil::find_attribute(operation, "val");
    if (value == nullptr || operation.outputs.size() != 1) {
      throw GraphError(at(operation) + "const needs a val and one result");
    }
    auto& output = operation.outputs[0];
    if (!(value->type == output.type)) {
      throw GraphError(
          at(operation) + "const is declared " + to_string(output.type) +
          " and holds " + to_string(value->type));
    }
    define(output.name, constant(*value));
  }

  Graph& graph_;
  const Weights& weights_;
  int generation_;
  int64_t memory_budget_;
  int64_t used_ = 0;
  std::vector<Piece> lives_;  // of the slot of that number
  std::vector<void*>
      pointers_;                // of the slot of that number, set for constants
  std::vector<Piece> scratch_;  // of the step of that number
  std::vector<Shapes> shapes_;  // of the step of that number
  std::unordered_map<std::string, Operand> values_;
};

static void round_shared(float* values, int64_t n) {
  constexpr int64_t part = 1 << 16;
  host::parallel_for((n + part - 1) / part, blas::threads(), [&](int64_t i) {
    round_to_half(values + i * part, std::min(part, n - i * part));
  });
}

Graph::Graph(
    const mil::Function& function,
    const Weights& weights,
    int generation,
    int64_t memory_budget) {
  GraphBuilder(*this, weights, generation, memory_budget).build(function);
}

void* Graph::input(size_t i) {
  return slots_[input_slots_[i]];
}

const void* Graph::output(size_t i) const {
  return slots_[output_slots_[i]];
}

void Graph::run(Numerics numerics) {
  for (auto& stage : stages_) {
    if (stage.rows > 0) {
      run_rows(stage, numerics);
      continue;
    }
    auto& step = steps_[stage.first];
    if (step.rows) {
      continue;  // of no elements
    }
    Frame frame{slots_.data(), step.scratch, numerics};
    step.kernel(frame);
    for (auto& result : step.to_round) {
      if (numerics != Numerics::single) {
        round_shared(result.floats(frame), result.size());
      }
    }
  }
}

void Graph::run_rows(const Stage& stage, Numerics numerics) const {
  struct SlotsUse {};
  struct TileUse {};
  auto tiles = (stage.rows + stage.tile - 1) / stage.tile;
  // A few tiles a task: each task copies the table of slots.
  int threads = blas::threads();
  auto tasks = std::min<int64_t>(tiles, threads > 1 ? 4 * threads : 1);
  host::parallel_for(tasks, threads, [&](int64_t task) {
    auto count = std::ssize(slots_);
    std::span<void*> slots(
        host::scratch<SlotsUse, void*>(count), slots_.size());
    std::copy(slots_.begin(), slots_.end(), slots.begin());
    auto* memory = host::scratch<TileUse, std::byte>(stage.local_bytes);
    auto begin = tiles * task / tasks, end = tiles * (task + 1) / tasks;
    for (auto tile = begin; tile < end; ++tile) {
      auto first = tile * stage.tile;
      for (auto& local : stage.locals) {
        // Kernels count rows from the value's first.
        auto address = reinterpret_cast<uintptr_t>(memory + local.offset) -
                       first * local.columns * element_size;
        slots[local.slot] = reinterpret_cast<void*>(address);
      }
      auto last = std::min(first + stage.tile, stage.rows);
      run_tile(stage, slots, first, last, numerics);
    }
  });
}

void Graph::run_tile(
    const Stage& stage,
    std::span<void*> slots,
    int64_t first,
    int64_t last,
    Numerics numerics) const {
  Frame frame{slots.data(), nullptr, numerics};
  for (auto i = stage.first; i <= stage.last; ++i) {
    auto& step = steps_[i];
    step.rows(frame, first, last);
    for (auto& result : step.to_round) {
      auto columns = columns_of(result.shape());
      if (numerics != Numerics::single) {
        round_to_half(
            result.floats(frame) + first * columns, (last - first) * columns);
      }
    }
  }
}

}  // namespace mlx_ane::emulated
