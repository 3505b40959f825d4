"""Every file of cluster/, as far as it can be checked without a cloud, a cluster or a daemon."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from jobs.cli import parser as parser_of
from jobs.flags import run_config

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ["aws.yaml", "gcp.yaml"]
MANIFESTS = ["namespace.yaml", "networkpolicy.yaml", "raycluster.yaml", "rayjob.yaml"]
FACTS = json.loads((ROOT / "tests/data/kubernetes.json").read_text())
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)
VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
MACHINES = {
    "p4d.24xlarge": (96, 8),
    "p4de.24xlarge": (96, 8),
    "a2-highgpu-8g": (96, 8),
    "a2-ultragpu-8g": (96, 8),
}
"""vCPUs and A100 of the machine types that the files name."""
CPUS_A_REPLICA = 8
"""What a replica takes at most where the user does not say (`pipeline/replicas/placement.py`)."""


def read(name: str) -> str:
    return (CLUSTER / name).read_text()


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(read(name)))


def every_document() -> list[dict[str, Any]]:
    return [document for name in MANIFESTS for document in documents(name)]


def ray_specs() -> list[dict[str, Any]]:
    """The RayClusterSpec of each manifest that has one."""
    (cluster,), (job,) = documents("raycluster.yaml"), documents("rayjob.yaml")
    return [cluster["spec"], job["spec"]["rayClusterSpec"]]


def pods() -> Iterator[dict[str, Any]]:
    for spec in ray_specs():
        yield spec["headGroupSpec"]["template"]["spec"]
        yield from (group["template"]["spec"] for group in spec["workerGroupSpecs"])


def uncommented(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


# The launcher's files


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_file_is_what_ray_reads(name: str) -> None:
    (config,) = documents(name)
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] in types
    assert sum(kind["min_workers"] for kind in types.values()) <= prepared["max_workers"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launchers_workers_are_a100_machines_on_demand_and_spot(name: str) -> None:
    (config,) = documents(name)
    kinds = dict(config["available_node_types"])
    head = kinds.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}, "the driver alone runs on the head"
    seen = set()
    for kind, settings in kinds.items():
        node = settings["node_config"]
        machine = node.get("InstanceType") or node["machineType"]
        cpus, gpus = MACHINES[machine]
        assert settings["resources"] == {"CPU": cpus, "GPU": gpus, "accelerator_type:A100": 1}
        assert gpus * CPUS_A_REPLICA <= cpus, "a replica a GPU fits"
        spot = (
            node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
            or node.get("scheduling", {}).get("provisioningModel") == "SPOT"
        )
        assert spot == kind.endswith("-spot")
        assert settings["min_workers"] <= settings["max_workers"]
        seen.add((machine, spot))
    assert len(seen) == 4, "both sizes, each on demand and spot"
    started = [s["min_workers"] * s["resources"]["GPU"] for s in kinds.values()]
    assert sum(started) > 0, "a run takes the GPUs that are there: some have to be"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launchers_ray_asks_for_the_token_and_listens_on_loopback(name: str) -> None:
    (config,) = documents(name)
    user = config["auth"]["ssh_user"]
    assert user != "root"
    assert config["file_mounts"][f"/home/{user}/.ray/auth_token"] == "~/.ray/auth_token"
    (head,) = [c for c in config["head_start_ray_commands"] if "ray start" in c]
    (worker,) = [c for c in config["worker_start_ray_commands"] if "ray start" in c]
    for command in (head, worker):
        assert "export RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in head
    assert "--head" in head
    assert any("RAY_AUTH_MODE=token" in c for c in config["initialization_commands"])
    installs = [c for c in config["setup_commands"] if "pip install" in c]
    assert installs
    assert all("-c ~/lrd/constraints.txt" in c for c in installs)
    for command in config["head_setup_commands"]:
        assert re.search(r"[\w-]+==[\d.]+$", command), "the autoscaler's client is pinned"
    assert "runs/**" in config["rsync_exclude"]
    assert any(".git" in pattern for pattern in config["rsync_exclude"])


def test_machines_on_aws_have_sealed_disks_and_no_open_metadata() -> None:
    (config,) = documents("aws.yaml")
    for kind in config["available_node_types"].values():
        node = kind["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])


# Kubernetes


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_fields_that_exist(name: str) -> None:
    for document in documents(name):
        schema = {**FACTS, "$ref": f"#/$defs/{document['kind']}"}
        jsonschema.Draft202012Validator(schema).validate(document)


def test_a_misspelt_field_is_found() -> None:
    (job,) = documents("rayjob.yaml")
    job["spec"]["shutdownAfterJobFinish"] = job["spec"].pop("shutdownAfterJobFinishes")
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
        jsonschema.Draft202012Validator({**FACTS, "$ref": "#/$defs/RayJob"}).validate(job)


def test_clusters_ask_for_the_token_and_run_the_pinned_ray() -> None:
    for spec in ray_specs():
        assert spec["authOptions"]["mode"] == "token"
        assert spec["rayVersion"] == CONSTRAINTS["ray"]
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert not spec["headGroupSpec"].get("enableIngress", False)
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_no_container_is_root_or_can_become_it() -> None:
    found = list(pods())
    assert len(found) == 6
    for pod in found:
        context = pod["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            confined(container["securityContext"])
    for spec in ray_specs():
        confined(spec["autoscalerOptions"]["securityContext"])
    (namespace,) = [d for d in every_document() if d["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}


def confined(context: dict[str, Any]) -> None:
    assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_one_image_with_a_version_and_its_user() -> None:
    images = {container["image"] for pod in pods() for container in pod["containers"]}
    assert images == {f"REGISTRY/lrd-pipeline:{VERSION}"}
    users = {pod["securityContext"]["runAsUser"] for pod in pods()}
    assert re.search(r"^USER (\d+):\1$", read("Dockerfile"), re.MULTILINE)[1] in map(str, users)
    assert len(users) == 1
    assert f"lrd-pipeline:{VERSION}" in read("Dockerfile")
    assert f"lrd-pipeline:{VERSION}" in read("README.md")


def test_gpu_workers_hold_a_replica_a_gpu_on_demand_and_spot() -> None:
    for spec in ray_specs():
        assert spec["enableInTreeAutoscaling"]
        capacities = set()
        for group in spec["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            asked, limit = container["resources"]["requests"], container["resources"]["limits"]
            assert asked == limit
            cpus, gpus = int(limit["cpu"]), limit["nvidia.com/gpu"]
            assert gpus * CPUS_A_REPLICA <= cpus
            assert (gpus, True) in [(g, cpus < c) for c, g in MACHINES.values()], "a whole machine"
            assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in (
                pod["tolerations"]
            )
            capacities.add(pod["nodeSelector"]["lrd/capacity"])
        assert capacities == {"on-demand", "spot"}


def test_what_pods_mount_and_run_as_is_there() -> None:
    kinds = {(d["kind"], d["metadata"]["name"]) for d in every_document()}
    assert {d["metadata"].get("namespace", "lrd") for d in every_document()} == {"lrd"}
    for pod in pods():
        assert ("ServiceAccount", pod["serviceAccountName"]) in kinds
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in (
                    kinds
                )
    (claim,) = [d for d in every_document() if d["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for spec in ray_specs():
        for group in spec["workerGroupSpecs"]:
            assert group["template"]["spec"]["automountServiceAccountToken"] is False


def test_a_job_is_tried_again_from_shared_storage_and_leaves_no_cluster() -> None:
    (job,) = documents("rayjob.yaml")
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] > 0
    (head, *_) = [spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]]
    (mount,) = head["containers"][0]["volumeMounts"]
    config = run_config(parsed(spec["entrypoint"].partition("||")[0]))
    assert config.input.startswith(f"{mount['mountPath']}/")
    assert config.output.startswith(f"{mount['mountPath']}/")
    assert config.address == "auto"
    assert config.device == "cuda", "auto would choose cpu while no worker is there yet"
    assert config.replicas is None, "as many as there are GPUs"


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (3, 0), (75, 75), (2, 2), (137, 137)])
def test_a_job_with_failed_rows_counts_as_finished(code: int, seen: int) -> None:
    (job,) = documents("rayjob.yaml")
    _, separator, after = job["spec"]["entrypoint"].partition("||")
    assert separator
    # Ray runs an entrypoint by a shell, as it stands.
    assert subprocess.run(f"(exit {code}) ||{after}", shell=True, check=False).returncode == seen
    assert job["spec"]["submissionMode"] == "HTTPMode", "a submitter's shell would take the || off"


def test_the_network_policy_selects_the_ray_pods_and_opens_little() -> None:
    (policy,) = documents("networkpolicy.yaml")
    spec = policy["spec"]
    # KubeRay puts this label on head and workers of every cluster.
    label = {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert spec["podSelector"] == label
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    inside, *others = spec["ingress"]
    assert inside == {"from": [{"podSelector": label}]}
    for rule in others:
        assert rule["ports"], "from outside the cluster never to all ports"
        assert all("ipBlock" not in peer for peer in rule["from"])
        ports = {port["port"] for port in rule["ports"]}
        assert ports <= {8265, 8080}
        if 8265 in ports:
            assert all("podSelector" in peer for peer in rule["from"])
    for rule in spec["egress"]:
        for peer in rule["to"]:
            if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                assert peer["ipBlock"]["except"] == ["169.254.0.0/16"]


# Secrets, in all files


@pytest.mark.parametrize("path", sorted(CLUSTER.iterdir()), ids=lambda path: path.name)
def test_no_file_holds_a_secret_or_turns_the_token_off(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"AKIA\w{12}|hf_\w{20}|BEGIN [A-Z ]*PRIVATE KEY|\b[0-9a-f]{64}\b", text)
    assert not re.search(r"RAY_AUTH_TOKEN=(?!\"?\$)", text), "a token only from somewhere else"
    assert not re.search(r"RAY_AUTH_MODE[=:\s\"']+(?!token)\w", text)
    assert not re.search(r"dashboard-host[=:\s\"']+(?!127\.0\.0\.1|localhost)\S", text)
    assert "0.0.0.0" not in text.replace("cidr: 0.0.0.0/0", "").replace("`0.0.0.0/0`", "")


def test_every_secret_of_a_pod_is_a_reference() -> None:
    for pod in pods():
        for container in pod["containers"]:
            for variable in container["env"]:
                secret = re.search("TOKEN|SECRET|KEY|PASSWORD", variable["name"])
                if secret or "valueFrom" in variable:
                    assert set(variable) == {"name", "valueFrom"}
                    assert set(variable["valueFrom"]) == {"secretKeyRef"}


# The image


def test_the_image_is_pinned_and_not_root() -> None:
    text = uncommented(read("Dockerfile")).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    words = [word for word, *_ in lines]
    assert words[0] == "FROM"
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", lines[0][1])
    assert "ADD" not in words
    assert "curl" not in text
    users = [rest for word, rest in lines if word == "USER"]
    assert users == ["10001:10001"]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")
    installs = [rest for word, rest in lines if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2, "dependencies in a layer of their own, the project above it"
    assert "-c constraints.txt" in installs[0]
    assert "--no-deps" in installs[1]
    assert all("--no-cache-dir" in install for install in installs)
    copied = [rest.split()[:-1] for word, rest in lines if word == "COPY"]
    assert copied[0] == ["pyproject.toml", "constraints.txt", "README.md", "LICENSE"]
    sources = sorted(source for row in copied for source in row)
    assert all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored, "only what is named gets into the image"
    admitted = sorted(line[1:] for line in ignored if line.startswith("!"))
    assert admitted == sources


LOCAL_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
NEEDED = ["gcc", "libc6-dev", "python3-dev"]
"""What Triton builds its launchers with."""


def assignments(text: str) -> dict[str, str]:
    """The variables that a shell's or a Dockerfile's text sets."""
    return dict(re.findall(r"([A-Z_]{4,})=(\"[^\"]*\"|[^\s;\"]+)", uncommented(text)))


def test_the_image_can_build_kernels() -> None:
    installed = re.search(r"apt-get install ([^&]*)", uncommented(read("Dockerfile")))
    assert installed is not None
    assert set(NEEDED) <= set(installed[1].split())


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launchers_machines_can_build_kernels(name: str) -> None:
    (config,) = documents(name)
    (install,) = [
        line for line in config["setup_commands"] if " install " in line and "apt" in line
    ]
    assert set(NEEDED) <= set(install.split())


@pytest.mark.parametrize("name", ["Dockerfile", "slurm.sh", *LAUNCHERS])
def test_replicas_have_an_allocator_that_grows_and_kernels_on_the_nodes_disk(name: str) -> None:
    texts = [read(name)]
    if name in LAUNCHERS:
        (config,) = documents(name)
        starts = ("head_start_ray_commands", "worker_start_ray_commands")
        texts = [" ".join(config[commands]) for commands in starts]
    for text in texts:
        found = assignments(text)
        assert "expandable_segments:True" in found[ALLOCATOR]
        for variable in LOCAL_CACHES:
            assert not re.search(r"shared|efs|nfs|lustre", found[variable])
            assert re.search(r"/cache|\.cache|local_disk", found[variable])
        # Before Ray, whose processes inherit them; as the newer name some releases ignore it.
        before = text.partition("ray start")[0] if name in LAUNCHERS else text
        assert set(LOCAL_CACHES) | {ALLOCATOR} <= set(assignments(before))
    for pod in pods():
        for container in pod["containers"]:
            set_there = {variable["name"] for variable in container["env"]}
            assert not set_there & {*LOCAL_CACHES, ALLOCATOR}, "the image's hold"
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts <= {"/cache", "/shared"}


def test_the_readme_names_what_compiles_and_the_allocator() -> None:
    text = read("README.md")
    for name in (*LOCAL_CACHES, ALLOCATOR, "gcc"):
        assert f"`{name}" in text


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint here")
def test_the_image_passes_its_linter() -> None:
    subprocess.run(["hadolint", CLUSTER / "Dockerfile"], check=True)


# Slurm


def test_the_slurm_script_is_bash_and_asks_to_be_queued_again() -> None:
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH --")
    )
    assert "requeue" in options
    assert "exclusive" in options, "nobody else's processes beside the token"
    assert options["signal"].startswith("B:TERM@")
    gpus = int(options["gpus-per-node"].rpartition(":")[2])
    assert gpus * CPUS_A_REPLICA <= int(options["cpus-per-task"])


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
def test_the_slurm_script_passes_its_linter() -> None:
    subprocess.run(["shellcheck", CLUSTER / "slurm.sh"], check=True)


STUBS = {
    "scontrol": 'if [[ $1 == show ]]; then printf "node1\\nnode2\\n"; else echo "$*" >> "$LOG"; fi',
    "hostname": 'echo "10.0.0.1 172.17.0.1"',
    "srun": 'echo "srun $*" >> "$LOG"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": """[[ $1 == start ]] || exit 0
