# The BLAS behind src/blas: Accelerate on macOS, OpenBLAS elsewhere (vendored).
target_sources(mlx_ane_core PRIVATE src/blas/blas.cpp src/blas/reference.cpp)
# The loops that the benchmark compares with: as a compiler's -O2 leaves them.
set_source_files_properties(src/blas/reference.cpp src/kernels/adam_reference.cpp
                            PROPERTIES COMPILE_OPTIONS -O2)
if(APPLE)
  target_sources(mlx_ane_core PRIVATE src/blas/accelerate.cpp)
  target_link_libraries(mlx_ane_core PUBLIC "-framework Accelerate")
else()
  execute_process(
    COMMAND
      "${Python_EXECUTABLE}" -c
      "import scipy_openblas32 as o; print(o.get_include_dir(), o.get_lib_dir(), sep=';')"
    OUTPUT_VARIABLE OPENBLAS
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  list(GET OPENBLAS 0 OPENBLAS_INCLUDE)
  list(GET OPENBLAS 1 OPENBLAS_LIB)
  target_sources(mlx_ane_core PRIVATE src/blas/openblas.cpp)
  target_include_directories(mlx_ane_core PRIVATE ${OPENBLAS_INCLUDE})
  target_link_libraries(mlx_ane_core PUBLIC ${OPENBLAS_LIB}/libscipy_openblas.so)
  # So that an installed wheel does not need the build package.
  file(GLOB OPENBLAS_FILES ${OPENBLAS_LIB}/*.so*
       ${OPENBLAS_LIB}/../../scipy_openblas32.libs/*.so*)
  install(FILES ${OPENBLAS_FILES} DESTINATION mlx_ane/lib)
endif()
