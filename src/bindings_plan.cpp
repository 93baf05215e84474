// mlx_ane._ext.planning: what the engine would be asked to run, for any chip.
#include "bindings.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "device/plan.h"
#include "device/programs.h"
#include "device/runner.h"
#include "mil/chips.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mlx_ane {

namespace {

using Tiles = std::vector<std::tuple<int64_t, int64_t, int64_t>>;

Tiles tuples(const std::vector<Tile>& tiles) {
  Tiles out;
  for (auto& tile : tiles) {
    out.emplace_back(tile.begin, tile.size, tile.padded);
  }
  return out;
}

/// Bytes of the surfaces that hold the weight's tiles between calls.
size_t staged_bytes(const MatmulPlan& plan, const Limits& limits) {
  MatmulShape shape{
      plan.max_bucket(),
      plan.depth.front().padded,
      plan.columns.front().padded,
      plan.layout};
  return plan.depth.size() * plan.columns.size() *
         std::max(input_surface_bytes(shape), limits.min_surface_bytes);
}

Record plan_dict(int64_t s, int64_t k, int64_t n, const std::string& chip) {
  auto limits = limits_of(chip);
  auto plan = plan_matmul(s, k, n, limits, runner_settings().layout);
  Record out;
  out["layout"] = std::string(to_string(plan.layout));
  out["rows"] = tuples(plan.rows);
  out["depth"] = tuples(plan.depth);
  out["columns"] = tuples(plan.columns);
  out["staged_bytes"] = staged_bytes(plan, limits);
  return out;
}

Record limits_dict(const Limits& limits) {
  Record out;
  out["chip"] = limits.chip;
  out["resident_programs"] = Limits::resident_programs;
  out["max_axis"] = limits.max_axis;
  out["max_contraction"] = limits.max_contraction;
  out["log2_max_sum"] = Limits::log2_max_sum;
  out["overflow_from"] = Limits::overflow_from;
  return out;
}

Record chip_dict(const std::string& text, const std::string& where) {
  auto chip = mil::chip_named(text, where);
  Record out;
  out["name"] = chip.name;
  out["architecture"] = chip.architecture;
  out["generation"] = chip.generation;
  return out;
}

}  // namespace

void bind_planning(nb::module_& m) {
  m.def(
      "plan_matmul",
      &plan_dict,
      "s"_a,
      "k"_a,
      "n"_a,
      "chip"_a,
      "Tiles (begin, size, padded) of y (s, n) = x (s, k) w (n, k).T.");
  m.def(
      "limits",
      [](const std::string& chip) { return limits_dict(limits_of(chip)); },
      "chip"_a,
      "Limits of a chip that Python needs, by name.");
  m.def(
      "device_limits",
      [](const std::string& device) {
        return limits_dict(get_device(device).limits());
      },
      "device"_a,
      "The same of a device: what the self-test measured counts.");
  m.def(
      "chip",
      &chip_dict,
      "text"_a,
      "where"_a = "mlx_ane",
      "name, architecture and generation of a chip; ValueError otherwise.");
  m.def("min_rows", &min_rows, "Calls of fewer rows go to the BLAS.");
}

}  // namespace mlx_ane
