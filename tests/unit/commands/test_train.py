"""`llmcheck train`, `launch` and `compare` without torch: what they refuse, and the commands and figures that they give."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import prepared_data
import pytest
import yaml
from jsonschema import Draft202012Validator

from llmcheck import planfile
from llmcheck.cli import main
from llmcheck.types import TrainSettings

Run = tuple[int, str, str]


@pytest.fixture
def llmcheck(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: object) -> Run:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def plan(tmp_path: Path, llmcheck: Any) -> Path:
    return make_plan(llmcheck, tmp_path / "plan.json", "--gpus", "2")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """For bloomz-560m and the default sequence length."""
    return prepared_data.write(tmp_path / "d", [[5, 6, 2]], vocab_size=250680, seq_len=1024)


def make_plan(llmcheck: Any, path: Path, *options: str) -> Path:
    code, _, err = llmcheck("plan", "--model", "bloomz-560m", "--gpu", "H100", "--micro-batch", "1", *options, "--out", path)
    assert code == 0, err
    return path


def command_of(out: str) -> list[str]:
    return shlex.split(out.splitlines()[-1])


def test_the_command_is_the_plans_own_with_the_settings(plan: Path, data: Path, tmp_path: Path, llmcheck: Any) -> None:
    code, out, _ = llmcheck(
        "train", "--plan", plan, "--data", tmp_path / "d", "--output", tmp_path / "o", "--lr", "3e-4", "--compile", "--dry-run"
    )
    document = json.loads(plan.read_text())

    assert code == 0
    assert command_of(out)[: len(document["launch"]["argv"])] == document["launch"]["argv"]
    assert command_of(out)[len(document["launch"]["argv"]) :] == [
        *("--data", str(tmp_path / "d"), "--output", str(tmp_path / "o"), "--lr", "0.0003", "--compile")
    ]
    for name, value in document["launch"]["env"].items():
        assert f"export {name}={value}" in out.replace("'", "")


def test_every_setting_reaches_the_trainer_by_its_own_option(plan: Path, data: Path, tmp_path: Path, llmcheck: Any) -> None:
    values = {
        "weights": "some/name",
        "eval_data": str(data),
        "epochs": 2.5,
        "max_steps": 7,
        "lr": 0.001,
        "schedule": "linear",
        "warmup": 0.1,
        "min_lr": 0.2,
        "weight_decay": 0.01,
        "seed": 7,
        "packing": "off",
        "save_every": 3,
        "keep": 5,
        "eval_every": 4,
        "patience": 2,
        "num_generations": 3,
        "resume": "never",
        "export": "none",
        "trackers": "tensorboard",
        "on_nan": "continue",
        "compile": True,
        "allow": "pad-is-eos",
    }
    assert {"data", "output", *values} == set(TrainSettings._fields)
    words = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    code, out, err = llmcheck("train", "--plan", plan, "--data", data, "--output", tmp_path / "o", *words, "--dry-run")
    found = command_of(out)

    assert code == 0, err
    assert found[found.index("--plan") + 6 :] == words  # after plan, data and output, in the settings' order


def test_a_hostfile_of_a_plan_with_one_node_is_not_ignored(plan: Path, data: Path, tmp_path: Path, llmcheck: Any) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("far slots=8\n")
    for words in (("train", "--dry-run"), ("launch", "--for", "deepspeed"), ("launch", "--for", "torchrun")):
        code, out, err = llmcheck(*words, "--plan", plan, "--data", data, "--output", tmp_path / "o", "--hostfile", hosts)

        assert (code, out) == (2, "")
        assert "the plan has one node: it would run here, whatever the file names" in err


def test_several_nodes_need_a_hostfile_that_is_there_and_large_enough(data: Path, tmp_path: Path, llmcheck: Any) -> None:
    plan = make_plan(llmcheck, tmp_path / "plan.json", "--gpus", "16", "--nodes", "2")
    base = ("train", "--plan", plan, "--data", tmp_path / "d", "--output", tmp_path / "o", "--dry-run")
    hosts = tmp_path / "hosts"

    assert "there is no --hostfile" in llmcheck(*base)[2]
    assert "there is no hostfile" in llmcheck(*base, "--hostfile", hosts)[2]
    for text, said in (
        ("a slots=8\n", "1 host, the plan has 2 nodes"),
        ("a slots=8\n", "add 1 more, `worker-1 slots=8`; or plan with --nodes 1"),
        ("# none\n", "0 hosts, the plan has 2 nodes"),
        ("a slots=8\na slots=8\n", "names a twice"),
        ("a slots=8\nb 8\n", "line 2"),
        ("a slots=8\nb slots=4\n", "b has 4 slots"),
        ("a slots=8\nb slots=4\n", f"{hosts}, line 2"),
        ("a slots=8\n-oProxyCommand=x slots=8\n", "'-oProxyCommand=x' cannot be the name of a host"),
        ("a slots=8\n$(x) slots=8\n", "'$(x)' cannot be the name of a host"),
    ):
        hosts.write_text(text)
        code, _, err = llmcheck(*base, "--hostfile", hosts)
        assert (code, said in err) == (2, True), err
    hosts.write_text("a slots=8\nb slots=8\n")
    code, out, _ = llmcheck(*base, "--hostfile", hosts)
    assert code == 0
    assert command_of(out)[:7] == ["deepspeed", "--hostfile", str(hosts), "--num_nodes", "2", "--num_gpus", "8"]
    code, out, _ = llmcheck(*base, "--hostfile", hosts, "--launcher", "torchrun")
    assert command_of(out)[:9] == "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint a:29500".split()
    for place in ("a", "a b:1", "a;x:1", "a:b"):
        code, _, err = llmcheck(*base, "--launcher", "torchrun", "--rendezvous", place)
        assert (code, "--rendezvous needs HOST:PORT" in err) == (2, True), err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "d"], "--output is missing"),
        (["--data", "d", "--output", "o", "--gpus", "4"], "--gpus has no meaning with --plan"),
        (["--data", "d", "--output", "o", "--micro-batch", "4"], "--micro-batch has no meaning with --plan"),
        (["--data", "d", "--output", "o", "--allow", "LCM104"], "says no reason"),
        (["--data", "d", "--output", "o", "--allow", "LCM104= "], "says no reason"),
        (["--data", "d", "--output", "o", "--allow", "LCM1O4=typed"], "did you mean"),
        (["--data", "d", "--output", "o", "--allow", "everything"], "does not know 'everything'"),
        (["--data", "d", "--output", "o", "--patience", "2"], "needs --eval-data"),
        (["--data", "d", "--output", "o", "--eval-every", "2"], "needs --eval-data"),
        (["--data", "d", "--output", "o", "--num-generations", "2"], "needs --eval-data"),
        (["--data", "d", "--output", "o", "--export", "merged"], "--export merged does not go with the plan's method full"),
        (["--data", "d", "--output", "o", "--rendezvous", "a:1"], "only torchrun's nodes meet"),
        (["--data", "d", "--output", "o", "--rendezvous", "a:1", "--launcher", "torchrun"], "which meets nobody"),
        (["--data", "d", "--output", "o", "--resume", "nowhere"], "error[checkpoint]: there is no checkpoint"),
        (["--data", "d", "--output", "o\n--evil"], "cannot be printed"),
    ],
)
def test_what_cannot_be_meant(
    words: list[str], said: str, plan: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llmcheck: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # where `data` is the folder d
    code, out, err = llmcheck("train", "--plan", plan, *words, "--dry-run")

    assert (code, out) == (2, "")
    assert said in err


def test_an_edited_plan_is_refused_here_already(plan: Path, data: Path, tmp_path: Path, llmcheck: Any) -> None:
    document = json.loads(plan.read_text())
    document["recipe"]["gradient_clipping"] = 2.0
    plan.write_text(json.dumps(document))
    base = ("train", "--plan", plan, "--data", tmp_path / "d", "--output", tmp_path / "o", "--dry-run")

    assert "error[plan-edited]" in llmcheck(*base)[2]
    assert llmcheck(*base, "--allow", "plan-edited")[0] == 0


def test_from_the_options_of_plan_it_plans_first(data: Path, tmp_path: Path, llmcheck: Any) -> None:
    code, out, err = llmcheck(
        *("train", "--model", "bloomz-560m", "--gpus", "4", "--gpu", "H100", "--micro-batch", "1"),
        *("--data", tmp_path / "d", "--output", tmp_path / "o", "--dry-run"),
    )
    written = json.loads((tmp_path / "o" / "plan.json").read_text())

    assert code == 0, err
    assert written["cluster"]["num_gpus"] == 4
    assert str(tmp_path / "o" / "plan.json") in command_of(out)


@pytest.mark.parametrize("nodes", [1, 2])
def test_job_files_hold_the_same_command(nodes: int, tmp_path: Path, llmcheck: Any) -> None:
    plan = make_plan(llmcheck, tmp_path / "it's a plan.json", "--gpus", str(8 * nodes), "--nodes", str(nodes))
    base = ("--plan", plan, "--data", tmp_path / "d", "--output", tmp_path / "o")
    words = ["-m", "llmcheck_trainer.train", "--plan", str(plan), "--data", str(tmp_path / "d"), "--output", str(tmp_path / "o")]
    slurm = llmcheck("launch", "--for", "slurm", *base)[1]
    kubernetes = list(yaml.safe_load_all(llmcheck("launch", "--for", "kubernetes", "--image", "x: y#z", *base)[1]))
    sky = yaml.safe_load(llmcheck("launch", "--for", "skypilot", *base)[1])

    assert shlex.split(slurm.replace("\\\n", " ").splitlines()[-1])[-8:] == words
    assert f"#SBATCH --nodes={nodes}\n" in slurm
    pod = kubernetes[1]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"][-8:] == words
    assert container["image"] == "x: y#z"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert kubernetes[1]["spec"]["completions"] == nodes
    grace = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert 30 < int(grace) < pod["terminationGracePeriodSeconds"] == 300
    assert "#SBATCH --signal=TERM@120\n" in slurm
    assert "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110\n" in slurm
    assert shlex.split(sky["run"].replace("\\\n", " ").splitlines()[-1])[-8:] == words
    assert sky["num_nodes"] == nodes
    assert sky["resources"]["accelerators"] == "H100:8"


@pytest.mark.parametrize(("offload", "number"), [("none", 4), ("optimizer", 16)])
def test_slurm_gives_each_rank_processors(offload: str, number: int, tmp_path: Path, llmcheck: Any) -> None:
    plan = make_plan(llmcheck, tmp_path / "plan.json", "--gpus", "8", "--offload", offload)
    script = llmcheck("launch", "--for", "slurm", "--plan", plan, "--data", tmp_path / "d", "--output", tmp_path / "o")[1]

    assert f"#SBATCH --cpus-per-gpu={number}\n" in script


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("slurm", ("--hostfile", "h")),
        ("slurm", ("--image", "i")),
        ("kubernetes", ("--launcher", "deepspeed")),
        ("skypilot", ("--rendezvous", "a:1")),
        ("deepspeed", ("--rendezvous", "a:1")),
        ("torchrun", ("--name", "n")),
    ],
)
def test_what_a_job_file_would_leave_out_is_refused(target: str, words: tuple[str, str], plan: Path, data: Path, llmcheck: Any) -> None:
    code, out, err = llmcheck("launch", "--for", target, "--plan", plan, "--data", data, "--output", "o", *words)

    assert (code, out) == (2, "")
    assert f"{words[0]} has no meaning with --for {target}" in err


HOSTILE = 'it\'s a "plan" $(HOME) $$HOME ${HOME} `id` \\ 100% #x: - é 日本 😀'


def kubernetes_sees(word: str) -> str:
    """A word of a container's command as its process gets it, where no variable is known (third_party/forked/golang/expansion)."""
    return word.replace("$$", "$") if "$(" not in word.replace("$$", "") else "expanded"


