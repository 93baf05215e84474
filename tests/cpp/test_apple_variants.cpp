// The ane device on other macOS versions: old, moved and absent private API.
#include "check.h"

#ifdef MLX_ANE_DOUBLES

#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "apple_helpers.h"
#include "device/apple/verdict.h"

using namespace apple_test;

namespace {

/// Runs this program again with another folder of frameworks: a framework once
/// opened stays. `check` is the name of one of the cases below.
bool passes_on(const char* frameworks, const char* name) {
  auto command = std::string("DOUBLES_FRAMEWORKS=") + frameworks + " /proc/" +
                 std::to_string(getpid()) + "/exe --case " + name;
  return std::system(command.c_str()) == 0;
}

std::string variant(const char* folder) {
  return std::string(DOUBLES_ROOT) + "/" + folder;
}

bool old_works() {
  auto device = make_ane_device("in_memory");
  {
    Matmul first(*device), second(*device);
    CHECK(first.run() <= tolerance);
    CHECK(second.run() <= tolerance);
    std::string log = double_read_log();
    CHECK(log.find("compile\nload\ndescriptor\ncompile\nload") != log.npos);
  }
  // Staged where the framework looks, and removed again.
  for (auto& entry : std::filesystem::directory_iterator(
           std::filesystem::temp_directory_path())) {
    CHECK(!std::filesystem::exists(entry.path() / "model.mil"));
  }
  CHECK(balanced());
  return check::failures() == 0;
}

bool moved_is_named() {
  // Nothing was chosen, so another route does; this folder has no Espresso.
  CHECK(make_ane_device()->info().at("route") == "client");
  auto device = make_ane_device("in_memory");
  auto reason = device->unavailable().value_or("");
  CHECK(
      reason ==
      "selector -[_ANEInMemoryModel evaluateWithQoS:options:request:error:] is "
      "missing on this macOS");
  CHECK_THROWS(DeviceError, "evaluateWithQoS", device->make_surface(64));
  return check::failures() == 0;
}

bool absent_is_told() {
  for (auto route : {"in_memory", "e5rt"}) {
    auto reason = make_ane_device(route)->unavailable().value_or("");
    CHECK(reason.find("cannot be opened") != std::string::npos);
  }
  return check::failures() == 0;
}

/// Compiles and runs once in the cache that the parent chose; 0 if it compiled,
/// 3 if another process had.
int compile_in_shared_cache() {
  auto device = make_ane_device("in_memory");
  double_clear_log();
  Matmul matmul(*device);
  if (matmul.run() > tolerance) {
    return 1;
  }
  std::string log = double_read_log();
  return log.find("compile") == log.npos ? 3 : 0;
}

/// Makes the process's folder and ends; at once, as a crash does, or by exit.
int stage_and_end(bool crash) {
  auto folder = apple::make_private_directory();
  auto mode = std::filesystem::status(apple::process_directory()).permissions();
  if (mode != std::filesystem::perms::owner_all ||
      !std::filesystem::is_directory(folder)) {
    return 1;
  }
  if (crash) {
    _exit(0);
  }
  return 0;
}

std::string self() {
  return "/proc/" + std::to_string(getpid()) + "/exe";
}

/// Folders that processes have staged in `temporary`.
int staged_in(const std::string& temporary) {
  int count = 0;
  for (auto& entry : std::filesystem::directory_iterator(temporary)) {
    count += entry.path().filename().string().starts_with("mlx_ane");
  }
  return count;
}

}  // namespace

TEST(an_old_framework_works_without_its_optional_selectors) {
  CHECK(passes_on(variant("old").c_str(), "old"));
}

TEST(a_missing_selector_is_named) {
  CHECK(passes_on(variant("moved").c_str(), "moved"));
}

TEST(a_missing_framework_is_told) {
  CHECK(passes_on("/nowhere", "absent"));
}

TEST(an_unknown_route_is_an_error) {
  CHECK_THROWS(
      std::invalid_argument, "need one of in_memory", make_ane_device("fast"));
  setenv("MLX_ANE_ROUTE", "fast", 1);
  CHECK_THROWS(
      std::invalid_argument, "MLX_ANE_ROUTE", make_ane_device()->limits());
  unsetenv("MLX_ANE_ROUTE");
}

