"""``llmcheck models``: the list, one model, and both as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from llmcheck.catalog.models import all_models
from llmcheck.commands.models import configure, run
from llmcheck.errors import UserError


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    parser = argparse.ArgumentParser()
    configure(parser)
    assert run(parser.parse_args(argv)) == 0
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    return json.loads(answer(capsys, *argv, "--format", "json"))


def test_the_list_has_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    lines = answer(capsys).splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == [entry.name for entry in all_models()]
    assert lines[-1].startswith(f"{len(all_models())} models;")


def test_no_line_is_wider_than_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, answer(capsys).splitlines())) <= 100


def test_a_family_is_picked(capsys: pytest.CaptureFixture[str]) -> None:
    models = document(capsys, "--family", "bloom")["models"]
    assert [m["name"] for m in models] == ["bloomz-560m", "bloomz-1b1", "bloomz-1b7", "bloomz-3b", "bloomz-7b1", "bloomz-176b"]


def test_an_unknown_family_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no model of family 'blom'") as error:
        answer(capsys, "--family", "blom")
    assert error.value.hint.startswith("did you mean 'bloom'")


def test_a_part_of_a_name_lists_those_that_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert {m["name"] for m in document(capsys, "codellama")["models"]} >= {"codellama-7b", "codellama-34b"}


def test_one_model_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "llama-2-7b")
    assert "6,738,415,616 (6.74B)" in text
    assert "https://huggingface.co/meta-llama/Llama-2-7b-hf/blob/main/config.json" in text


def test_a_checkpoint_that_holds_more_says_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert "137,022,720: it also stores causal masks" in answer(capsys, "gpt2")


def test_one_model_as_json_has_its_whole_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = document(capsys, "qwen3-8b")["models"]
    assert (model["num_params"], model["config"]["head_dim"], model["family_known"]) == (8_190_735_360, 128, True)


def test_a_configuration_file_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 10}))
    assert "family            llama" in answer(capsys, str(path))


def test_a_name_of_nothing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="unknown model 'no-such-model'"):
        answer(capsys, "no-such-model")


def test_the_json_names_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys)["schema"] == "llmcheck.models/1"