def test_hostile_paths_arrive_in_every_job_file(tmp_path: Path, llmcheck: Any) -> None:
    folder = tmp_path / HOSTILE
    folder.mkdir()
    plan = make_plan(llmcheck, folder / "p.json", "--gpus", "2")
    base = ("--plan", plan, "--data", folder / "d", "--output", folder / "o")
    words = ["--plan", str(plan), "--data", str(folder / "d"), "--output", str(folder / "o")]
    found = {name: llmcheck("launch", "--for", name, *base)[1] for name in ("deepspeed", "torchrun", "slurm", "kubernetes", "skypilot")}
    pod = list(yaml.safe_load_all(found["kubernetes"]))[1]["spec"]["template"]["spec"]["containers"][0]
    scripts = {**found, "skypilot": yaml.safe_load(found["skypilot"])["run"]}
    del scripts["kubernetes"]

    assert [kubernetes_sees(word) for word in pod["command"][-6:]] == words
    for name, script in scripts.items():
        show = 'show() { printf \'%s\\0\' "$@"; }; srun() { show "$@"; }; torchrun() { show "$@"; }; deepspeed() { show "$@"; }; '
        stubs = show + "scontrol() { echo node; }; export SLURM_JOB_NODELIST=n SLURM_JOB_ID=1 SKYPILOT_NODE_IPS=n; "
        done = subprocess.run(["bash", "-c", stubs + script], capture_output=True, text=True, check=True)
        assert done.stdout.split("\0")[-7:-1] == words, name


