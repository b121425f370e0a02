hybvit evaluate runs/joint --data "$1" --suites ood --ood noise --bound-images 4 --bound-draws 4 --out judged
