// The `ane` device: chooses a route and knows this machine's limits.
#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "device/apple/apple.h"
#include "device/apple/bounds.h"
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

Way checked(Way way) {
  auto& known = ane_routes();
  if (std::find(known.begin(), known.end(), way.route) == known.end()) {
    std::string names;
    for (auto& name : known) {
      names += (names.empty() ? "" : ", ") + name;
    }
    throw std::invalid_argument(
        "[mlx_ane] got route \"" + way.route + "\", need one of " + names +
        ".");
  }
  if (!way.staging.empty() && way.staging != "url" && way.staging != "id") {
    throw std::invalid_argument(
        "[mlx_ane] got staging \"" + way.staging + "\", need url or id.");
  }
  return way;
}

/// MLX_ANE_ROUTE, else the verdict's, else an empty way.
Way chosen_way(const Verdict& verdict) {
  Way way{value_of(verdict, "route"), value_of(verdict, "staging")};
  way.row_alignment = static_cast<size_t>(
      std::atoll(value_of(verdict, "row_alignment").c_str()));
  auto set = host::choice_variable("MLX_ANE_ROUTE", ane_routes());
  if (set && *set != way.route) {
    way = Way{*set};
  }
  return way.route.empty() ? way : checked(way);
}

std::unique_ptr<Route> make_route(const Way& way, const std::string& chip) {
#ifndef MLX_ANE_PUBLIC_ONLY
  if (way.route.empty() || way.route == "in_memory") {
    return make_in_memory_route(chip, way.staging == "id");
  }
  if (way.route == "client") {
    return make_client_route(chip);
  }
  if (way.route == "e5rt") {
    return make_e5rt_route(way.on_cpu);
  }
#else
  static_cast<void>(way);
#endif
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
  size_t row_alignment = 0;

  explicit State(const Way& given)
      : verdict(stored_verdict().value_or(Verdict{})), facts(engine_facts()) {
    limits = limits_for(facts["chip"], verdict);
    auto way = given.route.empty() ? chosen_way(verdict) : given;
    row_alignment = way.row_alignment;
    route = make_route(way, limits.chip);
    missing = route->unavailable();
    for (auto& name : ane_routes()) {
      if (!missing || !way.route.empty()) {
        break;
      }
      auto other = make_route(Way{name}, limits.chip);
      if (!other->unavailable()) {
        route = std::move(other);
        missing.reset();
      }
    }
#ifndef MLX_ANE_PUBLIC_ONLY
    if (!missing && facts["hasANE"] == "no") {
      missing =
          "the system says that this machine has no Neural Engine (hasANE is "
          "0), as in a virtual machine";
    }
#endif
  }
};

/// A program whose rows are further apart than the contract's 64 bytes.
class Aligned : public Executable {
 public:
  Aligned(std::shared_ptr<Executable> inner, size_t alignment)
      : inner_(std::move(inner)), alignment_(alignment) {
  }
  size_t row_bytes(const Port& port) const override {
    auto bytes = inner_->row_bytes(port);
    return (bytes + alignment_ - 1) / alignment_ * alignment_;
  }
  std::map<std::string, std::string> facts() const override {
    return inner_->facts();
  }
  std::optional<std::string> elsewhere() const override {
    return inner_->elsewhere();
  }
  void evaluate(
      std::span<Surface* const> inputs,
      std::span<Surface* const> outputs) override {
    inner_->evaluate(inputs, outputs);
  }

 private:
  std::shared_ptr<Executable> inner_;
  size_t alignment_;
};

class AppleDevice : public Device {
 public:
  explicit AppleDevice(Way way) : way_(std::move(way)) {
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
  std::chrono::milliseconds evaluate_bound() const override {
    return bounds().evaluate;
  }
  std::map<std::string, std::string> info() const override;

 private:
  /// Fixed at first use: a self-test that runs before it still decides.
  const State& used() const;
  Route& available_route();

  Way way_;
  mutable std::mutex mutex_;
  mutable std::unique_ptr<State> state_;
};

const State& AppleDevice::used() const {
  std::lock_guard lock(mutex_);
  if (!state_) {
    state_ = std::make_unique<State>(way_);
  }
  return *state_;
}

std::optional<std::string> AppleDevice::unavailable() const {
  std::lock_guard lock(mutex_);
  return state_ ? state_->missing : State(way_).missing;
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
  auto executable = available_route().compile(source);
  auto alignment = used().row_alignment;
  if (alignment <= Limits::row_alignment) {
    return executable;
  }
  return std::make_shared<Aligned>(std::move(executable), alignment);
}

std::map<std::string, std::string> AppleDevice::info() const {
  std::lock_guard lock(mutex_);
  auto fresh = state_ ? nullptr : std::make_unique<State>(way_);
  auto& state = state_ ? *state_ : *fresh;
  auto facts = state.facts;
  for (auto& [key, value] : state.verdict) {
    if (key != "findings") {  // doctor shows them
      facts["selftest_" + key] = value;
    }
  }
  auto rounding = value_of(state.verdict, "rounding");
  facts["rounding"] = rounding.empty() ? "unknown" : rounding;
  facts["route"] = state.route->name();
  facts.merge(state.route->facts());
  facts["chip"] = state.limits.chip;
  facts["os_build"] = os_build();
  return facts;
}

}  // namespace

}  // namespace apple

std::unique_ptr<Device> make_ane_device() {
  return std::make_unique<apple::AppleDevice>(Way{});
}

std::unique_ptr<Device> make_ane_device(const Way& way) {
  return std::make_unique<apple::AppleDevice>(apple::checked(way));
}

std::unique_ptr<Device> make_ane_device(const std::string& route) {
  return make_ane_device(Way{route});
}

}  // namespace mlx_ane
