# Flags that every target shares: warnings, sanitizers, floating point.
#
# cmoe_target(<target> [STRICT]): STRICT adds the warnings that library code must pass and tests need not.

set(CMOE_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes
    -Wswitch-enum -Wvla -Wundef -Wcast-align -Wwrite-strings -Wformat=2)
# gcc's guesses at lengths: messages and paths are cut by snprintf on purpose, and callers check.
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
    list(APPEND CMOE_WARNINGS -Wno-format-truncation)
endif()
# -Wconversion brings -Wsign-conversion in C, which fires on every size_t index made from an int32_t count.
set(CMOE_WARNINGS_STRICT -Wconversion -Wno-sign-conversion -Wnull-dereference)
if(CMOE_WERROR)
    list(APPEND CMOE_WARNINGS -Werror)
endif()

# The same bits from every compiler and build type: no contraction of a*b+c into one rounding.
set(CMOE_NUMERIC -ffp-contract=off -fno-math-errno)

set(CMOE_LINK_STRICT -Wl,--no-undefined)
if(CMOE_SANITIZE)
    set(CMOE_LINK_STRICT "") # clang leaves the sanitizer runtime to the executable
    # -g1: the lines that reports name; the rest of debug information takes a third of the compiler's time.
    add_compile_options(-fsanitize=${CMOE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
    add_link_options(-fsanitize=${CMOE_SANITIZE})
endif()

function(cmoe_target target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "STRICT" "" "")
    target_compile_options(${target} PRIVATE ${CMOE_WARNINGS} ${CMOE_NUMERIC})
    if(arg_STRICT)
        target_compile_options(${target} PRIVATE ${CMOE_WARNINGS_STRICT})
    endif()
    # -std=c11 hides POSIX; debug builds check the workspace's redzones.
    target_compile_definitions(${target} PRIVATE _GNU_SOURCE $<$<CONFIG:Debug>:CMOE_DEBUG=1>)
endfunction()
