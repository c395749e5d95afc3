#!/bin/sh
# The demo's question, "is today an anomalous day?", asked of your own people's CSV files.
#
#   health.sh [FLEET.csv]
#
# Each device keeps the days of the person who wears it: see recorder.toml. Devices with the label
# role=holdout take no part in training and say what the model is worth to people it has never seen. May be
# run again at any time: it goes on where it stopped, and then trains further.
set -eu
fleet=${1:-$(dirname "$0")/fleet.csv}

fedctl init -q
fedctl devices add -f "$fleet"

# Anomalous days are rare, so the few there are count for more.
if ! fedctl model list -o name | grep -qx health; then
    fedctl model create health --builder mlp --input 8 --hidden 16 --classes 2 --class-weights balanced
fi

fedctl data check --model health || [ $? -eq 3 ] # 3: some devices cannot train as they are; the others do
fedctl round start health --rounds 10
fedctl model export health health.safetensors --force
