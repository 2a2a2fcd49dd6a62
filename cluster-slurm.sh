#!/usr/bin/env bash
# A sweep on the machines of a Slurm job: starts Ray on all of them, runs the sweep, and ends Ray. docs/CLUSTER.md
# ("Slurm") has more. From the repository root, in a folder that all machines share:
#
#   sbatch cluster-slurm.sh sweeps/low_data.py --storage /shared/cvit
#   sbatch --nodes=4 --gpus-per-node=2 cluster-slurm.sh sweeps/low_data.py --storage /shared/cvit --preset reference
#
# Options before the script are sbatch's and replace the lines below; those after it are the sweep's. Two minutes before
# the time limit the sweep is stopped cleanly and the job queued again, with the same command, which goes on from there.
#
#SBATCH --job-name=cvit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=cvit-%j.log
#
# Variables: SWEEP_PYTHON, the Python of the installation (.venv/bin/python); SWEEP_HEAD_ADDRESS, the first machine's
# address, if its first one (`hostname -I`) is not on the network of the others. They are no options of a sweep, so they
# do not begin with CVIT_.

set -euo pipefail

python=${SWEEP_PYTHON:-.venv/bin/python}
num_nodes=${SLURM_JOB_NUM_NODES:-1}

if [ $# -eq 0 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "usage: sbatch [options of sbatch] cluster-slurm.sh sweeps/low_data.py --storage FOLDER [options]" >&2
    exit 2
fi

# Ray's folder has a short name, for the sockets in it. Ports follow from the job: several may share a machine.
folder=/tmp/cvit-$SLURM_JOB_ID
log=cvit-$SLURM_JOB_ID-ray.log
port=$((20000 + SLURM_JOB_ID % 10000 * 2))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=${SWEEP_HEAD_ADDRESS:-$(hostname -I | cut -d ' ' -f 1)}:$port

# Whoever reaches Ray's ports can run code as you, so this job has a token of its own. srun hands it to all machines.
RAY_AUTH_TOKEN=$(od -An -N 32 -t x1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since Slurm 22.05, srun no longer takes it from the job

# Signals: USR1 comes before the time limit, TERM from preemption and scancel. Both stop the sweep as Ctrl-C does.
signal=
child=
stop() {
    signal=$1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap 'stop USR1' USR1
trap 'stop TERM' TERM

# Runs a command to its end, and passes a signal on to it; bash itself would wait for the end first.
attend() {
    local code
    [ -z "$signal" ] || return 130
    "$@" &
    child=$!
    [ -z "$signal" ] || kill -TERM "$child"
    while kill -0 "$child" 2>/dev/null; do
        wait "$child" || true
    done
    wait "$child" && code=0 || code=$?
    child=
    return "$code"
}

# Starts Ray on a machine. Its own count of CPUs knows neither affinity nor what Slurm gave the job.
# shellcheck disable=SC2016 # the machine expands it
ray_node='
    cpus=$("$0" -c "from cvit.cores import usable_cores; print(usable_cores())")
    exec "$0" -m ray.scripts.scripts start --block --num-cpus="$cpus" --min-worker-port=0 --max-worker-port=0 \
        --dashboard-agent-listen-port=0 "$@"
'
# Waits until so many machines have joined. After 5 minutes the sweep begins with those that have.
wait_for_ray='
import os, socket, sys, time
import ray

address, wanted, head_pid, log = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
host, _, port = address.rpartition(":")
deadline = time.monotonic() + 300
while True:
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
        break
    except OSError as error:
        if time.monotonic() > deadline or not os.path.exists(f"/proc/{head_pid}"):
            sys.exit(f"Ray does not run at {address} ({error}); see {log}")
    time.sleep(0.5)
ray.init(address, logging_level="ERROR", log_to_driver=False)
while (count := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < deadline:
    time.sleep(0.5)
if count < wanted:
    print(f"{count} of {wanted} machines have joined within 5 minutes; the sweep begins with them; see {log}")
'
steps=()
finish() {
    local code=$? step
    trap '' USR1 TERM
    for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
    for _ in {1..30}; do
        kill -0 "${steps[@]}" 2>/dev/null || break
        sleep 1
    done
    for step in "${steps[@]}"; do kill -KILL "$step" 2>/dev/null || true; done
    wait
    srun --nodes="$num_nodes" --ntasks="$num_nodes" --ntasks-per-node=1 rm -rf "$folder" || true
    if [ "$signal" = USR1 ] && [ "$code" -ne 0 ]; then
        echo "The time is up: job $SLURM_JOB_ID is queued again, and goes on with the sweep."
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
trap finish EXIT

srun --no-kill --nodes=1 --ntasks=1 --nodelist="$head" bash -c "$ray_node" "$python" --head --port="$port" \
    --node-ip-address="${address%:*}" --temp-dir="$folder" --include-dashboard=false \
    --ray-client-server-port="$((port + 1))" >>"$log" 2>&1 &
steps+=($!)
if [ "$num_nodes" -gt 1 ]; then
    attend "$python" -c "$wait_for_ray" "$address" 1 "${steps[0]}" "$log"
    srun --no-kill --kill-on-bad-exit=0 --nodes="$((num_nodes - 1))" --ntasks="$((num_nodes - 1))" \
        --ntasks-per-node=1 --exclude="$head" bash -c "$ray_node" "$python" --address="$address" >>"$log" 2>&1 &
    steps+=($!)
fi
attend "$python" -c "$wait_for_ray" "$address" "$num_nodes" "${steps[0]}" "$log"

attend "$python" "$@" --address "$address"
