"""WebDataset shards: read at random, scanned, written."""
