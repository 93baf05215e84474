// mlx_ane._ext.emulated: signatures and docstrings.
#include "bindings.h"

namespace mlx_ane {

void bind_emulated(nanobind::module_&) {}

} // namespace mlx_ane
