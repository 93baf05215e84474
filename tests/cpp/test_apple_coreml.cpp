// The Core ML route over the doubles: placement, each failure, each balance.
#include "check.h"

#ifdef MLX_ANE_DOUBLES

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "apple_helpers.h"
#include "device/apple/bounds.h"
#include "device/device_matmul.h"
#include "device/emulated/emulated.h"
#include "device/emulated/faults.h"
#include "device/executables.h"
#include "device/watchdog.h"

using namespace apple_test;

namespace {

/// The engine's rounding, faults gone afterwards.
struct Machine {
  explicit Machine(const char* site = nullptr, int count = 1 << 20) {
    auto options = emulated::options();
    options.exact = true;
    emulated::configure(options);
    executable_cache().clear();
    restore_devices();
    trace::reset_counters();
    double_clear_log();
    if (site) {
      double_inject(site, "error", count);
    }
  }
  ~Machine() {
    double_clear_faults();
    executable_cache().clear();
    emulated::reset();
    apple::set_bounds({});
    CHECK(balanced());
  }
  std::unique_ptr<Device> device = make_ane_device("coreml");

  std::string fact(const char* name) const {
    auto info = device->info();
    auto found = info.find(name);
    return found == info.end() ? "" : found->second;
  }
  bool logged(const char* step) const {
    return std::string(double_read_log()).find(step) != std::string::npos;
  }
};

/// Loads are given up after 150 ms, until the machine ends.
void give_up_soon() {
  apple::Bounds bounds;
  bounds.open = std::chrono::milliseconds(150);
  apple::set_bounds(bounds);
}

struct Failure {
  Cause cause = Cause::wrong_values;
  std::string text = "nothing was thrown";
};
template <class F>
Failure failure_of(F&& body) {
  try {
    body();
  } catch (const DeviceError& error) {
    return {error.cause, error.what()};
  }
  return {};
}

bool has(const std::string& text, const std::string& part) {
  bool found = text.find(part) != std::string::npos;
  if (!found) {
    std::printf("  \"%s\" has no \"%s\"\n", text.c_str(), part.c_str());
  }
  return found;
}

/// A product through the runner, as layers call it.
struct Product {
  std::vector<float> x, w, y;
  std::shared_ptr<trace::Layer> layer = std::make_shared<trace::Layer>("l");
  static constexpr int64_t s = 40, k = 70, n = 50;

