#!/usr/bin/env bash
# Many nodes: run the same line on each of them, with its own NODE_RANK.
#     NODES=4 NODE_RANK=0 ENDPOINT=first-node:29500 MAX_RESTARTS=3 launch/many-nodes.sh fit job.yaml
# The first node is the one with NODE_RANK=0; the others must reach ENDPOINT. Each needs the same files at the same paths, and
# the run's folder on storage that all share.
set -euo pipefail
: "${NODES:?how many nodes}" "${NODE_RANK:?which of them this is, from 0}" "${ENDPOINT:?host:port of the first node}"
exec scalekit launch --nproc "${NPROC:-auto}" --nodes "$NODES" --node-rank "$NODE_RANK" --endpoint "$ENDPOINT" \
  --max-restarts "${MAX_RESTARTS:-0}" -- "$@"
