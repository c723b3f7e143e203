"""Couplings of the versions pack with the real thing: what importing released wheels side by side says, and what our rules say of them."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest

from llmcheck.rules.engine import evaluate
from llmcheck.rules.facts import Facts, load_registry
from llmcheck.rules.load import load_shipped
from llmcheck.rules.rule import Rule

pytestmark = pytest.mark.reproduction

REGISTRY = load_registry()
RULES = load_shipped(REGISTRY, ["versions"])[0].rules
COMMON = (
    "anyio certifi charset_normalizer click filelock fsspec h11 httpcore httpcore2 httpx httpx2 idna packaging pyyaml regex requests "
    "shellingham sniffio tqdm truststore typer-slim typing_extensions urllib3"
)
PIP = "-m pip install --quiet --no-compile --no-deps --only-binary :all: --retries 1 --disable-pip-version-check"

Fetch = Callable[[str], str]


@pytest.fixture(scope="session")
def fetch(tmp_path_factory: pytest.TempPathFactory) -> Fetch:
    """Installs a release into a folder of its own, once a session, and returns the folder; skips where the index has none."""
    root = tmp_path_factory.mktemp("releases")
    outcomes: dict[str, tuple[str, str]] = {}  # requirements -> (folder, why it cannot be had)

    def install(requirements: str) -> str:
        if requirements not in outcomes:
            folder = str(root / str(len(outcomes)))
            command = [sys.executable, *PIP.split(), "--target", folder, *requirements.split()]
            try:
                done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
                why = done.stderr.strip()[-300:] or "pip failed" if done.returncode else ""
            except subprocess.TimeoutExpired:
                why = "the package index did not answer in time"
            outcomes[requirements] = (folder, why)
        folder, why = outcomes[requirements]
        if why:
            pytest.skip(f"{requirements} cannot be installed here: {why}")
        return folder

    return install


@dataclass(frozen=True, kw_only=True)
class Case:
    """Releases side by side, what to import, what that really says, and the rule that must foresee it (none: it works)."""

    releases: dict[str, str]
    statement: str
    says: str = ""
    rule: str = ""
    beside: dict[str, str] = field(default_factory=dict)  # releases that belong to it but that the rule is not about


HEALTHY_4 = {"tokenizers": "0.22.2", "safetensors": "0.6.2", "numpy": "2.2.6"}
HEALTHY_5 = {"tokenizers": "0.22.2", "safetensors": "0.8.0", "numpy": "2.2.6"}
IMPORT = "from transformers import AutoTokenizer, AutoConfig"

CASES = [
    Case(
        releases={"transformers": "4.57.6", "huggingface-hub": "1.0.1"}, beside=HEALTHY_4, statement=IMPORT,
        says="huggingface-hub>=0.34.0,<1.0 is required for a normal functioning of this module, but found huggingface-hub==1.0.1",
        rule="hub-1-with-transformers-4",
    ),
    Case(releases={"transformers": "4.57.6", "huggingface-hub": "0.36.2"}, beside=HEALTHY_4, statement=IMPORT),
    Case(
        releases={"transformers": "4.57.6", "huggingface-hub": "0.33.5"}, beside=HEALTHY_4, statement=IMPORT,
        says="huggingface-hub>=0.34.0,<1.0 is required for a normal functioning of this module, but found huggingface-hub==0.33.5",
        rule="hub-for-transformers-4-54",
    ),
    Case(
        releases={"transformers": "4.57.6", "tokenizers": "0.23.3"}, beside={**HEALTHY_4, "huggingface-hub": "0.36.2"}, statement=IMPORT,
        says="tokenizers>=0.22.0,<=0.23.0 is required for a normal functioning of this module, but found tokenizers==0.23.3",
        rule="tokenizers-for-transformers-4-56",
    ),
    Case(
        releases={"transformers": "4.57.6", "safetensors": "0.4.2"}, beside={**HEALTHY_4, "huggingface-hub": "0.36.2"}, statement=IMPORT,
        says="safetensors>=0.4.3 is required for a normal functioning of this module, but found safetensors==0.4.2",
        rule="safetensors-for-transformers-4-50",
    ),
    Case(
        releases={"transformers": "5.0.0", "huggingface-hub": "0.36.2"}, beside=HEALTHY_4, statement=IMPORT,
        says="cannot import name 'is_offline_mode' from 'huggingface_hub'",
        rule="hub-for-transformers-5-0",
    ),
    Case(
        releases={"transformers": "5.10.4", "huggingface-hub": "2.4.0"}, beside=HEALTHY_5, statement=IMPORT,
        says="huggingface-hub>=1.5.0,<2.0 is required for a normal functioning of this module, but found huggingface-hub==2.4.0",
        rule="hub-2-with-transformers-5-17",
    ),
    Case(
        releases={"transformers": "4.42.4", "numpy": "2.2.6"},
        beside={"tokenizers": "0.19.1", "safetensors": "0.4.5", "huggingface-hub": "0.24.7"},
        statement=IMPORT, says="numpy>=1.17,<2.0 is required for a normal functioning of this module, but found numpy==2.2.6",
        rule="numpy-2-with-transformers-4-42",
    ),
]  # fmt: skip

TORCH_CASES = [
    Case(
        releases={"peft": "0.17.1", "transformers": "5.0.0"}, beside={**HEALTHY_5, "accelerate": "1.15.0", "huggingface-hub": "1.5.0"},
        statement="import peft", says="cannot import name 'HybridCache' from 'transformers'", rule="peft-hybrid-cache",
    ),
    Case(
        releases={"peft": "0.14.0", "transformers": "4.40.2"},
        beside={"accelerate": "0.34.2", "huggingface-hub": "0.25.2", "tokenizers": "0.19.1", "safetensors": "0.4.5", "numpy": "1.26.4"},
        statement="import peft", says="cannot import name 'EncoderDecoderCache' from 'transformers'", rule="peft-encoder-decoder-cache",
    ),
    Case(
        releases={"peft": "0.18.0", "transformers": "4.51.3"},
        beside={**HEALTHY_4, "tokenizers": "0.21.4", "accelerate": "1.15.0", "huggingface-hub": "0.36.2"},
        statement="import peft", says="No module named 'transformers.modeling_layers'", rule="peft-0-18-0-modeling-layers",
    ),
    Case(
        releases={"peft": "0.18.1", "accelerate": "0.30.1"}, beside={**HEALTHY_4, "transformers": "4.57.6", "huggingface-hub": "0.36.2"},
        statement="import peft", says="cannot import name 'clear_device_cache' from 'accelerate.utils.memory'",
        rule="peft-clear-device-cache",
    ),
    Case(
        releases={"peft": "0.18.1", "transformers": "4.57.6", "accelerate": "1.15.0"}, beside={**HEALTHY_4, "huggingface-hub": "0.36.2"},
        statement="import peft",
    ),
]  # fmt: skip


def failing(packages: dict[str, str], **other: object) -> set[str]:
    """Names of the rules that fire on these releases, everything else not being installed."""
    facts = Facts()
    for name, version in packages.items():
        facts.put(f"pkg.{name}", version)
    for name, value in other.items():
        facts.put("train." + name, value)
    facts.examined("packages", "training")
    facts.close("pkg.")
    facts.close("train.")
    return {result.rule.name for result in evaluate(RULES, facts, REGISTRY, date(2026, 11, 24)) if result.outcome == "fail"}


def what_it_says(case: Case, fetch: Fetch, last: str = "") -> str:
    """The end of what Python prints for the case; empty where it works. No site-packages: only the folders of the case, and `last`."""
    packages = {**case.beside, **case.releases}
    folders = [fetch(f"{name}=={version}") for name, version in packages.items()] + [fetch(COMMON)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*folders, *([last] if last else [])]),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-S", "-c", case.statement], check=False, capture_output=True, text=True, timeout=180, env=environment
    )
    return done.stderr[-4000:] if done.returncode else ""


def name_of(case: Case) -> str:
    return "-".join(f"{name}-{version}" for name, version in case.releases.items())


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_imports_say_what_the_rules_say(case: Case, fetch: Fetch) -> None:
    said = what_it_says(case, fetch)
    assert case.says in said if case.says else said == ""
    fired = failing({**case.beside, **case.releases, "accelerate": "1.15.0"})
    assert fired == ({case.rule} if case.rule else set())


@pytest.mark.parametrize("case", TORCH_CASES, ids=name_of)
def test_peft_says_what_the_rules_say(case: Case, fetch: Fetch) -> None:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        pytest.skip("torch is not installed here, and is too large to fetch for a test")
    said = what_it_says(case, fetch, last=str(Path(spec.origin).parent.parent))
    assert case.says in said if case.says else said == ""
    fired = failing({**case.beside, **case.releases})
    assert case.rule in fired if case.rule else fired == set()


# ---------------------------------------------------------------------------- arguments


def arguments(prefix: str) -> dict[str, Rule]:
    """Rules about one argument each, by that argument."""
    found: dict[str, list[Rule]] = {}
    for rule in RULES:
        if rule.name.startswith(prefix) and rule.name.endswith(("-gone", "-unknown")):
            found.setdefault(rule.when[0].left.removeprefix("train."), []).append(rule)
    return {name: rules[0] for name, rules in found.items()}


def fields(files: list[Path], wanted: str) -> set[str]:
    """Fields of the dataclass `wanted` in these sources, its bases' included, without importing anything."""
    classes = {
        node.name: node for path in files for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    }

    def collect(name: str) -> set[str]:
        node = classes.get(name)
        if node is None:
            return set()
        own = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)}
        return own.union(*(collect(ast.unparse(base).rpartition(".")[2]) for base in node.bases))

    return collect(wanted)