@pytest.mark.parametrize("target", ["deepspeed", "slurm", "kubernetes", "skypilot"])
def test_a_line_break_in_the_plans_path_ends_no_line_of_a_job_file(target: str, tmp_path: Path, data: Path, llmcheck: Any) -> None:
    (tmp_path / "a\nb").mkdir()
    plan = make_plan(llmcheck, tmp_path / "a\nb" / "p.json", "--gpus", "2")
    code, out, err = llmcheck("launch", "--for", target, "--plan", plan, "--data", data, "--output", tmp_path / "o")

    assert (code, out) == (2, "")
    assert "--plan has characters that cannot be printed" in err


@pytest.mark.parametrize("env", [{"A;touch x;B": "1"}, {"LD_PRELOAD": "x.so"}, {"PYTORCH_ALLOC_CONF": "a\nb"}])
def test_a_plan_sets_nothing_but_the_allocator(env: dict[str, str], plan: Path, data: Path, tmp_path: Path, llmcheck: Any) -> None:
    document = json.loads(plan.read_text())
    document["launch"]["env"] = env
    plan.write_text(json.dumps(document))
    for words in (("launch", "--for", "slurm"), ("train", "--dry-run")):
        code, out, err = llmcheck(*words, "--plan", plan, "--data", data, "--output", tmp_path / "o")

        assert (code, out) == (2, "")
        assert "error[plan-invalid]" in err
        assert "launch.env" in err