TEST(environment_and_verdict_choose_the_route) {
  auto route = [] { return make_ane_device()->info().at("route"); };
  CHECK(route() == "in_memory");
  apple::store_verdict(
      {{"passed", "yes"},
       {"route", "e5rt"},
       {"dialect", "ios16"},
       {"max_contraction", "512"}});
  CHECK(route() == "e5rt");
  auto device = make_ane_device();
  CHECK(device->limits().verbose_dialect);
  CHECK(device->limits().max_contraction == 512);
  setenv("MLX_ANE_ROUTE", "in_memory", 1);
  CHECK(route() == "in_memory");
  unsetenv("MLX_ANE_ROUTE");
  auto file = apple::verdict_file();
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 3);
  CHECK(!apple::stored_verdict());  // cut off: "route: e5"
  std::filesystem::remove(file);
  CHECK(!apple::stored_verdict());
  CHECK(!make_ane_device()->limits().verbose_dialect);
}

TEST(limits_are_those_of_the_chips_generation) {
  auto limits = [](const char* architecture) {
    setenv("DOUBLES_CHIP", architecture, 1);
    auto out = make_ane_device()->limits();
    unsetenv("DOUBLES_CHIP");
    CHECK(out.chip == architecture);
    return out;
  };
  CHECK(limits("h13g").max_kernel_width == 13);
  CHECK(limits("h14g").max_kernel_width == 15);
  CHECK(limits("h14g").verbose_dialect && limits("h14g").max_axis == 16384);
  CHECK(!limits("h15s").verbose_dialect && limits("h15s").max_axis == 16384);
  CHECK(limits("h17g").max_axis == 65536);
  CHECK(limits("h99").max_kernel_width == 13);  // unknown: the strictest
}

TEST(processes_share_the_cache) {
  std::filesystem::remove_all(programs_cache());
  std::vector<std::FILE*> children;
  for (int i = 0; i < 6; ++i) {
    children.push_back(popen((self() + " --case shared").c_str(), "r"));
  }
  int compiled = 0, loaded = 0;
  for (auto child : children) {
    auto status = WEXITSTATUS(pclose(child));
    compiled += status == 0;
    loaded += status == 3;
  }
  CHECK(compiled == 1);
  CHECK(loaded == 5);
}

TEST(staging_folders_go_with_their_process) {
  auto temporary = programs_cache().parent_path() / "tmp";
  std::filesystem::create_directories(temporary);
  auto run = [&](const char* name) {
    return std::system(
        ("TMPDIR=" + temporary.string() + " " + self() + " --case " + name)
            .c_str());
  };
  CHECK(run("exit") == 0);
  CHECK(staged_in(temporary) == 0);
  CHECK(run("crash") == 0);
  CHECK(staged_in(temporary) == 1);
  // The folder of a living process stays, that of the crashed one goes.
  auto alive = temporary / "mlx_ane-alive";
  std::filesystem::create_directories(alive);
  apple::FileLock lock(alive / "lock", apple::FileLock::Wait::no);
  CHECK(lock.held());
  CHECK(run("exit") == 0);
  CHECK(staged_in(temporary) == 1);
  CHECK(std::filesystem::exists(alive));
  // A link is not followed.
  lock = apple::FileLock();
  std::filesystem::remove_all(alive);
  std::filesystem::create_directory_symlink(programs_cache(), alive);
  CHECK(run("exit") == 0);
  CHECK(std::filesystem::exists(programs_cache()));
}

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--case") == 0) {
    std::string name = argv[2];
    if (name == "shared") {
      return compile_in_shared_cache();
    }
    if (name == "exit" || name == "crash") {
      return stage_and_end(name == "crash");
    }
    use_fresh_cache();
    bool passed = name == "old"     ? old_works()
                  : name == "moved" ? moved_is_named()
                                    : absent_is_told();
    return passed ? 0 : 1;
  }
  use_fresh_cache();
  return check::main(argc, argv);
}

#else

int main() {
  std::puts("built without the doubles");
}

#endif
