#!/usr/bin/env bash
# One run as one Slurm job: a Ray head and workers on the job's own nodes, the driver beside the head.
#
#     sbatch cluster/slurm.sh --input prompts --output out --model GSAI-ML/LLaDA-8B-Instruct
#
# The arguments are those of `lrd generate`. Submit it in the repository's root, on storage
# that all nodes see, with .venv made by `make .venv/.installed` or PYTHON naming another Python.
# A preempted job is queued again by Slurm; one that nears its time limit, or is interrupted, queues
# itself. Each start continues where the last one ended.

#SBATCH --job-name=lrd
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=a100:8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=lrd-%j.log
# Five minutes before the time limit Slurm signals this script, so that the driver stores its rows.
#SBATCH --signal=B:TERM@300

set -euo pipefail

python="${PYTHON:-$PWD/.venv/bin/python}"
ray="$(dirname "$python")/ray"
port="${RAY_PORT:-6379}"
max_restarts="${MAX_RESTARTS:-20}"
readonly interrupted=75

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# This script runs on the first node.
head="${nodes[0]}"

# Anybody who reaches Ray's ports and has the token can run code as this user, so each job has its
# own token, in a file that nobody else may read.
state="$HOME/.lrd/$SLURM_JOB_ID"
(umask 077 && mkdir -p "$state" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$state/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token"
unset RAY_AUTH_TOKEN
# An allocator that does not fragment; and compiled kernels on each node's own disk, since HOME is
# mostly shared, and thousands of small files at every start are slow there.
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
local_disk="${LRD_LOCAL_DISK:-/tmp}/lrd-$(id -u)"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$local_disk/inductor}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$local_disk/triton}"
# srun does not inherit this from sbatch.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

steps=()
driver=""

# shellcheck disable=SC2329  # called by trap
finish() {
    trap '' TERM INT
    # The newest first: workers before their head.
    for ((i = ${#steps[@]} - 1; i >= 0; i--)); do
        kill -TERM "${steps[i]}" 2> /dev/null || true
    done
    wait || true
    rm -rf "$state"
}
trap finish EXIT
# shellcheck disable=SC2329  # called by trap
stop() {
    if [[ -n "$driver" ]]; then
        kill -TERM "$driver" 2> /dev/null || true
    else
        exit "$interrupted"
    fi
}
trap stop TERM INT

# Only for the background: exec replaces the shell by srun, so that a signal to $! reaches srun.
step() { # NODES NUMBER COMMAND…: a step beside the job's other steps
    exec srun --overlap --nodelist="$1" --nodes="$2" --ntasks="$2" --ntasks-per-node=1 "${@:3}"
}

address="$(hostname -I)"
address="${address%% *}:$port"
size=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-8}")

step "$head" 1 "$ray" start --head --block --node-ip-address="${address%:*}" --port="$port" \
    --dashboard-host=127.0.0.1 "${size[@]}" &
steps+=($!)
for _ in {1..60}; do
    "$ray" health-check --address "$address" > /dev/null 2>&1 && break
    sleep 2
done
if ((${#nodes[@]} > 1)); then
    others="$(IFS=, && echo "${nodes[*]:1}")"
    step "$others" $((${#nodes[@]} - 1)) \
        "$ray" start --block --address="$address" "${size[@]}" &
    steps+=($!)
fi

# As many replicas as there are GPUs, also of nodes that join later. Not a step of its own: a signal
# to srun would kill the driver, which has to store finished rows.
"$python" -m jobs.generate --address "$address" --device cuda "$@" &
driver=$!
# A signal ends `wait`, not the driver.
while kill -0 "$driver" 2> /dev/null; do wait "$driver" || true; done
code=0
wait "$driver" || code=$?

finish
if ((code == interrupted && ${SLURM_RESTART_COUNT:-0} < max_restarts)); then
    echo "interrupted: queued again, start $((${SLURM_RESTART_COUNT:-0} + 2))"
    # Where Slurm preempted the job, it has queued it already.
    scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$code"
