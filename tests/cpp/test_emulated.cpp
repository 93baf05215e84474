// The emulated device: programs through surfaces, limits, faults and numerics.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>
#include <thread>

#include "check.h"
#include "device/device.h"
#include "device/emulated/engine.h"
#include "device/emulated/faults.h"
#include "device/emulated/rules.h"
#include "device/emulated/state.h"
#include "device/programs.h"
#include "host/half.h"

using namespace mlx_ane;

namespace {

void fill(
    Surface& surface, const Port& port, float (*value)(int64_t, int64_t)) {
  SurfaceLock lock(surface, Surface::Access::write);
  auto cols = port.shape.back();
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < port.shape.size(); ++d) {
    rows *= port.shape[d];
  }
  for (int64_t r = 0; r < rows; ++r) {
    auto* row = reinterpret_cast<uint16_t*>(lock.data() + r * row_bytes(port));
    for (int64_t c = 0; c < cols; ++c) {
      row[c] = host::float_to_half(value(r, c));
    }
  }
}

float read(Surface& surface, const Port& port, int64_t r, int64_t c) {
  SurfaceLock lock(surface, Surface::Access::read);
  auto* row = reinterpret_cast<uint16_t*>(lock.data() + r * row_bytes(port));
  return host::half_to_float(row[c]);
}

/// Text of a function with inputs and an add of the first two.
std::string add_text(
    const std::string& a,
    const std::string& b,
    const std::string& type,
    const std::string& tag = "") {
  return "program(1.3)\n[buildInfo = dict<string, string>({{\"tag\", \"" + tag +
         "\"}})]\n{ func main<ios18>(" + type + " " + a + ", " + type + " " +
         b + ") { " + type + " y = sub(x=" + a + ", y=" + b +
         ")[name=string(\"y\")]; } -> (y); }";
}

constexpr auto row = "tensor<fp16, [1, 1, 1, 32]>";

/// Surfaces as vectors, filled with one half.
struct Surfaces {
  explicit Surfaces(size_t size, uint16_t half) : storage(size) {
    for (size_t i = 0; i + 1 < size; i += 2) {
      storage[i] = static_cast<std::byte>(half & 0xff);
      storage[i + 1] = static_cast<std::byte>(half >> 8);
    }
  }
  emulated::SurfaceBytes bytes() {
    return {storage.data(), storage.size()};
  }
  std::vector<std::byte> storage;
};

/// The rule by which a body is refused, or "".
template <class Body>
std::string refused_by(Body&& body) {
  try {
    body();
  } catch (const emulated::EngineError& e) {
    return e.rule;
  }
  return "";
}

std::string evaluate_with(
    const emulated::Options& options,
    size_t first,
    size_t second,
    size_t out,
    const std::string& type = row) {
  auto program =
      emulated::compile_program(add_text("a", "b", type), {}, options);
  program->load();
  Surfaces a(first, 0), b(second, 0), y(out, 0);
  emulated::SurfaceBytes in[] = {a.bytes(), b.bytes()}, result[] = {y.bytes()};
  return refused_by([&] { program->evaluate(0, in, result, false); });
}

/// The small program of many tests, with its surfaces.
struct Case {
  Source source =
      matmul_source({64, 32, 32, Layout::natural}, mil::Dialect::ios18);
  Device& device = get_device("emulated");
  std::shared_ptr<Surface> x = device.make_surface(1),
                           w = device.make_surface(1),
                           y = device.make_surface(1);
  Surface* in[2] = {x.get(), w.get()};
  Surface* out[1] = {y.get()};

  Case() {
    auto one = [](int64_t, int64_t) { return 1.0f; };
    fill(*x, source.inputs[0], one);
    fill(*w, source.inputs[1], one);
    fill(*y, source.outputs[0], [](int64_t, int64_t) { return -7.0f; });
  }
  float result() {
    return read(*y, source.outputs[0], 0, 0);
  }
};

/// The cause for which a body fails, or nothing.
template <class Body>
std::optional<Cause> cause_of(Body&& body) {
  try {
    body();
  } catch (const DeviceError& e) {
    return e.cause;
  }
  return std::nullopt;
}

}  // namespace

