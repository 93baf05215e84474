// Planning of matmuls: tiles cover the operands, fit the limits and share
// programs.
#include "check.h"

#include <random>

#include "device/plan.h"
#include "device/programs.h"

using namespace mlx_ane;

namespace {

void check_cover(const std::vector<Tile>& tiles, int64_t n) {
  int64_t next = 0;
  for (auto& tile : tiles) {
    CHECK(tile.begin == next);
    CHECK(tile.size >= 1 && tile.size <= tile.padded);
    next += tile.size;
  }
  CHECK(next == n);
}

}  // namespace

TEST(tiles_cover_every_shape_within_the_limits) {
  std::mt19937 random(7);
  auto size = [&](int64_t most) {
    return std::uniform_int_distribution<int64_t>(1, most)(random);
  };
  for (auto* chip : {"h13", "h16g"}) {
    auto limits = limits_of(chip);
    for (int i = 0; i < 500; ++i) {
      auto s = size(9000), k = size(20000), n = size(200000);
      auto plan = plan_matmul(s, k, n, limits);
      check_cover(plan.rows, s);
      check_cover(plan.depth, k);
      check_cover(plan.columns, n);
      for (auto& tile : plan.rows) {
        CHECK(row_bucket(tile.size) == tile.padded);
        CHECK(tile.padded <= plan.max_bucket());
      }
      for (auto& tile : plan.depth) {
        CHECK(tile.padded <= limits.max_contraction && tile.padded % 32 == 0);
        CHECK(tile.padded == plan.depth[0].padded);
      }
      for (auto& tile : plan.columns) {
        CHECK(tile.padded <= limits.max_axis && tile.padded % 32 == 0);
        CHECK(tile.padded == plan.columns[0].padded);
      }
    }
  }
}

TEST(depth_is_split_evenly_at_1344) {
  auto plan = plan_matmul(64, 1344, 64, limits_of("h16g"));
  CHECK(plan.depth.size() == 1 && plan.depth[0].padded == 1344);
  plan = plan_matmul(64, 1345, 64, limits_of("h16g"));
  CHECK(plan.depth.size() == 2 && plan.depth[0].padded == 704);
  plan = plan_matmul(64, 2048, 64, limits_of("h16g"));
  CHECK(plan.depth.size() == 2 && plan.depth[1].size == 1024);
}

TEST(rows_beyond_the_largest_bucket_are_tiled) {
  auto plan = plan_matmul(2048 + 65, 64, 64, limits_of("h16g"));
  CHECK(plan.rows.size() == 2);
  CHECK(plan.rows[0].padded == 2048 && plan.rows[1].padded == 128);
  CHECK(plan.calls() == 2);
}

TEST(a_head_of_32000_is_tiled_where_axes_end_at_16384) {
  CHECK(plan_matmul(64, 64, 32000, limits_of("h14")).columns.size() == 2);
  CHECK(plan_matmul(64, 64, 32000, limits_of("h16g")).columns.size() == 1);
}

TEST(programs_are_read_back_as_they_were_built) {
  for (auto layout : layouts) {
    CHECK(layout_named(to_string(layout)) == layout);
    for (auto dialect : {mil::Dialect::ios16, mil::Dialect::ios18}) {
      auto source = matmul_source({64, 96, 128, layout}, dialect);
      auto program = mil::parse(source.text);
      auto& main = program.functions.at(0);
      // Operands are declared in the order of their names.
      bool first = layout == Layout::weight_first;
      CHECK(main.inputs.size() == (layout == Layout::single ? 1 : 2));
      for (auto& port : source.inputs) {
        bool is_x = &port == &source.inputs.front();
        auto& input = main.inputs.at(is_x == first && main.inputs.size() == 2);
        CHECK(input.name == port.name);
        CHECK(input.type.shape == port.shape);
      }
      CHECK(main.outputs == std::vector<std::string>{"o0_y"});
      // M1 gives zeros for values of some short names (ane-train).
      for (auto& operation : main.operations) {
        auto& name = operation.outputs.at(0).name;
        CHECK(name.starts_with("m0_") || name.starts_with("o0_"));
      }
    }
  }
  auto source =
      attention_source({2, 64, 64, 32, 32, true}, mil::Dialect::ios18);
  CHECK(mil::parse(source.text).functions.at(0).inputs.size() == 4);
}

TEST(an_unknown_layout_is_an_error) {
  CHECK_THROWS(std::invalid_argument, "weight_first", layout_named("fast"));
}

TEST(one_surface_of_both_fits_an_axis) {
  auto plan = plan_matmul(2048, 64, 32000, limits_of("h14"), Layout::single);
  CHECK(plan.rows[0].padded + plan.columns[0].padded <= 16384);
  MatmulShape shape{64, 64, 96, Layout::single};
  CHECK(input_surface_bytes(shape) == 160 * 64 * 2);
}

TEST(both_inputs_get_surfaces_of_one_size) {
  MatmulShape shape{2048, 64, 96, Layout::natural};
  auto source = matmul_source(shape, mil::Dialect::ios18);
  CHECK(input_surface_bytes(shape) == surface_bytes(source.inputs[0]));
  shape = {64, 64, 96, Layout::natural};
  source = matmul_source(shape, mil::Dialect::ios18);
  CHECK(input_surface_bytes(shape) == surface_bytes(source.inputs[1]));
}

CHECK_MAIN()
