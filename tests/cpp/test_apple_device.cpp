// The ane device over the doubles: each step, each failure, each balance.
#include "check.h"

#ifdef MLX_ANE_DOUBLES

#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "apple_helpers.h"
#include "device/emulated/faults.h"

using namespace apple_test;

namespace {

std::string log_of(const std::function<void()>& body) {
  double_clear_log();
  body();
  return double_read_log();
}

/// The cause of the DeviceError that body throws; its text goes to *text.
template <class F>
Cause cause_of(F&& body, std::string* text = nullptr) {
  try {
    body();
  } catch (const DeviceError& error) {
    if (text) {
      *text = error.what();
    }
    return error.cause;
  }
  std::printf("  nothing was thrown\n");
  return Cause::wrong_values;
}

/// Ends a forked child, which leaks what is its parent's to release.
[[noreturn]] void end_child(int status) {
#ifdef __SANITIZE_ADDRESS__
  _exit(status);
#else
  std::exit(status);
#endif
}

void use_once(Device& device) {
  Matmul matmul(device);
  CHECK(matmul.run() <= tolerance);
}

}  // namespace

TEST(answers_are_right_in_both_layouts_and_dialects) {
  for (auto route : {"in_memory", "e5rt"}) {
    auto device = make_ane_device(route);
    CHECK(!device->unavailable());
    CHECK(device->info().at("route") == route);
    for (auto layout : {Layout::natural, Layout::channels_first}) {
      for (auto dialect : {mil::Dialect::ios16, mil::Dialect::ios18}) {
        Matmul matmul(*device, {64, 32, 96, layout}, dialect);
        CHECK(matmul.run() <= tolerance);
        // A second call, on other surfaces.
        matmul.y = device->make_surface(64 * 192);
        CHECK(matmul.run() <= tolerance);
      }
    }
    CHECK(balanced());
  }
}

TEST(calls_come_in_order) {
  auto device = make_ane_device("in_memory");
  CHECK(log_of([&] {
          use_once(*device);
        }) == "descriptor\nload\nevaluate\nunload\n");
  auto first = log_of([&] {
    Matmul matmul(*device, {128, 32, 64, Layout::natural});
    CHECK(matmul.run() <= tolerance);
  });
  CHECK(first == "descriptor\ncompile\nload\nevaluate\nunload\n");
  CHECK(balanced());
}

TEST(one_text_twice_alive) {
  auto device = make_ane_device("in_memory");
  {
    Matmul first(*device);
    Matmul second(*device);
    CHECK(first.run() <= tolerance);
    CHECK(second.run() <= tolerance);
  }
  CHECK(balanced());
}

TEST(corrupted_cache_entries_are_rebuilt) {
  auto device = make_ane_device("in_memory");
  use_once(*device);
  for (auto name : {"model.mil", "data", "net.plist", "manifest"}) {
    for (auto& entry :
         std::filesystem::recursive_directory_iterator(programs_cache())) {
      if (entry.path().filename() == name) {
        std::ofstream(entry.path()) << "rubbish";
      }
    }
    auto log = log_of([&] { use_once(*device); });
    CHECK(log.find("compile\n") != std::string::npos);
    log = log_of([&] { use_once(*device); });
    CHECK(log.find("compile\n") == std::string::npos);
  }
  // A file that is gone.
  for (auto& entry : std::filesystem::directory_iterator(programs_cache())) {
    if (entry.is_directory()) {
      std::filesystem::remove(entry.path() / "data");
    }
  }
  use_once(*device);
  CHECK(balanced());
}

TEST(a_stale_cache_entry_is_compiled_again) {
  auto device = make_ane_device("in_memory");
  use_once(*device);
  double_inject("load", "error", 1);
  CHECK(log_of([&] {
          use_once(*device);
        }) == "descriptor\nload\npurge\ncompile\nload\nevaluate\nunload\n");
  CHECK(balanced());
}

TEST(load_is_tried_twice) {
  auto device = make_ane_device("in_memory");
  std::filesystem::remove_all(programs_cache());
  double_inject("load", "nil_error", 1);
  CHECK(log_of([&] {
          use_once(*device);
        }) == "descriptor\ncompile\nload\nload\nevaluate\nunload\n");
  std::filesystem::remove_all(programs_cache());
  double_inject("load", "error", 2);
  std::string text;
  CHECK(cause_of([&] { use_once(*device); }, &text) == Cause::load_failed);
  CHECK(text.find("injected fault") != std::string::npos);
  double_clear_faults();
  CHECK(balanced());
}

TEST(every_framework_failure_is_an_error_with_a_cause) {
  struct Case {
    const char* site;
    const char* kind;
    Cause cause;
    const char* part;
  };
  const Case cases[] = {
      {"descriptor", "nil", Cause::compile_failed, "no descriptor"},
      {"descriptor", "exception", Cause::compile_failed, "injected at"},
      {"model", "nil", Cause::compile_failed, "no model"},
      {"model", "exception", Cause::compile_failed, "injected at"},
      {"compile", "error", Cause::compile_failed, "injected fault"},
      {"compile", "nil_error", Cause::compile_failed, "no reason given"},
      {"compile", "exception", Cause::compile_failed, "injected at compile"},
      {"load", "exception", Cause::load_failed, "injected at load"},
      {"surface", "nil", Cause::out_of_memory, "bytes"},
      {"wrapper", "nil", Cause::out_of_memory, "nil"},
      {"wrapper", "exception", Cause::out_of_memory, "injected at wrapper"},
      {"lock", "error", Cause::evaluate_failed, "IOSurfaceLock"},
      {"request", "nil", Cause::evaluate_failed, "no request"},
      {"request", "exception", Cause::evaluate_failed, "injected at request"},
      {"evaluate", "error", Cause::evaluate_failed, "injected fault"},
      {"evaluate", "nil_error", Cause::evaluate_failed, "no reason given"},
      {"evaluate", "exception", Cause::evaluate_failed, "injected at"},
  };
  auto device = make_ane_device("in_memory");
  for (auto& expected : cases) {
    std::filesystem::remove_all(programs_cache());
    // Compiles and loads are tried twice.
    double_inject(expected.site, expected.kind, 2);
    std::string text;
    auto cause = cause_of([&] { use_once(*device); }, &text);
    bool right =
        cause == expected.cause && text.find(expected.part) != text.npos;
    if (!right) {
      std::printf("  %s %s: %s\n", expected.site, expected.kind, text.c_str());
    }
    CHECK(right);
    CHECK(balanced());
    double_clear_faults();
    use_once(*device);
  }
}

