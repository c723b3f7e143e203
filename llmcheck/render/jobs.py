"""A run as a shell command, or as a job of SLURM, Kubernetes or SkyPilot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmcheck.shellwords import quoted
from llmcheck.units import GIB, ceil_div

PORT = 29500
STOP_S = {"slurm": 120, "kubernetes": 300}  # from the request to stop to the end: time to save
# torchrun kills its ranks 30 s after a request (torch/distributed/launcher/api.py, 2.13), unless this says otherwise.
SHUTDOWN_VARIABLE, SHUTDOWN_MARGIN_S = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 10
# SLURM gives a task one processor where nothing is said, and all ranks of a node are one task. A rank keeps four busy: Python, autograd's,
# NCCL's thread, one that copies or reads. With the optimizer on the CPU the plan's times are those of 16 (data/steptime.toml, [offload]).
CPUS_PER_GPU, CPUS_PER_GPU_OFFLOADED = 4, 16
HOST_MARGIN = 1.25  # of the plan's host memory: the file cache of mapped weights and data is wanted, too


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all job files have. `words`: what follows the head of torchrun's argument list."""

    name: str
    image: str | None
    num_nodes: int
    gpus_per_node: int
    gpu: str  # as the system calls it
    host_bytes_per_node: int
    cpus_per_gpu: int
    env: Mapping[str, str]
    words: tuple[str, ...]

    @property
    def host_gib(self) -> int:
        """RAM to ask for on each node."""
        return max(1, ceil_div(int(self.host_bytes_per_node * HOST_MARGIN), GIB))


def text(value: str) -> str:
    """`value` as a string of YAML, which beyond U+FFFF is not JSON: there an escaped pair of surrogates is two characters, or an error."""
    plain = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain)


def unexpanded(word: str) -> str:
    """`word` for Kubernetes, which puts variables in place of $(NAME) in commands and values, and takes $$ for one $."""
    return text(word.replace("$", "$$"))


def shell(argv: Iterable[str], env: Mapping[str, str]) -> str:
    """A command with its environment."""
    return _exports(env) + " ".join(map(quoted, argv)) + "\n"


def slurm(job: Job) -> str:
    """A batch script: one torchrun a node, which meet at the first."""
    head = f"torchrun --nnodes {job.num_nodes} --nproc-per-node {job.gpus_per_node} --rdzv-backend c10d"
    return f"""#!/bin/bash
#SBATCH --job-name={job.name}
#SBATCH --nodes={job.num_nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={job.gpus_per_node}
#SBATCH --cpus-per-gpu={job.cpus_per_gpu}
#SBATCH --mem={job.host_gib}G
#SBATCH --signal=TERM@{STOP_S["slurm"]}
#SBATCH --requeue
# SIGTERM before the end makes the trainer save; a requeued job goes on from there.
set -euo pipefail
{_exports(_patient(job.env, "slurm"))}first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 {head} --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:{PORT}" \\
  {_words(job)}
"""


def kubernetes(job: Job) -> str:
    """An indexed Job with a headless Service, so that the pods find the first one by name."""
    image = text(job.image or "IMAGE-WITH-llmcheck-train")
    name = text(job.name)  # "no" would be a boolean
    meet = f"{job.name}-0.{job.name}:{PORT}"
    head = ["torchrun", "--nnodes", str(job.num_nodes), "--nproc-per-node", str(job.gpus_per_node)]
    argv = [*head, "--rdzv-backend", "c10d", "--rdzv-endpoint", meet, *job.words]
    command = "\n".join(f"        - {unexpanded(word)}" for word in argv)
    variables = _patient(job.env, "kubernetes").items()
    env = "\n".join(f"        - {{name: {text(name)}, value: {unexpanded(value)}}}" for name, value in variables)
    return f"""# Mount what holds plan, weights, data and output under the paths below: volumes are the cluster's own affair.
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIP: None
  publishNotReadyAddresses: true  # the pods look for the first one as they start
  selector: {{job-name: {name}}}
---
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  completions: {job.num_nodes}
  parallelism: {job.num_nodes}
  completionMode: Indexed
  template:
    spec:
      subdomain: {name}
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: {STOP_S["kubernetes"]}
      containers:
      - name: trainer
        image: {image}
        command:
{command}
        env:
{env}
        resources:
          limits: {{nvidia.com/gpu: {job.gpus_per_node}, memory: {job.host_gib}Gi}}
        volumeMounts:
        - {{name: shm, mountPath: /dev/shm}}
      volumes:
      - name: shm
        emptyDir: {{medium: Memory}}
"""


def skypilot(job: Job) -> str:
    """A task; `sky jobs launch` recovers it from lost spot instances, and the trainer resumes."""
    head = f"torchrun --nnodes {job.num_nodes} --nproc-per-node {job.gpus_per_node} --rdzv-backend c10d"
    image = f"  image_id: {text('docker:' + job.image)}\n" if job.image else ""
    env = "".join(f"  {name}: {text(value)}\n" for name, value in job.env.items())
    return f"""# Mount what holds plan, weights, data and output under the paths below (file_mounts).
# `sky gpus list` has the accelerators' names.
name: {text(job.name)}
num_nodes: {job.num_nodes}
resources:
  accelerators: {text(f"{job.gpu}:{job.gpus_per_node}")}
  memory: {job.host_gib}+
{image}envs:
{env}setup: |
  pip install 'llmcheck[train]'
run: |
  first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
  {head} --rdzv-endpoint "$first:{PORT}" \\
    {_words(job)}
"""


def _patient(env: Mapping[str, str], system: str) -> dict[str, str]:
    """`env`, in which torchrun gives the ranks the time to save that the system gives to it."""
    return {**env, SHUTDOWN_VARIABLE: str(STOP_S[system] - SHUTDOWN_MARGIN_S)}


def _exports(env: Mapping[str, str]) -> str:
    return "".join(f"export {name}={quoted(value)}\n" for name, value in env.items())


def _words(job: Job) -> str:
    return " ".join(map(quoted, job.words))
