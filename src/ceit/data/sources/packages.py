"""Archives of package managers: asked for by name, so that the machine's own settings say where they come from."""

import shlex
import shutil
import subprocess

_TIMEOUT_SECONDS = 60


def address_of(url: str) -> str:
    """The web address of ``npm:NAME@VERSION/FILE`` as npm tells it, of ``apt:NAME/FILE`` as apt-get does; else ``url``.

    Raises: OSError if that program is not installed, or does not know the package.
    """
    scheme, _, rest = url.partition(":")
    package = rest.rpartition("/")[0]
    if scheme == "npm":
        return _told("npm", "view", package, "dist.tarball").strip()
    if scheme == "apt":  # 'ADDRESS' FILE SIZE HASH
        return shlex.split(_told("apt-get", "download", "--print-uris", package))[0]
    return url


def _told(program: str, *arguments: str) -> str:
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
