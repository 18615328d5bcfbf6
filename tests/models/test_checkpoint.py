"""What a checkpoint brings back, and which files are refused as one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint
from models.errors import CheckpointError


def step(model: torch.nn.Module, optimiser: torch.optim.Adam) -> None:
    """One step on random data, so that the generator matters."""
    optimiser.zero_grad()
    model(torch.randn(4, 3)).square().mean().backward()
    optimiser.step()


def made() -> tuple[torch.nn.Module, torch.optim.Adam]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def test_a_restored_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, optimiser = made()
    step(model, optimiser)
    checkpoint.save(tmp_path / "c.npz", arrays=checkpoint.state_of(model, optimiser), facts={"epoch": 1, "name": "é"})
    step(model, optimiser)

    torch.manual_seed(99)
    again, its_optimiser = made()
    arrays, facts = checkpoint.load(tmp_path / "c.npz")
    checkpoint.restore(arrays, again, its_optimiser)
    step(again, its_optimiser)
    assert facts == {"epoch": 1, "name": "é"}
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_alone_can_be_restored(tmp_path: Path) -> None:
    model, _ = made()
    checkpoint.save(
        tmp_path / "c.npz", arrays={f"model/{n}": t.numpy() for n, t in model.state_dict().items()}, facts={}
    )
    again, _ = made()
    checkpoint.restore(checkpoint.load(tmp_path / "c.npz")[0], again, None)
    assert torch.equal(again[0].weight, model[0].weight)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_checkpoint_is_refused_with_the_remedy(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.npz"
    checkpoint.save(path, arrays=checkpoint.state_of(*made()), facts={})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"c\.npz cannot be read .*--overwrite"):
        checkpoint.load(path)


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    checkpoint.save(path, arrays={"model/a": np.zeros(1000)}, facts={})
    bytes_ = bytearray(path.read_bytes())
    bytes_[4000] ^= 1
    path.write_bytes(bytes_)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", **{"facts.json": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "c.npz")


def test_a_missing_checkpoint_says_what_to_leave_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="start without --resume"):
        checkpoint.load(tmp_path / "c.npz")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.npz", arrays=checkpoint.state_of(*made()), facts={})
    other = torch.nn.Sequential(torch.nn.Linear(3, 5))
    with pytest.raises(CheckpointError, match="of another model"):
        checkpoint.restore(checkpoint.load(tmp_path / "c.npz")[0], other, None)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.npz"
    checkpoint.save(path, arrays={"model/a": np.zeros(3)}, facts={"epoch": 1})

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, arrays={"model/a": np.ones(3)}, facts={"epoch": 2})
    assert checkpoint.load(path)[1] == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
