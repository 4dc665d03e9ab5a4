#!/usr/bin/env bash
# bash configs/tllm/repdistiller/table11.sh
# Table 11 of the paper's appendix, its CIFAR-100 half: MobileNetV2 taught by ResNet50 with KD, with early-stopped KD
# (no class is taught after 70, 80, 90 or 95 % of the epochs; the paper reports the best) and with TLLM.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

t=ResNet50 s=MobileNetV2
teacher "$t"
for seed in $SEEDS; do
    vanilla "$t" "$s" "$seed"
    plain "$t" "$s" "$seed" "${KD[@]}"
    for fraction in 0.7 0.8 0.9 0.95; do
        student "$t" "$s" "$seed" "$seed-$fraction" after "${KD[@]}" --tllm_after "$fraction"
    done
    tllm_run "$t" "$s" "$seed" "${KD[@]}"
done
