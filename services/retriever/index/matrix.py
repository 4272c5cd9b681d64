"""Matrices that are filled on disk, their room taken beforehand."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


def new_matrix(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> Any:
    """An .npy file of zeros, mapped to be written.

    Raises OSError if the disk has no room for it: a page that finds none when it is written kills the process (SIGBUS).
    """
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return matrix
