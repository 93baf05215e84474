// Memory of an op's output.
#include "ops/allocate.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

namespace mlx_ane {

namespace {

#ifdef __linux__
void ask_for_huge_pages(void* data, size_t bytes) {
  constexpr uintptr_t huge = uintptr_t{2} << 20;
  constexpr size_t worthwhile = 4 * huge;
  auto begin = (reinterpret_cast<uintptr_t>(data) + huge - 1) / huge * huge;
  auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / huge * huge;
  if (bytes >= worthwhile && end > begin) {
    // A wish: where it is not granted, nothing is lost.
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
}
#else
void ask_for_huge_pages(void*, size_t) {
}
#endif

}  // namespace

void allocate(mlx::core::array& out) {
  out.set_data(mlx::core::allocator::malloc(out.nbytes()));
  ask_for_huge_pages(out.data<void>(), out.nbytes());
}

void allocate(std::vector<mlx::core::array>& outputs) {
  for (auto& out : outputs) {
    allocate(out);
  }
}

}  // namespace mlx_ane
