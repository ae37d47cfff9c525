"""From any table of links and captions to parquet parts that img2dataset reads without loss."""
