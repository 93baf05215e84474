# The Apple route: on macOS over the system, elsewhere over doubles (tests
# only).
if(NOT APPLE AND NOT MLX_ANE_DOUBLES)
  return()
endif()

enable_language(C)
if(NOT APPLE AND NOT CMAKE_OBJC_COMPILER)
  # GNUstep's runtime is GCC's.
  set(CMAKE_OBJC_COMPILER ${CMAKE_C_COMPILER})
endif()
enable_language(OBJC)
file(GLOB APPLE_SOURCES CONFIGURE_DEPENDS src/device/apple/*.cpp
     src/device/apple/*.m)
if(MLX_ANE_PUBLIC_ONLY)
  list(FILTER APPLE_SOURCES EXCLUDE REGEX
       "/(binding|client|e5rt|framework_program|in_memory|private)\\.cpp$")
endif()
target_sources(mlx_ane_core PRIVATE ${APPLE_SOURCES})
set_source_files_properties(
  src/device/apple/objc_guard.m PROPERTIES COMPILE_OPTIONS
                                           "-fobjc-exceptions;-fexceptions")
if(SKBUILD_PROJECT_VERSION)
  set(MLX_ANE_VERSION ${SKBUILD_PROJECT_VERSION})
else()
  set(MLX_ANE_VERSION development)
endif()
# Only where they are read: every other object is that of any build.
set_property(
  SOURCE src/device/device.cpp src/kernels/adam_accelerate.cpp
         ${APPLE_SOURCES}
  APPEND
  PROPERTY COMPILE_DEFINITIONS MLX_ANE_APPLE
           MLX_ANE_VERSION="${MLX_ANE_VERSION}")
target_compile_definitions(mlx_ane_core INTERFACE MLX_ANE_APPLE)

if(APPLE)
  target_link_libraries(
    mlx_ane_core PUBLIC "-framework Foundation" "-framework CoreFoundation"
                        "-framework IOSurface" objc)
else()
  include(tests/doubles/doubles.cmake)
endif()
