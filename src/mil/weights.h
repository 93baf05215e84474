// Weight files (MILBlob): what BLOBFILE constants of a program point into.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mil/program.h"

namespace mlx_ane::mil {

// Layout, all little-endian: a 64-byte file header {u32 chunks, u32 version 2},
// then per chunk a 64-byte header {u32 0xDEADBEEF, u32 type code, u64 bytes,
// u64 payload offset from the start of the file, u64 unused bits of the last
// byte} and its payload. Type codes are those of coremltools' MILBlob. A
// program's `offset` is that of the chunk header (64 for the first).

struct Chunk {
  /// Type code as written; some writers put 1 (fp16) on int8 payloads.
  uint32_t code = 0;
  /// The element type of the code; nothing if the code is unknown.
  std::optional<DType> dtype;
  /// Where the chunk's header and its payload start in the file.
  uint64_t offset = 0;
  uint64_t data_offset = 0;
  /// Payload bytes, and elements of `dtype` in them.
  uint64_t bytes = 0;
  uint64_t elements = 0;
};

/// Read access to the bytes of a weight file, which must outlive it. Nothing in
/// the file is trusted: std::invalid_argument says what is wrong and where.
class WeightFile {
 public:
  /// Checks the header and that chunks lie within the file and do not overlap.
  explicit WeightFile(std::span<const std::byte> file);

  const std::vector<Chunk>& chunks() const {
    return chunks_;
  }
  /// The chunk whose header is at `offset`.
  Chunk at(uint64_t offset) const;
  /// Packed payload of a constant of `type`: ceil(elements * bits / 8) bytes.
  /// The program's type counts, not the chunk's code, as on the engine.
  std::span<const std::byte> payload(uint64_t offset, const Type& type) const;
  /// The same unpacked: element_bytes(dtype) bytes an element.
  Constant constant(uint64_t offset, const Type& type) const;

 private:
  Chunk read_header(uint64_t offset) const;
  bool has_chunk(uint64_t offset) const;
  void check_overlap(const Chunk& chunk) const;
  void index();

  std::span<const std::byte> file_;
  std::vector<Chunk> chunks_;
};

/// Builds a weight file. Chunks are aligned to 64 bytes.
class WeightWriter {
 public:
  WeightWriter();
  /// Appends a constant's elements (element_bytes(dtype) bytes each, as in
  /// Constant) and returns the offset for BLOBFILE. std::invalid_argument for
  /// types that a weight file cannot hold and sub-byte values out of range.
  uint64_t add(DType dtype, std::span<const uint8_t> elements);
  /// The file so far.
  const std::vector<std::byte>& bytes() const {
    return bytes_;
  }

 private:
  std::vector<std::byte> bytes_;
  uint32_t chunks_ = 0;
};

/// Bytes that `elements` elements of `dtype` take in a file; nothing if that
/// overflows.
std::optional<uint64_t> packed_bytes(DType dtype, uint64_t elements);
/// Elements (element_bytes(dtype) bytes each) as a file holds them, and back:
/// those of sub-byte types share bytes, the first in the lowest bits.
/// std::invalid_argument for sub-byte values out of range.
std::vector<std::byte> pack(DType dtype, std::span<const uint8_t> elements);
/// `packed` must have packed_bytes(dtype, elements) bytes.
std::vector<uint8_t> unpack(
    DType dtype, std::span<const std::byte> packed, uint64_t elements);

}  // namespace mlx_ane::mil
