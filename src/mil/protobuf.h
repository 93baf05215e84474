// Protocol-buffer messages, written and read without a library.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace mlx_ane::mil {

/// Collects the fields of one message. Like proto3, it leaves out zeros and
/// empty strings; messages are written even when empty, since their presence
/// tells which one of several was chosen.
class Message {
 public:
  Message& number(int field, uint64_t value) {
    if (value != 0) {
      key(field, 0);
      varint(value);
    }
    return *this;
  }
  Message& text(int field, std::string_view value) {
    return value.empty() ? *this : item(field, value);
  }
  /// An element of a repeated field: written even when empty.
  Message& item(int field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& message(int field, const Message& value) {
    return item(field, value.bytes_);
  }
  /// An entry of a map from strings.
  Message& entry(int field, std::string_view name, const Message& value) {
    return message(field, Message().item(1, name).message(2, value));
  }
  /// Appends the fields of another message.
  Message& append(const Message& other) {
    bytes_ += other.bytes_;
    return *this;
  }
  /// Appends a number without a field: an element of a packed list.
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
      bytes_ += static_cast<char>(value | 0x80);
    }
    bytes_ += static_cast<char>(value);
  }

  bool empty() const {
    return bytes_.empty();
  }
  const std::string& bytes() const {
    return bytes_;
  }

 private:
  void key(int field, int wire) {
    varint(static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire));
  }

  std::string bytes_;
};

/// Walks through the fields of a message, which is not trusted:
/// std::invalid_argument where it ends too early.
class Fields {
 public:
  explicit Fields(std::string_view bytes) : rest_(bytes) {
  }

  /// Moves to the next field; false at the end.
  bool next() {
    if (rest_.empty()) {
      return false;
    }
    auto key = varint();
    if (key >> 3 == 0 || key >> 3 > 536870911) {
      fail();
    }
    field = static_cast<int>(key >> 3);
    wire_ = static_cast<int>(key & 7);
    switch (wire_) {
      case 0:
        number_ = varint();
        break;
      case 1:
        value_ = take(8);
        break;
      case 2:
        value_ = take(varint());
        break;
      case 5:
        value_ = take(4);
        break;
      default:
        fail();
    }
    return true;
  }

  /// The number of the field; 0 before the first next().
  int field = 0;

  uint64_t number() const {
    need(0);
    return number_;
  }
  /// A string, bytes, a message or a packed list.
  std::string_view bytes() const {
    need(2);
    return value_;
  }
  /// The next number of a packed list; only while !done().
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      auto byte = static_cast<uint8_t>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) {
        return value;
      }
    }
    fail();
  }
  bool done() const {
    return rest_.empty();
  }

 private:
  [[noreturn]] static void fail() {
    throw std::invalid_argument(
        "[mlx_ane.mil.spec] the bytes are no Core ML model: a field is cut "
        "off or malformed.");
  }
  void need(int wire) const {
    if (wire_ != wire) {
      fail();
    }
  }
  std::string_view take(uint64_t size) {
    if (size > rest_.size()) {
      fail();
    }
    auto taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  std::string_view rest_;
  std::string_view value_;
  uint64_t number_ = 0;
  int wire_ = -1;
};

}  // namespace mlx_ane::mil
