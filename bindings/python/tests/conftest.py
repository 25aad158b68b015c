# SPDX-License-Identifier: MIT
"""The package under test is the source tree's unless cmoe is installed or CMOE_TEST_INSTALLED is set.

Hypothesis runs without a deadline: the machine may be busy. Nothing is skipped silently: missing
packages are listed at the end of the run.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

if not os.environ.get("CMOE_TEST_INSTALLED"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", tempfile.mkdtemp(prefix="cmoe-hypothesis-"))

from hypothesis import settings  # noqa: E402

settings.register_profile("cmoe", deadline=None, max_examples=25, print_blob=True, database=None)
settings.load_profile("cmoe")

OPTIONAL = ("numpy", "ml_dtypes", "torch", "transformers", "jax", "vllm")


def pytest_terminal_summary(terminalreporter):
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    if missing:
        terminalreporter.write_line(
            "not installed, so what needs them was skipped: " + ", ".join(missing)
        )