@pytest.mark.parametrize(("gpu", "name"), [("A100-40G", "A100"), ("A100-80G", "A100-80GB"), ("V100-32G", "V100-32GB"), ("L4", "L4")])
def test_skypilot_is_asked_for_gpus_by_its_own_names(gpu: str, name: str, data: Path, tmp_path: Path, llmcheck: Any) -> None:
    plan = make_plan(llmcheck, tmp_path / "p.json", "--gpus", "2", "--gpu", gpu, "--method", "lora")
    sky = yaml.safe_load(llmcheck("launch", "--for", "skypilot", "--plan", plan, "--data", data, "--output", tmp_path / "o")[1])

    assert sky["resources"]["accelerators"] == f"{name}:2"


def test_what_launch_misses_is_launchs(plan: Path, data: Path, tmp_path: Path, llmcheck: Any) -> None:
    assert "where: llmcheck launch" in llmcheck("launch", "--for", "slurm", "--plan", plan)[2]
    assert "where: llmcheck launch" in llmcheck("launch", "--for", "slurm", "--data", data, "--output", tmp_path / "o")[2]


def test_a_jobs_name_is_text_wherever_it_stands(plan: Path, data: Path, llmcheck: Any) -> None:
    base = ("--plan", plan, "--data", data, "--output", "o", "--name", "no")
    service, job = yaml.safe_load_all(llmcheck("launch", "--for", "kubernetes", *base)[1])
    names = [service["metadata"]["name"], *service["spec"]["selector"].values(), job["metadata"]["name"]]

    assert [*names, job["spec"]["template"]["spec"]["subdomain"]] == ["no"] * 4
    assert yaml.safe_load(llmcheck("launch", "--for", "skypilot", *base)[1])["name"] == "no"
    assert "--name cannot be '12'" in llmcheck("launch", "--for", "kubernetes", *base[:-1], "12")[2]


