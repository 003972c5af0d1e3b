"""The names of models and data sets as data, for ``ceit list``, which imports none of the code that they stand in.

python -m tools.names src/ceit/names.json
"""

import json
import sys
from pathlib import Path

from ceit.atomic import write_text
from ceit.data.sources.known_sets import SETS
from ceit.data.sources.published import PUBLISHED
from ceit.model import MODELS, config_of
from ceit.model.complexity import complexity


def names() -> str:
    """The document: of each model its size, of each data set what it holds and how one comes by it."""
    models = [
        {"name": name, "parameters": complexity(config_of(name)).parameters, "images": f"{config_of(name).img_size} px"}
        for name in MODELS
    ]
    data = [
        {
            "name": name,
            "classes": len(known.class_names),
            "train": known.train_images,
            "test": known.test_images,
            "source": "fetched when it is used" if known.sources else "comes with ceit",
        }
        for name, known in SETS.items()
    ]
    data += [
        {
            "name": name,
            "classes": known.classes,
            "train": known.train_images,
            "test": known.test_images,
            "source": f"ceit data fetch {name}" if known.downloader else f"from its owner: ceit data fetch {name}",
        }
        for name, known in PUBLISHED.items()
    ]
    return json.dumps({"models": models, "data": data}, indent=1) + "\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), names())
