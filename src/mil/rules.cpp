// The table of rules.
#include "mil/rules.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>

namespace mlx_ane::mil {

namespace {

using enum Severity;
using enum Stage;
using enum Answer;

// Sorted by id. Sources are the short public names of docs/limits.md.
// clang-format off
constexpr Rule table[] = {
    {"address-window", error, load, no_addresses,
     "the weights of resident programs must fit an address window of about 4 "
     "GiB",
     "oMLX"},
    {"attention-mask", error, never, unreported,
     "attn_mask is ignored; write attention with matmul and softmax",
     "maderix; Orion"},
    {"axis", error, compile, unreported,
     "axes have at most 16384 elements up to M3 and 65536 from M4 on",
     "ANEForge; libane"},
    {"banks", error, compile, unreported,
     "programs of several functions are refused by macOS 27 (Code=10)",
     "oMLX#3124"},
    {"blob-alignment", warning, compile, none,
     "chunk headers should stand at multiples of 64",
     "oMLX aligns them",
     "ANEForge does not"},
    {"blob-offset", error, compile, unreported,
     "offset is that of the chunk header, 64 for the first chunk, and below "
     "4 GiB",
     "Orion; oMLX"},
    {"blob-path", error, compile, unreported,
     "paths of weight files start with @model_path/",
     "maderix; Orion; ANEForge"},
    {"blobs", error, compile, invalid_program,
     "at most 16 constants of a function may come from weight files, 15 with "
     "a scalar operand; pass more weights as inputs",
     "Orion; M5 Max notes",
     "Karani's fixtures have 30, M3 Max; Parakeet's programs and ANEForge's over its C route "
     "have more"},
    {"blockwise-int4", error, compile, unreported,
     "blockwise int4 is rejected; use constexpr_lut_to_dense",
     "mlxfast; ironmill",
     "M5 Max notes accept it per channel, ANEForge over its C route"},
    {"cast", error, compile, unreported,
     "the cast operation fails on M1 and M2; take and give fp16",
     "maderix#6, M1 Pro",
     "ANEForge has it native over its C route, M1", 13, 14},
    {"cast-dtype", error, compile, unreported,
     "cast converts between fp16, fp32, int8, uint8, int16 and bool only",
     "ironmill, M3 Pro; ANEForge, M1"},
    {"channels", error, compile, unreported,
     "at most 65536 channels (the second of four axes or more), on any chip",
     "ANEForge"},
    {"chunks", error, compile, unreported,
     "several chunks of one weight file fail on M1; use a file a constant",
     "maderix, M1",
     "ANEForge's programs have one weights.bin over its C route, M1", 13, 13},
    {"compiles", unseen, compile, compilation_failure,
     "119 compilations a process",
     "maderix",
     "the field guide: unloading gives all back"},
    {"concat", error, compile, compilation_failure,
     "concat is rejected; return several outputs instead",
     "Orion, M4 Max; M5 Max notes",
     "maderix, ironmill and ANEForge accept it"},
    {"concat-inputs", warning, compile, none,
     "concat takes two values only",
     "ANEForge",
     "maderix joins more"},
    {"const-type", error, parse, none,
     "a const has the type of its value",
     "MIL specification"},
    {"const-value", error, parse, none,
     "a const needs a val",
     "MIL specification"},
    {"consumed-output", warning, evaluate, none,
     "an output that other operations use too needs an identity copy",
     "M5 Max notes"},
    {"conv-bias", error, compile, compilation_failure,
     "conv with a bias is rejected; add it with a separate add",
     "Orion",
     "M6 study: the bias starts the accumulator, through Core ML"},
    {"conv-channels", error, compile, compilation_failure,
     "convolutions of 32000 and more output channels are refused",
     "Orion, M4 Max",
     "maderix accepts 32000"},
    {"conv-weight", error, never, unreported,
     "a weight that is computed or given at run time is silently ignored; "
     "use matmul",
     "field guide, M3 Max",
     "H3 reports right values, ANEForge too at batch 1"},
    {"conv-weight-grouped", error, compile, unreported,
     "a grouped convolution with a weight given at run time fails",
     "maderix#47; ane-train, M1"},
    {"deep-contraction", note, never, none,
     "dot products this deep are slow and less accurate; split them at 1344 "
     "and sum in fp32",
     "H3, M3 Ultra"},
    {"dialect", error, compile, invalid_program,
     "M1 and M2 take the verbose dialect only: program(1.0), func "
     "main<ios16> and tensor<fp16, []>(1); write it with text(\"ios16\")",
     "maderix#6, M1 Pro",
     "ANEForge runs the other over its C route, M1 and M2", 13, 14},
    {"duplicate-function", error, parse, none,
     "functions need different names",
     "MIL specification"},
    {"empty-axis", error, parse, none,
     "every axis needs an element",
     "ANEForge"},
    {"empty-name", error, parse, none,
     "a name must not be empty",
     "ANEForge"},
    {"fp32-io", error, compile, unreported,
     "M1 and M2 take and give fp16 only",
     "maderix#6",
     "", 13, 14},
    {"gelu", error, compile, compilation_failure,
     "gelu is rejected; write it with tanh",
     "Orion",
     "ANEForge accepts it with a mode"},
    {"group-scale", error, compile, unreported,
     "only a scale per output channel is taken; group scales send the "
     "program to the GPU",
     "oMLX",
     "a report from M5 (h17s); ANEForge takes them over its C route"},
    {"inaccurate-op", warning, never, none,
     "the engine computes this from a coarse table (softplus is wrong above "
     "about 10)",
     "M5 Max notes; M6 study"},
    {"inline-arguments", error, compile, invalid_program,
     "an inline true or false is rejected; define a const and name it",
     "Orion",
     "ANEForge accepts it over its C route"},
    {"inline-values", warning, compile, none,
     "arguments should be named consts",
     "Orion",
     "ANEForge writes them in place over its C route"},
    {"int8-io", error, compile, unreported,
     "inputs and outputs of 8- and 16-bit integers are rejected",
     "ironmill, M3 Pro",
     "ANEForge takes and gives them over its C route"},
    {"io-dtype", error, compile, unreported,
     "inputs and outputs are fp16 (fp32 from M3 on); int32, int64, bf16, "
     "bool and strings are rejected",
     "ANEForge; maderix#6",
     "ironmill takes bool inputs, M3 Pro"},
    {"kernel-width", error, compile, unreported,
     "kernels are at most 13 wide on M1 and 15 later",
     "ANEForge"},
    {"later-chip", error, compile, unreported,
     "a later chip is needed for this operation",
     "ANEForge operation-by-device matrix"},
    {"lone-op", error, compile, unreported,
     "reshape, slice_by_index and tile do not compile as the only operation",
     "ironmill, M3 Pro",
     "ANEForge has them native"},
    {"m1-broadcast", error, never, unreported,
     "mul of rank 3 gives zeros where an operand is repeated along the last "
     "axis; bring that axis first ([1, S, C] * [1, 1, C])",
     "ane-train, M1",
     "ANEForge has no such limit over its C route, M1", 13, 13},
    {"m1-contraction", error, never, unreported,
     "contractions of other depths than multiples of 32 give zeros; pad with "
     "zeros",
     "ane-train, M1",
     "ANEForge has no such limit over its C route, M1", 13, 13},
    {"m1-op", error, compile, compilation_failure,
     "pow and transpose are rejected",
     "ane-train, M1",
     "ANEForge has them native over its C route, M1", 13, 13},
    {"m3-op", error, compile, unreported,
     "sin, cos and avg_pool are rejected",
     "ironmill, M3 Pro",
     "ANEForge's matrix has them native", 15, 15},
    {"minimum-surface", unseen, evaluate, inference_error,
     "surfaces have 64 KiB",
     "oMLX",
     "Orion: 48 KiB; ironmill: 16 KiB"},
    {"missing-argument", error, parse, none,
     "the operation needs this argument",
     "coremltools op definitions; ANEForge for log and gelu"},
    {"missing-epsilon", error, compile, unreported,
     "inverse and rsqrt need an epsilon",
     "ironmill, M3 Pro",
     "ANEForge has both native; MIL makes it optional"},
    {"missing-name", warning, parse, none,
     "operations should carry [name = ...]",
     "ANEForge requires it",
     "oMLX leaves it out"},
    {"mixed-dialects", warning, compile, none,
     "do not mix shorthand and verbose scalars",
     "mlxfast"},
    {"mul-batch", error, evaluate, inference_error,
     "mul fails where an input is repeated along the first axis; add does "
     "not",
     "a report from M3 Pro"},
    {"multiply-reduced-by-zero", error, compile, compilation_failure,
     "a reduction multiplied by the constant zero fails to compile",
     "ANEForge"},
    {"narrow-channels", error, compile, compilation_failure,
     "inputs and outputs with more than 768 channels need 32 elements in the "
     "last axis",
     "ironmill, M3 Pro",
     "Orion says 16, for any number of channels"},
    {"newer-op", error, parse, none,
     "the function's opset does not have this operation",
     "coremltools op definitions"},
    {"no-function", error, parse, none,
     "a program needs a function",
     "MIL specification"},
    {"no-output", error, parse, none,
     "a function needs an output",
     "MIL specification"},
    {"no-path", error, compile, unreported,
     "no chip executes this operation; compute it on the host or rewrite it",
     "ANEForge operation-by-device matrix"},
    {"operand-dtype", error, compile, unreported,
     "arithmetic, conv and matmul take floats: cast or dequantize integers "
     "of 8 and 16 bits",
     "ironmill, M3 Pro; ANEForge"},
    {"opset", error, parse, none,
     "a function needs an opset ios15 to ios26, or CoreML5 to CoreML9",
     "MIL specification"},
    {"port-count", unseen, evaluate, unreported,
     "a request names every port once, in the ASCII order of their names",
     "Orion"},
    {"port-order", note, evaluate, none,
     "surfaces are bound in the ASCII order of the names, not as declared; "
     "name them a0_..., a1_...",
     "Orion"},
    {"rank", error, compile, unreported,
     "tensors have at most 5 axes; operands of constexpr operations may have "
     "more",
     "ANEForge"},
    {"redefined-value", error, parse, none,
     "values of a function need different names",
     "MIL specification"},
    {"reduce-channels", warning, compile, none,
     "reductions over axis 1 compile for some shapes only",
     "M5 Max notes",
     "ironmill: four of them run, M3 Pro"},
    {"rejected-op", error, compile, compilation_failure,
     "gather, tile, stack, l2_norm and cumsum fail to compile",
     "field guide",
     "ANEForge's matrix has them native; ironmill runs tile, M3 Pro"},
    {"resident", unseen, load, too_many_programs,
     "96 resident programs a process",
     "mlxfast: 96 to 118",
     "ANEForge: 128; M5 Max notes: 127; oMLX: 121"},
    {"row-stride", note, evaluate, none,
     "rows (the last axis) are padded to 64 bytes in the surface; a packed "
     "copy is misread",
     "H3; M5 Max notes; splash and TurboCider declare strides",
     "Orion reports packed rows"},
    {"rsqrt", error, compile, compilation_failure,
     "rsqrt is rejected; use pow(x, -0.5) or real_div by sqrt",
     "Orion; M5 Max notes; ane-train, M1",
     "ANEForge has it native; ironmill with an epsilon, M3 Pro"},
    {"shape-mismatch", error, parse, none,
     "the declared type is not what the operation gives",
     "MIL specification"},
    {"slice-concat", error, never, unreported,
     "a concat of slices at offsets of the last axis gives wrong elements "
     "before M4; slice another axis",
     "ANEForge",
     "", 13, 15},
    {"slice-width", warning, never, none,
     "slices at an offset of the last axis turn |x| > 4094 into inf on M1 "
     "and M2",
     "ANEForge",
     "", 13, 14},
    {"sole-identity", error, never, unreported,
     "an identity as the only output gives NaN",
     "M5 Max notes",
     "ironmill, M3 Pro, and others on M4 Pro get a copy"},
    {"surface-size", unseen, evaluate, inference_error,
     "surfaces hold every row at a stride of 64 bytes",
     "H3; M5 Max notes; ironmill"},
    {"tile-poison", error, evaluate, inference_error,
     "after a program with tile, every evaluation of the process fails",
     "field guide",
     "ANEForge's matrix has it native; ironmill runs it, M3 Pro"},
    {"undefined-value", error, parse, none,
     "values are defined before they are used",
     "MIL specification"},
    {"uniform-surfaces", note, evaluate, inference_error,
     "all inputs, and all outputs, should have surfaces of one size; "
     "allocate the largest for each",
     "Orion",
     "H3 uses different sizes"},
    {"unknown-argument", error, parse, none,
     "the operation has no argument of that name",
     "coremltools op definitions"},
    {"unknown-axis", error, compile, unreported,
     "the engine takes fixed shapes only",
     "ANEForge"},
    {"unknown-op", error, parse, none,
     "MIL has no such operation",
     "coremltools op definitions"},
    {"width", error, evaluate, inference_error,
     "below 32 elements in the last axis values are zeros or garbage; pad it",
     "field guide; M5 Max notes",
     "Orion says 16"},
};
// clang-format on

constexpr bool sorted() {
  for (size_t i = 1; i < std::size(table); ++i) {
    if (!(table[i - 1].id < table[i].id)) {
      return false;
    }
  }
  return true;
}
static_assert(sorted());

}  // namespace

const char* to_string(Severity severity) {
  static constexpr const char* names[] = {"error", "warning", "note", "unseen"};
  return names[static_cast<int>(severity)];
}

const char* to_string(Stage stage) {
  static constexpr const char* names[] = {
      "parse", "compile", "load", "evaluate", "never"};
  return names[static_cast<int>(stage)];
}

std::span<const Rule> rules() {
  return table;
}

const Rule* find_rule(std::string_view id) {
  auto rule = std::lower_bound(
      std::begin(table), std::end(table), id, [](auto& rule, auto wanted) {
        return rule.id < wanted;
      });
  return rule != std::end(table) && rule->id == id ? rule : nullptr;
}

bool allows(const Allow& allow, const Rule& rule) {
  return !allow.empty() && (allow.contains(std::string(rule.id)) ||
                            (rule.disputed() && allow.contains("disputed")));
}

void check_allow(const Allow& allow, const std::string& where) {
  for (auto& id : allow) {
    if (id != "disputed" && !find_rule(id)) {
      throw std::invalid_argument(
          "[" + where + "] allow has '" + id +
          "', need \"disputed\" or ids of " + where + "'s rules().");
    }
  }
}

}  // namespace mlx_ane::mil
