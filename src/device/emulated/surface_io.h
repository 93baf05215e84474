// Converts surfaces (rows padded to 64 bytes) to the interpreter's values and
// back.
#pragma once

#include "device/emulated/op.h"

namespace mlx_ane::emulated {

/// Bytes of one element in a surface.
size_t surface_element_bytes(DType type);

/// `to`: dense values in the representation of op.h.
void load_surface(const std::byte* from, const Type& type, void* to);
void store_surface(const void* from, const Type& type, std::byte* to);

}  // namespace mlx_ane::emulated
