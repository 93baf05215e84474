# mlx_ane/_ext: bindings and MLX primitives over mlx_ane_core.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_VARIABLE nanobind_ROOT
  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
find_package(nanobind CONFIG REQUIRED)
if(NOT MLX_ROOT)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -m mlx --cmake-dir
    OUTPUT_VARIABLE MLX_ROOT
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
find_package(MLX CONFIG REQUIRED)

file(GLOB EXTENSION_SOURCES CONFIGURE_DEPENDS src/*.cpp src/ops/*.cpp)
# Types are shared with mlx.core through its nanobind domain: the same internals
# version, and no stable ABI, as MLX's wheels are per Python version.
nanobind_add_module(
  _ext
  NB_STATIC
  LTO
  NOMINSIZE
  NB_DOMAIN
  mlx
  ${EXTENSION_SOURCES})
target_compile_options(_ext PRIVATE -Wall -Wextra)
target_link_libraries(_ext PRIVATE mlx_ane_core mlx)
if(APPLE)
  set(ORIGIN "@loader_path")
else()
  set(ORIGIN "$ORIGIN")
endif()
set_target_properties(
  _ext PROPERTIES BUILD_WITH_INSTALL_RPATH ON
                  INSTALL_RPATH "${ORIGIN}/lib;${ORIGIN}/../mlx/lib")
install(TARGETS _ext LIBRARY DESTINATION mlx_ane)

# What it was compiled from, so that a folder of the same sources may use it:
# mlx_ane/_versions.py makes the same key.
file(
  GLOB_RECURSE KEY_SOURCES
  RELATIVE ${PROJECT_SOURCE_DIR}
  src/*.cpp src/*.h src/*.m)
list(SORT KEY_SOURCES)
set(KEY_LINES "")
foreach(source ${KEY_SOURCES})
  file(SHA256 ${PROJECT_SOURCE_DIR}/${source} hash)
  string(APPEND KEY_LINES "${source} ${hash}\n")
endforeach()
string(SHA256 KEY "${KEY_LINES}")
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/_build_key.txt
     "${SKBUILD_PROJECT_VERSION} ${KEY}\n")
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/_build_key.txt DESTINATION mlx_ane)
