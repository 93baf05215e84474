// Weight files: what is written reads back, and nothing in a file is trusted.
#include <cstring>

#include "check.h"
#include "mil/weights.h"

using namespace mlx_ane::mil;

namespace {

using Bytes = std::vector<std::byte>;

template <typename T>
void poke(Bytes& file, size_t offset, T value) {
  std::memcpy(file.data() + offset, &value, sizeof(T));
}

template <typename T>
T peek(const Bytes& file, size_t offset) {
  T value;
  std::memcpy(&value, file.data() + offset, sizeof(T));
  return value;
}

/// Two chunks: eight fp16 at 64 (payload 128) and five int8 at 192.
Bytes two_chunks() {
  WeightWriter writer;
  std::vector<uint8_t> halves(16, 0x3c);
  std::vector<uint8_t> bytes = {0x80, 0xff, 0, 1, 127};
  CHECK(writer.add(DType::fp16, halves) == 64);
  CHECK(writer.add(DType::int8, bytes) == 192);
  return writer.bytes();
}

std::vector<uint8_t> read(
    const Bytes& file, uint64_t offset, const Type& type) {
  auto constant = WeightFile(file).constant(offset, type);
  return std::get<std::vector<uint8_t>>(constant.data);
}

}  // namespace

TEST(layout) {
  auto file = two_chunks();
  CHECK(file.size() == 320);
  CHECK(peek<uint32_t>(file, 0) == 2 && peek<uint32_t>(file, 4) == 2);
  CHECK(peek<uint32_t>(file, 192) == 0xDEADBEEF);
  CHECK(peek<uint32_t>(file, 196) == 4);
  CHECK(peek<uint64_t>(file, 200) == 5);
  CHECK(peek<uint64_t>(file, 208) == 256);
  auto chunks = WeightFile(file).chunks();
  CHECK(chunks.size() == 2);
  CHECK(chunks[0].dtype == DType::fp16 && chunks[0].elements == 8);
  CHECK(chunks[1].offset == 192 && chunks[1].elements == 5);
}

TEST(every_type_reads_back) {
  for (auto type :
       {DType::fp16,
        DType::fp32,
        DType::bf16,
        DType::int4,
        DType::int8,
        DType::int16,
        DType::int32,
        DType::uint1,
        DType::uint2,
        DType::uint3,
        DType::uint4,
        DType::uint6,
        DType::uint8,
        DType::uint16,
        DType::uint32}) {
    for (int64_t count : {0, 1, 7, 8, 9, 100}) {
      std::vector<uint8_t> elements(count * element_bytes(type));
      for (size_t i = 0; i < elements.size(); ++i) {
        auto value = static_cast<uint8_t>(i * 37 + 11);
        elements[i] = bits(type) >= 8 ? value
                      : type == DType::int4
                          ? static_cast<uint8_t>(value % 16 - 8)
                          : value & ((1 << bits(type)) - 1);
      }
      WeightWriter writer;
      writer.add(DType::uint8, std::vector<uint8_t>(3, 9));
      auto offset = writer.add(type, elements);
      WeightFile file(writer.bytes());
      CHECK(file.chunks().at(1).dtype == type);
      CHECK(file.chunks().at(1).elements == static_cast<uint64_t>(count));
      CHECK(read(writer.bytes(), offset, {type, {count}, false}) == elements);
    }
  }
}

TEST(sub_byte_elements_start_at_the_low_bits) {
  WeightWriter writer;
  writer.add(DType::uint4, std::vector<uint8_t>{1, 2, 3});
  CHECK(writer.bytes().at(128) == std::byte{0x21});
  CHECK(writer.bytes().at(129) == std::byte{0x03});
  CHECK(peek<uint64_t>(writer.bytes(), 64 + 24) == 4);
  CHECK_THROWS(
      std::invalid_argument,
      "element 1 is 16, but uint4 holds 0 to 15",
      writer.add(DType::uint4, std::vector<uint8_t>{1, 16}));
  CHECK_THROWS(
      std::invalid_argument,
      "element 0 is -9",
      writer.add(DType::int4, std::vector<uint8_t>{0xf7}));
  CHECK_THROWS(
      std::invalid_argument,
      "which a weight file cannot hold",
      writer.add(DType::fp64, std::vector<uint8_t>(8)));
}

