"""Where the files of a set are offered: on the web, on the Hugging Face Hub, or in a package of npm or Debian."""

import shlex
import shutil
import subprocess

from huggingface_hub import hf_hub_url

_TIMEOUT_SECONDS = 60


def web_address(address: str) -> str:
    """The web address of a file, whose own it may be already.

    | given | answered by |
    |---|---|
    | ``hf:OWNER/NAME@COMMIT/FILE``, of a data set | huggingface_hub |
    | ``npm:NAME@VERSION/FILE`` | npm, as the machine's own settings say |
    | ``apt:NAME/FILE`` | apt-get, as the machine's own settings say |

    Raises: OSError if that program is not installed, or does not know the package.
    """
    scheme, _, rest = address.partition(":")
    package = rest.rpartition("/")[0]
    if scheme == "hf":
        repository, _, place = rest.partition("@")
        commit, _, file = place.partition("/")
        return hf_hub_url(repository, file, repo_type="dataset", revision=commit)
    if scheme == "npm":
        return _output_of("npm", "view", package, "dist.tarball").strip()
    if scheme == "apt":  # 'ADDRESS' FILE SIZE HASH
        return shlex.split(_output_of("apt-get", "download", "--print-uris", package))[0]
    return address


def _output_of(program: str, *arguments: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise OSError(f"{program} is not installed")
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{program} did not answer within {_TIMEOUT_SECONDS} s") from error
    if done.returncode != 0 or not done.stdout.strip():
        hint = ", try 'apt-get update' first" if program == "apt-get" else ""
        raise OSError(f"{program} does not know {arguments[-1] if program == 'apt-get' else arguments[1]}{hint}")
    return done.stdout
