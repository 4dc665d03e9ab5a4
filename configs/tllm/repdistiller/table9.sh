#!/usr/bin/env bash
# bash configs/tllm/repdistiller/table9.sh
# Table 9 of the paper's appendix: vanilla student, KD, label smoothing (the detector `all`: no class has a teacher) and
# KD with TLLM on CIFAR-100, three pairs; smoothing 0.1 everywhere.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for pair in "resnet32x4 resnet8x4" "ResNet50 MobileNetV2" "ResNet50 ShuffleV1"; do
    read -r t s <<< "$pair"
    teacher "$t"
    for seed in $SEEDS; do
        vanilla "$t" "$s" "$seed"
        plain "$t" "$s" "$seed" "${KD[@]}"
        student "$t" "$s" "$seed" "$seed" all "${KD[@]}" --tllm_smoothing 0.1
        tllm_run "$t" "$s" "$seed" "${KD[@]}" --tllm_smoothing 0.1
    done
done
