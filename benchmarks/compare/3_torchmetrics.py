import math
import sys

import torch
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_calibration_error
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

plain = v2.Compose([v2.Grayscale(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
test = ImageFolder(f"{sys.argv[1]}/test", plain)
net = torch.load("timm.pt", weights_only=False)
with torch.no_grad():
    found = [(net(images), labels) for images, labels in DataLoader(test, 256)]
logits, labels = (torch.cat(part) for part in zip(*found, strict=True))
cal, cal_labels, logits, labels = logits[::2], labels[::2], logits[1::2], labels[1::2]

log_temperature = torch.zeros((), requires_grad=True)
optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(cal / log_temperature.exp(), cal_labels)
    loss.backward()
    return loss


optimizer.step(closure)
temperature = log_temperature.detach().exp()
p, q = (cal / temperature).softmax(dim=1), (logits / temperature).softmax(dim=1)
before = multiclass_calibration_error(logits.softmax(dim=1), labels, logits.shape[1], n_bins=15)
after = multiclass_calibration_error(q, labels, logits.shape[1], n_bins=15)
print(f"temperature {temperature:.3f}, ECE {before:.4f} -> {after:.4f}")

scores = 1 - p[range(len(p)), cal_labels]
rank = math.ceil((len(scores) + 1) * 0.95)
threshold = scores.sort().values[rank - 1] if rank <= len(scores) else math.inf
sets = 1 - q <= threshold
print(f"sets at 95 %: coverage {sets[range(len(q)), labels].float().mean():.4f}, size {sets.sum(dim=1).float().mean():.3f}")

confidence, answers = q.max(dim=1)
wrong = (answers != labels)[confidence.argsort(descending=True)].double()
risk = wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)
print(f"AURC {risk.mean():.5f}, risk at 80 % coverage {risk[int(0.8 * len(risk)) - 1]:.4f}")
