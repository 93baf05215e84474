// Reads and writes weight files (MILBlob) without trusting them.
#include "mil/weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace mlx_ane::mil {

namespace {

constexpr uint64_t header_bytes = 64;
constexpr uint32_t file_version = 2;
constexpr uint32_t sentinel = 0xDEADBEEF;

/// coremltools' BlobDataType.
constexpr std::array<std::pair<uint32_t, DType>, 15> codes = {{
    {1, DType::fp16},
    {2, DType::fp32},
    {3, DType::uint8},
    {4, DType::int8},
    {5, DType::bf16},
    {6, DType::int16},
    {7, DType::uint16},
    {8, DType::int4},
    {9, DType::uint1},
    {10, DType::uint2},
    {11, DType::uint4},
    {12, DType::uint3},
    {13, DType::uint6},
    {14, DType::int32},
    {15, DType::uint32},
}};

std::optional<DType> dtype_of(uint32_t code) {
  for (auto& [number, dtype] : codes) {
    if (number == code) {
      return dtype;
    }
  }
  return std::nullopt;
}

uint32_t code_of(DType dtype) {
  for (auto& [number, type] : codes) {
    if (type == dtype) {
      return number;
    }
  }
  throw std::invalid_argument(
      std::string("[mlx_ane.mil.weights] dtype is ") + to_string(dtype) +
      ", which a weight file cannot hold; use a float type of at most 32 bits "
      "or an integer type of at most 32 bits.");
}

[[noreturn]] void fail(const std::string& what) {
  throw std::invalid_argument("[mlx_ane.mil.weights] " + what + ".");
}

template <typename T>
T load(std::span<const std::byte> file, uint64_t offset) {
  T value;
  std::memcpy(&value, file.data() + offset, sizeof(T));
  return value;
}

template <typename T>
void store(std::vector<std::byte>& file, uint64_t offset, T value) {
  std::memcpy(file.data() + offset, &value, sizeof(T));
}

uint64_t align(uint64_t offset) {
  return (offset + header_bytes - 1) / header_bytes * header_bytes;
}

/// Elements of `width` < 8 bits, the first in the lowest bits.
void pack_bits(std::span<const uint8_t> elements, int width, std::byte* out) {
  unsigned pending = 0;
  int filled = 0;
  for (auto element : elements) {
    pending |= (element & ((1u << width) - 1)) << filled;
    filled += width;
    if (filled >= 8) {
      *out++ = static_cast<std::byte>(pending & 0xff);
      pending >>= 8;
      filled -= 8;
    }
  }
  if (filled > 0) {
    *out = static_cast<std::byte>(pending & 0xff);
  }
}

void unpack_bits(
    std::span<const std::byte> packed,
    int width,
    bool is_signed,
    std::span<uint8_t> elements) {
  unsigned pending = 0;
  int filled = 0;
  unsigned sign = is_signed ? 1u << (width - 1) : 0;
  auto in = packed.begin();
  for (auto& element : elements) {
    if (filled < width) {
      pending |= static_cast<unsigned>(*in++) << filled;
      filled += 8;
    }
    unsigned value = pending & ((1u << width) - 1);
    element = static_cast<uint8_t>((value ^ sign) - sign);
    pending >>= width;
    filled -= width;
  }
}

void check_range(std::span<const uint8_t> elements, DType dtype) {
  int width = bits(dtype);
  int lowest = dtype == DType::int4 ? -8 : 0;
  int highest = dtype == DType::int4 ? 7 : (1 << width) - 1;
  for (size_t i = 0; i < elements.size(); ++i) {
    int value =
        dtype == DType::int4 ? static_cast<int8_t>(elements[i]) : elements[i];
    if (value < lowest || value > highest) {
      fail(
          "element " + std::to_string(i) + " is " + std::to_string(value) +
          ", but " + to_string(dtype) + " holds " + std::to_string(lowest) +
          " to " + std::to_string(highest));
    }
  }
}

}  // namespace