  Product() : x(s * k), w(n * k), y(s * n) {
    for (int64_t i = 0; i < s * k; ++i) {
      x[i] = x_value(i / k, i % k);
    }
    for (int64_t i = 0; i < n * k; ++i) {
      w[i] = w_value(i / k, i % k);
    }
  }
  /// max |y - x wᵀ|
  float run(Device& device) {
    MatmulCall call;
    call.x = {x.data(), Float::f32, s, k, k, 1};
    call.w = {w.data(), Float::f32, n, k, k, 1};
    call.y = {y.data(), Float::f32, s, n, n};
    call.layer = layer;
    run_matmul(device, call);
    float worst = 0;
    for (int64_t r = 0; r < s; ++r) {
      for (int64_t c = 0; c < n; ++c) {
        float sum = 0;
        for (int64_t i = 0; i < k; ++i) {
          sum += x[r * k + i] * w[c * k + i];
        }
        worst = std::max(worst, std::abs(y[r * n + c] - sum));
      }
    }
    return worst;
  }
  int placed() {
    return static_cast<int>(layer->stats()["placed_by_coreml"]);
  }
};

void set_layout(Layout layout) {
  auto settings = runner_settings();
  settings.fallback = Fallback::error;
  settings.layout = layout;
  set_runner_settings(settings);
}

/// Waits for what detached threads of the double still hold.
void settle() {
  auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while ((double_live("block") || abandoned_calls()) &&
         std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

/// This program again, where `setting` holds from the start.
bool passes_with(const std::string& setting, const char* name) {
  return std::system((setting + " /proc/" + std::to_string(getpid()) +
                      "/exe --case " + name)
                         .c_str()) == 0;
}

int missing_is(const char* part) {
  auto missing = make_ane_device("coreml")->unavailable().value_or("");
  return has(missing, part) ? 0 : 1;
}

}  // namespace

TEST(answers_are_right_in_every_layout_and_dialect) {
  Machine machine;
  CHECK(!machine.device->unavailable());
  CHECK(machine.fact("route") == "coreml");
  for (auto dialect : {mil::Dialect::ios16, mil::Dialect::ios18}) {
    for (auto layout : {Layout::natural, Layout::channels_first}) {
      Matmul matmul(*machine.device, {64, 32, 96, layout}, dialect);
      CHECK(!matmul.executable->elsewhere());
      CHECK(matmul.run() <= tolerance);
      matmul.y =
          machine.device->make_surface(1 << 17, matmul.source.outputs[0]);
      CHECK(matmul.run() <= tolerance);
    }
  }
  for (auto layout : layouts) {
    set_layout(layout);
    Product product;
    CHECK(product.run(*machine.device) <= 2 * tolerance);
    CHECK(product.layer->device_calls == 1);
    executable_cache().clear();
  }
  set_layout(Layout::natural);
}

TEST(calls_come_in_order) {
  Machine machine;
  {
    Matmul matmul(*machine.device);
    CHECK(matmul.run() <= tolerance);
  }
  // The plan is asked before anything is loaded; one prediction tells by its
  // rounding who answered.
  CHECK(
      std::string(double_read_log()) ==
      "ml_asset\nml_plan\nml_load\nml_predict\nml_predict\nml_unload\n");
  CHECK(has(machine.fact("coreml_programs"), "rounds like the engine"));
}

TEST(what_the_plan_has_on_the_cpu_is_placed_on_the_blas) {
  Machine machine("ml_plan_cpu");
  set_layout(Layout::natural);
  Product product;
  for (int i = 1; i <= 2; ++i) {
    CHECK(product.run(*machine.device) <= 1e-5f);
    CHECK(product.placed() == i);
  }
  CHECK(product.layer->device_calls == 0);
  // Asked once, never loaded.
  CHECK(std::string(double_read_log()) == "ml_asset\nml_plan\n");
  CHECK(
      has(machine.fact("coreml_elsewhere"),
          "Core ML would run matmul on MLCPUComputeDevice"));
  // Asked again once the cache is cleared: the machine may be another.
  double_clear_faults();
  executable_cache().clear();
  CHECK(product.run(*machine.device) <= 2 * tolerance);
  CHECK(product.layer->device_calls == 1 && product.placed() == 2);
}

TEST(a_silent_cpu_is_known_by_its_rounding) {
  Machine machine("ml_cpu");
  set_layout(Layout::natural);
  Product product;
  CHECK(product.run(*machine.device) <= 1e-5f);
  CHECK(product.placed() == 1 && product.layer->device_calls == 0);
  CHECK(has(machine.fact("coreml_elsewhere"), "rounded as its CPU rounds"));
}

TEST(where_an_engine_may_round_so_the_program_runs) {
  setenv("DOUBLES_CHIP", "h13g", 1);
  {
    Machine machine("ml_cpu");
    set_layout(Layout::natural);
    Product product;
    CHECK(product.run(*machine.device) <= 2 * tolerance);
    CHECK(product.layer->device_calls == 1);
    CHECK(has(machine.fact("coreml_programs"), "asked only"));
  }
  unsetenv("DOUBLES_CHIP");
}

TEST(a_machine_without_a_plan_still_answers) {
  Machine machine("ml_plan");
  Matmul matmul(*machine.device);
  CHECK(matmul.run() <= tolerance);
  CHECK(!matmul.executable->elsewhere());
}

TEST(ignored_backings_are_copied) {
  Machine machine("ml_backings");
  for (auto layout : {Layout::natural, Layout::channels_first}) {
    // 96 and 40 columns: rows with and without padding.
    for (int64_t n : {96, 40}) {
      Matmul matmul(*machine.device, {64, 32, n, layout});
      CHECK(matmul.run() <= tolerance);
    }
  }
  CHECK(!machine.fact("coreml_copied_outputs").empty());
}

TEST(inputs_that_are_held_stay_readable) {
  Machine machine("ml_late");
  {
    Matmul matmul(*machine.device);
    for (int i = 0; i < 3; ++i) {
      fill(*matmul.x, matmul.source.inputs[0], Layout::natural, x_value);
      CHECK(matmul.run() <= tolerance);
    }
  }
  CHECK(double_live("surface") > 0);  // read and let go as the machine ends
}

TEST(a_late_handler_is_waited_for) {
  Machine machine("ml_slow");
  {
    Matmul matmul(*machine.device);
    CHECK(matmul.run() <= tolerance);
  }
  settle();
}

TEST(a_handler_that_never_comes_costs_the_bound) {
  Machine machine;
  double_inject("ml_never", "nil", 1);
  give_up_soon();
  auto start = std::chrono::steady_clock::now();
  auto failure = failure_of([&] { Matmul matmul(*machine.device); });
  CHECK(failure.cause == Cause::hang);
  CHECK(has(failure.text, "its handler was not called"));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
  CHECK(!machine.logged("ml_compile"));  // another try would hang as well
}

TEST(a_load_that_hangs_is_given_up) {
  Machine machine("ml_hang", 1);
  give_up_soon();
  auto failure = failure_of([&] { Matmul matmul(*machine.device); });
  CHECK(failure.cause == Cause::hang);
  CHECK(has(
      failure.text, "Core ML's load of a model did not return within 1150 ms"));
  CHECK(abandoned_calls() == 1);
  double_clear_faults();
  settle();
  CHECK(abandoned_calls() == 0);
  apple::set_bounds({});
  Matmul matmul(*machine.device);
  CHECK(matmul.run() <= tolerance);
}

TEST(a_compiler_that_fails_is_asked_once) {
  Machine machine("ml_anec", 1);
  auto failure = failure_of([&] { Matmul matmul(*machine.device); });
  CHECK(failure.cause == Cause::compile_failed);
  CHECK(has(failure.text, "ANECCompile() FAILED"));
  CHECK(!machine.logged("ml_compile"));
}

TEST(a_package_stands_in_for_memory) {
  for (auto site : {"ml_asset", "ml_load"}) {
    Machine machine(site, 1);
    {
      Matmul matmul(*machine.device);
      CHECK(matmul.run() <= tolerance);
      CHECK(machine.logged("ml_compile\nml_plan_url\nml_load_url\n"));
      CHECK(machine.fact("coreml_models") == "from files");
    }
  }
}

TEST(every_failure_is_an_error_with_a_cause) {
  struct Case {
    const char* site;
    const char* kind;
    int count;
    Cause cause;
    const char* part;
  };
  const Case cases[] = {
      {"ml_load", "error", 2, Cause::load_failed, "failed: injected fault."},
      {"ml_load", "nil_error", 2, Cause::load_failed, "no reason given"},
      {"ml_load", "exception", 2, Cause::load_failed, "injected at ml_load"},
      {"ml_plan", "exception", 2, Cause::load_failed, "injected at ml_plan"},
      {"ml_provider", "error", 1, Cause::evaluate_failed, "took no inputs"},
      {"ml_predict", "error", 1, Cause::evaluate_failed, "to predict: inj"},
      {"ml_predict", "nil_error", 1, Cause::evaluate_failed, "no reason"},
      {"ml_predict", "exception", 1, Cause::evaluate_failed, "injected at"},
      {"ml_array", "nil", 1, Cause::out_of_memory, "gave no array"},
      {"ml_pixels", "nil", 1, Cause::out_of_memory, "returned -6680"},
      {"ml_rows", "nil", 1, Cause::out_of_memory, "need 64"},
      {"surface", "nil", 1, Cause::out_of_memory, "gave nothing for"},
      {"lock", "error", 1, Cause::evaluate_failed, "IOSurfaceLock"},
  };
  for (auto& expected : cases) {
    Machine machine;
    bool of_surface = expected.cause == Cause::out_of_memory ||
                      std::strcmp(expected.site, "lock") == 0;
    // What concerns surfaces would strike the question of the rounding first.
    if (of_surface) {
      double_inject("ml_plan", "nil", 1);
    }
    auto failure = failure_of([&] {
      if (of_surface) {
        double_inject(expected.site, expected.kind, expected.count);
        auto surface = machine.device->make_surface(64, {"x", {1, 1, 64, 32}});
        SurfaceLock lock(*surface, Surface::Access::read);
      } else {
        double_inject(expected.site, expected.kind, expected.count);
        CHECK(Matmul(*machine.device).run() <= tolerance);
      }
    });
    bool right =
        failure.cause == expected.cause && has(failure.text, expected.part);
    if (!right) {
      std::printf(
          "  %s %s: %s (%s)\n",
          expected.site,
          expected.kind,
          failure.text.c_str(),
          to_string(failure.cause));
    }
    CHECK(right);
  }
  Machine machine("ml_asset", 1);
  double_inject("ml_compile", "error", 1);
  auto failure = failure_of([&] { Matmul matmul(*machine.device); });
  CHECK(failure.cause == Cause::compile_failed);
  CHECK(has(failure.text, "compilation of a package failed"));
}

TEST(a_program_that_is_no_model_is_refused) {
  Machine machine;
  Source source{"program(1.3) {", {}, {}, {}};
  auto failure = failure_of([&] { machine.device->compile(source); });
  CHECK(failure.cause == Cause::compile_failed);
}

TEST(a_wrong_answer_to_known_operands_is_a_failure) {
  const std::pair<const char*, Cause> cases[] = {
      {"writes_nothing", Cause::wrote_nothing},
      {"nan", Cause::nonfinite},
      {"zeros", Cause::wrong_values},
  };
  for (auto& [fault, cause] : cases) {
    Machine machine;
    emulated::set_faults(std::string(fault) + ":count=1");
    auto failure = failure_of([&] { Matmul matmul(*machine.device); });
    CHECK(failure.cause == cause);
    CHECK(has(failure.text, "need 2048 or 2050"));
    Matmul matmul(*machine.device);
    CHECK(matmul.run() <= tolerance);
  }
}

TEST(surfaces_of_another_port_are_refused) {
  Machine machine;
  Matmul matmul(*machine.device);
  std::swap(matmul.x, matmul.y);
  auto failure = failure_of([&] { matmul.run(); });
  CHECK(failure.cause == Cause::evaluate_failed);
  CHECK(has(failure.text, "another surface for port a0_x"));
  std::swap(matmul.x, matmul.y);
  CHECK(matmul.run() <= tolerance);
}

TEST(a_forked_child_is_refused_and_frees_nothing) {
  Machine machine;
  Matmul matmul(*machine.device);
  CHECK(matmul.run() <= tolerance);
  auto child = fork();
  if (child == 0) {
    auto failure = failure_of([&] { matmul.run(); });
    _exit(failure.cause == Cause::unavailable ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  CHECK(matmul.run() <= tolerance);
}

TEST(what_a_machine_lacks_is_named) {
  auto old = std::string("DOUBLES_FRAMEWORKS=") + DOUBLES_ROOT + "/old";
  CHECK(passes_with(old, "old"));
  CHECK(passes_with("DOUBLES_FAULTS='x=nil;ml_devices=nil'", "no_engine"));
  CHECK(passes_with("DOUBLES_FRAMEWORKS=/nowhere", "absent"));
}

int main(int argc, char** argv) {
  use_fresh_cache();
  if (argc == 3 && std::strcmp(argv[1], "--case") == 0) {
    std::string name = argv[2];
    return name == "old" ? missing_is(
                               "class MLComputePlan is missing on this macOS "
                               "(route coreml needs macOS 14.4)")
           : name == "no_engine"
               ? missing_is("Core ML knows no Neural Engine")
               : missing_is("CoreML.framework cannot be opened");
  }
  return check::main(argc, argv);
}

#else

int main() {
  std::puts("built without the doubles");
}

#endif
