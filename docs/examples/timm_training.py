"""A timm model trained on image-text pairs: dense images, and captions for a bag of words.

    python docs/examples/timm_training.py INDEX
    torchrun --nproc-per-node 2 docs/examples/timm_training.py INDEX    # a rank has its part

Stopped and started again, it continues with the step after the checkpoint.
"""

import os
import sys
from pathlib import Path

import timm
import torch
from torch import nn

from tessera import open_loader

INDEX, STEPS = sys.argv[1], int(os.environ.get("STEPS", "1000"))
MODEL, SIZE = os.environ.get("MODEL", "vit_small_patch16_224"), int(os.environ.get("SIZE", "224"))
CHECKPOINT = Path("timm_training.pt")
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = timm.create_model(MODEL, num_classes=256, img_size=SIZE)
        self.text = nn.EmbeddingBag(49408, 256)

    def forward(self, batch):
        images, texts = self.image(batch.images), self.text(batch.tokens, batch.text_offsets[:-1])
        logits = 20 * nn.functional.normalize(images) @ nn.functional.normalize(texts).T
        return nn.functional.cross_entropy(logits, torch.arange(len(logits)).to(logits.device))


if WORLD > 1:
    torch.distributed.init_process_group()
device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
pair = Pair().to(device)
optimizer = torch.optim.AdamW(pair.parameters(), lr=1e-3)
step = 0
if CHECKPOINT.exists():
    saved = torch.load(CHECKPOINT, map_location=device)
    pair.load_state_dict(saved["model"]), optimizer.load_state_dict(saved["optimizer"])
    step = saved["step"]
model = nn.parallel.DistributedDataParallel(pair) if WORLD > 1 else pair
settings = {"batch_size": 64, "image_size": SIZE, "rank": RANK, "world_size": WORLD}
with open_loader(INDEX, output="dense", pixels="float", model_device=device, **settings) as loader:
    loader.seek(step)
    for batch in loader:
        if step == STEPS:
            break
        optimizer.zero_grad()
        loss = model(batch)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 100 == 0 or step == STEPS:
            print(f"rank {RANK} step {step} loss {loss.item():.4f}", flush=True)
            if RANK == 0:
                state = {"model": pair.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "step": step}, CHECKPOINT)
