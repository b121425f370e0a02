import sys

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.utils import save_image

folder, steps = sys.argv[1], int(sys.argv[2])
plain = v2.Compose([v2.Grayscale(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
train = ImageFolder(f"{folder}/train", plain)
net = UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    num_class_embeds=len(train.classes),
)
scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
average = EMAModel(net.parameters(), decay=0.99)
step = 0
while step < steps:
    for images, labels in DataLoader(train, 96, shuffle=True, drop_last=True):
        noise, times = torch.randn_like(images), torch.randint(1000, (len(images),))
        predicted = net(scheduler.add_noise(images, noise, times), times, class_labels=labels).sample
        loss = torch.nn.functional.mse_loss(predicted, scheduler.get_velocity(images, noise, times))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.step(net.parameters())
        step += 1
        if step == steps:
            break
average.copy_to(net.parameters())
sampler = DPMSolverMultistepScheduler.from_config(scheduler.config)
sampler.set_timesteps(20)
x, labels = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((16,), 3)
with torch.no_grad():
    for time in sampler.timesteps:
        x = sampler.step(net(x, time, class_labels=labels).sample, time, x).prev_sample
save_image((x.clamp(-1, 1) + 1) / 2, "drawn_by_diffusers.png", nrow=4)
print("drawn_by_diffusers.png: 16 images of class 3")
