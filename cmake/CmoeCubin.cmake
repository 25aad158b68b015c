# CUDA kernels, compiled ahead of time and embedded: .cu -> fatbin -> .rodata of the library.
#
# The CUDA language of CMake is not used: host code is C, and nothing links a CUDA runtime. Each .cu
# becomes one compressed fatbin with code for every architecture named and PTX for later ones.

set(CMOE_CUDA_PORTABLE -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90
    -gencode=arch=compute_80,code=compute_80 CACHE STRING "what portable kernels are compiled for")
set(CMOE_CUDA_HOPPER -gencode=arch=compute_90a,code=sm_90a)
set(CMOE_NVCC_FLAGS -std=c++17 -O3 --compress-mode=size -Werror all-warnings
    -Xptxas=-v,-warn-spills,-warn-lmem-usage)

# cmoe_add_fatbin(<target> <source>): embeds <source> into the object library <target>. The symbols
# are cmoe__fatbin_<stem> and cmoe__fatbin_<stem>_end. Files named *_sm90a.cu are for Hopper alone.
function(cmoe_add_fatbin target source)
    cmake_path(GET source STEM stem)
    set(arch ${CMOE_CUDA_PORTABLE})
    if(stem MATCHES "_sm90a$")
        set(arch ${CMOE_CUDA_HOPPER})
    endif()
    set(fatbin ${PROJECT_BINARY_DIR}/cuda/${stem}.fatbin)
    if(CMOE_CUDA STREQUAL "HOST") # nothing a GPU could load
        file(CONFIGURE OUTPUT ${fatbin} CONTENT "" @ONLY)
    else()
        add_custom_command(OUTPUT ${fatbin}
            COMMAND ${PROJECT_SOURCE_DIR}/tools/nvcc_checked.sh ${CMOE_NVCC} -fatbin ${arch}
                ${CMOE_NVCC_FLAGS} -I${PROJECT_SOURCE_DIR}/src -I${PROJECT_SOURCE_DIR}/include
                -MD -MT ${fatbin} -MF ${fatbin}.d -o ${fatbin} ${source}
            DEPENDS ${source} ${PROJECT_SOURCE_DIR}/tools/nvcc_checked.sh
            DEPFILE ${fatbin}.d COMMENT "nvcc ${stem}.cu" VERBATIM)
    endif()
    set(assembly ${PROJECT_BINARY_DIR}/cuda/${stem}.S)
    file(CONFIGURE OUTPUT ${assembly} CONTENT [=[
    .section .rodata
    .balign 64
    .globl cmoe__fatbin_@stem@
    .hidden cmoe__fatbin_@stem@
cmoe__fatbin_@stem@:
    .incbin "@fatbin@"
    .globl cmoe__fatbin_@stem@_end
    .hidden cmoe__fatbin_@stem@_end
cmoe__fatbin_@stem@_end:
    .byte 0
    .section .note.GNU-stack,"",%progbits
]=] @ONLY)
    set_source_files_properties(${assembly} PROPERTIES OBJECT_DEPENDS ${fatbin})
    target_sources(${target} PRIVATE ${assembly})
endfunction()
