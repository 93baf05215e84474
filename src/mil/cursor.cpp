// Reads tokens of MIL text and reports where one is wrong.
#include "mil/cursor.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace mlx_ane::mil {

namespace {

constexpr std::array<bool, 256> name_characters = [] {
  std::array<bool, 256> table{};
  for (int c = 0; c < 256; ++c) {
    table[c] = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
               (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '$' ||
               c == '@';
  }
  return table;
}();

bool in_name(char c) {
  return name_characters[static_cast<unsigned char>(c)];
}

bool starts_name(char c) {
  return in_name(c) && !(c >= '0' && c <= '9') && c != '.';
}

/// Bytes of the UTF-8 sequence at p, 0 if it is invalid.
int utf8_length(const unsigned char* p, const unsigned char* end) {
  int length = *p < 0x80   ? 1
               : *p < 0xc2 ? 0
               : *p < 0xe0 ? 2
               : *p < 0xf0 ? 3
               : *p < 0xf5 ? 4
                           : 0;
  if (end - p < length) {
    return 0;
  }
  for (int i = 1; i < length; ++i) {
    if ((p[i] & 0xc0) != 0x80) {
      return 0;
    }
  }
  bool overlong = (*p == 0xe0 && p[1] < 0xa0) || (*p == 0xf0 && p[1] < 0x90);
  bool surrogate = *p == 0xed && p[1] >= 0xa0;
  bool beyond = *p == 0xf4 && p[1] >= 0x90;
  return length > 1 && (overlong || surrogate || beyond) ? 0 : length;
}

/// The first NUL byte or invalid UTF-8, or nullptr.
const char* first_bad_byte(std::string_view text) {
  auto p = reinterpret_cast<const unsigned char*>(text.data());
  auto end = p + text.size();
  constexpr uint64_t ones = 0x0101010101010101;
  constexpr uint64_t highs = ones * 0x80;
  while (p < end) {
    uint64_t word;
    // Eight plain characters at a time: no high bit, no zero byte.
    while (end - p >= 8 &&
           (std::memcpy(&word, p, 8), ((word | (word - ones)) & highs) == 0)) {
      p += 8;
    }
    for (auto stop = p + std::min<ptrdiff_t>(8, end - p); p < stop;) {
      int length = utf8_length(p, end);
      if (*p == 0 || length == 0) {
        return reinterpret_cast<const char*>(p);
      }
      p += length;
    }
  }
  return nullptr;
}

/// What can be shown in a message: ASCII, one column a byte.
std::string printable(std::string_view text) {
  std::string shown(text);
  for (char& c : shown) {
    c = c == '\t' ? ' ' : (c < ' ' || c > '~') ? '?' : c;
  }
  return shown;
}

/// The line around `column` (0-based) and a caret below it.
std::string excerpt(std::string_view line, size_t column) {
  constexpr size_t before = 60;
  constexpr size_t width = 100;
  size_t start = column > before ? column - before : 0;
  std::string lead = start > 0 ? "..." : "";
  std::string tail = line.size() > start + width ? "..." : "";
  return "\n  " + lead + printable(line.substr(start, width)) + tail + "\n  " +
         std::string(lead.size() + column - start, ' ') + "^";
}

}  // namespace

Cursor::Cursor(std::string_view text)
    : begin_(text.data()),
      p_(begin_),
      end_(begin_ + text.size()),
      line_start_(begin_) {
  if (auto bad = first_bad_byte(text)) {
    fail_at(
        bad,
        *bad == 0 ? "the text has a NUL byte; MIL is plain text"
                  : "the text is not valid UTF-8; save it as UTF-8");
  }
  constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";
  if (text.substr(0, 3) == byte_order_mark) {
    p_ += 3;
  }
}

bool Cursor::skip_comment() {
  if (end_ - p_ < 2 || (p_[1] != '/' && p_[1] != '*')) {
    return false;
  }
  std::string_view rest(p_, end_ - p_);
  if (p_[1] == '/') {
    p_ += std::min(rest.find('\n'), rest.size());
    return true;
  }
  size_t close = rest.find("*/", 2);
  if (close == std::string_view::npos) {
    fail_at(p_, "the comment is not closed; add */");
  }
  for (const char* stop = p_ + close + 2; p_ < stop; ++p_) {
    if (*p_ == '\n') {
      ++line_;
      line_start_ = p_ + 1;
    }
  }
  return true;
}

void Cursor::fail_expected_char(char c, const char* where) {
  fail_expected(std::string("'") + c + "' " + where);
}

std::string_view Cursor::peek_name() {
  skip_blanks();
  if (p_ == end_ || !starts_name(*p_)) {
    return {};
  }
  const char* q = p_ + 1;
  while (q < end_ && in_name(*q)) {
    ++q;
  }
  return {p_, static_cast<size_t>(q - p_)};
}

std::string_view Cursor::name(const char* what) {
  auto name = peek_name();
  if (name.empty()) {
    fail_expected(what);
  }
  p_ += name.size();
  return name;
}

char Cursor::escape() {
  if (p_ == end_) {
    fail("the string is not closed; add \"");
  }
  char c = *p_++;
  switch (c) {
    case 'n':
      return '\n';
    case 't':
      return '\t';
    case 'r':
      return '\r';
    case '"':
    case '\\':
    case '/':
    case '\'':
      return c;
    default:
      fail_at(p_ - 2, "unknown escape in a string; use \\\\ for a backslash");
  }
}

std::string Cursor::string(const char* what) {
  if (peek() != '"') {
    fail_expected(what);
  }
  const char* open = p_++;
  std::string value;
  while (true) {
    const char* run = p_;
    while (p_ < end_ && *p_ != '"' && *p_ != '\\' && *p_ != '\n') {
      ++p_;
    }
    value.append(run, p_);
    if (p_ == end_ || *p_ == '\n') {
      fail_at(open, "the string is not closed; add \" on the same line");
    }
    if (*p_++ == '"') {
      return value;
    }
    value += escape();
  }
}

std::string_view Cursor::until_closing(char open, char close) {
  skip_blanks();
  const char* start = p_;
  int depth = 1;
  for (; p_ < end_; ++p_) {
    if (*p_ == '"') {
      string("a string");
      --p_;
    } else if (*p_ == '\n') {
      ++line_;
      line_start_ = p_ + 1;
    } else if (*p_ == open) {
      ++depth;
    } else if (*p_ == close && --depth == 0) {
      return {start, static_cast<size_t>(p_++ - start)};
    }
  }
  fail_at(start - 1, std::string("the bracket is not closed; add ") + close);
}

int64_t Cursor::integer(const char* what) {
  char first = peek();
  if (first < '0' || first > '9') {
    fail_expected(what);
  }
  const char* start = p_;
  uint64_t value = 0;
  for (; p_ < end_ && *p_ >= '0' && *p_ <= '9'; ++p_) {
    value = value * 10 + (*p_ - '0');
    if (value > INT64_MAX / 16) {
      fail_at(start, std::string(what) + " is too large");
    }
  }
  return static_cast<int64_t>(value);
}

void Cursor::fail(const std::string& what) {
  skip_blanks();
  fail_at(p_, what);
}

void Cursor::fail_expected(const std::string& expected) {
  skip_blanks();
  std::string got = "the end of the text";
  if (p_ < end_) {
    auto name = peek_name();
    size_t length = std::clamp<size_t>(name.size(), 1, 40);
    got = "'" + printable({p_, length}) + "'";
  }
  fail_at(p_, "expected " + expected + ", got " + got);
}

void Cursor::fail_at(const char* position, const std::string& what) {
  std::string_view before(begin_, position - begin_);
  int line =
      1 + static_cast<int>(std::count(before.begin(), before.end(), '\n'));
  size_t start = before.rfind('\n') + 1;
  std::string_view text(begin_, end_ - begin_);
  auto whole = text.substr(start, text.find('\n', start) - start);
  size_t column = position - begin_ - start;
  throw ParseError(
      "[mlx_ane.mil] line " + std::to_string(line) + ", column " +
          std::to_string(column + 1) + ": " + what + "." +
          excerpt(whole, column),
      {line, static_cast<int>(column) + 1});
}

}  // namespace mlx_ane::mil
