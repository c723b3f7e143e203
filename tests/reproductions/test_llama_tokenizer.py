"""FAQ row 5 with the real thing: LLaMA-like folders loaded by two releases of transformers, compared with what the probe says of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
from tokenizer_folders import LLAMA_VARIANTS, llama_folder

from llmcheck.probe import tokenizer
from llmcheck.rules.facts import ABSENT

pytestmark = pytest.mark.reproduction

COMMON = (
    "certifi",
    "charset_normalizer",
    "filelock",
    "fsspec",
    "idna",
    "packaging",
    "pyyaml",
    "regex",
    "requests",
    "tqdm",
    "typing_extensions",
    "urllib3",
)
# What importing transformers' tokenizers takes, without torch: a second instead of minutes. Python versions: those with wheels.
RELEASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "4.28.1": (
        ("3.10", "3.11"),
        ("tokenizers==0.13.3", "huggingface_hub==0.14.1", "sentencepiece==0.1.99", "protobuf==3.20.3", "numpy<2", *COMMON),
    ),
    "5.24.0": (
        ("3.11", "3.12", "3.13"),
        ("tokenizers==0.23.3", "huggingface_hub==2.4.0", "sentencepiece==0.2.1", "protobuf<6", "numpy", "safetensors",
         "jinja2", "markupsafe", "httpx2", "httpcore2", "truststore", "anyio", "h11", "click", *COMMON),
    ),
}  # fmt: skip

LOAD = r"""
import json, os, sys
from transformers import AutoTokenizer, LlamaTokenizer
ways = {"auto": lambda d: AutoTokenizer.from_pretrained(d), "slow": lambda d: AutoTokenizer.from_pretrained(d, use_fast=False),
        "class": lambda d: LlamaTokenizer.from_pretrained(d)}
for folder in sys.argv[1:]:
    for way, load in ways.items():
        seen = {"folder": os.path.basename(folder), "way": way}
        try:
            tok = load(folder)
            if tok is False:
                seen["error"] = "False"
            else:
                seen["class"] = type(tok).__name__
                for role in ("unk", "bos", "eos", "pad"):
                    try:
                        seen[role] = getattr(tok, role + "_token_id")
                    except RecursionError:
                        seen[role] = "RecursionError"
                if "RecursionError" not in seen.values():
                    seen["first"] = tok("hello")["input_ids"][0]
        except BaseException as error:
            seen["error"] = f"{type(error).__name__}: {error}"[:90]
        print(json.dumps(seen))
"""


def interpreter(versions: tuple[str, ...]) -> str:
    """A Python of one of `versions`; skips where there is none."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" in versions:
        return sys.executable
    for version in versions:
        found = shutil.which(f"python{version}")
        if found and subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode == 0:
            return found
    pytest.skip(f"no Python {' or '.join(versions)} here")


@pytest.fixture(scope="module", params=RELEASES)
def loads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str], list[dict[str, Any]]]:
    """(release, folders, what really happened)."""
    release = request.param
    versions, packages = RELEASES[release]
    root = tmp_path_factory.mktemp("reproduction")
    python = root / "venv" / "bin" / "python"
    base = interpreter(versions)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--retries", "1", *packages]
    for command in ([base, "-m", "venv", str(root / "venv")], [*install, f"transformers=={release}"]):
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
        except subprocess.TimeoutExpired:
            pytest.skip(f"transformers {release}: the package index did not answer in time")
        if done.returncode:
            pytest.skip(f"transformers {release} cannot be installed: {done.stderr.strip()[-300:]}")
    folders = {name: str(llama_folder(root / name, name)) for name in LLAMA_VARIANTS}
    clean = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "critical", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([str(python), "-c", LOAD, *folders.values()], check=False, capture_output=True, text=True, timeout=180, env=clean)
    assert done.returncode == 0, done.stderr[-2000:]
    return release, folders, [json.loads(line) for line in done.stdout.splitlines()]


def real_face(seen: dict[str, Any]) -> str:
    error = seen.get("error")
    if error is not None:
        faces = {
            "False": "returns-false",
            "RecursionError: maximum recursion depth": "recursion-at-load",
            "ValueError: Tokenizer class LLaMATokenizer does not exist": "class-not-found",
            "AttributeError: 'NoneType' object has no attribute 'from_pretrained'": "class-is-none",
        }
        return next((face for start, face in faces.items() if error.startswith(start)), error)
    if "RecursionError" in seen.values():
        return "recursion-at-access"
    if (seen["bos"], seen["eos"]) == (0, 0):
        return "silent-zero-ids"
    if seen["class"] == "TokenizersBackend":
        return "generic-class"
    return "ok" if seen["first"] == seen["bos"] else "bos-lost"


def test_the_probe_foresees_what_transformers_does(loads: tuple[str, dict[str, str], list[dict[str, Any]]]) -> None:
    release, folders, outcomes = loads
    foreseen, real = {}, {}
    for seen in outcomes:
        facts = tokenizer.facts(folders[seen["folder"]], release)

        def value(name: str, facts: Any = facts) -> Any:
            found = facts.get(name)
            assert found is not None, facts.why_unknown(name)
            return None if found.value is ABSENT else found.value

        key = (seen["folder"], seen["way"])
        real[key] = [real_face(seen)]
        foreseen[key] = [value({"auto": "tok.face", "slow": "tok.slow_face", "class": "tok.class_face"}[seen["way"]])]
        if "error" not in seen and seen["way"] != "class":
            prefix = {"auto": "fast", "slow": "slow"}[seen["way"]]
            real[key] += [None if seen[role] == "RecursionError" else seen[role] for role in ("unk", "bos", "eos", "pad")]
            foreseen[key] += [value(f"tok.{prefix}_{role}_id") for role in ("unk", "bos", "eos", "pad")]
    assert len(real) == 3 * len(LLAMA_VARIANTS)
    assert foreseen == real
