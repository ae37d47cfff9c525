"""VeCLIP: captions of what is visible, fused with the alt text, beside the alt text itself.

Paper: Lai et al., ECCV 2024, arXiv 2310.07699. A vision-language model describes each picture, a
language model joins that with the alt text, and training chooses between the two at each visit.

The captions: by `tools/recaption.py` (docs/rewriting.md), or VeCap-300M's files where the URLs of
an index are among theirs:

    python tools/add_captions.py data/cc12m/index vecap wit_300m-*.json --format json-map --join url

VeCap-300M has URLs and captions and no alt texts, so the paper's own mixture cannot be rebuilt from
it alone. Keep the alt text in the mixture: VeCap alone reaches 46.4 on ImageNet where the mixture
reaches 64.6 (300 M and 200 M pairs).

Where the paper, its code and Tessera differ, in both recipes:

- Optimiser, rates, batch and text length are not published; those here are `clip`'s.
- The share of VeCap captions is not published; half here. `--data.captions caption=1 vecap=2` and
  the like change it.
- Towers read T5's tokens there and CLIP's here. Fused captions are long: with a short context
  `--data.text-reduction syntax` keeps more of them than truncation.
- Their evaluation resizes without antialiasing; here it is open_clip's.
"""

from __future__ import annotations

from dataclasses import replace

from tessera.recipes.clip import clip, derived
from tessera.recipes.datasets import CC12M
from tessera.training.config import TrainConfig


def veclip() -> TrainConfig:
    """VeCLIP, ViT-B/16 on CC12M: alt text or VeCap caption, drawn alike.

    Data: CC12M, 32 passes, with the caption source `vecap` (see the module).
    Command: `torchrun --nproc-per-node 8 train.py veclip`, or on one GPU
    `python train.py veclip --accumulation 8`.
    Hardware: not published.
    Cost: 35.8 EFLOP, 33 GPU-hours at 300 TFLOP/s (assumed).
    Published: on 12 M pairs of their own ImageNet zero-shot 38.1 (CLIP 31.6), COCO R@1 47.8 / 31.6
    (24.5 / 14.3); of the gain on ImageNet 0.9 is left at 200 M pairs, of COCO's 15.0 / 13.4.
    Measured: not yet.
    Differs: see the module. Their 12 M pairs are a set of their own, VeCap-12M.
    """
    base = clip()
    return derived(
        base,
        "veclip",
        data=replace(base.data, captions=("caption", "vecap")),
    )


def veclip_dfn() -> TrainConfig:
    """VeCLIP on the part of CC12M that a filter keeps, as the paper joins it with DFN.

    Data: as `veclip`, and the selection `dfn`: of a list of keys or DataComp ids
    `python tools/select_samples.py data/cc12m/index --out dfn --listed ids.txt --on key`, of scores
    in a table `python tools/select_samples.py data/cc12m/index --out dfn --join scores.parquet --on
    key --where "score > 0.2"`.
    Command: `torchrun --nproc-per-node 8 train.py veclip-dfn`. Filtered alone:
    `python train.py veclip-dfn --data.captions caption --run-dir runs/dfn`
    Hardware: not published.
    Cost: 35.8 EFLOP, 33 GPU-hours at 300 TFLOP/s (assumed).
    Published: B/16 on DFN and VeCap-300M together ImageNet zero-shot 76.2, COCO R@1 66.3 / 45.1; on
    DFN alone 76.2 and 63.0 / 43.2, on VeCap alone 46.4 and 64.7 / 44.6.
    Measured: not yet.
    Differs: see the module. The paper adds VeCap-300M's pairs to DFN's, in a ratio that is not
    published; here the filter chooses among the pairs that have both texts, and the budget in pairs
    stays `veclip`'s, so what is kept comes more often.
    """
    base = veclip()
    return derived(
        base,
        "veclip-dfn",
        data=replace(base.data, train=f"{CC12M}@dfn"),
    )
