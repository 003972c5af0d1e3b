"""Images in: sets by name or by folder, preprocessing, augmentation and the loader.

Read in this order: ``image`` (one file), ``preprocessing`` (image to tensor), ``splits`` (what a set is), ``sources``
(where sets come from: ``choose`` finds the one that is meant), ``batches`` (``order``, ``augment`` and ``loader``), and
``audit`` (what is wrong with a set). ``cache`` and ``threads`` serve them all.

One image of a training step comes this way, the last name being the first that is called: ``image.read_image`` decodes
its file for ``encoded.EncodedSplit.read``, ``batches.batch.ImageAugmentation`` crops and varies it,
``preprocessing.Preprocessing.normalise`` makes it a tensor, ``batches.batch.Batches`` puts it into a batch, and
``batches.loader.Loader.epoch`` hands that out, straight or from worker processes.
"""