std::optional<uint64_t> packed_bytes(DType dtype, uint64_t elements) {
  uint64_t width = bits(dtype);
  if (width == 0 || elements > (UINT64_MAX - 7) / width) {
    return std::nullopt;
  }
  return (elements * width + 7) / 8;
}

std::vector<std::byte> pack(DType dtype, std::span<const uint8_t> elements) {
  int width = bits(dtype);
  uint64_t count = elements.size() / element_bytes(dtype);
  std::vector<std::byte> packed(*packed_bytes(dtype, count));
  if (width < 8) {
    check_range(elements, dtype);
    pack_bits(elements, width, packed.data());
  } else if (!elements.empty()) {
    std::memcpy(packed.data(), elements.data(), packed.size());
  }
  return packed;
}

std::vector<uint8_t> unpack(
    DType dtype, std::span<const std::byte> packed, uint64_t count) {
  std::vector<uint8_t> elements(count * element_bytes(dtype));
  int width = bits(dtype);
  if (width < 8) {
    unpack_bits(packed, width, dtype == DType::int4, elements);
  } else if (!elements.empty()) {
    std::memcpy(elements.data(), packed.data(), elements.size());
  }
  return elements;
}

WeightFile::WeightFile(std::span<const std::byte> file) : file_(file) {
  if (file.size() < header_bytes) {
    fail(
        "the file has " + std::to_string(file.size()) +
        " bytes, need a header of 64");
  }
  auto version = load<uint32_t>(file, 4);
  if (version != file_version) {
    fail(
        "the file has version " + std::to_string(version) +
        ", need 2; it is not a weight file, or one of another tool");
  }
  auto count = load<uint32_t>(file, 0);
  index(count);
  // Some writers leave 1 with several chunks; fewer than promised is damage.
  bool complete = chunks_.empty() || chunks_.back().data_offset != 0;
  if (complete && count > chunks_.size()) {
    fail(
        "the file promises " + std::to_string(count) + " chunks, but holds " +
        std::to_string(chunks_.size()) + "; it is truncated or damaged");
  }
}

bool WeightFile::has_chunk(uint64_t offset) const {
  return offset <= file_.size() && file_.size() - offset >= header_bytes &&
         load<uint32_t>(file_, offset) == sentinel;
}

/// Reads the header at `offset`, which has_chunk.
Chunk WeightFile::read_header(uint64_t offset) const {
  Chunk chunk;
  chunk.offset = offset;
  chunk.code = load<uint32_t>(file_, offset + 4);
  chunk.dtype = dtype_of(chunk.code);
  chunk.bytes = load<uint64_t>(file_, offset + 8);
  chunk.data_offset = load<uint64_t>(file_, offset + 16);
  auto padding = load<uint64_t>(file_, offset + 24);
  auto where = "the chunk at " + std::to_string(offset);
  if (chunk.data_offset == 0) {
    // maderix's int8 benchmark leaves the offset out: the payload follows.
    chunk.bytes = file_.size() - offset - header_bytes;
  } else if (chunk.data_offset < offset + header_bytes) {
    fail(
        where + " has its payload at " + std::to_string(chunk.data_offset) +
        ", which overlaps its header or an earlier chunk");
  } else if (
      chunk.data_offset > file_.size() ||
      chunk.bytes > file_.size() - chunk.data_offset) {
    fail(
        where + " has " + std::to_string(chunk.bytes) + " bytes at " +
        std::to_string(chunk.data_offset) + ", beyond the file's end at " +
        std::to_string(file_.size()));
  }
  uint64_t width = chunk.dtype ? bits(*chunk.dtype) : 8;
  if (padding >= 8 || padding > chunk.bytes * 8) {
    padding = 0;
  }
  chunk.elements = (chunk.bytes * 8 - padding) / width;
  return chunk;
}

