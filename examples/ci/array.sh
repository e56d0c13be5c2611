#!/usr/bin/env bash
#SBATCH --job-name=dijiang
#SBATCH --array=1-4
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
# sbatch array.sh jobs.yaml: a job array, of which each task runs its part of the jobs.
set -euo pipefail

part=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / SLURM_ARRAY_TASK_STEP + 1))
exec "${DIJIANG:-dijiang}" batch "${1:-jobs.yaml}" --shard "$part/$SLURM_ARRAY_TASK_COUNT"
