import sys

import torch
from pytorch_ood.detector import KNN, RMD, EnergyBased, Entropy, MaxLogit, MaxSoftmax
from pytorch_ood.metrics import OODMetrics
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

plain = v2.Compose([v2.Grayscale(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
train, test = (DataLoader(ImageFolder(f"{sys.argv[1]}/{split}", plain), 256) for split in ("train", "test"))
noise = 2 * torch.rand(len(test.dataset), 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
foreign = DataLoader(TensorDataset(noise, torch.full((len(noise),), -1)), 256)
net = torch.load("timm.pt", weights_only=False)


def encoder(x):
    return net.forward_head(net.forward_features(x), pre_logits=True)


detectors = {
    "max_prob": MaxSoftmax(net),
    "max_logit": MaxLogit(net),
    "entropy": Entropy(net),
    "logpx": EnergyBased(net),
    "knn": KNN(encoder),
    "relative_mahalanobis": RMD(encoder),
}
with torch.no_grad():
    for name, detector in detectors.items():
        if detector.requires_fit:
            detector.fit(train)
        metrics = OODMetrics()
        for loader in (test, foreign):
            for images, labels in loader:
                metrics.update(detector(images), labels)
        print(name, {key: round(float(value), 4) for key, value in metrics.compute().items()})
