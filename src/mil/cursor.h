// A cursor over MIL text: blanks, comments, names, strings and located errors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "mil/program.h"

namespace mlx_ane::mil {

/// Blanks and comments before a token are skipped by every method that reads
/// one.
class Cursor {
 public:
  /// Throws ParseError on NUL bytes and invalid UTF-8. The text must outlive
  /// the cursor.
  explicit Cursor(std::string_view text);

  /// The next character, or '\0' at the end.
  char peek() {
    skip_blanks();
    return p_ < end_ ? *p_ : '\0';
  }
  bool at_end() {
    return peek() == '\0';
  }
  /// Reads `c` if it comes next.
  bool accept(char c) {
    if (peek() != c) {
      return false;
    }
    ++p_;
    return true;
  }
  /// Reads `c`, or fails: "expected 'c' <where>, got ...".
  void expect(char c, const char* where) {
    if (!accept(c)) {
      fail_expected_char(c, where);
    }
  }
  /// A name: letters, digits, '_', '.', '$' and '@', not starting with a digit.
  std::string_view name(const char* what);
  /// The name that comes next without reading it; empty if there is none.
  std::string_view peek_name();
  void skip_name(std::string_view name) {
    p_ += name.size();
  }
  /// The first character after the blanks that follow `name`, which comes next.
  char peek_after(std::string_view name) {
    const char* q = name.data() + name.size();
    if (q < end_ && static_cast<unsigned char>(*q) > ' ' && *q != '/') {
      return *q;
    }
    Cursor ahead = *this;
    ahead.p_ = q;
    return ahead.peek();
  }
  /// A string between double quotes, its escapes resolved.
  std::string string(const char* what);
  /// The text up to the bracket that closes one already read, which is read
  /// too.
  std::string_view until_closing(char open, char close);
  /// A decimal integer without sign that fits int64_t.
  int64_t integer(const char* what);

  /// Where the next token stands.
  Location location() {
    skip_blanks();
    return {line_, static_cast<int>(p_ - line_start_) + 1};
  }
  const char*& position() {
    return p_;
  }
  const char* end() const {
    return end_;
  }

  /// Throws ParseError at the next token; `what` is a clause without full stop.
  [[noreturn]] void fail(const std::string& what);
  /// "expected <expected>, got <the next token>".
  [[noreturn]] void fail_expected(const std::string& expected);
  /// Throws ParseError at an earlier position of the text.
  [[noreturn]] void fail_at(const char* position, const std::string& what);

 private:
  [[noreturn]] void fail_expected_char(char c, const char* where);
  void skip_blanks() {
    while (p_ < end_) {
      char c = *p_;
      if (c == ' ' || c == '\t' || c == '\r') {
        ++p_;
      } else if (c == '\n') {
        ++line_;
        line_start_ = ++p_;
      } else if (c == '/') {
        if (!skip_comment()) {
          return;
        }
      } else {
        return;
      }
    }
  }
  bool skip_comment();
  char escape();

  const char* begin_;
  const char* p_;
  const char* end_;
  const char* line_start_;
  int line_ = 1;
};

}  // namespace mlx_ane::mil
