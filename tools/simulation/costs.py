"""What limits a run of N GPUs: arithmetic over figures that were measured or are assumed.

Every input is a field of `Assumptions` with the place it comes from. Nothing here was timed on N
GPUs; where a figure of a GPU is used it is an assumption until docs/results has one.
"""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT32 = 4
_INDEX_BYTES_PER_SAMPLE = 275
"""docs/results/data-cpu.md, tables of the index."""
_LOADER_BYTES = 379 * 2**20
"""docs/results/data-cpu.md, private memory of a loader after a pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """What the table is computed from."""

    pairs_per_gpu_s: float = 6_000.0
    """Pairs a second that one GPU trains. Assumed: the design's target for ViT-B/16, half of the
    patches masked, bfloat16, on an H200; not measured yet."""
    pairs_per_gpu: int = 1_024
    """Pairs of one GPU in a step."""
    decode_per_core_s: float = 522.0
    """Pictures a second that one CPU core decodes, masks and packs. Measured on 640 px photos, crop
    0.4 to 1.0: docs/results/data-cpu/ladder-coco-0.4.json."""
    cores_per_gpu: float = 16.0
    """CPU cores for each GPU. Assumed: a common ratio of rented machines."""
    gpus_per_node: int = 8
    """GPUs of one machine. Assumed."""
    bytes_per_sample: float = 162e3
    """Bytes of one picture file. Measured: mean of the 640 px photos of the same record; pictures
    kept at 256 px have about a sixth."""
    node_read_bytes_s: float = 2e9
    """Bytes a second that one machine reads from its storage. Assumed: one NVMe disk, or 16 Gbit/s
    of a network."""
    storage_bytes_s: float = 20e9
    """Bytes a second that shared storage gives all machines together. Assumed."""
    link_bytes_s: float = 25e9
    """Bytes a second between a GPU and the next one of the ring, other machines included. Assumed:
    200 Gbit/s for each GPU."""
    parameters: float = 150e6
    """Parameters of the model: ViT-B/16 and its text tower."""
    embed_dim: int = 512
    """Length of a feature."""
    flop_per_pair: float = 56e9
    """Floating point operations of a pair, forward and backward: the design's figure."""
    prefetch: int = 2
    """Batches held ahead in each of the loader's two queues."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """A run of N GPUs on a set of M samples. Shares are of the time of a step."""

    num_gpus: int
    """N."""
    num_samples: float
    """M."""
    batch_size: int
    """Pairs of a step over all GPUs."""
    step_s: float
    """Seconds of a step that waits for nothing."""
    pass_hours: float
    """Hours for every sample once at that rate."""
    decode_share: float
    """Time the cores need to decode a step's pictures."""
    node_read_share: float
    """Time a machine needs to read its part of a step."""
    storage_share: float
    """Time shared storage needs to give all machines a step's bytes, each byte once."""
    gradient_share: float
    """Time the ring needs for the gradients; hidden behind the backward pass while below its two
    thirds of a step."""
    feature_share: float
    """Time the ring needs for both towers' features and their gradients; not hidden."""
    loss_share: float
    """Work of the similarity matrix over that of the towers, a GPU's rows against all columns."""
    loss_full_gib: float
    """Memory of one GPU's rows of the similarity matrix in float32, GiB; with tiles none of it."""
    host_gib_per_node: float
    """Private memory of a machine's loaders, GiB."""
    index_gib_per_node: float
    """Mapped pages of the index that all ranks of a machine share, GiB, if every one is touched."""

    @property
    def limit(self) -> str:
        """The resource that a step waits for most, or the GPU itself."""
        shares = {
            "decoding": self.decode_share,
            "a machine's reads": self.node_read_share,
            "shared storage": self.storage_share,
            "gradients": self.gradient_share * 1.5,
            "features": self.feature_share,
        }
        worst = max(shares, key=shares.__getitem__)
        return worst if shares[worst] > 1 else "the GPU"


def cost(num_gpus: int, num_samples: float, given: Assumptions) -> Cost:
    """Compute one row of the table."""
    batch_size = num_gpus * given.pairs_per_gpu
    step_s = given.pairs_per_gpu / given.pairs_per_gpu_s
    local_gpus = min(num_gpus, given.gpus_per_node)
    node_bytes = local_gpus * given.pairs_per_gpu * given.bytes_per_sample
    ring = (num_gpus - 1) / num_gpus
    # Ring all-reduce sends every byte twice; features are gathered once and their gradients come
    # back once, for both towers.
    gradient_bytes = 2 * ring * given.parameters * _FLOAT32
    feature_bytes = 2 * 2 * ring * batch_size * given.embed_dim * _FLOAT32
    logits = given.pairs_per_gpu * batch_size
    # Both directions' rows, two operations a product, forward and twice that backward.
    loss_flop = 2 * logits * given.embed_dim * 2 * 3
    queued = 2 * given.prefetch * given.pairs_per_gpu * given.bytes_per_sample
    return Cost(
        num_gpus=num_gpus,
        num_samples=num_samples,
        batch_size=batch_size,
        step_s=step_s,
        pass_hours=num_samples / (num_gpus * given.pairs_per_gpu_s) / 3600,
        decode_share=given.pairs_per_gpu_s / (given.decode_per_core_s * given.cores_per_gpu),
        node_read_share=node_bytes / given.node_read_bytes_s / step_s,
        storage_share=batch_size * given.bytes_per_sample / given.storage_bytes_s / step_s,
        gradient_share=gradient_bytes / given.link_bytes_s / step_s,
        feature_share=feature_bytes / given.link_bytes_s / step_s,
        loss_share=loss_flop / (given.pairs_per_gpu * given.flop_per_pair),
        loss_full_gib=2 * logits * _FLOAT32 / 2**30,
        host_gib_per_node=local_gpus * (_LOADER_BYTES + queued) / 2**30,
        index_gib_per_node=num_samples * _INDEX_BYTES_PER_SAMPLE / 2**30,
    )
