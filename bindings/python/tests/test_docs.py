# SPDX-License-Identifier: MIT
"""Every example of docs/python.md runs, each in a process of its own."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"### ([^\n]+)\n\n```python\n(.*?)```", TEXT, re.S)


def test_there_are_five():
    assert len(EXAMPLES) == 5 and TEXT.count("```python") == 5


@pytest.mark.parametrize("title, code", EXAMPLES, ids=[t for t, _ in EXAMPLES])
def test_example(title, code, tmp_path):
    for name in ("numpy", "torch", "transformers"):
        if re.search(rf"^(import|from) {name}\b", code, re.M):
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"{name} is not installed")
    if "cmoe.torch" in code or "transformers" in code:
        import torch

        if not hasattr(torch.library, "register_fake"):
            pytest.skip("operators need torch 2.4")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    env = dict(os.environ)
    if not env.get("CMOE_TEST_INSTALLED"):
        env["PYTHONPATH"] = str(ROOT / "bindings" / "python")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=env,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
