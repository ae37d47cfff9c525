"""Tables of other people, row by row: CSV and its kin, JSON, parquet, Hugging Face data sets."""

from tessera.pipeline.tables.cells import texts_of
from tessera.pipeline.tables.opening import TableOptions, open_table
from tessera.pipeline.tables.table import BadRow, Problem, Row, Table, find_column, required_column

__all__ = [
    "BadRow",
    "Problem",
    "Row",
    "Table",
    "TableOptions",
    "find_column",
    "open_table",
    "required_column",
    "texts_of",
]
