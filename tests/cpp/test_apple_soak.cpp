// Soak: compile, load, evaluate and unload over the doubles under random
// faults.
//
//   test_apple_soak [--cycles N] [--json FILE]
//
// Each cycle is one matmul through the runner on the ane device, most of them
// with a fault somewhere. Whatever strikes, the answer must be right, and in
// the end nothing may be left: no thread, no object, no surface, no file, no
// memory.
#include "check.h"

#ifdef MLX_ANE_DOUBLES

#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <random>
#include <thread>

#include "apple_helpers.h"
#include "device/device_matmul.h"
#include "device/emulated/faults.h"
#include "device/executables.h"
#include "device/watchdog.h"

using namespace apple_test;

namespace {

/// The ane device with a bound that a test can wait for.
class ShortBound : public Device {
 public:
  explicit ShortBound(const char* route) : device_(make_ane_device(route)) {
  }
  std::string_view name() const override {
    return device_->name();
  }
  std::optional<std::string> unavailable() const override {
    return device_->unavailable();
  }
  const Limits& limits() const override {
    return device_->limits();
  }
  std::shared_ptr<Surface> make_surface(
      size_t bytes, const Port& port) override {
    return device_->make_surface(bytes, port);
  }
  std::shared_ptr<Executable> compile(const Source& source) override {
    return device_->compile(source);
  }
  std::chrono::milliseconds evaluate_bound() const override {
    return std::chrono::milliseconds(200);
  }
  std::map<std::string, std::string> info() const override {
    return device_->info();
  }

 private:
  std::unique_ptr<Device> device_;
};

struct Fault {
  const char* emulated;
  const char* site;
  const char* kind;
};
/// What may strike a cycle; every third cycle has none.
constexpr Fault faults[] = {
    {"compile_error:count=1", "", ""},
    {"load_fails:count=1", "", ""},
    {"cap_reached:count=1", "", ""},
    {"out_of_memory:count=1", "", ""},
    {"evaluate_false:count=1", "", ""},
    {"writes_nothing:count=1", "", ""},
    {"nan:count=1", "", ""},
    {"hang:count=1", "", ""},
    {"", "descriptor", "nil"},
    {"", "descriptor", "exception"},
    {"", "model", "nil"},
    {"", "compile", "nil_error"},
    {"", "compile", "exception"},
    {"", "load", "error"},
    {"", "load", "exception"},
    {"", "request", "nil"},
    {"", "evaluate", "error"},
    {"", "evaluate", "nil_error"},
    {"", "evaluate", "exception"},
    {"", "wrapper", "nil"},
    {"", "surface", "nil"},
    {"", "e5_compile", "error"},
    {"", "e5_operation", "error"},
    {"", "e5_port", "error"},
    {"", "e5_bind", "error"},
    {"", "e5_execute", "error"},
    {"", "e5_buffer", "error"},
};

size_t resident_kib() {
  size_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE)) / 1024;
}

int threads() {
  int count = 0;
  for ([[maybe_unused]] auto& entry :
       std::filesystem::directory_iterator("/proc/self/task")) {
    ++count;
  }
  return count;
}

/// One product of random shape; true if every element is right.
bool one_product(Device& device, trace::Layer& layer, std::mt19937& random) {
  int64_t s = 32 + random() % 64, k = 32 * (1 + random() % 3);
  int64_t n = 32 * (1 + random() % 3);
  std::vector<float> x(s * k), w(n * k), y(s * n);
  for (int64_t i = 0; i < s * k; ++i) {
    x[i] = x_value(i / k, i % k);
  }
  for (int64_t i = 0; i < n * k; ++i) {
    w[i] = w_value(i / k, i % k);
  }
  MatmulCall call;
  call.x = {x.data(), Float::f32, s, k, k, 1};
  call.w = {w.data(), Float::f32, n, k, k, 1};
  call.y = {y.data(), Float::f32, s, n, n};
  call.layer = std::shared_ptr<trace::Layer>(&layer, [](auto*) {});
  run_matmul(device, call);
  for (int64_t r = 0; r < s; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      float sum = 0;
      for (int64_t i = 0; i < k; ++i) {
        sum += x[r * k + i] * w[c * k + i];
      }
      if (!(std::abs(y[r * n + c] - sum) <= tolerance)) {
        return false;
      }
    }
  }
  return true;
}

