// The ane device on other macOS versions: old, moved and absent private API.
#include "check.h"

#ifdef MLX_ANE_DOUBLES

#include <unistd.h>

#include <cstring>

#include "apple_helpers.h"
#include "device/apple/verdict.h"

using namespace apple_test;

namespace {

/// Runs this program again with another folder of frameworks: a framework once
/// opened stays. `check` is the name of one of the cases below.
bool passes_on(const char* frameworks, const char* name) {
  auto command = std::string("DOUBLES_FRAMEWORKS=") + frameworks +
      " /proc/" + std::to_string(getpid()) + "/exe --case " + name;
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
  // Nothing was chosen, so the other route would do; this folder has none.
  CHECK(make_ane_device()->info().at("route") == "in_memory");
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

} // namespace

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
      std::invalid_argument, "in_memory or e5rt", make_ane_device("fast"));
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
  std::filesystem::remove(apple::verdict_file());
  CHECK(!apple::stored_verdict());
  CHECK(!make_ane_device()->limits().verbose_dialect);
}

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--case") == 0) {
    use_fresh_cache();
    std::string name = argv[2];
    bool passed = name == "old" ? old_works()
        : name == "moved"       ? moved_is_named()
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