trap 'echo "ended $2" >> "$LOG"; exit 0' TERM
echo "pid $$" >> "$LOG"
while true; do sleep 0.05; done""",
    "python": """echo "driver $*" >> "$LOG"
until [[ $(grep -c ^pid "$LOG") == 2 ]]; do sleep 0.05; done
stat -c 'token %a %s' "$RAY_AUTH_TOKEN_PATH" >> "$LOG"
echo "mode $RAY_AUTH_MODE ${RAY_AUTH_TOKEN-unset}" >> "$LOG"
trap 'sleep 0.3; echo "kept" >> "$LOG"; exit 75' TERM
echo "running" >> "$LOG"
[[ -z $CODE ]] || exit "$CODE"
while true; do sleep 0.05; done""",
}
"""Slurm, Ray and the driver, as far as the script talks to them."""


class Job:
    """The Slurm script on two nodes of stubs."""

    def __init__(self, folder: Path, code: int | None, restarts: int = 0) -> None:
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, body in STUBS.items():
            (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (bin_folder / name).chmod(0o755)
        self.home, self.log = folder / "home", folder / "log"
        self.home.mkdir()
        self.log.touch()
        environment = {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LOG": str(self.log),
            "CODE": "" if code is None else str(code),
            "PYTHON": str(bin_folder / "python"),
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "64",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_RESTART_COUNT": str(restarts),
            "RAY_AUTH_TOKEN": "from elsewhere",
        }
        self.process = subprocess.Popen(
            ["bash", CLUSTER / "slurm.sh", "--input", "in put", "--output", "out"], env=environment
        )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def end(self) -> tuple[int, list[str]]:
        """Its exit code and what its parts wrote; whatever of them it left running is ended."""
        code = self.process.wait(20)
        log = self.log.read_text().splitlines()
        left = [int(line.split()[1]) for line in log if line.startswith("pid")]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                log.append("left behind")
        return code, log


@pytest.mark.parametrize(
    ("code", "restarts", "queued"), [(0, 0, False), (3, 0, False), (75, 1, True), (75, 20, False)]
)
def test_a_slurm_job_ends_clean_with_the_drivers_code(
    code: int, restarts: int, queued: bool, tmp_path: Path
) -> None:
    job = Job(tmp_path, code, restarts)
    seen, log = job.end()
    assert seen == code
    assert ("requeue 77" in log) == queued
    address = "10.0.0.1:6379"
    (driver,) = [line for line in log if line.startswith("driver")]
    assert driver == (
        f"driver -m jobs.generate --address {address} --device cuda --input in put --output out"
    )
    head, worker = sorted(line for line in log if line.startswith("srun"))
    assert "--nodelist=node1 " in head
    assert "--head" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "--nodelist=node2 --nodes=1 --ntasks=1 " in worker
    assert f"--address={address}" in worker
    assert "token 600 64" in log
    assert "mode token unset" in log, "the token is in no environment"
    assert not list((job.home / ".lrd").iterdir()), "the token is gone with the job"
    ended = sorted(line for line in log if line.startswith("ended"))
    assert ended == ["ended --block", "ended --head"]
    assert "left behind" not in log


def test_a_slurm_job_near_its_end_keeps_what_is_finished_and_queues_itself(tmp_path: Path) -> None:
    job = Job(tmp_path, None)
    job.wait_for("running")
    job.process.send_signal(signal.SIGTERM)
    code, log = job.end()
    assert code == 75
    assert "kept" in log, "the driver had its time"
    assert log.index("kept") < log.index("ended --head"), "the cluster stays until the driver ended"
    assert "requeue 77" in log


# Commands, wherever they are written


def parsed(command: str) -> argparse.Namespace:
    """A command of ours by its job's own flags; SystemExit where a flag is not one."""
    words = shlex.split(command, comments=True)
    if words[0] == "lrd":
        name, flags = words[1], words[2:]
    elif words[0] == "python":
        assert words[1] == "-m"
        name, flags = words[2].removeprefix("jobs.").replace("_", "-"), words[3:]
    else:
        assert words[:2] == ["sbatch", "cluster/slurm.sh"]
        name, flags = "generate", words[2:]
    return parser_of([name]).parse_args([name, *flags])


