// The rules of the engine: every reported limit once, for check and for the
// emulated engine.
#pragma once

#include <set>
#include <span>
#include <string>
#include <string_view>

namespace mlx_ane::mil {

/// error: reported to be rejected or to give wrong values. warning: reported
/// for some shapes, chips or routes only. note: works, but slowly or
/// surprisingly. unseen: not in the text of a program; the emulated engine
/// alone has it.
enum class Severity { error, warning, note, unseen };
const char* to_string(Severity severity);

/// When the engine notices; never: wrong values without a word.
enum class Stage { parse, compile, load, evaluate, never };
const char* to_string(Stage stage);

/// What the engine answers, as far as a source gives it.
enum class Answer {
  none,  // the emulated engine runs the program
  unreported,
  invalid_program,      // InvalidMILProgram
  compilation_failure,  // ANECCompile() FAILED
  too_many_programs,    // Program load failure (0x50004)
  no_addresses,         // Program load failure (0x20004)
  inference_error,      // status=0x1d
};

struct Rule {
  std::string_view id;
  Severity severity;
  Stage stage;
  Answer answer;
  std::string_view why;
  /// Who reports it, and where; names as in docs/limits.md.
  std::string_view source;
  /// Who reports otherwise: on another route, chip or macOS, or on the same.
  std::string_view against = "";
  /// Generations of chips that have it.
  int first = 13;
  int last = 99;

  /// A report contradicts it, so the stricter one holds unless it is allowed.
  bool disputed() const {
    return !against.empty();
  }
  bool applies_to(int generation) const {
    return first <= generation && generation <= last;
  }
};

/// Every rule, sorted by id.
std::span<const Rule> rules();
/// nullptr for an unknown id.
const Rule* find_rule(std::string_view id);

/// Ids of rules to leave out; "disputed" stands for all disputed ones.
using Allow = std::set<std::string>;
bool allows(const Allow& allow, const Rule& rule);
/// std::invalid_argument in the name of `where` for an id that is no rule's.
void check_allow(const Allow& allow, const std::string& where);

}  // namespace mlx_ane::mil
