"""Files that are written tensor by tensor are what the safetensors library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from llmcheck_trainer import shards, weights

TENSORS = {
    "a.odd": torch.tensor([True, False, True]),
    "a.half": torch.randn(7, 5).to(torch.bfloat16),
    "b.single": torch.randn(11),
    "b.turned": torch.randn(6, 4).t(),
    "c.number": torch.tensor(3, dtype=torch.int64),
    "c.nothing": torch.empty(0, 4),
    "d.long": torch.randn(300).to(torch.float16),
}


@pytest.mark.parametrize("limit", [1 << 30, 200])
def test_files_written_by_the_tensor_are_safetensors(limit: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", limit)
    monkeypatch.setattr(shards, "BLOCK_BYTES", 64)
    written = shards.Shards(str(tmp_path), TENSORS.items())
    written.create()
    for name in reversed(TENSORS):
        written.add(name, TENSORS[name])
    written.finish()
    read = {name: reader() for name, reader in weights.readers(str(tmp_path)).items()}

    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if limit > 200 else 3)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name
        path, number = written.sums[name]
        with safe_open(path, framework="pt") as file:
            assert shards.sum_of_bytes(file.get_tensor(name)) == number


def test_a_tensor_that_was_not_announced_so_is_refused(tmp_path: Path) -> None:
    written = shards.Shards(str(tmp_path), TENSORS.items())
    written.create()

    with pytest.raises(ValueError, match=r"b\.single is \(12,\)"):
        written.add("b.single", torch.zeros(12))
    with pytest.raises(ValueError, match="another is not among"):
        written.add("another", torch.zeros(12))
    with pytest.raises(ValueError, match=r"a\.half was not written"):
        written.finish()


def test_a_type_that_the_format_does_not_have_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="complex64"):
        shards.Shards(str(tmp_path), [("z", torch.zeros(2, dtype=torch.complex64))])
