# One plain source, several instruction sets: each file of src/backends/cpu/isa is compiled once per
# entry of CMOE_ISAS, with CMOE_ISA=<isa> and CMOE_ISA_<ISA>=1 defined, as object files.
#
# -ffp-contract=off holds here too: a file that wants fused multiply-add says so with intrinsics.

set(CMOE_ISAS generic)
set(CMOE_ISA_FLAGS_generic "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    list(APPEND CMOE_ISAS avx2 avx512)
    set(CMOE_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
    set(CMOE_ISA_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c
        -mprefer-vector-width=512)
    # An extension of another set: only the files that gain by it are compiled again.
    set(CMOE_ISA_FLAGS_avx512vnni ${CMOE_ISA_FLAGS_avx512} -mavx512vnni -DCMOE_ISA_AVX512=1)
    set(CMOE_ISA_FILES_avx512vnni ops_quant.c)
    set(CMOE_ISA_FLAGS_avx512bf16 ${CMOE_ISA_FLAGS_avx512} -mavx512bf16 -mavx512vbmi
        -DCMOE_ISA_AVX512=1)
    set(CMOE_ISA_FILES_avx512bf16 tile/bf16.c)
    set(CMOE_ISA_FLAGS_amx ${CMOE_ISA_FLAGS_avx512} -mavx512bf16 -mavx512vbmi -mamx-tile
        -mamx-bf16 -mamx-int8 -DCMOE_ISA_AVX512=1)
    set(CMOE_ISA_FILES_amx tile/amx.c)
    list(APPEND CMOE_ISAS avx512vnni avx512bf16 amx)
endif()

# cmoe_sanitize_unrolled(<target>): what keeps unrolled vector loops from taking clang minutes and gigabytes:
# loops that are not unrolled, less of UBSan, and AddressSanitizer's checks as calls.
function(cmoe_sanitize_unrolled target)
    if(CMOE_SANITIZE)
        target_compile_definitions(${target} PRIVATE CMOE_ROLLED=1)
    endif()
    if(CMOE_SANITIZE MATCHES "undefined")
        # What these would find of an address, AddressSanitizer finds.
        target_compile_options(${target} PRIVATE
            -fno-sanitize=alignment,bounds,null,object-size,pointer-overflow)
    endif()
    if(CMOE_SANITIZE MATCHES "address" AND CMAKE_C_COMPILER_ID MATCHES "Clang")
        target_compile_options(${target} PRIVATE "SHELL:-mllvm -asan-instrumentation-with-call-threshold=0")
    endif()
endfunction()

# cmoe_add_isa(<target> <isa> <source>...)
function(cmoe_add_isa target isa)
    string(TOUPPER ${isa} upper)
    set(sources ${ARGN})
    if(CMOE_ISA_FILES_${isa})
        list(TRANSFORM CMOE_ISA_FILES_${isa} PREPEND ${PROJECT_SOURCE_DIR}/src/backends/cpu/isa/
            OUTPUT_VARIABLE sources)
    endif()
    add_library(${target} OBJECT ${sources})
    target_compile_options(${target} PRIVATE ${CMOE_ISA_FLAGS_${isa}})
    cmoe_sanitize_unrolled(${target})
    target_compile_definitions(${target} PRIVATE CMOE_ISA=${isa} CMOE_ISA_${upper}=1)
endfunction()
