// The parts of mlx_ane._ext; each is one submodule in its own file.
#pragma once

#include <nanobind/nanobind.h>

namespace mlx_ane {

// With the types of their elements, which stubs show.
using Record = nanobind::typed<nanobind::dict, nanobind::str, nanobind::any>;
using Records = nanobind::typed<nanobind::list, Record>;

void bind_mil(nanobind::module_& m);
void bind_emulated(nanobind::module_& m);
void bind_kernels(nanobind::module_& m);
void bind_planning(nanobind::module_& m);
void bind_block(nanobind::module_& m);
#ifdef MLX_ANE_APPLE
void bind_apple(nanobind::module_& m);
#endif

}  // namespace mlx_ane
