"""The ``ceit`` command: finds the verb, runs it, and turns what went wrong into one sentence and an exit code.

This file stands outside the package because importing the package imports torch: whoever asks for ``--help``,
or mistypes a verb, is answered at once. A verb's own file, ``ceit/cli/VERB.py``, is imported only when it runs.
"""

import codecs
import contextlib
import difflib
import errno
import importlib
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import TextIO

__version__ = "0.1.0"

VERBS = {
    "train": "train a model on a data set or on your own images",
    "evaluate": "measure a trained model on labelled images",
    "predict": "classify images with a trained model",
    "explain": "show why a model answers so: maps on the image, and its layers",
    "embed": "turn images into features: look-alikes, copies, a probe of a model",
    "web": "serve a page for the browser that answers pictures dropped on it",
    "report": "put all about a finished run on one page that opens anywhere",
    "list": "print the models, weights, recipes and data sets that there are",
    "info": "print the size of a model and what one image costs it",
    "export": "write a trained model for ONNX Runtime, OpenVINO, torch, browsers",
    "benchmark": "measure how fast models are, side by side",
    "sweep": "try out options of a recipe on your data and keep the best",
    "reproduce": "run the paper's experiments, at any scale",
    "compare": "show training runs side by side",
    "convert": "turn released weights into safetensors, for the other verbs",
    "data": "fetch data sets, check them, pack them into shards",
    "demo": "see everything work: train a small model and draw its results",
}

EXAMPLES = {
    "ceit demo": "trains a small model on a known data set, and shows its results",
    "ceit train --data photos/ --output runs/photos": "trains one on your images, a folder per class",
    "ceit evaluate --checkpoint runs/photos --data photos/": "measures it on images that were kept out of training",
    "ceit predict --checkpoint runs/photos holiday.jpg": "classifies new images",
}

# Extras of the distribution, and the import names of what they bring.
EXTRAS = {
    "data": ("datasets", "pyarrow", "scipy"),
    "viz": ("matplotlib",),
    "export": ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"),
    "tensorboard": ("tensorboard",),
    "web": ("gradio", "starlette", "uvicorn"),
}

# What tables and bars are made of, for an output that has no such characters.
PLAINER = {"█": "#", "░": "-", "─": "-", "…": "~", "✓": "+", "✗": "x", "±": "+-"}

# What a name in a sentence could do to a terminal; lines may follow each other.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

# Compiled here, as there may be no memory left to compile it when a failure is told.
_LINE_BREAKS = re.compile(r"\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]\s*")

# In a RuntimeError, as ceit.messages has them; the last is Python's own, of memory or of a limit (ulimit -u).
_NO_MEMORY = "DefaultCPUAllocator", "out of memory", "Invalid buffer size", "can't start new thread"

DONE, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class Terminated(SystemExit):
    """SIGTERM, or a closed terminal, asked the process to end. As KeyboardInterrupt it passes ``except Exception``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    ``arguments`` are those after the program's name, by default the process's own. The code is 0 when done, 1 when
    failed (one sentence on stderr says why), 2 for wrong usage, 130 when interrupted, 143 when terminated. There is a
    traceback only with ``--debug``.
    """
    try:
        return _run(arguments)
    finally:
        _settle(sys.stderr)


def _run(arguments: Sequence[str] | None) -> int:
    debug, arguments = _for_the_verb(sys.argv[1:] if arguments is None else arguments)
    _print_anything()
    if os.environ.get("MPLBACKEND", "").startswith("module://"):  # of a notebook, whose packages are not those here
        os.environ["MPLBACKEND"] = "agg"
    try:
        with contextlib.ExitStack() as at_end:
            if threading.current_thread() is threading.main_thread():  # Python lets no other handle signals
                at_end.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _terminate))
                if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
                    at_end.callback(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, _terminate))
            at_end.callback(sys.stdout.flush)  # here and not at exit, where a failure could no longer be answered
            return _dispatch(arguments)
    except KeyboardInterrupt as stop:
        _explain(str(stop) or "interrupted", debug)
        return TERMINATED if getattr(stop, "terminated", False) else INTERRUPTED  # training saves first, then stops so
    except Terminated:
        _explain("terminated", debug)
        return TERMINATED
    except SystemExit as ending:
        if isinstance(ending.code, str):
            _explain(ending.code, debug)
            return FAILED
        return ending.code or DONE
    except Exception as error:
        if not _reader_has_gone(error):  # as in `ceit info MODEL | head -1`: nobody is left to tell
            _explain(f"error: {_sentence(error)}", debug)
        _settle(sys.stdout)
        return FAILED


