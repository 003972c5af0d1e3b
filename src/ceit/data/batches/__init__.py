"""Splits to batches: order, augmentation, worker processes, the loader; knows splits only."""
