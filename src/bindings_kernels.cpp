// mlx_ane._ext.kernels: signatures and docstrings.
#include "bindings.h"

namespace mlx_ane {

void bind_kernels(nanobind::module_&) {}

} // namespace mlx_ane