@pytest.mark.parametrize("release", ["4.36.2", "4.40.2", "4.50.3", "4.57.6", "5.10.4", "5.24.0"])
def test_arguments_of_the_trainer(release: str, fetch: Fetch) -> None:
    known = fields([Path(fetch(f"transformers=={release}"), "transformers", "training_args.py")], "TrainingArguments")
    assert {"learning_rate", "gradient_accumulation_steps"} <= known
    wrong = {}
    for argument in arguments("argument-"):
        fires = any(name.startswith("argument-") for name in failing({"transformers": release}, **{argument: "x"}))
        if fires == (argument in known):
            wrong[argument] = f"fires: {fires}, known to {release}: {argument in known}"
    assert wrong == {}


@pytest.mark.parametrize("release", ["0.17.0", "0.19.1", "0.28.0", "1.16.0"])
def test_arguments_of_trl(release: str, fetch: Fetch) -> None:
    files = sorted(Path(fetch(f"trl=={release}"), "trl", "trainer").glob("*_config.py"))
    wrong = {}
    for argument, rule in arguments("trl-argument-").items():
        cls = rule.title.removesuffix(f" has {argument} only from trl").split()[0]
        known = argument in fields(files, cls)
        fires = any(name.startswith("trl-argument-") for name in failing({"trl": release}, **{argument: "x"}))
        if fires == known:
            wrong[argument] = f"fires: {fires}, known to {cls} of {release}: {known}"
    assert wrong == {}
