# SPDX-License-Identifier: MIT
"""The binding itself: struct mirrors, names, errors, commands, foreign arrays."""

import ctypes
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import cmoe
from cmoe import _abi, errors, problem, tensors
from cmoe._lib import enumerate_names, lib

np = pytest.importorskip("numpy")


def test_a_stale_mirror_is_refused(monkeypatch):
    class Short(ctypes.Structure):
        _fields_ = _abi.Matrix._fields_[:-1]

    monkeypatch.setitem(_abi.MIRRORS, "cmoe_matrix", (Short, ()))
    with pytest.raises(cmoe.LibraryError, match="cmoe_matrix is 64 there and 56 here"):
        _abi.verify(lib, "libcmoe.so")


def test_abi_size_of_an_unknown_name_is_the_largest_size():
    assert lib.abi_size(b"cmoe_nothing") == ctypes.c_size_t(-1).value
    assert lib.abi_size(None) == ctypes.c_size_t(-1).value


def test_mirrors_see_what_the_library_wrote():
    p = cmoe.Problem("t=7 e=5 k=2 h=96 i=64 first=1 local=3 hpad=2 ipad=1 eps=0.5 scale=2 limit=3")
    c = p.c
    assert (c.max_tokens, c.experts, c.topk, c.hidden, c.inter) == (7, 5, 2, 96, 64)
    assert (c.expert_first, c.expert_count, c.hidden_pad, c.inter_pad) == (1, 3, 2, 1)
    assert (c.renorm_eps, c.route_scale, c.act_limit) == (0.5, 2, 3)
    assert p.slots == 2 and p.local_experts == 3


def test_scaling_names_are_in_the_library_order():
    formats = {"none": "bf16", "tensor": "e4m3/tensor", "token": "e4m3/token",
               "smooth": "i8/smooth", "g": "e4m3/g128", "mx32": "e2m1/mx32",
               "nv16": "e2m1/nv16"}  # fmt: skip
    for name, text in formats.items():
        assert problem.scaling_of(cmoe.Problem(f"x={text}").c.x) == name
    for name, text in {"channel": "i8/channel", "b128": "e4m3/b128"}.items():
        assert problem.scaling_of(cmoe.Problem(f"w={text}").c.w) == name


def test_every_status_has_a_class_of_its_own():
    classes = set(errors.BY_STATUS.values())
    assert len(classes) == 11
    assert all(issubclass(c, cmoe.Error) for c in classes)
    assert issubclass(cmoe.InvalidError, ValueError)


def test_errors_carry_the_sentence():
    with pytest.raises(cmoe.InvalidError, match="there is no key nonsense"):
        cmoe.Problem("nonsense=1")
    with pytest.raises(cmoe.NoDeviceError):
        from cmoe.runtime import device

        device("cuda:99")


def test_errors_of_two_threads_do_not_mix():
    seen = {}

    def fail(word):
        for _ in range(200):
            try:
                cmoe.Problem(f"{word}=1")
            except cmoe.InvalidError as error:
                seen.setdefault(word, set()).add(str(error))

    threads = [threading.Thread(target=fail, args=(w,)) for w in ("left", "right")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(len(v) == 1 and w in next(iter(v)) for w, v in seen.items())


def test_errors_can_be_pickled():
    assert str(pickle.loads(pickle.dumps(cmoe.InvalidError("why")))) == "why"


def test_problems_compare_by_their_line():
    a, b = cmoe.Problem("e=4 k=2 h=8 i=8"), cmoe.Problem("i=8,h=8,k=2,e=4")
    assert a == b and hash(a) == hash(b) and a != a.copy("renorm")


def test_check_covers_every_scheme():
    result = cmoe.check("ref")
    assert result["ok"] == enumerate_names(lib.scheme_name)
    assert len(cmoe.check("cpu")["ok"]) >= 3


def test_info_names_the_library():
    facts = cmoe.info()
    assert facts["version"] == cmoe.__version__
    assert Path(facts["library"]).name.startswith("libcmoe.so")


@pytest.mark.parametrize("command", [["info"], ["check"], ["bench", "e=4 k=2 h=64 i=32",
                                                           "--tokens", "1", "9", "--runs", "3"]])
def test_command(command):
    done = subprocess.run([sys.executable, "-m", "cmoe", *command], capture_output=True, text=True,
                          cwd=Path(cmoe.__file__).parents[1])  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = {"info": "version", "check": "agree with the specification", "bench": "tokens"}
    assert expected[command[0]] in done.stdout


def test_a_reader_that_goes_away_is_no_traceback():
    with subprocess.Popen([sys.executable, "-m", "cmoe", "info"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True,
                          cwd=Path(cmoe.__file__).parents[1]) as run:  # fmt: skip
        run.stdout.close()
        assert run.stderr.read() == ""


def test_importing_cmoe_imports_neither_numpy_nor_torch():
    code = "import sys, cmoe; cmoe.check(); assert not {'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cmoe.__file__).parents[1])


def test_a_missing_library_says_where_it_looked():
    code = "import cmoe"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(cmoe.__file__).parents[1],
                          env={"CMOE_LIBRARY": "/nowhere/libcmoe.so", "PATH": ""})  # fmt: skip
    assert done.returncode != 0 and "/nowhere/libcmoe.so" in done.stderr


class OnlyDlpack:
    """An array that is known only through the protocol."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_view():
    a = np.arange(12, dtype=np.float32).reshape(3, 4)[:, :3]
    v = tensors.view(OnlyDlpack(a))
    assert (v.dtype, v.shape, v.strides, v.device) == ("f32", (3, 3), (4, 1), "cpu")
    assert ctypes.c_float.from_address(v.ptr + 4 * 5).value == 5.0
    with pytest.raises(cmoe.InvalidError, match="no element type"):
        tensors.view(OnlyDlpack(np.zeros(2, np.complex64)))
    with pytest.raises(cmoe.InvalidError, match="expected a NumPy array"):
        tensors.view([1, 2])


def test_views_of_numpy_types():
    assert tensors.view(np.zeros(2, np.uint16)).dtype == "u16"
    with pytest.raises(cmoe.InvalidError, match="complex64"):
        tensors.view(np.zeros(2, np.complex64))
    with pytest.raises(cmoe.InvalidError):
        tensors.view(np.zeros(2, ">f4"))
