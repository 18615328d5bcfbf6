"""Checkpoints of a training run: plain arrays in one `.npz`, written beside and renamed, never pickled.

What is stored is enough to go on as if nothing had happened: weights, optimiser moments, the generator's state, and
where in which epoch the run stood.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.errors import CheckpointError


def save(path: Path, *, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes arrays and JSON facts so that a crash leaves either the old file or the new one."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("wb") as out:
            np.savez(
                out, allow_pickle=False, **{"facts.json": np.frombuffer(json.dumps(facts).encode(), np.uint8)}, **arrays
            )
            out.flush()
            os.fsync(out.fileno())
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and facts of a checkpoint.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}; start without --resume")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored.items())
        return arrays, json.loads(arrays.pop("facts.json").tobytes())
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); start afresh with --overwrite") from error


def state_of(model: torch.nn.Module, optimiser: torch.optim.Adam) -> dict[str, np.ndarray]:
    """Weights, Adam moments and the state of torch's generator as arrays."""
    arrays = {f"model/{name}": t.detach().cpu().numpy() for name, t in model.state_dict().items()}
    for at, moments in optimiser.state_dict()["state"].items():
        arrays |= {f"adam/{at}/{name}": np.asarray(value) for name, value in moments.items()}
    arrays["generator"] = torch.get_rng_state().numpy()
    return arrays


def restore(arrays: Mapping[str, np.ndarray], model: torch.nn.Module, optimiser: torch.optim.Adam | None) -> None:
    """Puts a stored state back.

    Raises:
        CheckpointError: the arrays belong to a model of other shapes.
    """
    state = {
        name.removeprefix("model/"): torch.from_numpy(a.copy())
        for name, a in arrays.items()
        if name.startswith("model/")
    }
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint is of another model: {error}") from error
    if optimiser is None:
        return
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        if name.startswith("adam/"):
            _, at, part = name.split("/")
            moments.setdefault(int(at), {})[part] = torch.from_numpy(array.copy())
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    torch.set_rng_state(torch.from_numpy(arrays["generator"].copy()))
