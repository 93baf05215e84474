# Toolchain: macOS 14 arm64 from Linux with zig, against the stubs of
# symbols.py. Needs -DZIG=<zig> and -DSTUBS=<folder of stubs>.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_VERSION 23.0.0)
set(CMAKE_SYSTEM_PROCESSOR arm64)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG STUBS)

function(write_driver name)
  set(path ${CMAKE_BINARY_DIR}/${name})
  configure_file(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/zig-driver.sh.in ${path}
                 @ONLY)
  file(CHMOD ${path} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
endfunction()

foreach(MODE cc c++ ar ranlib)
  write_driver(zig-${MODE})
endforeach()
set(CMAKE_C_COMPILER ${CMAKE_BINARY_DIR}/zig-cc)
set(CMAKE_CXX_COMPILER ${CMAKE_BINARY_DIR}/zig-c++)
set(CMAKE_OBJC_COMPILER ${CMAKE_BINARY_DIR}/zig-cc)
set(CMAKE_AR
    ${CMAKE_BINARY_DIR}/zig-ar
    CACHE FILEPATH "" FORCE)
set(CMAKE_RANLIB
    ${CMAKE_BINARY_DIR}/zig-ranlib
    CACHE FILEPATH "" FORCE)
set(CMAKE_INSTALL_NAME_TOOL
    /bin/true
    CACHE FILEPATH "")
# Empty, so that CMake adds no -isysroot, -arch or version flags of Xcode's.
foreach(variable SYSROOT DEPLOYMENT_TARGET ARCHITECTURES)
  set(CMAKE_OSX_${variable}
      ""
      CACHE STRING "")
endforeach()
foreach(kind SHARED MODULE EXE)
  set(CMAKE_${kind}_LINKER_FLAGS_INIT
      "-F${STUBS}/Frameworks -L${STUBS}/usr/lib")
endforeach()
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
