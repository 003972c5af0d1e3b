"""The version. ``ceit_cli`` has it, too, to print it without importing the package; a test compares the two."""

__version__ = "0.1.0"


class NewerFormatError(ValueError):
    """A file is of a format that a later ceit writes."""


def refuse_newer(what: object, version: object, newest: int) -> None:
    """Raises: NewerFormatError for a file whose format version came after ``newest``, the last that is known here."""
    if isinstance(version, int) and version > newest:
        raise NewerFormatError(
            f"{what}: format version {version} is newer than {newest}, the newest that this ceit reads; upgrade it"
        )
