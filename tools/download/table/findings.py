"""What is found in the rows of a table, and how often.

Three kinds of findings are counted, each with the ids of its first rows.

repairs    the row is kept, something in it was changed
    bom                    a byte-order mark before the first row was taken off
    crlf                   the line ended in CR LF; the CR was taken off
    undecodable_bytes      bytes of the caption that are not UTF-8 became U+FFFD
    url_bytes_encoded      bytes of the URL that are not UTF-8 were percent-encoded
    url_spaces             white space around the URL was taken off
    swapped_columns        the caption stood in the URL's place and the other way round
    extra_commas           a CSV row with too many fields; the surplus was joined to the caption
oddities   the row is kept byte for byte
    extra_tabs             more tabs than columns; they belong to the caption
    line_break_in_caption  a CR or LF inside the caption
dropped    the row is not in the table
    empty_line, not_json, missing_url, missing_caption (nothing or only white space)
    duplicate_url          the URL came before, with the same caption
    duplicate_url_other_caption  the URL came before, with another caption
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_EXAMPLES = 3


@dataclass(kw_only=True, slots=True)
class Tally:
    """What was found in the rows; see the module's text for the names."""

    num_rows: int = 0
    """Rows of the source, bad ones too."""
    repairs: Counter[str] = field(default_factory=Counter)
    """Rows changed, by finding."""
    oddities: Counter[str] = field(default_factory=Counter)
    """Rows kept as they are that deserve a look, by finding."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by finding."""
    examples: dict[str, list[int]] = field(default_factory=dict)
    """Row ids of the first of each finding."""

    def note(self, counts: Counter[str], name: str, row_ids: NDArray[np.int64]) -> None:
        """Count rows under a name."""
        if len(row_ids):
            counts[name] += len(row_ids)
            known = self.examples.setdefault(name, [])
            known += row_ids[: _EXAMPLES - len(known)].tolist()
