// Constants of a program: literals of the text and chunks of weight files.
#pragma once

#include "device/emulated/graph.h"

namespace mlx_ane::emulated {

/// Values of a constant in the interpreter's representation. Throws
/// std::invalid_argument for a missing file, a chunk outside it or of another
/// size, and for integers outside int32.
std::shared_ptr<Literal> read_constant(
    const mil::Constant& constant, const Weights& weights);

}  // namespace mlx_ane::emulated
