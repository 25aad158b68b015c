#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write tests/vectors/npy with NumPy: what cmoe_npy_read must read and cmoe_npy_write must equal.

Run in an environment that has numpy: python3 tools/gen_npy_vectors.py
"""
import pathlib

import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "vectors" / "npy"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for dtype in ("f4", "f2", "u2", "i4", "i8", "i1", "u1"):
        values = np.arange(24).reshape(2, 3, 4) * 5 - (0 if dtype[0] == "u" else 60)
        np.save(OUT / f"{dtype}.npy", values.astype(dtype))
    np.save(OUT / "scalar.npy", np.float32(2.5))
    np.save(OUT / "vector.npy", np.arange(7, dtype="i4"))
    np.save(OUT / "empty.npy", np.zeros((3, 0, 2), dtype="f4"))
    np.save(OUT / "fortran.npy", np.asfortranarray(np.ones((2, 3), dtype="f4")))
    np.save(OUT / "double.npy", np.ones(2))
    np.save(OUT / "object.npy", np.array([None, 1], dtype=object), allow_pickle=True)
    for version in ((2, 0), (3, 0)):
        with open(OUT / f"version{version[0]}.npy", "wb") as file:
            np.lib.format.write_array(file, np.arange(5, dtype="i4"), version=version)


main()
