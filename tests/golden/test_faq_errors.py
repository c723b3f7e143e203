"""Every error of BELLE's FAQ ("Others"), and its rows 5 and 7: doctor names the cause, and says where the FAQ's advice is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_folders import llama_folder

Run = Callable[..., Any]

# The messages as the FAQ quotes them, with the causes of tests/corpus.
ERRORS = {
    "RuntimeError: CUDA error: an illegal memory access was encountered": "illegal-memory-access",
    "RecursionError: maximum recursion depth exceeded while calling a Python object": "tokenizer",
    "ImportError: tokenizers>=0.11.0 is required for a normal functioning of this module, but found tokenizers==0.10.0.": (
        "version-mismatch"
    ),
    "TypeError: torch.distributed.distributed_c10d.init_process_group() got multiple values for keyword argument 'backend'": (
        "init-process-group"
    ),
    "RuntimeError: Error building extension 'fused_adam'": "deepspeed-build",
    "huggingface_hub.utils._validators.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': "
    "'/models/llama'. Use `repo_type` argument if needed.": "model-loading",
}

# What stands above the line in a real log (transformers 4.28.1).
BEFORE = {
    "tokenizer": '  File "transformers/tokenization_utils_base.py", line 1250, in unk_token_id\n'
    "    return self.convert_tokens_to_ids(self.unk_token)\n"
    '  File "transformers/tokenization_utils_fast.py", line 250, in convert_tokens_to_ids\n'
    "    return self._convert_token_to_id_with_added_voc(tokens)\n"
    '  File "transformers/tokenization_utils_fast.py", line 257, in _convert_token_to_id_with_added_voc\n'
    "    return self.unk_token_id\n"
}


@pytest.mark.parametrize(("message", "family"), ERRORS.items(), ids=list(ERRORS.values()))
def test_each_error_has_its_cause(llmcheck: Run, tmp_path: Path, message: str, family: str) -> None:
    text = "Traceback (most recent call last):\n" + BEFORE.get(family, '  File "train.py", line 1, in main\n') + message + "\n"
    (tmp_path / "run.log").write_text(text)
    outcome = llmcheck("doctor", "run.log", "--format", "json", cwd=tmp_path)
    assert outcome.code == 1
    first = json.loads(outcome.stdout)["findings"][0]
    assert first["family"] == family
    assert first["fix"]


def test_the_faqs_fix_for_fused_adam_is_not_the_only_one(llmcheck: Run, tmp_path: Path) -> None:
    """`ln -s libcudart.so` helps in one of the causes; a compiler that is too new stands above the same last line."""
    (tmp_path / "run.log").write_text(
        "/usr/local/cuda/include/crt/host_config.h:132:2: error: #error -- unsupported GNU version! "
        "gcc versions later than 11 are not supported!\n"
        "ninja: build stopped: subcommand failed.\nRuntimeError: Error building extension 'fused_adam'\n"
    )
    findings = json.loads(llmcheck("doctor", "run.log", "--format", "json", cwd=tmp_path).stdout)["findings"]
    assert findings[0]["cause"] == "gcc-too-new-for-nvcc"
    assert [f["explained_by"] for f in findings[1:] if f["role"] == "cascade"][:1] == [findings[0]["code"]]


@pytest.mark.parametrize(
    ("release", "code"),
    [("4.28.1", "LCT005"), ("4.29.2", "LCT005"), ("4.46.3", "LCT006"), ("5.1.0", "LCT004")],
)
def test_row_5_the_face_of_the_broken_llama_folder_depends_on_the_release(llmcheck: Run, tmp_path: Path, release: str, code: str) -> None:
    llama_folder(tmp_path / "model", "decapoda_classfix")
    (tmp_path / "requirements.txt").write_text(f"transformers=={release}\n")
    args = ["doctor", "--tokenizer", "model", "--requirements", "requirements.txt", "--format", "json"]
    outcome = llmcheck(*args, cwd=tmp_path)
    assert outcome.code == 1
    assert {"LCT001", code} <= {f["code"] for f in json.loads(outcome.stdout)["findings"]}


@pytest.mark.parametrize("release", ["4.28.1", "4.46.3", "5.3.0"])
def test_row_5_a_repaired_folder_is_fine_in_every_release(llmcheck: Run, tmp_path: Path, release: str) -> None:
    """The FAQ blames the release; the files are at fault."""
    llama_folder(tmp_path / "model", "fixed")
    (tmp_path / "requirements.txt").write_text(f"transformers=={release}\n")
    args = ["doctor", "--tokenizer", "model", "--requirements", "requirements.txt", "--select", "LCT00", "--format", "json"]
    outcome = llmcheck(*args, cwd=tmp_path)
    assert [f["code"] for f in json.loads(outcome.stdout)["findings"] if f["outcome"] == "fail"] == []


def test_row_7_says_where_the_faq_is_wrong(llmcheck: Run) -> None:
    told = llmcheck("explain", "LCT050").stdout
    assert "BLOOM" in told
    assert "pad" in told
