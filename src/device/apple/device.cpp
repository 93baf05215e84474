// The `ane` device: chooses a route and knows this machine's limits.
#include <cstdlib>
#include <mutex>

#include "device/apple/apple.h"
#include "device/apple/route.h"
#include "device/apple/surface.h"
#include "device/apple/system.h"
#include "device/apple/verdict.h"

namespace mlx_ane {

namespace apple {

namespace {

/// Limits of the chip, or the strictest of all for one that nobody reported.
Limits limits_for(const std::string& chip) {
  try {
    return limits_of(chip);
  } catch (const std::invalid_argument&) {
    auto limits = limits_of("h13");
    limits.chip = chip;
    return limits;
  }
}

/// MLX_ANE_ROUTE, else the verdict's, else in_memory.
std::string chosen_route(const Verdict& verdict) {
  auto wanted = std::getenv("MLX_ANE_ROUTE");
  if (wanted != nullptr && *wanted != '\0') {
    std::string route(wanted);
    if (route != "in_memory" && route != "e5rt") {
      throw std::invalid_argument(
          "[mlx_ane] got MLX_ANE_ROUTE=" + route +
          ", need in_memory or e5rt, set one of them or unset it.");
    }
    return route;
  }
  auto found = verdict.find("route");
  return found == verdict.end() ? "in_memory" : found->second;
}

/// What the self-test measured is better than what others reported.
void adopt(const Verdict& verdict, Limits& limits) {
  auto value = [&](const char* key) {
    auto found = verdict.find(key);
    return found == verdict.end() ? std::string() : found->second;
  };
  if (auto dialect = value("dialect"); !dialect.empty()) {
    limits.verbose_dialect = dialect == "ios16";
  }
  if (auto depth = value("max_contraction"); !depth.empty()) {
    limits.max_contraction = std::stoll(depth);
  }
}

class AppleDevice : public Device {
 public:
  AppleDevice();
  std::string_view name() const override {
    return "ane";
  }
  std::optional<std::string> unavailable() const override {
    return missing_;
  }
  const Limits& limits() const override {
    return limits_;
  }
  std::shared_ptr<Surface> make_surface(size_t bytes) override;
  std::shared_ptr<Executable> compile(const Source& source) override;
  // oMLX: a wedged driver never signals; 30 s is far beyond any program.
  std::chrono::milliseconds evaluate_bound() const override {
    return std::chrono::seconds(30);
  }
  std::map<std::string, std::string> info() const override;

 private:
  void require_available() const;

  Verdict verdict_;
  std::map<std::string, std::string> facts_;
  Limits limits_;
  std::unique_ptr<Route> route_;
  std::optional<std::string> missing_;
};

AppleDevice::AppleDevice() {
  verdict_ = stored_verdict().value_or(Verdict{});
  auto route = chosen_route(verdict_);
  facts_ = engine_facts();
  limits_ = limits_for(facts_["chip"]);
  adopt(verdict_, limits_);
  route_ = route == "e5rt" ? make_e5rt_route()
                           : make_in_memory_route(limits_.chip);
  missing_ = route_->unavailable();
  if (!missing_ && facts_["hasANE"] == "no") {
    missing_ = "this Mac has no Neural Engine";
  }
}

void AppleDevice::require_available() const {
  if (missing_) {
    throw DeviceError(
        Cause::unavailable,
        "[mlx_ane.ane] the Neural Engine cannot be used: " + *missing_ + ".");
  }
  require_same_process();
}

std::shared_ptr<Surface> AppleDevice::make_surface(size_t bytes) {
  require_available();
  return route_->make_surface(round_surface(bytes, limits_));
}

std::shared_ptr<Executable> AppleDevice::compile(const Source& source) {
  require_available();
  return route_->compile(source);
}

std::map<std::string, std::string> AppleDevice::info() const {
  auto facts = facts_;
  for (auto& [key, value] : verdict_) {
    facts["selftest_" + key] = value;
  }
  facts["name"] = "ane";
  facts["route"] = route_->name();
  facts["chip"] = limits_.chip;
  facts["os_build"] = os_build();
  facts["available"] = missing_ ? "no" : "yes";
  if (missing_) {
    facts["reason"] = *missing_;
  }
  return facts;
}

} // namespace

} // namespace apple

std::unique_ptr<Device> make_ane_device() {
  return std::make_unique<apple::AppleDevice>();
}

} // namespace mlx_ane
