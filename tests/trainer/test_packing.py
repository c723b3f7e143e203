"""Packing: best fit, and no family that is packed lets one row see another."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import ROOT as REPOSITORY
from rig import SEQ, VOCAB, make_data, some_rows
from transformers import AutoConfig, AutoModelForCausalLM

from llmcheck_trainer import bloom, loss
from llmcheck_trainer.data import Prepared, Shape, Stream
from llmcheck_trainer.packing import best_fit
from llmcheck_trainer.placement import PACKED, block_mask


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 80), st.integers(0, 3))
def test_every_row_is_packed_once_and_none_overflows(lengths: list[int], capacity: int, seed: int) -> None:
    packs = best_fit(np.array(lengths, dtype=np.int64), capacity, seed)

    assert sorted(packs.rows.tolist()) == list(range(len(lengths)))
    sizes = [sum(lengths[row] for row in packs.rows[a:b]) for a, b in zip(packs.starts[:-1], packs.starts[1:], strict=True)]
    assert all(0 < size <= capacity for size in sizes)
    # Best-fit decreasing is within 11/9 of the best possible, plus one (Johnson 1974), and no two sequences could be one.
    assert len(sizes) <= 11 / 9 * max(-(-sum(lengths) // capacity), 0) + 1 + sum(2 * n > capacity for n in lengths)
    assert len(sizes) < 2 or sum(sorted(sizes)[:2]) > capacity


def test_the_waste_is_small_on_usual_lengths() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.0, 0.8, 20_000), 8, 2048).astype(np.int64)
    packs = best_fit(lengths, 2048, 0)

    assert lengths.sum() / ((len(packs.starts) - 1) * 2048) > 0.99


def test_packing_is_the_same_each_time_and_another_with_another_seed() -> None:
    lengths = np.random.default_rng(1).integers(1, 64, 500)

    assert best_fit(lengths, 64, 5).rows.tolist() == best_fit(lengths, 64, 5).rows.tolist()
    assert best_fit(lengths, 64, 5).rows.tolist() != best_fit(lengths, 64, 6).rows.tolist()


def tiny(family: str) -> torch.nn.Module:
    """A model of the oracle's small configuration for the family."""
    entry = json.loads((REPOSITORY / "benchmarks" / "oracle" / "families.json").read_text())[family]
    config = AutoConfig.for_model(entry["family"], **entry["config"])
    for name in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "embed_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config._attn_implementation = "eager" if family in ("bloom", "codegen", "gpt_neo", "gptj") else "sdpa"  # these know no other
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    if family == "bloom":
        bloom.install(model)
    loss.install(model, "chunked")
    return model.eval()


@pytest.mark.parametrize("family", sorted(PACKED))
def test_packed_and_unpacked_gradients_agree(family: str) -> None:
    model = tiny(family)
    vocab = model.config.vocab_size
    lengths = (7, 1, 12, 5)
    rows = [torch.randint(0, vocab, (1, n)) for n in lengths]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    labels = torch.cat(rows, dim=1).clone()
    labels[positions == 0] = loss.IGNORED
    inputs = {"input_ids": torch.cat(rows, dim=1), "position_ids": positions, "labels": labels}
    if family != "bloom":
        inputs["attention_mask"] = block_mask(positions, torch.float32)
    packed = model(**inputs).loss
    packed.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = sum(model(input_ids=row, labels=row.clone()).loss for row in rows if row.shape[1] > 1)
    alone.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * max(scale, 1.0), name


def test_naive_concatenation_would_be_seen(tmp_path: object) -> None:
    """The test above can fail: without the mask, rows see each other."""
    model = tiny("llama")
    rows = [torch.randint(0, model.config.vocab_size, (1, 9)) for _ in range(2)]
    together = model(input_ids=torch.cat(rows, dim=1)).logits[:, 9:]

    assert float((together - model(input_ids=rows[1]).logits).abs().max()) > 1e-4


def test_a_packed_batch_has_each_rows_tokens_labels_and_positions(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = some_rows(12, seed=3)
    data = Prepared(str(make_data(tmp_path / "data", rows)))
    stream = Stream(data, SEQ, Shape(2, 1, 1, 0), packing=True, seed=0, pad_id=3, full_length=False)
    seen = []
    for position in range(0, len(stream), 2):
        stream.limit = len(stream)
        (batch,), supervised, tokens = stream.step(position)
        ids, labels, positions = (batch.inputs[name] for name in ("input_ids", "labels", "position_ids"))
        assert ids.shape == (2, SEQ)
        assert int((labels != loss.IGNORED).sum()) == supervised
        assert batch.num_tokens == tokens
        starts = (positions == 0).nonzero().tolist()
        for (line, start), (next_line, end) in zip(starts, [*starts[1:], [-1, 0]], strict=True):
            row = ids[line, start : end if next_line == line else SEQ].tolist()
            if row[0] == 3:
                continue  # padding
            seen.append(row)
            half = len(row) // 2
            assert labels[line, start : start + len(row)].tolist() == [loss.IGNORED] * max(half, 1) + row[max(half, 1) :]
    assert sorted(seen) == sorted(rows)
    assert max(max(row) for row in rows) < VOCAB
