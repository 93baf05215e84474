// The engine's activation functions as tables of 33 points (M6 study).
#pragma once

namespace mlx_ane::emulated {

// Linear between 33 points and constant, or the function's limit, outside them.
// Largest absolute errors reported: sigmoid 3.4e-3, tanh 1.6e-3, gelu 6e-3,
// silu 1.5e-2.
float table_sigmoid(float x);
float table_tanh(float x);
float table_gelu(float x);
float table_silu(float x);

}  // namespace mlx_ane::emulated
