// mlx_ane._ext.mil: signatures and docstrings.
#include "bindings.h"

namespace mlx_ane {

void bind_mil(nanobind::module_&) {}

} // namespace mlx_ane