TEST(files_of_other_writers) {
  // The program's type counts: int8 marked as fp16.
  auto file = two_chunks();
  poke<uint32_t>(file, 196, 1);
  CHECK(read(file, 192, {DType::int8, {5}, false})[4] == 127);
  // One as the number of chunks, whatever their number is.
  poke<uint32_t>(file, 0, 1);
  CHECK(WeightFile(file).chunks().size() == 2);
  // Chunks that follow each other without alignment, as ANEForge writes them.
  Bytes packed(file.begin(), file.begin() + 128 + 10);
  packed.insert(packed.end(), file.begin() + 192, file.end());
  poke<uint64_t>(packed, 64 + 8, 10);
  poke<uint64_t>(packed, 138 + 16, 138 + 64);
  CHECK(WeightFile(packed).chunks().at(1).offset == 138);
  CHECK(read(packed, 138, {DType::int8, {5}, false})[0] == 0x80);
  // No payload offset and a wrong size, as in maderix's int8 benchmark.
  poke<uint64_t>(file, 192 + 8, 0x80000);
  poke<uint64_t>(file, 192 + 16, 0);
  CHECK(read(file, 192, {DType::int8, {5}, false})[1] == 0xff);
}

TEST(damaged_files_are_refused) {
  auto refused = [](const Bytes& file, const char* part) {
    CHECK_THROWS(std::invalid_argument, part, WeightFile{file});
  };
  refused({}, "need a header of 64");
  auto file = two_chunks();
  poke<uint32_t>(file, 4, 3);
  refused(file, "version 3");
  file = two_chunks();
  poke<uint32_t>(file, 0, 3);
  refused(file, "promises 3 chunks, but holds 2");
  for (uint64_t bytes : {uint64_t{200}, uint64_t{1} << 63, UINT64_MAX}) {
    file = two_chunks();
    poke<uint64_t>(file, 192 + 8, bytes);
    refused(file, "beyond the file's end");
  }
  for (uint64_t data : {uint64_t{1}, uint64_t{128}, uint64_t{255}}) {
    file = two_chunks();
    poke<uint64_t>(file, 192 + 16, data);
    refused(file, "overlaps its header or an earlier chunk");
  }
  file = two_chunks();
  poke<uint64_t>(file, 192 + 16, UINT64_MAX);
  refused(file, "beyond the file's end");
}

TEST(overlapping_chunks_are_refused) {
  // A header inside the payload of another chunk.
  WeightWriter writer;
  std::vector<uint8_t> inner(256);
  uint32_t sentinel = 0xDEADBEEF;
  std::memcpy(inner.data() + 64, &sentinel, 4);
  uint64_t bytes = 4, data = 128 + 64 + 64;
  std::memcpy(inner.data() + 64 + 8, &bytes, 8);
  std::memcpy(inner.data() + 64 + 16, &data, 8);
  writer.add(DType::uint8, inner);
  CHECK_THROWS(
      std::invalid_argument,
      "overlaps the one at 64",
      WeightFile(writer.bytes()).at(192));
}

TEST(constants_must_fit_their_chunk) {
  auto file = two_chunks();
  CHECK_THROWS(
      std::invalid_argument,
      "has 5 bytes, but the constant needs 6",
      read(file, 192, {DType::int8, {2, 3}, false}));
  CHECK_THROWS(
      std::invalid_argument,
      "no chunk at 128",
      read(file, 128, {DType::fp16, {1}, false}));
  CHECK_THROWS(
      std::invalid_argument,
      "no chunk at",
      read(file, UINT64_MAX, {DType::fp16, {1}, false}));
  CHECK_THROWS(
      std::invalid_argument,
      "too large",
      read(file, 64, {DType::fp16, {INT64_MAX, 3}, false}));
  CHECK_THROWS(
      std::invalid_argument,
      "cannot be in a weight file",
      read(file, 64, {DType::string, {1}, false}));
  CHECK(read(file, 64, {DType::fp16, {0}, false}).empty());
}

CHECK_MAIN()
