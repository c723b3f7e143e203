"""The training command of a launch script -> ``launcher.*`` facts and the arguments of the training script. Nothing is run."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmcheck import jsonfile
from llmcheck.errors import UserError
from llmcheck.probe.shell_words import Script, Word, parse
from llmcheck.rules.facts import Facts, Location

MAX_BYTES = 1 << 20
WHAT = "launch script"
_MAX_LISTED = 20

# Options that take no value; every other one of a launcher does (torch 2.13 distributed/run.py, deepspeed 0.19.8 launcher/runner.py,
# accelerate 1.15 commands/launch.py).
_FLAGS = {
    "torchrun": {"standalone", "no_python", "module", "run_path", "m", "help", "h"},
    "deepspeed": {
        "module", "no_python", "no_local_rank", "no_ssh", "no_ssh_check", "force_multi", "save_pid", "bind_cores_to_rank", "quiet",
        "elastic_training", "h", "help",
    },
    "accelerate": {
        "cpu", "multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm", "use_parallelism_config", "debug", "quiet", "q", "m",
        "module", "no_python", "tpu_cluster", "no_tpu_cluster", "tpu_use_sudo", "same_network", "dynamo_use_dynamic",
        "dynamo_use_fullgraph", "dynamo_use_regional_compilation", "enable_cpu_affinity", "h", "help",
    },
    "python": {"u", "B", "O", "OO", "E", "s", "S", "I", "q", "v", "d", "i", "P"},
}  # fmt: skip
_SHORT = {"H": "hostfile", "i": "include", "e": "exclude", "t": "tee", "r": "redirects"}
# Commands that know the trainer themselves: name -> (kind, words before the arguments).
_OWN_COMMANDS = {"llamafactory-cli": "llamafactory", "axolotl": "axolotl", "trl": "trl", "swift": "swift"}
_TORCH_MODULES = ("torch.distributed.run", "torch.distributed.launch")
_RANK = {"torchrun": 3, "deepspeed": 3, "accelerate": 3, "llamafactory": 3, "axolotl": 3, "trl": 3, "swift": 3, "python": 1}
_SBATCH = re.compile(r"^[ \t]*#SBATCH[ \t]+(.*?)[ \t]*(?:[ \t]#.*)?$", re.MULTILINE)
_DIRECTIVE = re.compile(r"(?:^|\s)(?:--([a-z][a-z-]*)(?:[= ]\s*(\S+))?|-([A-Za-z])\s*(\S+))")
_SBATCH_SHORT = {"N": "nodes", "n": "ntasks", "c": "cpus-per-task", "G": "gpus", "t": "time"}


@dataclass
class Launch:
    """A training command. Argument values are None where they are not known before the script runs."""

    kind: str
    line: int
    options: dict[str, Word] = field(default_factory=dict)
    script: str = ""
    arguments: dict[str, list[Word]] = field(default_factory=dict)  # [] is a flag without a value
    lines: dict[str, int] = field(default_factory=dict)
    positional: list[Word] = field(default_factory=list)
    more: list[Word] = field(default_factory=list)  # words that may be any number of arguments: "$@"
    environment: dict[str, Word] = field(default_factory=dict)
    under_srun: bool = False


def read(path: str) -> tuple[Facts, Launch]:
    """The ``launcher.*`` facts of the script at `path`, and its training command.

    Raises UserError when no training command is found in it.
    """
    data = jsonfile.read_bytes(path, what=WHAT, max_bytes=MAX_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise UserError(
            f"the {WHAT} is not UTF-8 text", code="not-text", where=path, why=f"byte {reason.start} is none", hint="save it as UTF-8"
        ) from reason
    script = parse(text)
    launches = [launch for command in script.commands if (launch := _launch(command)) is not None]
    if not launches:
        raise UserError(
            f"no training command in {path}", code="no-launch", where=path,
            why="neither torchrun, deepspeed, accelerate launch, llamafactory-cli, axolotl, trl nor python SCRIPT with options is called",
            hint="give the script that starts the training, or a JSON or YAML file with its arguments",
        )  # fmt: skip
    launch = max(launches, key=lambda each: (_RANK[each.kind], len(each.arguments)))
    result = Facts()
    result.examined("launcher")
    result.close("launcher.", Location(uri=path))
    _put_launch(result, launch, path)
    result.put("launcher.num_commands", sum(_RANK[each.kind] == _RANK[launch.kind] for each in launches), Location(uri=path))
    _put_environment(result, script, launch, path)
    _put_slurm(result, text, path)
    _put_removals(result, script, launch, path)
    broken = script.broken_continuations
    place = Location(uri=path, line=broken[0]) if broken else Location(uri=path)
    result.put("launcher.broken_continuations", [f"line {number}" for number in broken[:_MAX_LISTED]] or None, place)
    crlf = text.find("\r\n")
    line = text.count("\n", 0, crlf) + 1 if crlf >= 0 else None
    result.put("launcher.windows_line_ends", crlf >= 0, Location(uri=path, line=line))
    return result, launch


def _launch(command: Sequence[Word]) -> Launch | None:
    """The training command that `command` is, whatever stands before it (srun, nohup, environment variables)."""
    environment: dict[str, Word] = {}
    under_srun = False
    for index, word in enumerate(command):
        name, equals, value = word.raw.partition("=")
        if equals and name.isidentifier():
            text = None if word.text is None else word.text.partition("=")[2]
            environment[name] = Word(raw=value, text=text, line=word.line)
            continue
        program = os.path.basename(word.text or word.raw)
        under_srun = under_srun or program == "srun"
        found = _known_program(program, list(command[index + 1 :]), word.line)
        if found is not None:
            found.environment, found.under_srun = environment, under_srun
            return found
    return None


def _known_program(program: str, rest: list[Word], line: int) -> Launch | None:
    if program in ("torchrun", "deepspeed", "deepspeed.pt"):
        return _with_script(Launch(kind="torchrun" if program == "torchrun" else "deepspeed", line=line), rest)
    if program == "accelerate" and rest and rest[0].text == "launch":
        return _with_script(Launch(kind="accelerate", line=line), rest[1:])
    if program in _OWN_COMMANDS and rest:
        launch = Launch(kind=_OWN_COMMANDS[program], line=line, script=rest[0].text or "")
        return _with_arguments(launch, rest[1:]) if launch.script in ("train", "sft", "dpo", "pt", "reward", "rlhf") else None
    if re.fullmatch(r"python[0-9.]*", program):
        if len(rest) > 1 and rest[0].text == "-m" and rest[1].text in _TORCH_MODULES:
            return _with_script(Launch(kind="torchrun", line=line), rest[2:])
        if len(rest) > 1 and rest[0].text == "-m" and rest[1].text in ("accelerate.commands.launch", "deepspeed.launcher.runner"):
            return _with_script(Launch(kind=(rest[1].text or "").split(".")[0], line=line), rest[2:])
        launch = _with_script(Launch(kind="python", line=line), rest)
        return launch if launch.script and launch.arguments else None
    return None


def _with_script(launch: Launch, words: list[Word]) -> Launch:
    """The launcher's own options up to the script, then the script's arguments."""
    flags = _FLAGS[launch.kind]
    index = 0
    while index < len(words):
        word = words[index]
        text = word.text if word.text is not None else word.raw
        if not text.startswith("-"):
            if word.text is None and "=" not in text:
                launch.more.append(word)  # $LAUNCH_ARGS, or the script itself
                if not re.search(r"\.pyw?$", text):
                    index += 1
                    continue
            break
        name, equals, value = text.lstrip("-").partition("=")
        name = _SHORT.get(name, name).replace("-", "_")
        if equals:
            launch.options[name] = Word(raw=value, text=None if word.text is None else value, line=word.line)
        elif name in flags:
            launch.options[name] = Word(raw="true", text="true", line=word.line)
        elif index + 1 < len(words):
            index += 1
            launch.options[name] = words[index]
        index += 1
    if index < len(words):
        launch.script = words[index].text or words[index].raw
    return _with_arguments(launch, words[index + 1 :])


def _with_arguments(launch: Launch, words: Sequence[Word]) -> Launch:
    name = ""
    for word in words:
        text = word.text if word.text is not None else word.raw
        if text.startswith("-") and not re.match(r"-[0-9.]", text):
            name, equals, value = text.lstrip("-").partition("=")
            name = name.replace("-", "_")
            known = Word(raw=value, text=None if word.text is None else value, line=word.line)
            launch.arguments[name] = [known] if equals else []
            launch.lines[name] = word.line
        elif word.text is None and re.fullmatch(r"\$(@|\*|\{?\w+(\[@\])?\}?)", word.raw) and (not name or launch.arguments[name]):
            launch.more.append(word)
            name = ""
        elif name:
            launch.arguments[name].append(word)
        else:
            launch.positional.append(word)
    return launch


def _put_launch(result: Facts, launch: Launch, path: str) -> None:
    here = Location(uri=path, line=launch.line)
    result.put("launcher.kind", launch.kind, here)
    result.put("launcher.script", launch.script or None, here)
    result.put("launcher.under_srun", launch.under_srun, here)
    for name, word in launch.options.items():
        place = Location(uri=path, line=word.line)
        if word.text is None:
            result.could_not(f"launcher.{name}", f"{word.raw[:60]} is only known when the script runs")
        else:
            result.put(f"launcher.{name}", _number(word.text), place)
    if launch.more and launch.kind != "python":
        result.could_not("launcher.num_processes", f"{launch.more[0].raw[:60]} is only known when the script runs")
        return
    processes, why = _num_processes(launch)
    if why:
        result.could_not("launcher.num_processes", why)
    else:
        result.put("launcher.num_processes", processes, here)
    per_node = launch.options.get("nproc_per_node") or launch.options.get("num_gpus")
    if per_node is not None and per_node.text is not None and per_node.text.isdigit():
        result.put("launcher.processes_per_node", int(per_node.text), Location(uri=path, line=per_node.line))
    elif launch.kind in ("torchrun", "deepspeed", "accelerate"):
        result.could_not("launcher.processes_per_node", "the command does not say it")


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"\d{1,9}", text) else text


def _num_processes(launch: Launch) -> tuple[int | None, str]:
    """Processes over all nodes, or why they are not known."""
    if launch.kind == "python":
        return 1, ""
    if launch.kind == "accelerate":
        names: tuple[str, ...] = ("num_processes",)
    elif launch.kind == "torchrun":
        names = ("nproc_per_node", "nnodes") if "nnodes" in launch.options else ("nproc_per_node",)
        if "nproc_per_node" not in launch.options:
            return (1, "") if "nnodes" not in launch.options else (None, "the command does not say how many processes a node has")
    elif launch.kind == "deepspeed" and "num_gpus" in launch.options:
        if "hostfile" in launch.options and "num_nodes" not in launch.options:
            return None, "the hostfile decides the number of nodes"
        names = ("num_gpus", "num_nodes") if "num_nodes" in launch.options else ("num_gpus",)
    elif launch.kind == "deepspeed" and (include := launch.options.get("include")) is not None and include.text is not None:
        counts = [len(part.partition(":")[2].split(",")) for part in include.text.split("@") if ":" in part]
        return (sum(counts), "") if counts and include.text.count("@") + 1 == len(counts) else (None, "--include names whole hosts")
    else:
        return None, f"the {launch.kind} command does not say it: all GPUs that are there, or what its configuration says"
    product = 1
    for name in names:
        word = launch.options.get(name)
        if word is None or word.text is None or not word.text.isdigit():
            return None, f"{name} is {word.raw[:40]!r}, only known when the script runs" if word else f"the command gives no {name}"
        product *= int(word.text)
    return product, ""


def _put_environment(result: Facts, script: Script, launch: Launch, path: str) -> None:
    """Variables of the command: those written before it, and those that the script sets."""
    for name, word in {**script.variables, **launch.environment}.items():
        if word.text is None:
            result.could_not(f"launcher.env.{name}", f"{word.raw[:60]} is only known when the script runs")
        else:
            result.put(f"launcher.env.{name}", word.text, Location(uri=path, line=word.line))
    visible = launch.environment.get("CUDA_VISIBLE_DEVICES") or script.variables.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.text is not None and re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", visible.text):
        result.put("launcher.num_visible_devices", len(visible.text.split(",")), Location(uri=path, line=visible.line))
    elif visible is not None:
        result.could_not("launcher.num_visible_devices", "CUDA_VISIBLE_DEVICES is not a list of numbers")


def _put_slurm(result: Facts, text: str, path: str) -> None:
    """What the job asks Slurm for."""
    for match in _SBATCH.finditer(text):
        place = Location(uri=path, line=text.count("\n", 0, match.start(1)) + 1)
        for long, long_value, short, short_value in _DIRECTIVE.findall(match[1]):
            name, value = long or _SBATCH_SHORT.get(short, ""), long_value or short_value
            if name in ("nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "gpus") and value.isdigit():
                result.put("launcher.slurm_" + name.replace("-", "_"), int(value), place)
            elif name == "gres" and (gpus := re.search(r"gpu(?::[\w.-]+)?:(\d+)$|gpu:(\d+)", value)) is not None:
                result.put("launcher.slurm_gpus_per_node", int(gpus[1] or gpus[2]), place)


def _put_removals(result: Facts, script: Script, launch: Launch, path: str) -> None:
    """Whether the script deletes the folder that it writes its checkpoints to."""
    output = launch.arguments.get("output_dir") or launch.arguments.get("output")
    target = os.path.normpath(output[0].text) if output and output[0].text else None
    for command in script.commands:
        words = [word.text for word in command]
        if not words or words[0] != "rm" or not any(word and re.match(r"-\w*[rR]", word) for word in words[1:]):
            continue
        for word in command[1:]:
            folder = os.path.normpath(word.text.rstrip("/*") or "/") if word.text else None
            if folder and target and not word.raw.startswith("-") and (target == folder or target.startswith(folder + os.sep)):
                result.put("launcher.removes_output", word.text, Location(uri=path, line=word.line))
                return
