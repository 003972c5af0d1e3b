"""How good answers are: counted over a split, per class, by rank, as confidence; and the files that hold it."""
