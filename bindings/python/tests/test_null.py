# SPDX-License-Identifier: MIT
"""Every public function of the C libraries, called with nothing but zeros: a NULL object is refused or
answered with nothing (cmoe/cmoe.h), never followed. A library's calls are made in a process of their own; the
test sees crashes, not what was answered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cmoe._lib import path

ROOT = Path(__file__).resolve().parents[3]
NOTHING = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
library = ctypes.CDLL(sys.argv[2])
for name in sys.argv[3:]:
    print(name, flush=True)
    function = getattr(library, name)
    function.restype = None
    function(*[ctypes.c_int64(0)] * 12)
print("done")
"""


def symbols(listed):
    return [name for name in (ROOT / "tests/abi" / listed).read_text().split() if name]


@pytest.mark.parametrize("stem, listed", [("libcmoe", "symbols.txt"), ("libcmoe-io", "symbols-io.txt")])
def test_nothing_is_never_followed(stem, listed):
    if not (ROOT / "tests/abi").is_dir():
        pytest.skip("the lists of symbols are in the source tree only")
    core = Path(path)
    library = core.with_name(core.name.replace("libcmoe", stem))
    if not library.exists():
        pytest.skip(f"no {library}")
    names = symbols(listed)
    assert len(names) > 20
    ran = subprocess.run(
        [sys.executable, "-c", NOTHING, str(core), str(library), *names],
        capture_output=True,
        text=True,
        env=dict(os.environ, LD_LIBRARY_PATH=str(core.parent)),
    )
    called = ran.stdout.split() or ["nothing"]
    assert ran.returncode == 0 and called[-1] == "done", f"{called[-1]}(0, ...) ended with {ran.returncode}"