TEST(matmul_program_of_both_layouts_and_dialects) {
  auto& device = get_device("emulated");
  for (auto layout : {Layout::natural, Layout::channels_first}) {
    for (auto dialect : {mil::Dialect::ios18, mil::Dialect::ios16}) {
      auto source = matmul_source({64, 96, 128, layout}, dialect);
      auto executable = device.compile(source);
      auto bytes = surface_bytes(source.inputs[1]);
      auto x = device.make_surface(bytes), w = device.make_surface(bytes);
      auto y = device.make_surface(surface_bytes(source.outputs[0]));
      auto one = [](int64_t r, int64_t c) {
        return static_cast<float>((r * 7 + c * 3) % 11 - 5) / 8;
      };
      auto two = [](int64_t r, int64_t c) {
        return static_cast<float>((r * 5 + c * 2) % 13 - 6) / 8;
      };
      fill(*x, source.inputs[0], one);
      fill(*w, source.inputs[1], two);
      Surface* in[] = {x.get(), w.get()};
      Surface* out[] = {y.get()};
      executable->evaluate(in, out);
      for (int64_t i : {0, 17, 63}) {
        for (int64_t j : {0, 5, 127}) {
          float sum = 0;
          for (int64_t k = 0; k < 96; ++k) {
            sum += layout == Layout::natural ? one(i, k) * two(j, k)
                                             : one(k, i) * two(k, j);
          }
          auto want = host::half_to_float(host::float_to_half(sum));
          CHECK(read(*y, source.outputs[0], i, j) == want);
        }
      }
    }
  }
}

TEST(ports_are_in_the_ascii_order_of_names) {
  // Declared b, A: the engine's order is A, b, so surfaces in declared order
  // swap.
  auto program = emulated::compile_program(
      add_text("b", "A", row), {}, emulated::Options{});
  CHECK(program->inputs(0)[0].name == "A");
  Surfaces one(65536, 0x3c00), three(65536, 0x4200), y(65536, 0);
  emulated::SurfaceBytes in[] = {one.bytes(), three.bytes()},
                         out[] = {y.bytes()};
  program->evaluate(0, in, out, false);
  uint16_t result;
  std::memcpy(&result, y.storage.data(), 2);
  CHECK(result == 0x4000);  // b - A = 3 - 1
}

TEST(surfaces_follow_the_rules) {
  emulated::Options strict;
  CHECK(evaluate_with(strict, 65536, 65536, 65536) == "");
  CHECK(evaluate_with(strict, 65535, 65535, 65536) == "minimum-surface");
  CHECK(evaluate_with(strict, 65536, 65536, 65535) == "minimum-surface");
  CHECK(evaluate_with(strict, 65536, 81920, 65536) == "uniform-surfaces");
  CHECK(evaluate_with(strict, 81920, 81920, 65536) == "");
  auto allowed = strict;
  allowed.allow = {"minimum-surface", "uniform-surfaces"};
  CHECK(evaluate_with(allowed, 64, 128, 64) == "");
  CHECK(evaluate_with(allowed, 63, 128, 64) == "surface-size");
  // Rows of 33 halves take 128 bytes each.
  auto wide = "tensor<fp16, [1, 4, 1, 33]>";
  CHECK(evaluate_with(allowed, 512, 512, 512, wide) == "");
  CHECK(evaluate_with(allowed, 511, 512, 512, wide) == "surface-size");
  auto narrow = "tensor<fp16, [1, 1, 1, 31]>";
  CHECK(evaluate_with(strict, 65536, 65536, 65536, narrow) == "width");
  auto program = emulated::compile_program(add_text("a", "b", row), {}, strict);
  Surfaces a(65536, 0);
  emulated::SurfaceBytes in[] = {a.bytes()};
  CHECK(
      refused_by([&] { program->evaluate(0, in, in, false); }) == "port-count");
}

