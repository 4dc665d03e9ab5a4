#!/usr/bin/env bash
# bash configs/tllm/repdistiller/table5.sh
# Table 5 of the paper's appendix: undistillable classes on CIFAR-100 of KD, FitNet and AT, plain and with TLLM, on
# three pairs. Counts come from the class accuracies in the runs' tllm/metrics.json, against the vanilla student's; with
# SEEDS="0 1" there is a second vanilla student, whose count against the first is the null.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for pair in "resnet32x4 resnet8x4" "ResNet50 MobileNetV2" "resnet32x4 ShuffleV1"; do
    read -r t s <<< "$pair"
    teacher "$t"
    for seed in $SEEDS; do
        vanilla "$t" "$s" "$seed"
        # KD, FitNet, AT, with the host's weights.
        for method in "kd -r 0.1 -a 0.9 -b 0" "hint -a 0 -b 100" "attention -a 0 -b 1000"; do
            read -r -a options <<< "--distill $method"
            plain "$t" "$s" "$seed" "${options[@]}"
            tllm_run "$t" "$s" "$seed" "${options[@]}"
        done
    done
done
