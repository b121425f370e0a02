hybvit train digits --data "$1" --out runs/joint --model.label_conditioning true --model.class_depth 2 --train.steps "$2"
hybvit evaluate runs/joint --data "$1" --suites accuracy --out judged
