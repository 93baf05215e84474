// Parses fault specifications and decides, reproducibly, when each strikes.
#include "device/emulated/faults.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <concepts>
#include <condition_variable>
#include <cstdlib>
#include <locale>
#include <mutex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <thread>

#include "host/environment.h"

#include "device/emulated/words.h"

namespace mlx_ane::emulated {

namespace {

struct Kind {
  const char* name;
  Site site;      // where it strikes unless `site=` says otherwise
  bool anywhere;  // may strike at other sites
};

// In the order of Fault.
constexpr std::array<Kind, 14> kinds = {{
    {"compile_error", Site::compile, false},
    {"load_fails", Site::load, false},
    {"load_fails_once", Site::load, false},
    {"cap_reached", Site::load, false},
    {"out_of_memory", Site::surface, true},
    {"evaluate_false", Site::evaluate, false},
    {"first_call_fails", Site::evaluate, false},
    {"writes_nothing", Site::evaluate, false},
    {"zeros", Site::evaluate, false},
    {"nan", Site::evaluate, false},
    {"wrong_values", Site::evaluate, false},
    {"hang", Site::evaluate, true},
    {"slow", Site::evaluate, true},
    {"device_gone", Site::evaluate, true},
}};

constexpr const char* sites[] = {"surface", "compile", "load", "evaluate"};

/// One fault of the specification and what became of it.
struct Injection {
  Fault fault{};
  Site site{};
  double rate = 1;
  int64_t count = -1;  // strikes left to give, -1 = no end
  int64_t call = 0;    // only this call of the site, from 1
  int64_t after = 0;   // calls of the site that are spared
  uint64_t seed = 0;
  std::string program;  // identity in hex, or a part of the shapes
  double share = 1;
  int64_t milliseconds = 0;

  int64_t calls = 0;  // that matched the filter
  int64_t struck = 0;
  std::set<uint64_t> programs;  // struck by a fault that strikes each once
};

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[mlx_ane.emulated.faults] " + what);
}

std::string join(auto begin, auto end, auto name) {
  std::string out;
  for (auto i = begin; i != end; ++i) {
    out += (out.empty() ? "" : ", ") + std::string(name(*i));
  }
  return out;
}

/// Whether all of text is a number.
template <std::integral T>
bool read(std::string_view text, T& value) {
  auto last = text.data() + text.size();
  auto [end, error] = std::from_chars(text.data(), last, value);
  return error == std::errc() && end == last;
}

bool read(std::string_view text, double& value) {
  // Not from_chars: macOS has it for floating point from version 26 on.
  std::istringstream stream{std::string(text)};
  stream.imbue(std::locale::classic());
  stream >> value;
  return !stream.fail() &&
         stream.peek() == std::istringstream::traits_type::eof();
}

template <class T>
T number(std::string_view key, std::string_view text, T least, T most) {
  T value{};
  if (!read(text, value) || !(value >= least && value <= most)) {
    refuse(
        "got " + std::string(key) + "=" + std::string(text) +
        ", need a number from " + std::to_string(least) + " to " +
        std::to_string(most) + ".");
  }
  return value;
}

void set_site(Injection& injection, std::string_view value) {
  auto& kind = kinds[static_cast<size_t>(injection.fault)];
  for (size_t i = 0; i < std::size(sites); ++i) {
    if (value == sites[i]) {
      injection.site = static_cast<Site>(i);
      if (!kind.anywhere && injection.site != kind.site) {
        refuse(
            std::string(kind.name) + " strikes at " + to_string(kind.site) +
            ", not at " + std::string(value) + ".");
      }
      return;
    }
  }
  refuse(
      "got site=" + std::string(value) + ", need one of " +
      join(std::begin(sites), std::end(sites), [](auto* s) { return s; }) +
      ".");
}

void set_key(
    Injection& injection, std::string_view key, std::string_view value) {
  constexpr int64_t most = int64_t{1} << 62;
  if (key == "rate") {
    injection.rate = number(key, value, 0.0, 1.0);
  } else if (key == "share") {
    injection.share = number(key, value, 0.0, 1.0);
  } else if (key == "count") {
    injection.count = number<int64_t>(key, value, 0, most);
  } else if (key == "call") {
    injection.call = number<int64_t>(key, value, 1, most);
  } else if (key == "after") {
    injection.after = number<int64_t>(key, value, 0, most);
  } else if (key == "seed") {
    injection.seed = number<uint64_t>(key, value, 0, UINT64_MAX);
  } else if (key == "ms") {
    injection.milliseconds = number<int64_t>(key, value, 0, 3600 * 1000);
  } else if (key == "program") {
    injection.program = value;
  } else if (key == "site") {
    set_site(injection, value);
  } else {
    refuse(
        "got key \"" + std::string(key) +
        "\", need rate, count, seed, site, program, call, after, share or ms.");
  }
}

Injection parse_injection(std::string_view text) {
  auto colon = text.find(':');
  auto name = trim(text.substr(0, colon));
  size_t i = 0;
  while (i < kinds.size() && name != kinds[i].name) {
    ++i;
  }
  if (i == kinds.size()) {
    refuse(
        "got fault \"" + std::string(name) + "\", need one of " +
        join(kinds.begin(), kinds.end(), [](auto& k) { return k.name; }) + ".");
  }
  Injection injection;
  injection.fault = static_cast<Fault>(i);
  injection.site = kinds[i].site;
  injection.milliseconds = injection.fault == Fault::slow ? 100 : 0;
  if (colon != text.npos) {
    for (auto pair : split(text.substr(colon + 1), ',')) {
      auto equals = pair.find('=');
      if (equals == pair.npos) {
        refuse("got \"" + std::string(pair) + "\", need KEY=VALUE.");
      }
      set_key(
          injection,
          trim(pair.substr(0, equals)),
          trim(pair.substr(equals + 1)));
    }
  }
  return injection;
}

std::vector<Injection> parse(const std::string& specification) {
  std::vector<Injection> out;
  for (auto text : split(specification, ';')) {
    if (!trim(text).empty()) {
      out.push_back(parse_injection(text));
    }
  }
  return out;
}

/// splitmix64: the same strikes for the same seed on every platform.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

struct Table {
  std::mutex mutex;
  bool from_environment = false;
  std::string specification;
  std::vector<Injection> injections;

