"""What fuzzing has found so far, by target, and the files that read what others wrote."""

MENDED: dict[str, list[str]] = {
    "images": ["a grey TGA with a palette came out as palette numbers, silently: it is grey"],
    "torch file": ["names of members that are no text were an error of the decoder, without the file's name"],
    "side file": [
        "class names, training and preprocessing of other types were a TypeError or KeyError: each is checked by name",
        "a depth of millions was a hang: refused before blocks are made, as the tensors are counted first",
        "sizes beyond 64 bits were a TypeError of torch: none can be so large",
        "an endless number in what is said of known images was an OverflowError",
        "mean, std or crop that are no finite numbers gave a TypeError at the first image",
    ],
    "run: compare": [
        "config.yaml, metrics.jsonl and test.json that are no UTF-8 or no JSON were errors without a file's name",
        "lines and reports of another form were KeyErrors and TypeErrors",
    ],
    "run: report": ["test.json, model.json and metrics.jsonl of another form were KeyErrors, TypeErrors or others"],
    "run: resume": [
        "a config.yaml with a date of month 99, in another encoding or nested too deep was no sentence",
        "a model.json of another form was an AttributeError or TypeError",
    ],
    "run: state": [
        "a header without or with strange progress, groups or numbers was a KeyError or TypeError",
        "states of other shapes and another setting of the optimizer failed in the first step, with torch's words",
    ],
    "run: images.csv": ["a record without test or training images was a KeyError"],
    "recipes": [
        "a sweep of a range of billions took all memory or hung: at most 10,000 trials",
        "a study of billions of seeds took all memory or hung: at most 1,000",
        "a sweep with a date or a set among its values was a TypeError",
        "a study whose scales or pairs are lists was a TypeError",
        "dates, keys that are lists, unknown booleans and nesting were errors of the parser without the name",
    ],
    "label tables": ["a damaged Parquet file was an error of several lines without the file's name"],
    "our shards": [
        "values of other types in index.json failed at the first image",
        "a table of a type that numpy has not was a KeyError",
        "samples outside their shard, and tables of other shapes, were read as told, of any size",
        "a shard of more bytes than 64 bits can count was an OverflowError",
    ],
    "foreign shards": ["a class of number 10**9 took all memory, or hung: the number of classes has a limit"],
    "unpacked sets": [
        "scipy's reader of .mat files ended the process (Bus error): ours reads what the sets need",
        "an IDX file of three bytes was an IndexError",
        "damaged gzip files were zlib's error or an EOFError, without a name",
        "categories of two names, and numbers that are none, were KeyErrors and TypeErrors",
    ],
    "archives": ["why a source failed could be several lines"],
    "exported text": ["a description that is no JSON, or nested too deep, was an error without the file's name"],
    "exported ONNX": ["a model that loads and cannot be run was an error of ONNX Runtime's own class"],
    "predictions": [
        "a threshold or a checkpoint of another type beside the answers was a TypeError",
        "a path that is no text was a TypeError",
    ],
    "study cells": ["a sealed cell of another form was a KeyError, TypeError or AttributeError in the table"],
    "caches": ["a damaged choice of what computes fastest, or one in no UTF-8, was a traceback: it is made anew"],
    "command lines": ["names with line ends made errors of several lines: each is one line now"],
    "web requests": ["a top_k with a line end gave an error of two lines"],
}

READERS = (
    *("data/image.py", "data/tiff.py", "data/pillow.py", "data/image_metadata.py", "data/image_kind.py"),
    *("data/pixels.py", "data/record.py", "data/cache.py", "data/store.py", "data/preprocessing.py"),
    *("data/sources/archives.py", "data/sources/columns.py", "data/sources/table.py", "data/sources/matlab.py"),
    *("data/sources/shards/foreign.py", "data/sources/shards/index.py", "data/sources/shards/load.py"),
    *("data/sources/shards/split.py", "data/sources/named.py", "data/sources/published.py"),
    *("weights/reading.py", "weights/stored.py", "weights/description.py", "weights/layouts.py"),
    *("weights/geometry.py", "weights/checkpoint.py", "train/checkpoint.py", "train/recipe.py"),
    *("train/run_directory.py", "train/model_card.py", "cli/compare.py", "report/contents.py", "report/charts.py"),
    *("inference/exported.py", "inference/program_file.py", "inference/prediction_file.py"),
    *("inference/familiarity.py", "study/cells.py", "study/plan.py", "study/sweep.py", "yaml_file.py"),
    *("json_file.py", "options.py", "web/api.py", "web/guard.py"),
)
