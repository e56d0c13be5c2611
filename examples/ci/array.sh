#!/usr/bin/env bash
#SBATCH --job-name=dijiang
#SBATCH --array=1-4
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
# sbatch array.sh jobs.yaml: a job array, of which each task runs its part of the jobs. Some of the parts alone, such as one
# that was killed: SHARDS=8 sbatch --array=3 array.sh jobs.yaml, of which the array's numbers are the parts, from 1.
set -euo pipefail

refuse() {
    echo "error: $1 (hint: $2)" >&2
    exit 2
}

if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    refuse "no task of a job array runs this" "sbatch --array=1-8 array.sh jobs.yaml; without Slurm: dijiang batch jobs.yaml"
fi
task=$SLURM_ARRAY_TASK_ID
first=${SLURM_ARRAY_TASK_MIN:-$task}
last=${SLURM_ARRAY_TASK_MAX:-$task}
step=${SLURM_ARRAY_TASK_STEP:-1}
count=${SLURM_ARRAY_TASK_COUNT:-1}

if [[ -n ${SHARDS:-} ]]; then
    part=$task
elif [[ $count == 1 ]]; then
    refuse "an array of one task would run all jobs" "SHARDS=8 sbatch --array=3 runs the third of eight parts"
elif (((last - first) / step + 1 != count || (task - first) % step != 0)); then
    # Which place a task has in a list is not told.
    refuse "the array's $count tasks from $first to $last have gaps, and which parts are meant is not known" \
        "--array=1-$count, or SHARDS=8 sbatch --array=3,5 runs the third and the fifth of eight parts"
else
    part=$(((task - first) / step + 1))
fi
exec "${DIJIANG:-dijiang}" batch "${1:-jobs.yaml}" --shard "$part/${SHARDS:-$count}"
