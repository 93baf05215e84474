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
  out["layout"] = plan.layout == Layout::natural ? "natural" : "channels_first";
  out["rows"] = tuples(plan.rows);
  out["depth"] = tuples(plan.depth);
  out["columns"] = tuples(plan.columns);
  out["staged_bytes"] = staged_bytes(plan, limits);
  return out;
}

Record limits_dict(const std::string& chip) {
  auto limits = limits_of(chip);
  Record out;
  out["resident_programs"] = limits.resident_programs;
  out["max_axis"] = limits.max_axis;
  out["max_contraction"] = limits.max_contraction;
  out["min_rows"] = min_rows();
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
      &limits_dict,
      "chip"_a,
      "Limits of a chip that decide placement, by name.");
}

}  // namespace mlx_ane
