"""JSON that comes from strangers."""

import json
from pathlib import Path


def read_json(path: Path, *, max_bytes: int = 2**24, **options) -> dict:
    """
    Read a file that must hold a dictionary. No name may stand in it twice: a reader would see another value than a program.

    Args:
        path (`Path`): The file.
        max_bytes (`int`, *optional*): A larger one is not opened.
        options: Further arguments of `json.loads`.

    Returns:
        `dict`: What it holds.

    Raises:
        ValueError: If it is too large, or no such JSON.
        OSError: If it cannot be read.
    """
    path = Path(path)

    def once_each(pairs: list[tuple[str, object]]) -> dict:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a name stands twice in it")
        return values

    try:
        if path.stat().st_size > max_bytes:
            raise ValueError(f"it is larger than {max_bytes:,} bytes")
        value = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=once_each, **options)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a valid JSON file, and is none: {error}. Get the file again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a dictionary, got a {type(value).__name__}. Get the file again.")
    return value
