hybvit sample runs/joint -n 16 --label 3 --out drawn.png
