"""Files that are written tensor by tensor are what the safetensors library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from llmcheck.errors import UserError
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
    with pytest.raises(UserError, match="complex128") as refused:
        shards.Shards(str(tmp_path), [("z", torch.zeros(2, dtype=torch.complex128))])
    assert (refused.value.code, refused.value.where) == ("export", "z")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", sorted(shards._TYPES, key=str), ids=str)
def test_each_type_is_read_back_as_it_was(kind: torch.dtype, tmp_path: Path) -> None:
    """All bits, and the shape: of two dimensions, one and none, which two numbers in a byte cannot have."""
    number = kind.itemsize * 15
    numbers = torch.arange(number, dtype=torch.uint8) * 17
    flat = (numbers % 2 if kind == torch.bool else numbers).view(kind)
    tensors = {"a": flat.view(3, 5), "b": flat[3:10]} | ({} if "float4" in str(kind) else {"c": flat[4]})
    written = shards.Shards(str(tmp_path), tensors.items())
    written.create()
    for name, tensor in tensors.items():
        written.add(name, tensor)
    written.finish()
    read = {name: reader() for name, reader in weights.readers(str(tmp_path)).items()}

    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert shards.sum_of_bytes(read[name]) == shards.sum_of_bytes(tensor)
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