def commands() -> list[str]:
    """Ours in the code blocks of the README and in the files' opening comments."""
    found = []
    for path in CLUSTER.iterdir():
        text = path.read_text()
        if path.suffix == ".md":
            text = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        else:
            text = "\n".join(re.findall(r"^#  +(.*)$", text, re.MULTILINE))
        for line in text.replace("\\\n", " ").splitlines():
            ours = re.search(r"(?:^|-- )((?:lrd|python -m jobs\.|sbatch )\S*.*)$", line.strip())
            if ours:
                found.append(ours[1])
    return found


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 4


@pytest.mark.parametrize("command", commands())
def test_a_written_command_has_flags_that_exist(command: str) -> None:
    args = parsed(command)
    if hasattr(args, "preset") and args.config is None:
        run_config(args)


def rays_own(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each call of Ray's command line in a text: its subcommand and flags."""
    text = re.sub(r"\\\n\s*", " ", text)
    calls = re.findall(r"(?:\bray|\$ray\"|/ray) ([a-z].*?)(?: -- |[;&>#\n`]|$)", text)
    for call in calls:
        words = call.split()
        name = " ".join(words[:2]) if words[0] == "job" else words[0]
        yield name, [word.partition("=")[0] for word in words if word.startswith("--")]


def launched() -> str:
    """The start commands of the launchers' files, unfolded."""
    lists = [documents(name)[0] for name in LAUNCHERS]
    keys = ("head_start_ray_commands", "worker_start_ray_commands")
    return "\n".join(command for config in lists for key in keys for command in config[key])


def test_calls_of_ray_have_flags_that_ray_knows() -> None:
    texts = [read("README.md"), read("slurm.sh"), launched(), read("aws.yaml"), read("gcp.yaml")]
    seen = {}
    for text in texts:
        for name, flags in rays_own(text):
            group, _, job = name.partition(" ")
            command = cli.commands.get(group)
            if command is None:
                continue  # Prose: "ray pods", "ray or".
            command = command.commands[job] if job else command
            known = {flag for option in command.params for flag in option.opts}
            assert set(flags) <= known, f"ray {name}"
            seen[name] = seen.get(name, 0) + len(flags)
    assert {"up", "down", "dashboard", "start", "stop", "get-auth-token", "job submit"} <= set(seen)
    assert seen["start"] >= 10


def test_the_readme_names_every_file_and_no_other() -> None:
    there = {path.name for path in CLUSTER.iterdir()} - {"README.md"}
    text = read("README.md")
    named = set(re.findall(r"`([\w.-]+\.(?:yaml|sh|json)|Dockerfile)`", text))
    assert named == there
