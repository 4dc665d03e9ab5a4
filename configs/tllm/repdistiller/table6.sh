#!/usr/bin/env bash
# bash configs/tllm/repdistiller/table6.sh
# Table 6 of the paper's appendix: WRN-16-2 taught by WRN-28-2, WRN-40-2, WRN-16-4 and WRN-28-4 on CIFAR-100, by KD and
# by KD with TLLM. The host has wrn_40_2 only; the other teachers are TLLM's.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for seed in $SEEDS; do
    teacher wrn_28_2
    vanilla wrn_28_2 wrn_16_2 "$seed"
    for t in wrn_28_2 wrn_40_2 wrn_16_4 wrn_28_4; do
        teacher "$t"
        plain "$t" wrn_16_2 "$seed" "${KD[@]}"
        # One vanilla student is the reference of all four.
        student "$t" wrn_16_2 "$seed" "$seed" reference \
            --tllm_reference "$(vanilla_folder wrn_28_2 wrn_16_2 "$seed")" "${KD[@]}"
    done
done