struct Result {
  int cycles = 0;
  int wrong = 0;
  int struck = 0;
  int hung = 0;
  size_t warm_kib = 0;
  size_t end_kib = 0;
  int warm_threads = 0;
  int end_threads = 0;
  int64_t abandoned = 0;
  bool level = false;
};

/// Lets every hung call return and waits until its worker has gone.
void release_abandoned() {
  emulated::release_hangs();
  while (abandoned_calls() > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    emulated::release_hangs();
  }
}

Result soak(int cycles) {
  Result result;
  std::mt19937 random(20240601);
  ShortBound in_memory("in_memory"), e5rt("e5rt");
  trace::Layer layer("soak");
  auto settings = runner_settings();
  settings.fallback = Fallback::allow;
  settings.min_rows = 1;
  set_runner_settings(settings);
  auto warm = cycles / 5;
  for (int cycle = 0; cycle < cycles; ++cycle) {
    auto& device = cycle % 4 == 3 ? e5rt : in_memory;
    if (cycle % 3 != 0) {
      auto& fault = faults[random() % std::size(faults)];
      // A hang costs the bound; one in eight of those drawn is enough.
      if (std::strncmp(fault.emulated, "hang", 4) != 0 || random() % 8 == 0) {
        emulated::set_faults(fault.emulated);
        if (*fault.site) {
          double_inject(fault.site, fault.kind, 1 + random() % 2);
        }
        ++result.struck;
      }
    }
    if (random() % 16 == 0) {
      std::filesystem::remove_all(programs_cache());
    }
    restore_devices();
    result.wrong += !one_product(device, layer, random);
    result.hung += abandoned_calls() > 0;
    emulated::set_faults("");
    double_clear_faults();
    // Half of the programs stay for the next cycle's hit.
    if (cycle % 2) {
      executable_cache().clear();
    }
    restore_devices();
    if (cycle % 8 == 7) {
      release_abandoned();
    }
    if (cycle == warm) {
      release_abandoned();
      result.warm_kib = resident_kib();
      result.warm_threads = threads();
    }
  }
  release_abandoned();
  executable_cache().clear();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  result.cycles = cycles;
  result.end_kib = resident_kib();
  result.end_threads = threads();
  result.abandoned = abandoned_calls();
  result.level = balanced();
  return result;
}

void print(const Result& result, std::FILE* file) {
  std::fprintf(
      file,
      "{\n"
      "  \"cycles\": %d,\n"
      "  \"cycles with a fault\": %d,\n"
      "  \"cycles with a hung call\": %d,\n"
      "  \"wrong answers\": %d,\n"
      "  \"resident KiB after a fifth\": %zu,\n"
      "  \"resident KiB at the end\": %zu,\n"
      "  \"threads after a fifth\": %d,\n"
      "  \"threads at the end\": %d,\n"
      "  \"abandoned calls at the end\": %lld,\n"
      "  \"objects, surfaces and files balanced\": %s\n"
      "}\n",
      result.cycles,
      result.struck,
      result.hung,
      result.wrong,
      result.warm_kib,
      result.end_kib,
      result.warm_threads,
      result.end_threads,
      static_cast<long long>(result.abandoned),
      result.level ? "true" : "false");
}

}  // namespace

int main(int argc, char** argv) {
  int cycles = 160;
  const char* json = nullptr;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--cycles") == 0) {
      cycles = std::atoi(argv[i + 1]);
    } else if (std::strcmp(argv[i], "--json") == 0) {
      json = argv[i + 1];
    }
  }
  use_fresh_cache();
  auto result = soak(cycles);
  print(result, stdout);
  if (json) {
    auto file = std::fopen(json, "w");
    print(result, file);
    std::fclose(file);
  }
  CHECK(result.wrong == 0);
  CHECK(result.struck > cycles / 2);
  CHECK(result.abandoned == 0);
  CHECK(result.end_threads <= result.warm_threads);
  CHECK(result.level);
  // A short run still fills allocator pools.
  if (cycles >= 5000) {
    CHECK(result.end_kib <= result.warm_kib * 1.01);
  }
  return check::failures() != 0;
}

#else

int main() {
  std::puts("built without the doubles");
}

#endif
