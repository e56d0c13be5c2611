#!/usr/bin/env bash
#SBATCH --job-name=dijiang
#SBATCH --array=1-4
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
# sbatch array.sh jobs.yaml: a job array, of which each task runs its part of the jobs. Some of the parts alone, such as one
# that was killed: SHARDS=8 sbatch --array=3 array.sh jobs.yaml, of which the array's numbers are the parts, from 1.
set -euo pipefail

if [[ -n ${SHARDS:-} ]]; then
    part=$SLURM_ARRAY_TASK_ID
elif [[ $SLURM_ARRAY_TASK_COUNT == 1 ]]; then
    echo "error: an array of one task would run all jobs (hint: SHARDS=8 sbatch --array=3 runs the third of eight parts)" >&2
    exit 2
else
    part=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / SLURM_ARRAY_TASK_STEP + 1))
fi
exec "${DIJIANG:-dijiang}" batch "${1:-jobs.yaml}" --shard "$part/${SHARDS:-$SLURM_ARRAY_TASK_COUNT}"
