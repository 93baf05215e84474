// The ane device on machines of public reports: hangs, stale programs, strides,
// missing buffers. tests/test_machines.py has the whole list.
#include "check.h"

#ifdef MLX_ANE_DOUBLES

#include <chrono>
#include <sstream>
#include <thread>

#include "apple_helpers.h"
#include "device/apple/bounds.h"
#include "device/apple/connection.h"
#include "device/apple/trial.h"
#include "device/fingerprint.h"
#include "device/watchdog.h"

using namespace apple_test;

namespace {

/// The doubles are this machine for a scope.
struct Machine {
  explicit Machine(const char* words) {
    setenv("DOUBLES_MACHINE", words, 1);
  }
  ~Machine() {
    unsetenv("DOUBLES_MACHINE");
  }
};

struct ShortBounds {
  ShortBounds() {
    using std::chrono::milliseconds;
    apple::set_bounds(
        {milliseconds(300), milliseconds(300), milliseconds(300)});
  }
  ~ShortBounds() {
    apple::set_bounds({});
  }
};

float worst_on(const Way& way) {
  auto device = make_ane_device(way);
  return Matmul(*device).run();
}

int steps(const std::string& log, const std::string& step) {
  int count = 0;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    count += line == step;
  }
  return count;
}

/// Waits until every call that was given up has ended.
void wait_for_calls() {
  for (int i = 0; abandoned_calls() > 0 && i < 500; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

/// The fingerprint of a product on a route.
Fingerprint fingerprint_on(const Way& way) {
  constexpr int64_t s = 64, k = 32, n = 96;
  auto operands = fingerprint_operands(s, k, n);
  auto trial = apple::run_trial(
      way,
      matmul_source({s, k, n, Layout::natural}, mil::Dialect::ios18),
      {{operands.x, operands.w}},
      0,
      {});
  return judge_fingerprint(trial.outputs[0][0], trial.outputs[0][1]);
}

}  // namespace

TEST(every_route_is_right) {
  use_fresh_cache();
  for (auto way :
       {Way{"in_memory", "url"},
        Way{"in_memory", "id"},
        Way{"client"},
        Way{"e5rt"}}) {
    CHECK(!apple::unavailable(way));
    CHECK(worst_on(way) <= tolerance);
    CHECK(worst_on(way) <= tolerance);  // from the cache, if there is one
  }
  CHECK(balanced());
}

TEST(files_lie_where_the_framework_looks) {
  Machine machine("ignores_url");
  CHECK_THROWS(DeviceError, "Code=10", worst_on({"in_memory", "url"}));
  CHECK(worst_on({"in_memory", "id"}) <= tolerance);
  CHECK(balanced());
}

TEST(a_stale_program_is_compiled_again) {
  for (auto route : {"in_memory", "client"}) {
    std::filesystem::remove_all(programs_cache());
    CHECK(worst_on({route}) <= tolerance);
    {
      // The system says that it has it, and raises when it is loaded.
      Machine machine("stale_load");
      double_clear_log();
      CHECK(worst_on({route}) <= tolerance);
      CHECK(steps(double_read_log(), "purge") == 1);
      CHECK(steps(double_read_log(), "compile") == 1);
    }
    // The daemon has lost it, the files are all there.
    for (auto& entry :
         std::filesystem::recursive_directory_iterator(programs_cache())) {
      if (entry.path().filename() == "data") {
        double_clear_log();
        Machine machine("forgets");
        CHECK(worst_on({route}) <= tolerance);
        CHECK(steps(double_read_log(), "compile") == 1);
        CHECK(steps(double_read_log(), "load") == 1);
        break;
      }
    }
  }
  CHECK(balanced());
}

TEST(a_compile_that_fails_at_first_is_tried_again) {
  std::filesystem::remove_all(programs_cache());
  Machine machine("flaky_compile");
  for (auto route : {"in_memory", "client"}) {
    CHECK(worst_on({route}) <= tolerance);
    std::filesystem::remove_all(programs_cache());
  }
}

TEST(compile_load_and_unload_are_bounded) {
  ShortBounds bounds;
  for (auto way : {Way{"in_memory", "id"}, Way{"client"}, Way{"e5rt"}}) {
    for (auto site : {"hang=compile", "hang=load"}) {
      std::filesystem::remove_all(programs_cache());
      auto start = std::chrono::steady_clock::now();
      {
        Machine machine(site);
        bool hung = false;
        try {
          worst_on(way);
        } catch (const DeviceError& error) {
          hung = error.cause == Cause::hang;
        }
        CHECK(hung);
      }
      auto taken = std::chrono::steady_clock::now() - start;
      CHECK(taken < std::chrono::seconds(20));
      wait_for_calls();
    }
    {
      Machine machine("hang=unload");
      CHECK(worst_on(way) <= tolerance);  // and does not wait for ever
    }
    wait_for_calls();
  }
  CHECK(abandoned_calls() == 0);
  CHECK(balanced());
}

TEST(rows_lie_where_the_engine_says) {
  Machine machine("row_stride=128,reports_strides");
  auto device = make_ane_device("in_memory");
  auto source =
      matmul_source({64, 32, 96, Layout::natural}, mil::Dialect::ios18);
  auto executable = device->compile(source);
  CHECK(executable->row_bytes(source.inputs[0]) == 128);
  CHECK(executable->row_bytes(source.outputs[0]) == 256);
  CHECK(executable->facts().at("stride of a0_x") == "128");
  CHECK(executable->facts().at("ports bound by") == "name");
  CHECK(executable->facts().contains("compile seconds"));
}

TEST(rows_lie_where_the_verdict_says) {
  Machine machine("row_stride=128");
  auto rows = [](size_t alignment) {
    auto device = make_ane_device(Way{"e5rt", "", false, alignment});
    auto source =
        matmul_source({64, 32, 96, Layout::natural}, mil::Dialect::ios18);
    return device->compile(source)->row_bytes(source.inputs[0]);
  };
  CHECK(rows(0) == 64);
  CHECK(rows(128) == 128);
}

TEST(host_buffers_do_where_there_are_no_others) {
  Machine machine("host_buffers");
  CHECK(worst_on({"e5rt"}) <= tolerance);
  CHECK(balanced());
}

TEST(surfaces_are_encoded_again_only_if_they_changed) {
  auto device = make_ane_device("e5rt");
  {
    Matmul matmul(*device);
    double_clear_log();
    CHECK(matmul.run() <= tolerance);
    CHECK(matmul.run() <= tolerance);
    CHECK(steps(double_read_log(), "e5_encode") == 1);
    CHECK(steps(double_read_log(), "e5_execute") == 2);
    matmul.y = device->make_surface(matmul.y->bytes());
    CHECK(matmul.run() <= tolerance);
    CHECK(steps(double_read_log(), "e5_encode") == 2);
  }
  CHECK(balanced());
}

TEST(rounding_tells_the_engine_from_the_cpu) {
  Machine machine("exact");
  CHECK(fingerprint_on({"in_memory"}) == Fingerprint::engine);
  CHECK(fingerprint_on({"client"}) == Fingerprint::engine);
  CHECK(fingerprint_on({"e5rt"}) == Fingerprint::engine);
  CHECK(fingerprint_on({"e5rt", "", true}) == Fingerprint::cpu);
}

TEST(a_method_of_other_kinds_is_named) {
  using apple::find_missing;
  CHECK(!find_missing(apple::shared_selectors));
  auto missing = find_missing(
      {{"_ANEClient", false, "loadModel:options:qos:error:", "ippp"}});
  CHECK(missing.value_or("").find("takes other values") != std::string::npos);
  missing = find_missing({{"_ANEGone", true, "gone", "p"}});
  CHECK(missing == "class _ANEGone is missing on this macOS");
}

TEST(a_machine_that_says_it_has_no_engine_is_believed) {
  Machine machine("no_engine");
  auto why = make_ane_device("in_memory")->unavailable().value_or("");
  CHECK(why.find("no Neural Engine") != std::string::npos);
}

int main(int argc, char** argv) {
  use_fresh_cache();
  return check::main(argc, argv);
}

#else

int main() {
  std::puts("built without the doubles");
}

#endif
