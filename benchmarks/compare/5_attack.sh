hybvit evaluate runs/joint --data "$1" --suites robustness --attack-images 32 --attack-steps 20 --autoattack-images 16 --out judged
