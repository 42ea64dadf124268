# SPDX-License-Identifier: Apache-2.0
# find_package(AscendCL): imported targets AscendCL::ascendcl, AscendCL::nnopbase, AscendCL::opapi.
get_filename_component(AscendCL_ROOT "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(AscendCL_FOUND TRUE)

foreach(library ascendcl nnopbase opapi)
  if(NOT TARGET AscendCL::${library})
    add_library(AscendCL::${library} SHARED IMPORTED)
    set_target_properties(AscendCL::${library} PROPERTIES
      IMPORTED_LOCATION "${AscendCL_ROOT}/lib64/lib${library}.so"
      INTERFACE_INCLUDE_DIRECTORIES "${AscendCL_ROOT}/include;${AscendCL_ROOT}/include/aclnn")
  endif()
endforeach()
set_property(TARGET AscendCL::nnopbase PROPERTY INTERFACE_LINK_LIBRARIES AscendCL::ascendcl)
set_property(TARGET AscendCL::opapi PROPERTY INTERFACE_LINK_LIBRARIES AscendCL::nnopbase)
