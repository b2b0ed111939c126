"""Covariances that others have published: sums of k kT in NumPy's .npz, read without pickle."""

import io
import math
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from rome_lens.checking import check_whole, checked
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.storage import existing_file, foreign

_SUM, _COUNT = "mom2.mom2", "mom2.count"
_LAYER = re.compile(r"\.(\d+)\.")  # transformer.h.17.mlp.c_proj_float32_mom2_100000.npz
_MOST_COMPRESSED = 64  # times smaller than what it holds: a matrix of numbers is hardly smaller at all


@checked
def load_published_covariance(
    path: str | os.PathLike[str], *, layer: int | None = None, model: str = "", corpus: str = ""
) -> KeyCovariance:
    """The covariance in a file that ROME's code wrote (kmeng01/rome, util/runningstats.py), as EasyEdit's does, too.

    The file holds the sum of k kT and how many keys it is of. Nothing tells which model they are of: no probe, so that
    `rome` can only compare the width.

    Args:
        path: an .npz file, such as `transformer.h.17.mlp.c_proj_float32_mom2_100000.npz`.
        layer: the block; None: the number in the file's name.
        model: name of the model, kept with the result.
        corpus: what text it was; "": the names of the file and of its folder, which the authors' code calls after it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the layer is not given and not in the file's name.
        FormatError: the file is damaged, is something else, or can only be read by running a pickle.
        CovarianceError: the matrix is not symmetric or not finite.
    """
    check_whole(least=0, layer=layer)
    path = existing_file(path, "an .npz file with the sum of k kT")
    if layer is None:
        found = _LAYER.search(path.name)
        if found is None:
            raise ValueError(f"layer is None, and the name {path.name} holds none, expected layer=17, say.")
        layer = int(found[1])
    with foreign(path, "holds no sum of k kT as ROME's code writes it", "Pickled files (.pt) are never read."):
        total, tokens = _read(path)
        mean = (torch.from_numpy(total).double() / tokens).float()
    told = corpus or f"{path.absolute().parent.name}/{path.name}"
    return KeyCovariance.from_matrix(mean, layer=layer, tokens=tokens, model=model, corpus=told)


def _read(path: Path) -> tuple[np.ndarray, int]:
    """The sum, and how many keys it is of. Raises ValueError if they are not there as plain numbers."""
    with zipfile.ZipFile(path) as archive:
        if missing := {_SUM, _COUNT} - {name.removesuffix(".npy") for name in archive.namelist()}:
            raise ValueError(f"it lacks {sorted(missing)} and has {archive.namelist()}")
        count, total = (_array(archive, name, most=_MOST_COMPRESSED * path.stat().st_size) for name in (_COUNT, _SUM))
    if total.ndim != 2 or total.dtype.kind != "f":
        raise ValueError(f"{_SUM} is {total.dtype} of shape {list(total.shape)}, expected floats [d_mlp, d_mlp]")
    if count.size != 1 or count.dtype.kind not in "iu" or not 1 <= count.item() < 2**63:
        raise ValueError(f"{_COUNT} is {str(count)[:40]}, expected how many keys there are")
    return total, int(count.item())


def _array(archive: zipfile.ZipFile, name: str, *, most: int) -> np.ndarray:
    """An array of the archive. Its checksum is compared, and memory is asked for after its size is known to be true."""
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > most:
        raise ValueError(f"{name} would take {member.file_size} bytes")
    raw = archive.read(member)
    stream = io.BytesIO(raw)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is in a newer format than NumPy writes for numbers")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    data = memoryview(raw)[stream.tell() :]
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{name} is {dtype} of shape {list(shape)} in {len(data)} bytes")
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if by_columns else "C")
