// Smallest test harness that prints what failed: TEST(name) { CHECK(...); }
#pragma once

#include <cmath>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace check {

inline int& failures() {
  static int count = 0;
  return count;
}

inline std::vector<std::pair<const char*, std::function<void()>>>& tests() {
  static std::vector<std::pair<const char*, std::function<void()>>> list;
  return list;
}

struct Register {
  Register(const char* name, std::function<void()> body) {
    tests().emplace_back(name, std::move(body));
  }
};

inline void that(bool ok, const char* expression, const char* file, int line) {
  if (!ok) {
    ++failures();
    std::printf("%s:%d: CHECK(%s) failed\n", file, line, expression);
  }
}

/// Runs every test, or those whose name contains argv[1]; 0 if all passed.
inline int main(int argc, char** argv) {
  // A sanitizer that ends the process must not take the log with it.
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  int ran = 0;
  for (auto& [name, body] : tests()) {
    if (argc > 1 && std::string(name).find(argv[1]) == std::string::npos) {
      continue;
    }
    ++ran;
    try {
      body();
    } catch (const std::exception& e) {
      ++failures();
      std::printf("%s: threw %s\n", name, e.what());
    }
  }
  std::printf("%d tests, %d failed checks\n", ran, failures());
  return failures() != 0 || ran == 0;
}

}  // namespace check

#define TEST(name)                                           \
  static void name();                                        \
  static const check::Register register_##name(#name, name); \
  static void name()

#define CHECK(expression) \
  check::that(static_cast<bool>(expression), #expression, __FILE__, __LINE__)

/// The body throws Exception and its message contains `part`.
#define CHECK_THROWS(Exception, part, body)                               \
  do {                                                                    \
    bool thrown = false;                                                  \
    try {                                                                 \
      body;                                                               \
    } catch (const Exception& e) {                                        \
      thrown = std::string(e.what()).find(part) != std::string::npos;     \
      if (!thrown)                                                        \
        std::printf("  message was: %s\n", e.what());                     \
    }                                                                     \
    check::that(thrown, #body " throws " #Exception, __FILE__, __LINE__); \
  } while (false)

#define CHECK_MAIN()                \
  int main(int argc, char** argv) { \
    return check::main(argc, argv); \
  }
