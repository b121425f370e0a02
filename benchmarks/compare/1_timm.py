import sys

import timm
import torch
from scipy.stats import binomtest
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

folder, steps = sys.argv[1], int(sys.argv[2])
plain = v2.Compose([v2.Grayscale(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
train = ImageFolder(f"{folder}/train", v2.Compose([v2.RandomCrop(8, padding=1), plain]))
test = ImageFolder(f"{folder}/test", plain)
net = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, num_classes=len(train.classes), embed_dim=96, depth=3
)
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
step = 0
while step < steps:
    for images, labels in DataLoader(train, 96, shuffle=True, drop_last=True):
        loss = torch.nn.functional.cross_entropy(net(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(net)
        step += 1
        if step == steps:
            break
net = average.module.eval()
with torch.no_grad():
    right = sum(int((net(images).argmax(dim=1) == labels).sum()) for images, labels in DataLoader(test, 256))
interval = binomtest(right, len(test)).proportion_ci(method="wilson")
print(f"test accuracy {right / len(test):.4f} ({interval.low:.4f} to {interval.high:.4f}), n {len(test)}")
torch.save(net, "timm.pt")
