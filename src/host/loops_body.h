// Every loop of loops.h for one instruction set; the tail of each target_*.cpp.
#include "host/simd.h"

#include "host/loops_convert.h"

#include "host/loops_adam.h"
#include "host/loops_probe.h"
#include "host/loops_softmax.h"
#include "host/loops_transpose.h"

namespace {

constexpr Loops loops_of(const char* name) {
  return {
      .name = name,
      .lanes = lanes,
      .half_to_float = half_to_float_loop,
      .float_to_half = float_to_half_loop,
      .round_to_half = round_to_half_loop,
      .bfloat_to_float = bfloat_to_float_loop,
      .float_to_bfloat = float_to_bfloat_loop,
      .scale_to_half = scale_to_half_loop,
      .row_norm = row_norm_loop,
      .half_sum_of_squares = half_sum_of_squares_loop,
      .pair_rows = pair_rows_loop,
      .unpack_columns = unpack_columns_loop,
      .transpose_pairs = transpose_pairs_loop,
      .unpack_row = unpack_row_loop,
      .adam = adam_loop,
      .stochastic_half = stochastic_half_loop,
      .stochastic_bfloat = stochastic_bfloat_loop,
      .sum_of_squares = sum_of_squares_loop,
      .maximum = maximum_loop,
      .sum = sum_loop,
      .exp_sum = exp_sum_loop,
      .exp_scale = exp_scale_loop,
      .dot = dot_loop,
      .softmax_backward = softmax_backward_loop,
      .scale_add = scale_add_loop,
      .swiglu = swiglu_loop,
      .swiglu_backward = swiglu_backward_loop,
      .fma_rounds = fma_rounds_loop,
      .adam_traffic = adam_traffic_loop,
      .adam_passes = adam_passes_loop,
  };
}

}  // namespace