def test_prepared_data_that_has_changed_is_not_trained_on(plan: Path, data: Path, tmp_path: Path, llmcheck: Any) -> None:
    content = bytearray((data / "supervised.bin").read_bytes())
    content[-1] ^= 1
    (data / "supervised.bin").write_bytes(content)
    process = llmcheck("train", "--plan", plan, "--data", data, "--output", tmp_path / "o", "--dry-run")

    assert process[:2] == (2, "")


def receipt_of(plan: Path, *, factor: float = 1.0, step_factor: float = 1.0, **changes: Any) -> dict[str, Any]:
    """What the trainer would write if everything were `factor` times the plan."""
    document = json.loads(plan.read_text())
    estimate = document["estimate"]
    phases = [{**phase, "peak_allocated_bytes": int(phase["peak_allocated_bytes"] * factor)} for phase in estimate["phases"]]
    rank = {
        "rank": 0,
        "device": "NVIDIA H100 80GB HBM3",
        "device_memory_bytes": document["cluster"]["gpu"]["memory_bytes"],
        "peak_allocated_bytes": int(estimate["peak_allocated_bytes"] * factor),
        "peak_reserved_bytes": int(estimate["peak_reserved_bytes"] * factor),
        "process_bytes": None,
        "step_s": document["time"]["step_s"] * step_factor,
        "phases": phases,
    }
    receipt = {"schema": "llmcheck.run/1", "plan_digest": document["digest"], "plan_edited": False, "outcome": "finished"}
    return {**receipt, "ranks": [{**rank, **changes}]}


@pytest.mark.parametrize(("factor", "step_factor", "expected"), [(1.0, 1.0, 0), (1.2, 1.0, 1), (0.8, 1.0, 1), (1.0, 3.0, 1)])
def test_a_measurement_outside_the_band_is_exit_code_1(
    factor: float, step_factor: float, expected: int, plan: Path, tmp_path: Path, llmcheck: Any
) -> None:
    run = tmp_path / "run.json"
    run.write_text(json.dumps(receipt_of(plan, factor=factor, step_factor=step_factor)))
    code, out, _ = llmcheck("compare", plan, run, "--format", "json")
    rows = {row["name"]: row for row in json.loads(out)["rows"]}

    assert code == expected
    assert rows["peak allocated"]["error_fraction"] == pytest.approx(1 / factor - 1, abs=1e-6)
    assert {"bwd0", "step1"} <= set(rows)
    assert llmcheck("compare", plan, run)[0] == expected


def test_another_plans_run_is_not_compared(plan: Path, tmp_path: Path, llmcheck: Any) -> None:
    run = tmp_path / "run.json"
    run.write_text(json.dumps({**receipt_of(plan), "plan_digest": "sha256:0"}))

    assert "error[other-plan]" in llmcheck("compare", plan, run)[2]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({"ranks": []}, "there is none"),
        ({"ranks": [{"rank": 0}]}, "missing"),
        ({"ranks": None}, "expected a list, found null"),
        ({"plan_edited": None, "ranks": [5]}, "run.plan_edited"),
        ({"peak_allocated_bytes": "5"}, "expected a whole number, found '5'"),
        ({"peak_allocated_bytes": -5}, "less than nothing"),
        ({"peak_allocated_bytes": 10**400}, "too large"),
        ({"step_s": "1"}, "run.ranks[0].step_s: expected a number"),
        ({"step_s": 10**400}, "run.ranks[0].step_s: expected a number, found one too large"),
        ({"phases": [{"name": "fwd0", "peak_allocated_bytes": "x"}]}, "run.ranks[0].phases[0].peak_allocated_bytes"),
        ({"rank": 1}, "rank 0 is missing"),
        ({"peak_reserved_bytes": None}, "memory was measured on some"),
    ],
)
def test_a_damaged_receipt_is_an_error_and_no_traceback(
    damage: dict[str, Any], why: str, plan: Path, tmp_path: Path, llmcheck: Any
) -> None:
    run = tmp_path / "run.json"
    whole = {key: value for key, value in damage.items() if key in ("ranks", "plan_edited")}
    run.write_text(json.dumps({**receipt_of(plan, **({} if whole else damage)), **whole}))
    for form in ("text", "json"):
        code, out, err = llmcheck("compare", plan, run, "--format", form)

        assert (code, out) == (2, "")
        assert "error[run-invalid]" in err
        assert why in err
        assert str(run) in err
        assert "hint:" in err


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("step_s", [None, 0.1])
def test_a_run_that_ran_out_of_memory_is_not_as_planned(rank: int, step_s: float | None, plan: Path, tmp_path: Path, llmcheck: Any) -> None:
    run = tmp_path / "run.json"
    run.write_text(json.dumps({**receipt_of(plan, factor=0.5, rank=rank, step_s=step_s), "outcome": "out-of-memory"}))
    code, out, err = llmcheck("compare", plan, run)
    document = json.loads(llmcheck("compare", plan, run, "--format", "json")[1])

    assert (code, err) == (1, "")
    assert f"memory ran out on rank {rank}" in out
    assert "the plan said that the run fits" in out
    assert (document["outcome"], document["within"]) == ("out-of-memory", False)
    assert {row["within"] for row in document["rows"] if row["unit"] == "bytes"} == {None}, "it did not come to its peak"


