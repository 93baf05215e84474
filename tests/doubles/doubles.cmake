# Doubles of Apple's frameworks on GNUstep: built for tests, never installed.
execute_process(
  COMMAND gnustep-config --objc-flags
  OUTPUT_VARIABLE GNUSTEP_FLAGS
  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(GNUSTEP_FLAGS UNIX_COMMAND "${GNUSTEP_FLAGS}")
# CMake asks for dependency files itself.
list(REMOVE_ITEM GNUSTEP_FLAGS -MMD -MP)
list(APPEND GNUSTEP_FLAGS -std=gnu11)

set(DOUBLES ${CMAKE_CURRENT_LIST_DIR})
set(DOUBLES_DIR ${CMAKE_BINARY_DIR}/doubles)

# What macOS links directly, and the state that all doubles share.
add_library(mlx_ane_doubles SHARED ${DOUBLES}/state.c ${DOUBLES}/machine.c
                                   ${DOUBLES}/system.m
                                   ${DOUBLES}/accelerate.c)
target_compile_options(mlx_ane_doubles
                       PRIVATE $<$<COMPILE_LANGUAGE:OBJC>:${GNUSTEP_FLAGS}>)
target_include_directories(mlx_ane_doubles PUBLIC ${DOUBLES})
target_link_libraries(mlx_ane_doubles PUBLIC gnustep-base objc m ${CMAKE_DL_LIBS})
set_target_properties(
  mlx_ane_doubles
  PROPERTIES C_VISIBILITY_PRESET default
             OBJC_VISIBILITY_PRESET default
             LIBRARY_OUTPUT_DIRECTORY ${DOUBLES_DIR})

# A framework that is opened at run time; `folder` tells its variants apart.
function(add_framework target folder name source)
  add_library(${target} MODULE ${source})
  target_compile_options(${target}
                         PRIVATE $<$<COMPILE_LANGUAGE:OBJC>:${GNUSTEP_FLAGS}>)
  target_compile_definitions(${target} PRIVATE ${ARGN})
  target_link_libraries(${target} PRIVATE mlx_ane_doubles)
  set_target_properties(
    ${target}
    PROPERTIES PREFIX ""
               SUFFIX ""
               OUTPUT_NAME ${name}
               C_VISIBILITY_PRESET default
               OBJC_VISIBILITY_PRESET default
               LIBRARY_OUTPUT_DIRECTORY
               ${DOUBLES_DIR}/${folder}/${name}.framework)
  add_dependencies(mlx_ane_core ${target})
endfunction()

add_framework(double_ane frameworks AppleNeuralEngine ${DOUBLES}/ane.m)
# A macOS without setModelURL: and modelAttributes, and one whose API moved.
add_framework(double_ane_old old AppleNeuralEngine ${DOUBLES}/ane.m
              DOUBLE_OLD_MACOS)
add_framework(double_ane_moved moved AppleNeuralEngine ${DOUBLES}/ane.m
              DOUBLE_MISSPELT)
foreach(folder frameworks old)
  # Before macOS 14.4 there is no compute plan.
  add_framework(
    double_coreml_${folder}
    ${folder}
    CoreML
    ${DOUBLES}/coreml.m
    $<$<STREQUAL:${folder},old>:DOUBLE_OLD_MACOS>)
  add_framework(double_corevideo_${folder} ${folder} CoreVideo
                ${DOUBLES}/coreml_video.c)
endforeach()
add_framework(double_espresso frameworks Espresso ${DOUBLES}/espresso.c)
# A machine without Espresso.
file(MAKE_DIRECTORY ${DOUBLES_DIR}/no_espresso)
file(CREATE_LINK ../frameworks/AppleNeuralEngine.framework
     ${DOUBLES_DIR}/no_espresso/AppleNeuralEngine.framework SYMBOLIC)

# The engine registers itself, so its object goes into every program.
add_library(mlx_ane_double_engine OBJECT ${DOUBLES}/engine.cpp)
target_include_directories(mlx_ane_double_engine PRIVATE src ${DOUBLES})
target_link_libraries(
  mlx_ane_core
  PRIVATE $<LINK_ONLY:mlx_ane_doubles>
  INTERFACE mlx_ane_doubles $<TARGET_OBJECTS:mlx_ane_double_engine>)
set_property(
  SOURCE src/device/apple/framework.cpp
  APPEND
  PROPERTY COMPILE_DEFINITIONS MLX_ANE_DOUBLES_DIR="${DOUBLES_DIR}/frameworks")
target_compile_definitions(
  mlx_ane_core INTERFACE MLX_ANE_DOUBLES DOUBLES_ROOT="${DOUBLES_DIR}")
# An extension built so stays usable after it is copied or installed.
target_link_options(mlx_ane_core INTERFACE "LINKER:-rpath,${DOUBLES_DIR}")