TEST(every_e5rt_failure_is_an_error_with_a_cause) {
  const std::pair<const char*, Cause> cases[] = {
      {"e5_config", Cause::compile_failed},
      {"e5_compiler", Cause::compile_failed},
      {"e5_options", Cause::compile_failed},
      {"e5_compile", Cause::compile_failed},
      {"e5_function", Cause::load_failed},
      {"e5_op_options", Cause::load_failed},
      {"e5_op_name", Cause::load_failed},
      {"e5_op_allocate", Cause::load_failed},
      {"e5_operation", Cause::load_failed},
      {"e5_port", Cause::load_failed},
      {"e5_buffer", Cause::out_of_memory},
      {"e5_data", Cause::out_of_memory},
      {"e5_bind", Cause::evaluate_failed},
      {"e5_encode", Cause::evaluate_failed},
      {"e5_execute", Cause::evaluate_failed},
  };
  auto device = make_ane_device("e5rt");
  for (auto& [site, expected] : cases) {
    double_inject(site, "error", 2);  // buffers are asked for twice
    std::string text;
    auto cause = cause_of([&] { use_once(*device); }, &text);
    if (cause != expected) {
      std::printf("  %s: %s\n", site, text.c_str());
    }
    CHECK(cause == expected);
    CHECK(text.find("with code") != std::string::npos);
    CHECK(balanced());
    double_clear_faults();
  }
  // A call that failed between encode and reset does not spoil the next.
  Matmul matmul(*device);
  for (auto site : {"e5_execute", "e5_reset", "e5_prepare"}) {
    double_inject(site, "error", 1);
    matmul.y = device->make_surface(matmul.y->bytes());  // encoded again
    CHECK(cause_of([&] { matmul.run(); }) == Cause::evaluate_failed);
    CHECK(matmul.run() <= tolerance);
  }
}

TEST(symbols_are_bound_by_name) {
  auto device = make_ane_device("in_memory");
  double_reverse_symbols(1);
  use_once(*device);
  double_clear_faults();
  CHECK(balanced());
}

TEST(emulated_faults_arrive_as_the_framework_would_tell_them) {
  struct Case {
    const char* fault;
    Cause cause;
  };
  const Case cases[] = {
      {"compile_error", Cause::compile_failed},
      {"load_fails", Cause::load_failed},
      {"cap_reached", Cause::cap_reached},
      {"out_of_memory", Cause::out_of_memory},
      {"evaluate_false", Cause::evaluate_failed},
      {"device_gone", Cause::evaluate_failed},
  };
  auto device = make_ane_device("in_memory");
  for (auto& [fault, expected] : cases) {
    std::filesystem::remove_all(programs_cache());
    emulated::set_faults(fault);
    std::string text;
    auto cause = cause_of([&] { use_once(*device); }, &text);
    if (cause != expected) {
      std::printf("  %s: %s\n", fault, text.c_str());
    }
    CHECK(cause == expected);
    emulated::set_faults("");
    CHECK(balanced());
  }
  emulated::set_faults("load_fails_once");
  use_once(*device);
  emulated::set_faults("");
}

TEST(a_late_call_is_safe_when_everything_else_is_gone) {
  auto device = make_ane_device("in_memory");
  {
    auto matmul = std::make_shared<Matmul>(*device);
    emulated::set_faults("hang");
    std::thread worker([held = std::move(matmul)]() mutable {
      try {
        held->run();
      } catch (const DeviceError&) {
      }
      held.reset();
    });
    while (emulated::hanging() == 0) {
      std::this_thread::yield();
    }
    emulated::set_faults("");
    use_once(*device);
    emulated::release_hangs();
    worker.join();
  }
  CHECK(balanced());
}

TEST(threads_do_not_disturb_each_other) {
  auto device = make_ane_device("in_memory");
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 8; ++i) {
        Matmul matmul(
            *device, {64, 32 * (1 + (t + i) % 3), 64, Layout::natural});
        wrong += matmul.run() > tolerance;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  CHECK(wrong == 0);
  CHECK(balanced());
}

TEST(a_forked_child_is_refused) {
  for (auto route : {"in_memory", "e5rt"}) {
    auto device = make_ane_device(route);
    Matmul matmul(*device);
    auto child = fork();
    if (child == 0) {
      std::string text;
      auto refused = [&](auto&& body) {
        return cause_of(body, &text) == Cause::unavailable &&
               text.find("spawn") != std::string::npos;
      };
      bool right = refused([&] { matmul.run(); }) &&
                   refused([&] { device->make_surface(64); }) &&
                   refused([&] { device->compile(matmul.source); });
      {
        auto dropped = std::move(matmul);
      }
      end_child(right ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(matmul.run() <= tolerance);
  }
  CHECK(balanced());
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
