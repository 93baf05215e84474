// The `ane` device: chooses a route and knows this machine's limits.
#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "device/apple/apple.h"
#include "device/apple/route.h"
#include "device/apple/surface.h"
#include "device/apple/system.h"
#include "device/apple/verdict.h"
#include "host/environment.h"
#include "mil/chips.h"

namespace mlx_ane {

namespace apple {

namespace {

std::string value_of(const Verdict& verdict, const char* key) {
  auto found = verdict.find(key);
  return found == verdict.end() ? "" : found->second;
}

std::string checked_route(const std::string& route) {
  auto& known = ane_routes();
  if (std::find(known.begin(), known.end(), route) == known.end()) {
    std::string names;
    for (auto& name : known) {
      names += (names.empty() ? "" : ", ") + name;
    }
    throw std::invalid_argument(
        "[mlx_ane] got route \"" + route + "\", need one of " + names + ".");
  }
  return route;
}

/// MLX_ANE_ROUTE, else the verdict's, else "".
std::string chosen_route(const Verdict& verdict) {
  if (auto set = host::choice_variable("MLX_ANE_ROUTE", ane_routes())) {
    return *set;
  }
  auto found = value_of(verdict, "route");
  return found.empty() ? "" : checked_route(found);
}

std::unique_ptr<Route> make_route(
    const std::string& name, const std::string& chip) {
#ifndef MLX_ANE_PUBLIC_ONLY
  if (name == "in_memory") {
    return make_in_memory_route(chip);
  }
  if (name == "e5rt") {
    return make_e5rt_route();
  }
#endif
  static_cast<void>(name);
  return make_coreml_route(chip);
}

/// Limits of the chip, or the strictest of all for one that nobody reported.
/// What the self-test measured here is better than what others reported.
Limits limits_for(const std::string& chip, const Verdict& verdict) {
  auto limits = limits_of(mil::find_chip(chip) ? chip : "h13");
  limits.chip = chip;
  if (auto dialect = value_of(verdict, "dialect"); !dialect.empty()) {
    limits.verbose_dialect = dialect == "ios16";
  }
  if (auto depth = value_of(verdict, "max_contraction"); !depth.empty()) {
    limits.max_contraction = std::atoll(depth.c_str());
  }
  return limits;
}

/// Everything that depends on the machine and the verdict.
struct State {
  Verdict verdict;
  std::map<std::string, std::string> facts;
  Limits limits;
  std::unique_ptr<Route> route;
  std::optional<std::string> missing;

  /// An empty `route_name` asks the environment and the verdict.
  explicit State(const std::string& route_name)
      : verdict(stored_verdict().value_or(Verdict{})), facts(engine_facts()) {
    limits = limits_for(facts["chip"], verdict);
    auto name = route_name.empty() ? chosen_route(verdict) : route_name;
    auto names = name.empty() ? ane_routes() : std::vector{name};
    route = make_route(names[0], limits.chip);
    missing = route->unavailable();
    for (size_t i = 1; missing && i < names.size(); ++i) {
      auto next = make_route(names[i], limits.chip);
      if (!next->unavailable()) {
        route = std::move(next);
        missing.reset();
      }
    }
#ifndef MLX_ANE_PUBLIC_ONLY
    if (!missing && facts["hasANE"] == "no") {
      missing = "this Mac has no Neural Engine";
    }
#endif
  }
};

class AppleDevice : public Device {
 public:
  explicit AppleDevice(std::string route_name)
      : route_name_(std::move(route_name)) {
  }
  std::string_view name() const override {
    return "ane";
  }
  std::optional<std::string> unavailable() const override;
  const Limits& limits() const override {
    return used().limits;
  }
  std::shared_ptr<Surface> make_surface(
      size_t bytes, const Port& port) override;
  std::shared_ptr<Executable> compile(const Source& source) override;
  // oMLX: a wedged driver never signals; 30 s is far beyond any program.
  std::chrono::milliseconds evaluate_bound() const override {
    return std::chrono::seconds(30);
  }
  std::map<std::string, std::string> info() const override;

 private:
  /// Fixed at first use: a self-test that runs before it still decides.
  const State& used() const;
  Route& available_route();

  std::string route_name_;
  mutable std::mutex mutex_;
  mutable std::unique_ptr<State> state_;
};

const State& AppleDevice::used() const {
  std::lock_guard lock(mutex_);
  if (!state_) {
    state_ = std::make_unique<State>(route_name_);
  }
  return *state_;
}

std::optional<std::string> AppleDevice::unavailable() const {
  std::lock_guard lock(mutex_);
  return state_ ? state_->missing : State(route_name_).missing;
}

Route& AppleDevice::available_route() {
  auto& state = used();
  if (state.missing) {
    throw DeviceError(
        Cause::unavailable,
        "[mlx_ane.ane] the Neural Engine cannot be used: " + *state.missing +
            ".");
  }
  require_same_process();
  return *state.route;
}

std::shared_ptr<Surface> AppleDevice::make_surface(
    size_t bytes, const Port& port) {
  auto& route = available_route();
  return route.make_surface(round_surface(bytes, used().limits), port);
}

std::shared_ptr<Executable> AppleDevice::compile(const Source& source) {
  return available_route().compile(source);
}

std::map<std::string, std::string> AppleDevice::info() const {
  std::lock_guard lock(mutex_);
  auto fresh = state_ ? nullptr : std::make_unique<State>(route_name_);
  auto& state = state_ ? *state_ : *fresh;
  auto facts = state.facts;
  for (auto& [key, value] : state.verdict) {
    facts["selftest_" + key] = value;
  }
  facts["route"] = state.route->name();
  facts.merge(state.route->facts());
  facts["chip"] = state.limits.chip;
  facts["os_build"] = os_build();
  return facts;
}

}  // namespace

}  // namespace apple

std::unique_ptr<Device> make_ane_device() {
  return std::make_unique<apple::AppleDevice>("");
}

std::unique_ptr<Device> make_ane_device(const std::string& route) {
  return std::make_unique<apple::AppleDevice>(apple::checked_route(route));
}

}  // namespace mlx_ane
