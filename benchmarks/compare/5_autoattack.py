import sys

import torch
from pyautoattack import AutoAttack
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

plain = v2.Compose([v2.Grayscale(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
test = ImageFolder(f"{sys.argv[1]}/test", plain)
chosen = [test[i] for i in range(0, len(test), len(test) // 16)][:16]
images, labels = torch.stack([image for image, _ in chosen]), torch.tensor([label for _, label in chosen])
net = torch.load("timm.pt", weights_only=False)


def logits(x):  # the attack works on [0, 1]
    return net(2 * x - 1)


attack = AutoAttack(logits, norm="Linf", eps=8 / 255, version="standard", device="cpu")
broken, _ = attack.run_standard_evaluation(images, labels, batch_size=16)
with torch.no_grad():
    print(f"accuracy under AutoAttack at 8/255: {(logits(broken).argmax(dim=1) == labels).float().mean():.4f}, n {len(labels)}")