TEST(ninety_six_programs_are_resident) {
  emulated::Options strict;
  std::vector<std::unique_ptr<emulated::EngineProgram>> programs;
  auto add = [&](const std::string& tag) {
    programs.push_back(
        emulated::compile_program(add_text("a", "b", row, tag), {}, strict));
    programs.back()->load();
  };
  auto before = emulated::usage().resident;
  for (auto i = before; i < 96; ++i) {
    add(std::to_string(i));
  }
  CHECK(emulated::usage().resident == 96);
  add("95");  // equal text and weights share a place
  CHECK(refused_by([&] { add("one more"); }) == "resident");
  programs.pop_back();
  programs.pop_back();
  programs.pop_back();  // "95" twice
  add("one more");
  programs.clear();
  CHECK(emulated::usage().resident == before);
}

TEST(weights_share_a_window_of_addresses) {
  using emulated::Residence;
  auto all = emulated::usage().weight_bytes;
  CHECK(emulated::acquire(1, 10, 96, all + 15) == Residence::granted);
  CHECK(emulated::acquire(2, 6, 96, all + 15) == Residence::no_addresses);
  CHECK(emulated::acquire(2, 5, 96, all + 15) == Residence::granted);
  emulated::release(1);
  emulated::release(2);
  CHECK(emulated::usage().weight_bytes == all);
}

TEST(compilations_are_counted) {
  emulated::reset();
  emulated::Options strict;
  strict.allow = {};
  auto compile = [&] {
    emulated::compile_program(add_text("a", "b", row), {}, strict);
  };
  for (int i = 0; i < 119; ++i) {
    compile();
  }
  CHECK(refused_by(compile) == "compiles");
  CHECK(emulated::usage().compiles == 119);
  strict.allow = {"compiles"};
  CHECK(refused_by(compile) == "");
  emulated::reset();
}

TEST(tile_poisons_the_process) {
  emulated::reset();
  std::string text =
      "program(1.3)[buildInfo = dict<string, string>({})]{ func main<ios18>(" +
      std::string(row) +
      " x) { tensor<int32, [4]> r = const()[name=string(\"r\"), "
      "val=tensor<int32, [4]>([1,1,1,2])]; tensor<fp16, [1,1,1,64]> y = "
      "tile(x=x, reps=r)[name=string(\"y\")]; } -> (y); }";
  Case c;
  auto executable = c.device.compile(c.source);
  executable->evaluate(c.in, c.out);
  CHECK(refused_by([&] {
          emulated::compile_program(text, {}, emulated::Options{});
        }) == "rejected-op");
  CHECK(cause_of([&] {
          executable->evaluate(c.in, c.out);
        }) == Cause::evaluate_failed);
  emulated::reset();
  executable->evaluate(c.in, c.out);
  CHECK(c.result() == 32);
}

TEST(interfaces_must_match_the_program) {
  Case c;
  auto wrong = c.source;
  wrong.inputs[0].shape = {1, 1, 64, 64};
  CHECK(cause_of([&] { c.device.compile(wrong); }) == Cause::compile_failed);
  wrong = c.source;
  wrong.inputs[0].name = "q";
  CHECK(cause_of([&] { c.device.compile(wrong); }) == Cause::compile_failed);
  wrong = c.source;
  std::swap(wrong.inputs[0], wrong.inputs[1]);  // bound by name, so no matter
  auto executable = c.device.compile(wrong);
  Surface* in[] = {c.w.get(), c.x.get()};
  executable->evaluate(in, c.out);
  CHECK(c.result() == 32);
}

TEST(every_fault_fails_as_it_is_named) {
  Case c;
  auto with = [&](const char* faults, auto&& body) {
    emulated::set_faults(faults);
    auto cause = cause_of(body);
    emulated::set_faults("");
    return cause;
  };
  auto compile = [&] { c.device.compile(c.source); };
  CHECK(with("compile_error", compile) == Cause::compile_failed);
  CHECK(with("load_fails", compile) == Cause::load_failed);
  CHECK(with("cap_reached", compile) == Cause::cap_reached);
  CHECK(with("out_of_memory:site=load", compile) == Cause::out_of_memory);
  CHECK(with("device_gone:site=compile", compile) == Cause::unavailable);
  CHECK(with("out_of_memory", [&] {
          c.device.make_surface(1);
        }) == Cause::out_of_memory);
  emulated::set_faults("load_fails_once");
  CHECK(cause_of(compile) == Cause::load_failed);
  CHECK(!cause_of(compile));
  emulated::set_faults("");

  auto executable = c.device.compile(c.source);
  auto evaluate = [&] { executable->evaluate(c.in, c.out); };
  CHECK(with("evaluate_false", evaluate) == Cause::evaluate_failed);
  emulated::set_faults("first_call_fails");
  CHECK(cause_of(evaluate) == Cause::evaluate_failed);
  CHECK(!cause_of(evaluate));
  CHECK(c.result() == 32);
  emulated::set_faults("device_gone:call=2");
  CHECK(!cause_of(evaluate));
  CHECK(cause_of(evaluate) == Cause::unavailable);
  CHECK(cause_of(evaluate) == Cause::unavailable);
  CHECK(cause_of(compile) == Cause::unavailable);
  emulated::set_faults("");
}

