#!/usr/bin/env bash
# check_python.sh [pytest option...]: build the wheel, install it into build/python, run its tests.
#
# The environment is made anew when missing: from Debian's python3 with its python3-torch where that is
# installed, else from python3; numpy, ml_dtypes, pytest and hypothesis come from PyPI, and torch from
# PyTorch's index of CPU builds where it can be reached (PyPI's own is a CUDA build of gigabytes).
# CMOE_PYTHON names an interpreter to use as it is instead, with the source tree and build/release.
# What is missing is listed before the last line, which is pytest's summary.
set -eu
cd "$(dirname "$0")/.."

venv=build/python
log=build/check-python.log
mkdir -p build

prepare() {
    local base=python3 numpy=numpy
    if /usr/bin/python3 -c 'import torch, venv, ensurepip' 2>/dev/null; then
        base=/usr/bin/python3
        numpy='numpy<2' # what Debian's torch was built for
    fi
    if [ ! -x $venv/bin/python ]; then "$base" -m venv --system-site-packages $venv; fi
    $venv/bin/pip install --quiet ml_dtypes pytest hypothesis "$numpy"
    timeout 300 $venv/bin/pip install --quiet --retries 1 jax "$numpy" || true # 150 MB
    if ! $venv/bin/python -c 'import torch' 2>/dev/null; then
        timeout 300 $venv/bin/pip install --quiet --retries 0 --timeout 20 torch \
            --index-url https://download.pytorch.org/whl/cpu || true
    fi
    if $venv/bin/python -c 'import torch; assert hasattr(torch.library, "register_fake")' 2>/dev/null; then
        timeout 300 $venv/bin/pip install --quiet 'transformers>=5' || true
    fi
    # Tests without a GPU need no GPU kernels, which take most of the build.
    $venv/bin/pip install --quiet --force-reinstall --no-deps \
        --config-settings cmake.define.CMOE_CUDA=OFF .
}

if [ -n "${CMOE_PYTHON:-}" ]; then
    python=$CMOE_PYTHON
    if [ ! -e build/release/libcmoe.so ]; then
        { cmake --preset release && cmake --build build/release --target cmoe_shared; } >$log 2>&1
    fi
else
    python=$PWD/$venv/bin/python
    export CMOE_TEST_INSTALLED=1
    prepare >$log 2>&1 || {
        tail -n 20 $log
        echo "check_python: the environment could not be made: $log"
        echo "0 passed, 1 failed"
        exit 1
    }
    find bindings/python -name __pycache__ -prune -exec rm -rf {} +
fi
timeout "${CMOE_PYTHON_LIMIT:-600}" "$python" -m pytest -q -rs -p no:cacheprovider \
    -W ignore::DeprecationWarning bindings/python/tests "$@"