  std::mutex hang_mutex;
  std::condition_variable released;
  int hanging = 0;
  uint64_t releases = 0;
  std::chrono::milliseconds bound = std::chrono::seconds(30);
};

// Leaked: a hanging call may outlive main.
Table& table() {
  static auto* out = new Table;
  return *out;
}

/// Reads MLX_ANE_FAULTS at the first use; `mutex` is held.
void read_environment(Table& t) {
  if (t.from_environment) {
    return;
  }
  auto specification = host::variable("MLX_ANE_FAULTS");
  t.injections = parse(specification);
  t.specification = specification;
  t.from_environment = true;
}

bool matches(
    const Injection& injection, uint64_t program, const std::string& shapes) {
  if (injection.program.empty()) {
    return true;
  }
  char hex[17];
  std::snprintf(
      hex, sizeof(hex), "%016llx", static_cast<unsigned long long>(program));
  return shapes.find(injection.program) != shapes.npos ||
         std::string_view(hex).starts_with(injection.program);
}

/// Whether this call of a matching program is struck.
bool decide(Injection& injection, uint64_t program, uint64_t random) {
  if (injection.fault == Fault::device_gone && injection.struck > 0) {
    return true;
  }
  ++injection.calls;
  bool each_once = injection.fault == Fault::load_fails_once ||
                   injection.fault == Fault::first_call_fails;
  if (injection.calls <= injection.after ||
      (injection.call && injection.calls != injection.call) ||
      (injection.count >= 0 && injection.struck >= injection.count) ||
      (each_once && !injection.programs.insert(program).second)) {
    return false;
  }
  auto uniform = static_cast<double>(random >> 11) * 0x1p-53;
  return uniform < injection.rate;
}

}  // namespace

const char* to_string(Site site) {
  return sites[static_cast<size_t>(site)];
}

const char* to_string(Fault fault) {
  return kinds[static_cast<size_t>(fault)].name;
}

void set_faults(const std::string& specification) {
  auto injections = parse(specification);
  auto& t = table();
  std::lock_guard lock(t.mutex);
  t.injections = std::move(injections);
  t.specification = specification;
  t.from_environment = true;
}

std::string faults() {
  auto& t = table();
  std::lock_guard lock(t.mutex);
  read_environment(t);
  return t.specification;
}

bool may_hang() {
  auto& t = table();
  std::lock_guard lock(t.mutex);
  read_environment(t);
  return std::any_of(
      t.injections.begin(), t.injections.end(), [](const Injection& injection) {
        return injection.fault == Fault::hang || injection.fault == Fault::slow;
      });
}

std::chrono::milliseconds evaluate_bound() {
  auto& t = table();
  std::lock_guard lock(t.hang_mutex);
  return t.bound;
}

void set_evaluate_bound(std::chrono::milliseconds bound) {
  auto& t = table();
  std::lock_guard lock(t.hang_mutex);
  t.bound = bound;
}

std::map<std::string, int64_t> fault_counts() {
  auto& t = table();
  std::lock_guard lock(t.mutex);
  std::map<std::string, int64_t> out;
  for (auto& injection : t.injections) {
    out[to_string(injection.fault)] += injection.struck;
  }
  return out;
}

std::vector<Strike> strikes(
    Site site, uint64_t program, const std::string& shapes) {
  auto& t = table();
  std::lock_guard lock(t.mutex);
  read_environment(t);
  std::vector<Strike> out;
  for (auto& injection : t.injections) {
    bool gone = injection.fault == Fault::device_gone && injection.struck > 0;
    if (!gone &&
        (injection.site != site || !matches(injection, program, shapes))) {
      continue;
    }
    auto random =
        mix(injection.seed ^ mix(static_cast<uint64_t>(injection.calls)));
    if (decide(injection, program, random)) {
      ++injection.struck;
      out.push_back(
          {injection.fault,
           mix(random),
           injection.share,
           injection.milliseconds});
    }
  }
  return out;
}

bool wait_out(const Strike& strike) {
  if (strike.fault == Fault::hang) {
    hang(strike.milliseconds);
    return true;
  }
  if (strike.fault == Fault::slow) {
    std::this_thread::sleep_for(std::chrono::milliseconds(strike.milliseconds));
    return true;
  }
  return false;
}

void hang(int64_t milliseconds) {
  auto& t = table();
  std::unique_lock lock(t.hang_mutex);
  auto mine = t.releases;
  auto freed = [&] { return t.releases != mine; };
  ++t.hanging;
  if (milliseconds > 0) {
    t.released.wait_for(lock, std::chrono::milliseconds(milliseconds), freed);
  } else {
    t.released.wait(lock, freed);
  }
  --t.hanging;
}

int hanging() {
  auto& t = table();
  std::lock_guard lock(t.hang_mutex);
  return t.hanging;
}

void release_hangs() {
  auto& t = table();
  std::lock_guard lock(t.hang_mutex);
  ++t.releases;
  t.released.notify_all();
}

}  // namespace mlx_ane::emulated
