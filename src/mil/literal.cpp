// Elements of literals: numbers in nested or flat lists, and strings.
#include <algorithm>

#include "mil/number.h"
#include "mil/value_reader.h"

namespace mlx_ane::mil {

void ValueReader::elements(Constant& constant) {
  in_.peek();
  const char* start = in_.position();
  auto& type = constant.type;
  if (std::count(type.shape.begin(), type.shape.end(), unknown_dim)) {
    in_.fail("a constant needs known dimensions");
  }
  int64_t count = element_count(type);
  // Two characters an element at least: checked before memory is taken.
  if (count > (in_.end() - in_.position()) / 2 + 1) {
    in_.fail_at(
        start,
        "the literal has fewer elements than its shape, which has " +
            std::to_string(count));
  }
  if (type.dtype == DType::string) {
    strings(constant);
  } else {
    numbers(constant, static_cast<int>(type.shape.size()), count);
  }
}

/// Counts the brackets that open a literal without reading them.
int ValueReader::brackets() {
  Cursor ahead = in_;
  int count = 0;
  while (count <= max_depth && ahead.accept('[')) {
    ++count;
  }
  return count;
}

void ValueReader::numbers(Constant& constant, int rank, int64_t count) {
  in_.peek();
  const char* start = in_.position();
  int levels = brackets();
  if (levels != rank && levels > 1) {
    in_.fail(
        "the literal is nested " + std::to_string(levels) +
        " deep, but its shape has " + std::to_string(rank) + " dimensions");
  }
  if (levels == 0 && count != 1) {
    in_.fail_expected("'[' before " + std::to_string(count) + " elements");
  }
  std::vector<uint8_t> bytes(count * element_bytes(constant.type.dtype));
  int64_t done = 0;
  if (levels == 0) {
    element(constant.type, bytes.data());
    done = 1;
  } else {
    number_list(constant.type, bytes, done, 0, levels);
  }
  if (done != count) {
    in_.fail_at(
        start,
        "the literal has " + std::to_string(done) +
            " elements, but its shape has " + std::to_string(count));
  }
  constant.data = std::move(bytes);
}

/// One bracket level: lists at all but the innermost, where elements stand. A
/// single level may hold all elements of any shape.
void ValueReader::number_list(
    const Type& type,
    std::vector<uint8_t>& bytes,
    int64_t& done,
    int level,
    int levels) {
  size_t size = element_bytes(type.dtype);
  int64_t count = static_cast<int64_t>(bytes.size() / size);
  int64_t expected = levels == 1 ? count : type.shape[level];
  in_.expect('[', "before the elements");
  int64_t items = 0;
  if (!in_.accept(']')) {
    do {
      bool innermost = level + 1 == levels;
      if (items == expected || (innermost && done == count)) {
        in_.fail(
            "the literal has more than " + std::to_string(expected) +
            " elements here");
      }
      if (!innermost) {
        number_list(type, bytes, done, level + 1, levels);
        ++items;
        continue;
      }
      in_.peek();
      NumberError error = nullptr;
      auto read = read_numbers(
          in_.position(),
          in_.end(),
          type.dtype,
          bytes.data() + done * size,
          std::min(expected - items, count - done),
          error);
      if (error) {
        in_.fail(error);
      }
      if (read == 0) {
        element(type, bytes.data() + done * size);
        read = 1;
      }
      done += read;
      items += read;
    } while (in_.accept(','));
    in_.expect(']', "after the elements");
  }
  if (items != expected) {
    in_.fail_at(
        in_.position() - 1,
        "the literal has " + std::to_string(items) +
            " elements here, but its shape has " + std::to_string(expected));
  }
}

/// A number, or one wrapped in its type: fp16(0.5).
void ValueReader::element(const Type& type, uint8_t* out) {
  auto name = in_.peek_name();
  if (!name.empty() && in_.peek_after(name) == '(' && dtype_named(name)) {
    if (dtype_named(name) != type.dtype) {
      in_.fail(
          std::string("an element of type ") + to_string(*dtype_named(name)) +
          " stands in a literal of type " + to_string(type.dtype));
    }
    in_.skip_name(name);
    in_.expect('(', "after the type");
    in_.peek();
    if (auto error = read_number(in_.position(), in_.end(), type.dtype, out)) {
      in_.fail(error);
    }
    in_.expect(')', "after the element");
    return;
  }
  if (auto error = read_number(in_.position(), in_.end(), type.dtype, out)) {
    in_.fail(error);
  }
}

void ValueReader::strings(Constant& constant) {
  std::vector<std::string> values;
  in_.peek();
  const char* start = in_.position();
  if (in_.accept('[')) {
    if (!in_.accept(']')) {
      do {
        values.push_back(in_.string("a string"));
      } while (in_.accept(','));
      in_.expect(']', "after the strings");
    }
  } else {
    values.push_back(in_.string("a string"));
  }
  if (static_cast<int64_t>(values.size()) != element_count(constant.type)) {
    in_.fail_at(
        start,
        "the literal has " + std::to_string(values.size()) +
            " strings, but its shape has " +
            std::to_string(element_count(constant.type)));
  }
  constant.data = std::move(values);
}

}  // namespace mlx_ane::mil
