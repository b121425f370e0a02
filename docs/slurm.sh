#!/bin/bash
#SBATCH --job-name=hybvit
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
# 180 seconds before its time is up the job gets SIGUSR1, saves, and queues itself again: the same command resumes.
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
code=0
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" --max-restarts 3 \
    -m hybvit train "${1:?the preset}" "${@:2}" || code=$?
if [ "$code" -ne 0 ] && [ "$code" -ne 2 ]; then  # 2 is a wrong command, which would fail again
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
