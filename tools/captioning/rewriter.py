"""Captions rewritten by in-context learning, after LaCLIP (Fan et al., NeurIPS 2023, section 3).

Legend: B captions, E examples of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.counter_random import Purpose, uniforms
from tessera.pipeline.index import Index
from tessera.tools.captioning.engine import Completion
from tessera.tools.captioning.examples import DRAWS_PER_EXAMPLE, ExampleSet
from tessera.tools.captioning.judging import Fault, fault_of, tidied
from tessera.tools.captioning.language_model import TextModel
from tessera.tools.captioning.prompts import RewritePrompt, shortened
from tessera.tools.captioning.rounds import (
    Material,
    Outcome,
    first_captions,
    sampling_seed,
    tool_seed,
)


class Rewriter:
    """A `Captioner` that shows a language model a few examples and then the caption.

    Every sample and every try has examples of its own.
    """

    def __init__(
        self,
        index: Index,
        model: TextModel,
        prompt: RewritePrompt,
        examples: ExampleSet,
        num_examples: int,
        seed: int,
    ) -> None:
        """Prepare to rewrite.

        Args:
            index: has the captions.
            model: goes on with prompts.
            prompt: instruction and separator.
            examples: what examples are drawn from.
            num_examples: E.
            seed: of the draws of examples and tokens.
        """
        self._captions = index.captions()
        self._model = model
        self._prompt = prompt
        self._examples = examples
        self._num_examples = num_examples
        self._seed = seed

    def prepare(self, ids: NDArray[np.int64]) -> list[Material]:
        """See `Captioner`: a sample's first caption."""
        texts = first_captions(self._captions, ids)
        return [
            Material(sample_id=number, caption=text)
            for number, text in zip(ids.tolist(), texts, strict=True)
        ]

    def attempt(self, materials: Sequence[Material], attempt: int) -> list[Outcome]:
        """See `Captioner`."""
        shown = self.examples([material.sample_id for material in materials], attempt)
        prompts = [
            self._prompt.fill(pairs, material.caption)
            for pairs, material in zip(shown, materials, strict=True)
        ]
        seed = sampling_seed(self._seed, materials, attempt)
        completions = self._model.continue_lines(prompts, seed)
        return [self._judged(*parts) for parts in zip(completions, materials, shown, strict=True)]

    def examples(self, sample_ids: Sequence[int], attempt: int) -> list[list[tuple[str, str]]]:
        """Examples for each sample: a function of (seed, try, sample) alone.

        Returns:
            B lists of E pairs of input and output.
        """
        count = self._num_examples * DRAWS_PER_EXAMPLE
        drawn = uniforms(tool_seed(self._seed), attempt, sample_ids, Purpose.CAPTION, count)
        rows = drawn.reshape(-1, self._num_examples, DRAWS_PER_EXAMPLE)
        return [self._examples.draw(row) for row in rows]

    def _judged(
        self, completion: Completion, material: Material, shown: list[tuple[str, str]]
    ) -> Outcome:
        text = tidied(completion.text)
        if self._prompt.separator in text:
            return Outcome(fault=Fault.RUNS_ON)
        # The model read the shortened caption, so a copy of that is one as well.
        known = [material.caption, shortened(material.caption)]
        known += [line for pair in shown for line in pair]
        return Outcome(
            text=text, fault=fault_of(text, finished=completion.finished, copies_of=known)
        )