def test_out_of_memory_where_the_plan_said_so_is_as_planned(plan: Path, tmp_path: Path, llmcheck: Any) -> None:
    small = tmp_path / "small.json"
    options = ("--method", "full", "--zero", "0", "--gpus", "1", "--micro-batch", "1", "--offload", "none", "--optimizer", "fused-adam")
    assert llmcheck("plan", "--model", "llama-7b", "--gpu", "RTX-3060-12G", *options, "--out", small)[0] == 1
    run = tmp_path / "run.json"
    run.write_text(json.dumps({**receipt_of(small, step_s=None), "outcome": "out-of-memory"}))

    assert llmcheck("compare", small, run)[0] == 0


def test_a_later_rank_may_have_timed_no_step(plan: Path, tmp_path: Path, llmcheck: Any) -> None:
    receipt = receipt_of(plan)
    receipt["ranks"].append({**receipt["ranks"][0], "rank": 1, "step_s": None})
    run = tmp_path / "run.json"
    run.write_text(json.dumps(receipt))

    assert llmcheck("compare", plan, run)[0] == 0


@pytest.mark.parametrize(
    ("schema", "what", "hint"),
    [
        ("llmcheck.run/0", "of another version of llmcheck", "compare it with the llmcheck that wrote it"),
        ("llmcheck.plan/1", "not a run receipt", "the plan comes first"),
        (None, "not a run receipt", "run.json"),
    ],
)
def test_what_is_no_receipt_of_this_version_says_what_to_do(
    schema: str | None, what: str, hint: str, plan: Path, tmp_path: Path, llmcheck: Any
) -> None:
    run = tmp_path / "run.json"
    run.write_text(json.dumps({**receipt_of(plan), "schema": schema}))
    code, _, err = llmcheck("compare", plan, run)

    assert code == 2
    assert what in err
    assert hint in err


@pytest.mark.parametrize("changes", [{}, {"outcome": "out-of-memory"}])
def test_a_comparison_is_as_its_published_schema_says(changes: dict[str, Any], plan: Path, tmp_path: Path, llmcheck: Any) -> None:
    schema = json.loads((Path(planfile.__file__).parent / "schema" / "compare-1.json").read_text(encoding="utf-8"))
    run = tmp_path / "run.json"
    run.write_text(json.dumps({**receipt_of(plan), **changes}))

    assert not list(Draft202012Validator(schema).iter_errors(json.loads(llmcheck("compare", plan, run, "--format", "json")[1])))


def test_a_run_on_the_cpu_cannot_be_compared(plan: Path, tmp_path: Path, llmcheck: Any) -> None:
    run = tmp_path / "run.json"
    run.write_text(
        json.dumps(receipt_of(plan, peak_allocated_bytes=None, peak_reserved_bytes=None, device_memory_bytes=None, device="cpu"))
    )

    assert llmcheck("compare", plan, run)[0] == 3
