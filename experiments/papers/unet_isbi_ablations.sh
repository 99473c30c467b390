#!/usr/bin/env bash
# What U-Net's paper claims of its training on ISBI, each off in turn, three seeds, at a quarter of the
# widths; every run is scored as it is and by 8 views. The same command goes on where it was stopped.
#
#     bash experiments/papers/unet_isbi_ablations.sh FOLDER RUNS [options of train, such as --steps 4000]
set -euo pipefail
data=$1 runs=$2
shift 2
here=$(dirname "$0")
small=(--widths 16 32 64 128 256 --crop 380 380 --steps 4000 --evaluate-every 500)
for seed in 0 1 2; do
  for off in "" --no-weighted "--elastic 0" "--dropout 0"; do
    name=${off#--} name=${name#no-} name=${name%% *}
    run="$runs/${name:+no-}${name:-all}-$seed"
    # shellcheck disable=SC2086  # an option with its value
    python "$here/unet_isbi.py" train --data "$data" --run "$run" --seed "$seed" "${small[@]}" $off "$@"
    python -m segjax evaluate "$run" --views flip,rotations --out "$run/report/views"
  done
done