def _reader_has_gone(error: Exception) -> bool:
    """Whether nobody reads stdout any more: Windows calls that an invalid argument, and what is left cannot go out."""
    if isinstance(error, BrokenPipeError):
        return True
    if os.name == "nt" and isinstance(error, OSError) and error.errno == errno.EINVAL:
        try:
            sys.stdout.flush()
        except OSError:
            return True
    return False


def _dispatch(arguments: Sequence[str]) -> int:
    match arguments:
        case []:
            print(_help(), file=sys.stderr)
            return USAGE
        case ["-h" | "--help", *_]:
            print(_help())
        case ["--version", *_]:
            print(f"ceit {__version__}")
        case ["list", *rest]:
            import ceit_list  # outside the package, as this file, so that it answers at once

            ceit_list.main(rest)
        case [verb, *rest] if verb in VERBS:
            command = importlib.import_module(f"ceit.cli.{verb}")
            importlib.import_module("ceit.inference.cores").keep_to_the_share()
            command.main(rest)
        case [word, *_]:
            kind = "option" if word.startswith("-") else "verb"
            known = ["--help", "--version", "--debug"] if kind == "option" else list(VERBS)
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
            _explain(f"error: unknown {kind} '{word}'; {hint}", debug=False)
            return USAGE
    return DONE


def _help() -> str:
    verbs = "\n".join(f"  {verb:<11}{text}" for verb, text in VERBS.items())
    steps = "\n".join(f"  {example}\n      {text}" for example, text in EXAMPLES.items())
    return f"""usage: ceit VERB [options]

Train image classifiers from scratch with CeiT, the Convolution-enhanced image
Transformer, and use them.

first steps:
{steps}

verbs:
{verbs}

options:
  --help     after a verb: its options and examples; alone: this text
  --version  print the version
  --debug    show where an error comes from"""


def _for_the_verb(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether ``--debug`` is among the arguments, and all others, with dashes in the names of options: ``--top_k`` is
    ``--top-k``. What follows ``--`` is the verb's own."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words = [re.sub(r"^--[^=]*", lambda name: name[0].replace("_", "-"), word) for word in arguments[:end]]
    return "--debug" in words, [word for word in words if word != "--debug"] + list(arguments[end:])


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated(TERMINATED)


def _print_anything() -> None:
    """Let stdout and stderr take any text, whatever their encoding: what it lacks is printed plainer, or by number."""
    codecs.register_error("ceit.plainer", _plainer)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `ceit ... >&-`: what is printed goes nowhere
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w")))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ceit.plainer")


def _plainer(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # nothing is read here
    letters = error.object[error.start : error.end]
    plain = (PLAINER.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return "".join(plain), error.end


def _sentence(error: Exception) -> str:
    """What went wrong, in the words of ``_words_of``, in one line whatever names and libraries put into them."""
    return _LINE_BREAKS.sub(" ", _words_of(error)).strip()


def _words_of(error: Exception) -> str:
    """Those of the code that raised it, or of the operating system with the file's name."""
    if isinstance(error, OSError) and error.errno is not None:
        place = f": '{error.filename}'" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left on the disk{place}; free some, or choose another place for the output"
        return f"{error.strerror}{place}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        root = error.name.split(".")[0]
        for extra in (extra for extra, packages in EXTRAS.items() if root in packages):
            return f'this needs {root}, which is not installed; install it with: pip install "ceit-vision[{extra}]"'
    if isinstance(error, ValueError | OSError):
        return str(error)
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        reason = str(error).partition(". ")[0] or "MemoryError"
        return f"no memory is left ({reason}): end other programs, or lower the batch size or the images' size"
    return f"{type(error).__name__}: {error} (unexpected: --debug shows where)"


def _explain(sentence: str, debug: bool) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        if debug:
            traceback.print_exc()
        print(_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], sentence), file=sys.stderr, flush=True)


def _settle(stream: TextIO) -> None:
    """If it cannot be written to, let it go nowhere: the interpreter would complain about it once more at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
