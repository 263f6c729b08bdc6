# What the batch scripts of this folder share. They source it; it does nothing by itself but define functions.
# Everything is set by environment variables, which sbatch passes on; flags of pretrain_gpt.py follow the script's name:
#   RUN_DIR=runs/large sbatch --nodes=4 examples/slurm/pretrain_multi_node.sbatch --train-iters 5000
#
#   PROJECT_DIR  folder of pretrain_gpt.py, seen by all nodes (default: where sbatch was called)
#   PYTHON       interpreter that has the project's packages, seen by all nodes (default: .venv/bin/python)
#   FLAGS_FILE   model, data and layout, as flags (default: examples/slurm/gpt.flags)
#   BACKEND      nccl on GPUs, gloo on CPUs (default: nccl)
#   RUN_DIR      checkpoints and metrics, seen by all nodes (default: runs/slurm-JOBID, the same after a requeue)
# shellcheck shell=bash

# One line that says what is wrong: found, expected, next step. Status 2, as for the trainer's own "error:" lines.
fault() {
    printf '%s: error: found %s; expected %s; %s.\n' "${SLURM_JOB_NAME:-examples/slurm}" "$1" "$2" "$3" >&2
    exit 2
}

# Checks what every script needs, and sets PYTHON, FLAGS_FILE, BACKEND, RUN_DIR and OMP_NUM_THREADS.
prepare() {
    [[ -n ${SLURM_JOB_ID:-} ]] || fault "no SLURM_JOB_ID in the environment" "a job of Slurm" \
        "submit the script with sbatch, or use torchrun where there is no Slurm (docs/launching.md)"
    command -v srun >/dev/null || fault "SLURM_JOB_ID=$SLURM_JOB_ID but no program srun on PATH" \
        "Slurm's commands on the compute nodes" "add their folder to PATH, or load your site's Slurm module"
    [[ -f pretrain_gpt.py ]] || fault "no pretrain_gpt.py in $PWD" "the root of the project" \
        "submit from there, or set PROJECT_DIR"
    PYTHON=${PYTHON:-$PWD/.venv/bin/python}
    command -v "$PYTHON" >/dev/null || fault "no program $PYTHON on ${SLURMD_NODENAME:-this node}" \
        "Python with the project's packages, in a folder that all nodes see" \
        "run tools/setup_env.sh once, or set PYTHON"
    FLAGS_FILE=${FLAGS_FILE:-examples/slurm/gpt.flags}
    BACKEND=${BACKEND:-nccl}
    RUN_DIR=${RUN_DIR:-runs/slurm-$SLURM_JOB_ID}
    # Without this PyTorch starts a thread per core in every task. --cpus-per-task says how many there are for one.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    mkdir -p "$RUN_DIR"
}

# Every node must see the interpreter and the project: a missing mount is easier to understand here than from rank 7.
# --ntasks-per-node=1 overrides the job's own number for this step.
check_nodes() {
    # shellcheck disable=SC2016  # the nodes' shells expand it
    srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '
        { command -v "$1" && test -r pretrain_gpt.py; } >/dev/null || { echo "$SLURMD_NODENAME: no $1 or no $PWD/pretrain_gpt.py" >&2; exit 1; }
    ' check "$PYTHON" || fault "a node without the project (see above)" "the same folders on all nodes" \
        "put project and interpreter on a shared file system, or leave the node out with --exclude"
}

# Sets the array `flags` to the words of a file: parted at blanks; a line that starts with # is a comment. Words go to
# the program as they are. Nothing is evaluated, so quotes, $ and * have no meaning, and a value cannot hold a blank.
read_flags() {
    local line file=$1
    local -a words
    [[ -r $file ]] || fault "no readable file $file" "flags of pretrain_gpt.py, one or more a line" "set FLAGS_FILE"
    flags=()
    # shellcheck disable=SC2094  # check_words gets the file's name for its message and does not write to it
    while IFS= read -r line || [[ -n $line ]]; do
        [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
        check_words "$line" "$file"
        read -r -a words <<<"$line"
        flags+=("${words[@]}")
    done <"$file"
}

check_words() {
    [[ $1 != *[\"\']* ]] || fault "a quote in the line '$1' of $2" "words parted at blanks" \
        "remove the quotes; a value with a blank belongs on the command line"
}
