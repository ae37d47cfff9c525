"""What a run is trained on and measured on as well: a score on such samples says little."""

from __future__ import annotations

from tessera.pipeline.index.dataset import Dataset, num_shared, open_dataset
from tessera.pipeline.mixture import Mixture
from tessera.training.config import EvaluationConfig


def overlap_warnings(train: Dataset | Mixture, config: EvaluationConfig) -> list[str]:
    """A line for each evaluation set that shares samples with the training set.

    Sets of one index, whole or selected, are compared by row; those of different indexes are not.

    Args:
        train: what is trained on, one set or several.
        config: names the evaluation sets.

    Raises:
        FileNotFoundError: an evaluation set is missing.
        ValueError: an evaluation set is damaged.
    """
    lines = []
    for reference in dict.fromkeys((*config.zero_shot, *config.retrieval)):
        dataset = open_dataset(reference)
        parts = train.parts if isinstance(train, Mixture) else (train,)
        shared = sum(num_shared(part, dataset) for part in parts)
        if shared:
            lines.append(
                f"{shared:,} of the {dataset.num_samples:,} samples of {reference} are trained on "
                "as well: scores on it do not show what the model does with new pictures"
            )
    return lines
