"""Images in: sets by name or by folder, preprocessing, augmentation and the loader.

Read in this order: ``image`` (one file), ``preprocessing`` (image to tensor), ``dataset`` (what a set is), ``folder``
and ``named`` (where sets come from), ``random_bits``, ``augment`` and ``loader`` (batches). ``sources``, ``decode`` and
``fetch`` bring a named set onto the disk.
"""
