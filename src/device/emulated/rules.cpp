// The table of rules and the engine's answers.
#include "device/emulated/rules.h"

namespace mlx_ane::emulated {

namespace {

constexpr auto compile = Stage::compile;
constexpr auto load = Stage::load;
constexpr auto evaluate = Stage::evaluate;
constexpr auto invalid = Answer::invalid_program;
constexpr auto failure = Answer::compilation_failure;
constexpr auto inference = Answer::inference_error;

// name, stage, answer, disputed, reported, limit, source
constexpr Rule table[] = {
    {"rank", compile, failure, false, false, "rank at most 5", "ANEForge"},
    {"axis",
     compile,
     failure,
     false,
     false,
     "an axis has at most 16384 elements through A15, 65536 later",
     "ANEForge, libane"},
    {"channels",
     compile,
     failure,
     false,
     false,
     "at most 65536 channels",
     "ANEForge"},
    {"kernel-width",
     compile,
     failure,
     false,
     false,
     "convolution kernels are at most 15 wide, 13 on M1",
     "ANEForge"},
    {"dialect",
     compile,
     invalid,
     false,
     true,
     "M1 and M2 take the verbose form with program(1.0) and ios16",
     "maderix#6"},
    {"fp32-io",
     compile,
     failure,
     false,
     false,
     "M1 and M2 take and give fp16 only",
     "maderix#6"},
    {"cast",
     compile,
     failure,
     false,
     false,
     "cast does not compile on M1 and M2",
     "maderix#6"},
    {"chunks",
     compile,
     failure,
     false,
     false,
     "one chunk a weight file on M1",
     "maderix"},
    {"io-dtype",
     compile,
     failure,
     true,
     false,
     "functions take and give fp16 and fp32",
     "ANEForge, ironmill"},
    {"int8-io",
     compile,
     failure,
     true,
     false,
     "8- and 16-bit integers are not taken or given",
     "ironmill; ANEForge: they are over e5rt"},
    {"cast-dtype",
     compile,
     failure,
     true,
     false,
     "cast to int32 and int4 does not compile",
     "ironmill"},
    {"blobs",
     compile,
     invalid,
     true,
     true,
     "16 BLOBFILE constants a function, 15 beside a scalar operand",
     "Orion, M5 Max notes; ANEForge runs larger graphs over e5rt"},
    {"inline-arguments",
     compile,
     invalid,
     true,
     true,
     "booleans are named constants, not written in place",
     "Orion; ANEForge: accepted over e5rt"},
    {"concat",
     compile,
     failure,
     true,
     true,
     "concat does not compile",
     "Orion, M5 Max notes; maderix, ironmill: it does"},
    {"gelu",
     compile,
     failure,
     true,
     true,
     "gelu does not compile",
     "Orion; ANEForge: it does"},
    {"rsqrt",
     compile,
     failure,
     true,
     true,
     "rsqrt does not compile",
     "Orion, M5 Max notes; others: it does"},
    {"rejected-op",
     compile,
     failure,
     true,
     true,
     "gather, tile, stack, l2_norm and cumsum do not compile",
     "field guide"},
    {"tile-poison",
     evaluate,
     inference,
     true,
     true,
     "after a program with tile, every evaluation of the process fails",
     "field guide"},
    {"conv-bias",
     compile,
     failure,
     true,
     true,
     "conv takes no bias",
     "Orion; M6 study: the bias starts the accumulator"},
    {"conv-weight",
     compile,
     failure,
     true,
     false,
     "the weight of conv is a constant",
     "field guide: an input is ignored; MiniMax-H3-Swift: it works"},
    {"conv-channels",
     compile,
     failure,
     true,
     true,
     "conv gives fewer than 32000 channels",
     "Orion; maderix: 32000 work"},
    {"attention-mask",
     compile,
     failure,
     true,
     false,
     "scaled_dot_product_attention ignores attn_mask",
     "maderix, Orion"},
    {"multiply-reduced-by-zero",
     compile,
     failure,
     true,
     true,
     "mul(reduce, 0.0) does not compile",
     "ANEForge"},
    {"sole-identity",
     evaluate,
     inference,
     true,
     false,
     "identity as the only output gives NaN",
     "M5 Max notes"},
    {"narrow-channels",
     compile,
     failure,
     true,
     true,
     "more than 768 channels need a last axis of 32",
     "ironmill"},
    {"compiles",
     compile,
     failure,
     true,
     true,
     "119 compilations a process",
     "maderix; field guide: unloading reclaims"},
    {"resident",
     load,
     Answer::too_many_programs,
     true,
     true,
     "96 resident programs a process (96 to 128 are reported)",
     "ANEForge, M5 Max notes, oMLX, mlxfast"},
    {"address-window",
     load,
     Answer::no_addresses,
     true,
     true,
     "4 GiB of weights in resident programs",
     "oMLX"},
    {"width",
     evaluate,
     inference,
     true,
     true,
     "the last axis of inputs and outputs has 32 elements",
     "field guide, M5 Max notes; Orion: 16"},
    {"minimum-surface",
     evaluate,
     inference,
     true,
     true,
     "surfaces have 64 KiB",
     "oMLX; Orion: 48 KiB; ironmill: 16 KiB"},
    {"uniform-surfaces",
     evaluate,
     inference,
     true,
     true,
     "inputs have equal surfaces, and so have outputs",
     "Orion; MiniMax-H3-Swift: not needed"},
    {"surface-size",
     evaluate,
     inference,
     false,
     true,
     "surfaces hold every row at a stride of 64 bytes",
     "MiniMax-H3-Swift, M5 Max notes, ironmill"},
    {"port-count",
     evaluate,
     inference,
     false,
     false,
     "a request names every port once, in the ASCII order of their names",
     "Orion"},
};

}  // namespace

std::span<const Rule> rules() {
  return table;
}

const Rule& rule(const std::string& name) {
  std::string names;
  for (auto& candidate : table) {
    if (candidate.name == name) {
      return candidate;
    }
    names += (names.empty() ? "" : ", ") + std::string(candidate.name);
  }
  throw std::invalid_argument(
      "[mlx_ane.emulated] got rule \"" + name + "\", need one of " + names +
      ".");
}

bool enforced(const Options& options, const std::string& name) {
  auto& r = rule(name);
  auto needed = r.disputed ? Level::strict : Level::program;
  return options.level >= needed && !options.allow.contains(name);
}

EngineError refusal(const std::string& name, const std::string& what) {
  auto& r = rule(name);
  return refusal(
      r.stage,
      r.answer,
      name,
      what + "; limit: " + r.limit + " (" + r.source + ")" +
          (r.reported ? "" : "; code unreported"));
}

EngineError refusal(
    Stage stage, Answer answer, std::string name, const std::string& what) {
  std::string domain = "com.apple.appleneuralengine";
  std::string text;
  int code = 0;
  switch (answer) {
    case Answer::invalid_program:
      domain += ".compiler";
      text = "InvalidMILProgram";
      break;
    case Answer::compilation_failure:
      domain += ".compiler";
      code = 1;
      text = "_ANECompiler : ANECCompile() FAILED : err=(CompilationFailure)";
      break;
    case Answer::too_many_programs:
      text = "Program load failure (0x50004)";
      break;
    case Answer::no_addresses:
      text = "Program load failure (0x20004)";
      break;
    case Answer::inference_error:
      code = 8;
      text =
          "ANEProgramProcessRequestDirect() Failed with status=0x1d : "
          "statusType=0x9 : Program Inference error";
      break;
  }
  return {
      stage,
      name,
      code,
      domain,
      "[mlx_ane.emulated] " + std::string(to_string(stage)) +
          " failed: " + domain + (code ? " Code=" + std::to_string(code) : "") +
          " " + text + " [" + name + ": " + what + "]"};
}

}  // namespace mlx_ane::emulated
