// Decodes literals and weight chunks into float and int32 values.
#include "device/emulated/constants.h"

#include <cstring>
#include <limits>

#include "host/half.h"

namespace mlx_ane::emulated {

namespace {

template <class T>
T load(const std::byte* bytes, int64_t i) {
  T value;
  std::memcpy(&value, bytes + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class T>
void widen(const std::byte* bytes, int64_t n, std::vector<int32_t>& out) {
  for (int64_t i = 0; i < n; ++i) {
    auto value = load<T>(bytes, i);
    if (!std::in_range<int32_t>(value)) {
      throw std::invalid_argument(
          "constant " + std::to_string(value) + " does not fit int32");
    }
    out[i] = static_cast<int32_t>(value);
  }
}

// `bytes` holds n elements, sub-byte types one a byte.
std::shared_ptr<Literal> decode(
    const std::byte* bytes, DType dtype, int64_t n) {
  auto out = std::make_shared<Literal>();
  if (mil::is_float(dtype)) {
    out->floats.resize(n);
    auto* to = out->floats.data();
    if (dtype == DType::fp16) {
      host::to_float(bytes, Float::f16, to, n);
    } else if (dtype == DType::fp32) {
      std::memcpy(to, bytes, n * 4);
    } else if (dtype == DType::bf16) {
      host::to_float(bytes, Float::bf16, to, n);
    } else {
      for (int64_t i = 0; i < n; ++i) {
        to[i] = static_cast<float>(load<double>(bytes, i));
      }
    }
    return out;
  }
  out->ints.resize(n);
  switch (dtype) {
    case DType::int4:
    case DType::int8:
      widen<int8_t>(bytes, n, out->ints);
      break;
    case DType::int16:
      widen<int16_t>(bytes, n, out->ints);
      break;
    case DType::uint16:
      widen<uint16_t>(bytes, n, out->ints);
      break;
    case DType::int32:
      widen<int32_t>(bytes, n, out->ints);
      break;
    case DType::uint32:
      widen<uint32_t>(bytes, n, out->ints);
      break;
    case DType::int64:
      widen<int64_t>(bytes, n, out->ints);
      break;
    case DType::uint64:
      widen<uint64_t>(bytes, n, out->ints);
      break;
    default:  // boolean, uint8 and the unsigned sub-byte types
      widen<uint8_t>(bytes, n, out->ints);
  }
  return out;
}

// Sub-byte payloads are packed from the low bits of each byte on.
std::vector<std::byte> unpack(const std::byte* bytes, DType dtype, int64_t n) {
  auto width = mil::bits(dtype);
  std::vector<std::byte> out(n);
  for (int64_t i = 0; i < n; ++i) {
    auto bit = i * width;
    auto low = static_cast<unsigned>(bytes[bit / 8]);
    auto high =
        bit % 8 + width > 8 ? static_cast<unsigned>(bytes[bit / 8 + 1]) : 0u;
    auto value = ((low | high << 8) >> (bit % 8)) & ((1u << width) - 1);
    if (dtype == DType::int4 && value >= 8) {
      value |= 0xf0;
    }
    out[i] = static_cast<std::byte>(value);
  }
  return out;
}

// A chunk is a 64-byte header at `offset`: 0xDEADBEEF, type, payload size, and
// the payload's position in the file.
std::shared_ptr<Literal> read_blob(
    const mil::Blob& blob, const Type& type, const Weights& weights) {
  auto found = weights.find(blob.path);
  if (found == weights.end() || !found->second) {
    throw std::invalid_argument(
        "weight file \"" + blob.path + "\" was not given");
  }
  auto& file = *found->second;
  auto where =
      "chunk at " + std::to_string(blob.offset) + " of \"" + blob.path + "\"";
  auto size = static_cast<uint64_t>(file.size());
  if (size < 64 || blob.offset > size - 64) {
    throw std::invalid_argument(
        where + " is outside the file of " + std::to_string(size) + " bytes");
  }
  auto* header = file.data() + blob.offset;
  if (load<uint32_t>(header, 0) != 0xdeadbeef) {
    throw std::invalid_argument(where + " has no 0xDEADBEEF header");
  }
  auto payload = load<uint64_t>(header, 1);
  auto position = load<uint64_t>(header, 2);
  auto n = elements(type.shape);
  auto width = static_cast<uint64_t>(mil::bits(type.dtype));
  auto needed = (static_cast<uint64_t>(n) * width + 7) / 8;
  if (payload != needed) {
    throw std::invalid_argument(
        where + " has " + std::to_string(payload) + " bytes, but " +
        to_string(type) + " needs " + std::to_string(needed));
  }
  if (position > size || payload > size - position) {
    throw std::invalid_argument(where + " has its payload outside the file");
  }
  auto* bytes = file.data() + position;
  if (width < 8) {
    auto unpacked = unpack(bytes, type.dtype, n);
    return decode(unpacked.data(), type.dtype, n);
  }
  return decode(bytes, type.dtype, n);
}

}  // namespace

std::shared_ptr<Literal> read_constant(
    const mil::Constant& constant, const Weights& weights) {
  auto& type = constant.type;
  auto n = elements(type.shape);
  if (auto* strings = std::get_if<std::vector<std::string>>(&constant.data)) {
    auto out = std::make_shared<Literal>();
    out->strings = *strings;
    return out;
  }
  if (type.dtype == DType::string) {
    throw std::invalid_argument("a string constant holds no strings");
  }
  if (auto* blob = std::get_if<mil::Blob>(&constant.data)) {
    return read_blob(*blob, type, weights);
  }
  auto& bytes = std::get<std::vector<uint8_t>>(constant.data);
  if (bytes.size() != n * mil::element_bytes(type.dtype)) {
    throw std::invalid_argument(
        "a constant of type " + to_string(type) + " holds " +
        std::to_string(bytes.size()) + " bytes");
  }
  return decode(
      reinterpret_cast<const std::byte*>(bytes.data()), type.dtype, n);
}

}  // namespace mlx_ane::emulated