TEST(faults_change_results) {
  auto result_with = [](const char* faults) {
    Case c;
    auto executable = c.device.compile(c.source);
    emulated::set_faults(faults);
    executable->evaluate(c.in, c.out);
    emulated::set_faults("");
    return c.result();
  };
  CHECK(result_with("") == 32);
  CHECK(result_with("writes_nothing") == -7);
  CHECK(result_with("zeros") == 0);
  CHECK(std::isnan(result_with("nan")));
  CHECK(result_with("wrong_values") == 49);
  CHECK(result_with("wrong_values:share=0") == 32);
}

TEST(faults_are_filtered_and_reproducible) {
  Case c;
  auto executable = c.device.compile(c.source);
  auto failures = [&](const std::string& faults) {
    emulated::set_faults(faults);
    std::string out;
    for (int i = 0; i < 40; ++i) {
      out += cause_of([&] { executable->evaluate(c.in, c.out); }) ? '1' : '0';
    }
    CHECK(
        emulated::fault_counts()["evaluate_false"] ==
        std::count(out.begin(), out.end(), '1'));
    emulated::set_faults("");
    return out;
  };
  auto none = std::string(40, '0');
  auto random = failures("evaluate_false:rate=0.5,seed=3");
  auto count = std::count(random.begin(), random.end(), '1');
  CHECK(count > 8 && count < 32);
  CHECK(random == failures("evaluate_false:rate=0.5,seed=3"));
  CHECK(random != failures("evaluate_false:rate=0.5,seed=4"));
  CHECK(failures("evaluate_false:rate=0") == none);
  CHECK(failures("evaluate_false:count=2") == "11" + none.substr(2));
  CHECK(failures("evaluate_false:call=3") == "001" + none.substr(3));
  CHECK(failures("evaluate_false:after=38") == none.substr(2) + "11");
  CHECK(
      failures("evaluate_false:program=a0_x=1x1x64x32,count=1") ==
      "1" + none.substr(1));
  CHECK(failures("evaluate_false:program=1x1x65x32") == none);
}

TEST(malformed_faults_name_the_valid_words) {
  for (auto [text, part] :
       {std::pair("frob", "need one of compile_error"),
        {"nan:rate", "need KEY=VALUE"},
        {"nan:speed=1", "need rate"},
        {"nan:rate=2", "from 0.0"},
        {"nan:count=-1", "from 0"},
        {"nan:count=x", "need a number"},
        {"nan:site=load", "is injected at evaluate"},
        {"slow:site=moon", "need one of surface"}}) {
    CHECK_THROWS(std::invalid_argument, part, emulated::set_faults(text));
  }
  CHECK(emulated::faults().empty());
}

TEST(a_hang_blocks_until_it_is_released) {
  Case c;
  auto executable = c.device.compile(c.source);
  emulated::set_faults("hang:count=1");
  auto call = std::async(
      std::launch::async, [&] { executable->evaluate(c.in, c.out); });
  while (emulated::hanging() == 0) {
    std::this_thread::yield();
  }
  CHECK(
      call.wait_for(std::chrono::milliseconds(20)) ==
      std::future_status::timeout);
  emulated::release_hangs();
  call.get();
  CHECK(emulated::hanging() == 0);
  CHECK(c.result() == 32);
  emulated::set_faults("hang:ms=1;slow:ms=1");  // both end by themselves
  executable->evaluate(c.in, c.out);
  emulated::set_faults("");
}

CHECK_MAIN()
