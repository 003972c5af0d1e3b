"""Images in: sets by name or by folder, preprocessing, augmentation and the loader.

Read in this order: ``image`` (one file), ``preprocessing`` (image to tensor), ``splits`` (what a set is), ``sources``
(where sets come from: ``choose`` finds the one that is meant), ``batches`` (``order``, ``augment`` and ``loader``), and
``audit`` (what is wrong with a set). ``cache`` and ``threads`` serve them all.
"""
