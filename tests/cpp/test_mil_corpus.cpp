// Replays what the fuzzers of MIL found: a crash or a sanitizer report fails.
#include <filesystem>
#include <fstream>
#include <iterator>

#include "../fuzz/mil_targets.h"
#include "check.h"

namespace {

/// Calls run(bytes) for every file of a corpus; the number of files.
template <typename Run>
int replay(const char* harness, const Run& run) {
  auto tests = std::filesystem::path(__FILE__).parent_path().parent_path();
  int count = 0;
  for (auto& entry :
       std::filesystem::directory_iterator(tests / "fuzz/corpus" / harness)) {
    std::ifstream file(entry.path(), std::ios::binary);
    std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
    run(bytes);
    ++count;
  }
  return count;
}

}  // namespace

TEST(parser_corpus) {
  auto count = replay("fuzz_mil_parser", [](auto& bytes) {
    fuzz::mil_text({bytes.data(), bytes.size()});
  });
  CHECK(count > 100);
}

TEST(weights_corpus) {
  auto count = replay("fuzz_mil_weights", [](auto& bytes) {
    fuzz::weight_file(std::as_bytes(std::span(bytes)));
  });
  CHECK(count > 5);
}

CHECK_MAIN()
