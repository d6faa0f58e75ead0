#!/usr/bin/env bash
# One node: as many processes as it has GPUs, or as NPROC says.
#     launch/one-node.sh fit job.yaml
set -euo pipefail
exec scalekit launch --nproc "${NPROC:-auto}" -- "$@"
