// What the emulated engine keeps for the process: options, caps and poison.
#pragma once

#include <cstdint>

#include "device/emulated/emulated.h"

namespace mlx_ane::emulated {

/// Limits of the options' chip, valid for ever.
const Limits& limits_of_chip(const std::string& chip);

/// Counts a compilation; false if it would exceed `most`.
bool count_compile(int64_t most);

/// One more load of a program. Loads of equal text and weights share a place.
enum class Residence { granted, too_many_programs, no_addresses };
Residence acquire(
    uint64_t program,
    uint64_t weight_bytes,
    int64_t most_programs,
    uint64_t most_bytes);
void release(uint64_t program);

void poison();
bool poisoned();

}  // namespace mlx_ane::emulated
