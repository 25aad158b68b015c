# The front door. Each target first makes sure that the packages it needs are installed.
# Options go through ARGS: make test ARGS='-R sort' (ctest), make bench ARGS='--help'; those of CMake through
# OPTIONS: make demo OPTIONS=-DCMOE_CUDA=OFF.

PREFIX ?= /usr/local
SETUP = @tools/setup.sh
JOBS ?= $(shell nproc)
define build
	$(SETUP) $(2)
	@cmake --preset $(1) $(3) $(OPTIONS) >/dev/null
	@cmake --build build/$(1) -j $(JOBS) $(4)
endef

.PHONY: all demo check check-python test asan ubsan tsan arm64 fuzz fuzz-long bench fmt install clean

all:
	$(call build,release,build,-DCMAKE_INSTALL_PREFIX=$(PREFIX))
demo: all
	@if [ -x tools/demo.sh ]; then tools/demo.sh build/release; else echo "no demo yet"; exit 1; fi
check:
	$(SETUP) check
	@tools/check.sh
check-python:
	$(SETUP) build
	@tools/check_python.sh $(ARGS)
test asan ubsan tsan arm64: preset = $(if $(filter test,$@),dev,$@)
test asan ubsan tsan arm64:
	$(call build,$(preset),check)
	@ctest --test-dir build/$(preset) --output-on-failure -j $(JOBS) $(ARGS)
fuzz fuzz-long:
	$(call build,asan,check,,--target fuzz_targets)
	@tools/fuzz.sh build/asan $(if $(filter %-long,$@),runs=10000000,$(SECONDS)) $(ARGS)
bench: all
	@build/release/cmoe bench $(ARGS)
fmt:
	$(SETUP) check
	@git ls-files -z '*.c' '*.h' | xargs -0r clang-format -i
install: all
	@cmake --install build/release --prefix $(PREFIX)
clean:
	rm -rf build
