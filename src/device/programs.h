// The MIL programs of this project: a matmul of two runtime inputs.
#pragma once

#include "device/device.h"
#include "device/plan.h"
#include "mil/program.h"

namespace mlx_ane {

/// Shape of one matmul program: y (s, n) = x (s, k) w (n, k)ᵀ, all padded.
struct MatmulShape {
  int64_t s;
  int64_t k;
  int64_t n;
  Layout layout;
  auto operator<=>(const MatmulShape&) const = default;
};

/// Bytes of the surfaces of both inputs. Orion requires equal sizes, others accept
/// them, so a weight is given room for the x of the most rows it meets.
size_t input_surface_bytes(const MatmulShape& shape);

mil::Program matmul_program(const MatmulShape& shape);

/// Text and interface: inputs a0_x, a1_w and output o0_y, so that the engine's
/// ASCII order of names is the binding order.
Source matmul_source(const MatmulShape& shape, mil::Dialect dialect);

} // namespace mlx_ane
