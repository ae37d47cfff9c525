"""Half of the patches, chosen by the cluster mask, in a ViT of your own: here timm's blocks.

    python docs/examples/packed_vit.py INDEX

The mask runs in the loader, so the model computes on the visible patches only. With mode "topk"
each image keeps the same number, and the packed patches are a plain [B, K, D] tensor; other modes
vary the number, and `batch.image_offsets` says whose a patch is.
"""

import os
import sys

import timm
import torch
from torch import nn

from tessera import open_loader
from tessera.pipeline.masking import MaskConfig
from tessera.pipeline.patches import normalise

INDEX, STEPS = sys.argv[1], int(os.environ.get("STEPS", "200"))
MODEL, SIZE = os.environ.get("MODEL", "vit_small_patch16_224"), int(os.environ.get("SIZE", "224"))


def encode(vit, batch):
    """[B, 256] features of a packed batch by a timm ViT with a class token."""
    weight = vit.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)  # to (y, x, channel)
    tokens = nn.functional.linear(normalise(batch.patches), weight, vit.patch_embed.proj.bias)
    tokens = tokens + vit.pos_embed[0, 1:][batch.positions.long()]
    tokens = tokens.view(batch.num_samples, -1, tokens.shape[1])
    first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(tokens), -1, -1)
    return vit.forward_head(vit.norm(vit.blocks(torch.cat([first, tokens], dim=1))))


device = "cuda" if torch.cuda.is_available() else "cpu"
vit = timm.create_model(MODEL, num_classes=256, img_size=SIZE).to(device)
text = nn.EmbeddingBag(49408, 256).to(device)
optimizer = torch.optim.AdamW([*vit.parameters(), *text.parameters()], lr=1e-3)
mask = MaskConfig(kind="cluster", mask_ratio=0.5, mode="topk")
settings = {"batch_size": 64, "image_size": SIZE, "mask": mask, "model_device": device}
with open_loader(INDEX, **settings) as loader:
    for step, batch in zip(range(1, STEPS + 1), loader):
        images = nn.functional.normalize(encode(vit, batch))
        texts = nn.functional.normalize(text(batch.tokens, batch.text_offsets[:-1]))
        target = torch.arange(len(images), device=device)
        loss = nn.functional.cross_entropy(20 * images @ texts.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == STEPS:
            per_image = len(batch.patches) // batch.num_samples
            print(f"step {step} loss {loss.item():.4f}, {per_image} patches an image", flush=True)
