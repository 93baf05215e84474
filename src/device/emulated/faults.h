// Faults injected into the emulated engine by name; docs/faults.md has the
// syntax.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace mlx_ane::emulated {

/// Where a fault may strike.
enum class Site { surface, compile, load, evaluate };
const char* to_string(Site site);

enum class Fault {
  compile_error,
  load_fails,
  load_fails_once,  // the first load of each program
  cap_reached,
  out_of_memory,
  evaluate_false,    // status 0x1d
  first_call_fails,  // the first evaluation of each program
  writes_nothing,
  zeros,
  nan,
  wrong_values,
  hang,
  slow,
  device_gone,  // this and every later call fails
};
const char* to_string(Fault fault);

/// One strike, with what the engine needs to carry it out.
struct Strike {
  Fault fault;
  uint64_t random;       // of the seed and the strike's number
  double share;          // of the values that nan and wrong_values change
  int64_t milliseconds;  // of slow; most of hang, 0 = until released
};

/// Replaces the faults: "NAME[:KEY=VALUE[,KEY=VALUE...]][;...]". An empty text
/// removes them. Throws std::invalid_argument that names the valid words.
void set_faults(const std::string& specification);
std::string faults();
/// Strikes since set_faults, by fault.
std::map<std::string, int64_t> fault_counts();

/// The faults that strike this call. `program` is the program's identity and
/// `shapes` its ports, "a0_x=1x1x64x96,...", which the `program` filter
/// searches.
std::vector<Strike> strikes(
    Site site, uint64_t program = 0, const std::string& shapes = "");

/// Whether a fault that blocks a call is injected.
bool may_hang();
/// Bound of one evaluation; a test may shorten it.
std::chrono::milliseconds evaluate_bound();
void set_evaluate_bound(std::chrono::milliseconds bound);

/// Carries out `hang` and `slow`; false for a fault that the site carries out.
bool wait_out(const Strike& strike);

/// Blocks as a wedged driver does, until release_hangs() or `milliseconds`.
void hang(int64_t milliseconds);
/// Calls that hang now.
int hanging();
void release_hangs();

}  // namespace mlx_ane::emulated
