#!/bin/bash
# TPU=SLICE ZONE=us-central2-b bash experiments/cluster/cloud_tpu.sh experiments/fcn8s_voc.py \
#     --data /mnt/data --run /mnt/runs/voc
# The same command on every host of a slice, each with segjax cloned to ~/segjax. Again: it goes on.
set -euo pipefail
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd segjax && python $(printf '%q ' "$1" train --distributed "${@:2}")"
