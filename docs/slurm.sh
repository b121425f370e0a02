#!/bin/bash
#SBATCH --job-name=hybvit
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
# 300 seconds before its time is up this script gets SIGUSR1: the training saves, and the job queues itself again. The run folder
# must be on a file system that all machines share.
set -uo pipefail
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:?give --cpus-per-task}"  # since Slurm 22.05 srun takes the number from here alone
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
again=
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --shutdown-timeout 240 \
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m hybvit train "${1:?the preset}" "${@:2}" &
running=$!
trap 'again=1; kill -TERM "$running"' USR1
wait "$running"
code=$?
if [ -n "$again" ]; then  # a signal ends the first wait before the training has saved
    wait "$running"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