/// Walks the chunks, each behind its predecessor with or without alignment; of
/// those that the header counts, also behind a gap.
void WeightFile::index(uint32_t count) {
  uint64_t next = header_bytes;
  while (true) {
    if (!has_chunk(next)) {
      next = align(next);
    }
    while (chunks_.size() < count && next < file_.size() && !has_chunk(next)) {
      next += header_bytes;
    }
    if (!has_chunk(next)) {
      return;
    }
    chunks_.push_back(read_header(next));
    if (chunks_.back().data_offset == 0) {
      return;
    }
    next = chunks_.back().data_offset + chunks_.back().bytes;
  }
}

Chunk WeightFile::at(uint64_t offset) const {
  auto after = std::upper_bound(
      chunks_.begin(), chunks_.end(), offset, [](uint64_t o, auto& chunk) {
        return o < chunk.offset;
      });
  auto chunk = after == chunks_.begin() ? chunks_.end() : after - 1;
  bool found = chunk != chunks_.end() && chunk->offset == offset;
  if (!found && !has_chunk(offset)) {
    fail(
        "there is no chunk at " + std::to_string(offset) +
        "; a program's offset is that of the chunk header, 64 for the first");
  }
  Chunk result = found ? *chunk : read_header(offset);
  if (!found) {
    check_overlap(result);
  }
  if (result.data_offset == 0) {
    result.data_offset = offset + header_bytes;
  }
  return result;
}

void WeightFile::check_overlap(const Chunk& chunk) const {
  for (auto& other : chunks_) {
    if (other.data_offset != 0 && chunk.data_offset != 0 &&
        other.offset < chunk.data_offset + chunk.bytes &&
        chunk.offset < other.data_offset + other.bytes) {
      fail(
          "the chunk at " + std::to_string(chunk.offset) +
          " overlaps the one at " + std::to_string(other.offset));
    }
  }
}

std::span<const std::byte> WeightFile::payload(
    uint64_t offset, const Type& type) const {
  Chunk chunk = at(offset);
  int64_t count = element_count(type);
  if (bits(type.dtype) == 0) {
    fail(
        std::string("a constant of type ") + to_string(type.dtype) +
        " cannot be in a weight file");
  }
  auto need = packed_bytes(type.dtype, static_cast<uint64_t>(count));
  if (!need) {
    fail("the constant is too large for any file");
  }
  if (*need > chunk.bytes) {
    fail(
        "the chunk at " + std::to_string(offset) + " has " +
        std::to_string(chunk.bytes) + " bytes, but the constant needs " +
        std::to_string(*need));
  }
  return file_.subspan(chunk.data_offset, *need);
}

Constant WeightFile::constant(uint64_t offset, const Type& type) const {
  auto packed = payload(offset, type);
  auto count = static_cast<uint64_t>(element_count(type));
  return {type, unpack(type.dtype, packed, count)};
}

WeightWriter::WeightWriter() : bytes_(header_bytes) {
  store(bytes_, 4, file_version);
}

uint64_t WeightWriter::add(DType dtype, std::span<const uint8_t> elements) {
  uint32_t code = code_of(dtype);
  size_t size = element_bytes(dtype);
  if (elements.size() % size != 0) {
    fail(
        "got " + std::to_string(elements.size()) +
        " bytes, need a multiple of " + std::to_string(size) + " for " +
        to_string(dtype));
  }
  auto packed = pack(dtype, elements);
  uint64_t width = bits(dtype), count = elements.size() / size;
  uint64_t unused = packed.size() * 8 - count * width;
  uint64_t offset = bytes_.size();
  uint64_t data = offset + header_bytes;
  bytes_.resize(align(data + packed.size()));
  store(bytes_, offset, sentinel);
  store(bytes_, offset + 4, code);
  store<uint64_t>(bytes_, offset + 8, packed.size());
  store(bytes_, offset + 16, data);
  store(bytes_, offset + 24, unused);
  std::copy(packed.begin(), packed.end(), bytes_.begin() + data);
  store(bytes_, 0, ++chunks_);
  return offset;
}

}  // namespace mlx_ane::mil
