"""From a table of links to WebDataset shards: img2dataset, made dependable."""
