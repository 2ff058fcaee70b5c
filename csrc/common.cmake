# Common settings of all builds of csrc/: language, apache-tvm-ffi, warnings.
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# The headers of apache-tvm-ffi come from the Python that runs the build.
find_package(Python REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND "${Python_EXECUTABLE}" -m tvm_ffi.config --cmakedir
  RESULT_VARIABLE tvm_ffi_missing
  OUTPUT_VARIABLE tvm_ffi_ROOT
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET)
if(tvm_ffi_missing)
  message(FATAL_ERROR "${Python_EXECUTABLE} has no apache-tvm-ffi: install it there (pip install apache-tvm-ffi), "
                      "or select a Python that has it with -DPython_EXECUTABLE=...")
endif()
find_package(tvm_ffi REQUIRED CONFIG)

set(HRM_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Werror)
# Keep paths of the build machine out of error messages.
cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH HRM_ROOT)
list(APPEND HRM_WARNINGS "-ffile-prefix-map=${HRM_ROOT}/=")

# For wheels: uses no symbol that is newer than glibc 2.28 and GCC 8, whatever this machine has.
option(HRM_PORTABLE "Build libraries that run on older Linux systems too" OFF)
if(HRM_PORTABLE)
  add_compile_definitions(HRM_PORTABLE)
endif()

# `make sanitize`: memory errors and undefined behaviour end the program and report the line.
option(HRM_SANITIZE "Build with AddressSanitizer and UndefinedBehaviorSanitizer" OFF)
if(HRM_SANITIZE)
  set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g)
  add_compile_options(${sanitizers})
  add_link_options(${sanitizers})
endif()
