hybvit calibrate runs/joint --data "$1" --half-of-test
hybvit evaluate runs/joint --data "$1" --suites calibration,doubt --bound-images 4 --bound-draws 4 --out judged
