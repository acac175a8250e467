"""Reading a `.pt` file that nobody vouches for.

A pickle is a program. Here it is never run before it is known what it would do: [`inspect_checkpoint`] walks over its
operations with a stack of inert values (numbers, strings, lists, dictionaries and descriptions of tensors), accepts
the few that `torch.save` writes for tensors, and refuses everything else by name. Every size that the file declares is
compared with the bytes that are there before anything is allocated for it. Only then [`load_checkpoint`] hands the
file to `torch.load(weights_only=True)`, which is a second fence and the only thing here that makes tensors.

Layouts that are read: PyTorch's zip archives (1.6 and newer), mapped into memory instead of copied, and the plain
format before them. The tar archives of PyTorch before 0.1.10 cannot be read without running their pickles.
"""

import os
import pickletools
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch


# Bounds that no honest checkpoint comes near: one of a published size has up to 3,500 tensors of 34 operations each.
MAX_PICKLE_BYTES = 64 * 2**20
MAX_OPERATIONS = 1_000_000
MAX_DIMENSIONS = 16
MAX_KEY_LENGTH = 64

STORAGE_DTYPES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}

# What a state dict's pickle calls. All other names are refused, harmless or not.
CONSTRUCTORS = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")

ZIP_START = b"PK\x03\x04"  # torch, too, takes a file that begins so for an archive, and no other
NO_CHECKSUMS = (
    "Copy or download it again. (Or it was saved without checksums, by torch.serialization.set_crc32_options(False): save it"
    " again with them.)"
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or converted; the message says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class StorageRecord:
    """Numbers that lie in the file under a key."""

    key: str
    dtype: torch.dtype
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """What the numbers take up."""
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True)
class TensorRecord:
    """A tensor that the file declares, not loaded."""

    storage: StorageRecord
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Type of its numbers."""
        return self.storage.dtype


@dataclass(frozen=True)
class Global:
    """The name of something that a pickle would import; never imported."""

    name: str


class OrderedDictRecord(dict):
    """What would become a `collections.OrderedDict`, which alone may be given attributes."""


# Lists, dictionaries with keys that are strings or integers, numbers, strings, None and `TensorRecord`s.
Inert = object


def inspect_checkpoint(path: Path) -> Inert:
    """
    What a checkpoint holds, without loading or running any of it.

    Args:
        path (`Path`): A file written by `torch.save`.

    Returns:
        Lists, dictionaries, tuples, numbers, strings and [`TensorRecord`]s, nested as in the file.

    Raises:
        CheckpointError: If the file is of another kind, is damaged, would run code, or declares sizes that are not
            there.
    """
    path = Path(path)
    if not path.is_file():  # also pipes and devices, which would never end
        raise CheckpointError(f"{path} is no file.")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        _refuse_other_formats(path, start)
        if start.startswith(ZIP_START):
            return _inspect_zip(path)
        return _inspect_legacy(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def load_checkpoint(path: Path, inspected: Inert) -> object:
    """
    Load a checkpoint that [`inspect_checkpoint`] has accepted.

    Args:
        path (`Path`): The file.
        inspected (`Inert`): What `inspect_checkpoint` found in it, with which the result is compared.

    Returns:
        The same structure as `inspect_checkpoint`, with tensors on the CPU. Those of a zip archive are mapped into
        memory: they take up memory only when, and as far as, they are read.

    Raises:
        CheckpointError: If torch's weights-only loading refuses the file. There is no other loading behind it.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (
        Exception
    ) as error:  # torch raises many kinds, and recommends unsafe loading; whichever, the file is not loaded
        raise CheckpointError(
            f"{path} is refused by torch's weights-only loading ({type(error).__name__}). It is not loaded in another way."
        ) from error
    if not _is_same(inspected, loaded):
        raise CheckpointError(f"{path} is read by torch as something else than was inspected: it is a trap.")
    return loaded


def _is_same(inspected: Inert, loaded: object) -> bool:
    """Whether what was loaded has the structure, names, shapes, types and numbers that were inspected."""
    pairs, seen = [(inspected, loaded)], set()
    while pairs:
        ours, theirs = pairs.pop()
        if (id(ours), id(theirs)) in seen:  # structures may hold themselves, or one another many times
            continue
        seen.add((id(ours), id(theirs)))
        if isinstance(ours, TensorRecord):
            is_same = torch.is_tensor(theirs) and (ours.shape, ours.dtype) == (tuple(theirs.shape), theirs.dtype)
        elif isinstance(ours, dict):
            is_same = isinstance(theirs, dict) and list(ours) == list(theirs)
            pairs += [(ours[key], theirs[key]) for key in ours] if is_same else []
        elif isinstance(ours, (list, tuple)):
            is_same = type(ours) is type(theirs) and len(ours) == len(theirs)
            pairs += zip(ours, theirs) if is_same else []
        elif isinstance(ours, float):
            is_same = isinstance(theirs, float) and (ours == theirs or ours != ours)
        else:  # names of types, and storages outside of tensors, have no business in a checkpoint
            is_same = type(ours) is type(theirs) and ours == theirs
        if not is_same:
            return False
    return True


def check_storage_bytes(path: Path, records: list[TensorRecord], tensors: list[torch.Tensor]) -> None:
    """
    Compare the bytes of loaded tensors with the checksums that the archive states, so that a download's flipped bit is
    found, and a reader that was led to other bytes. (The format before zip archives has no checksums.)

    Args:
        path (`Path`): The file.
        records (`list[TensorRecord]`): What was inspected.
        tensors (`list[torch.Tensor]`): The same, loaded.

    Raises:
        CheckpointError: Naming the first storage that differs.
    """
    if not _is_zip(path):
        return
    with zipfile.ZipFile(path) as archive:
        checksums = {member.filename.split("/", 1)[1]: member.CRC for member in archive.infolist()}
    seen = set()
    for record, tensor in zip(records, tensors, strict=True):
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen:
            continue
        seen.add(storage.data_ptr())
        found = zlib.crc32(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())
        if found != checksums[f"data/{record.storage.key}"]:
            raise CheckpointError(f"{path} is damaged: Bad CRC-32 for storage {record.storage.key!r}. {NO_CHECKSUMS}")


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(ZIP_START)) == ZIP_START


@contextmanager
def _damage(path: Path):
    """What `zipfile` raises on bytes that are no archive, of which `BadZipFile` is only one kind."""
    try:
        yield
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}. {NO_CHECKSUMS}") from error


# --------------------------------------------------------------------------------------------------------------------
# Containers


def _refuse_other_formats(path: Path, start: bytes) -> None:
    """Files that are no checkpoint at all, with what they probably are."""
    text = start.lstrip().lower()
    kind = None
    if not start:
        kind = "is empty. Copy or download it again"
    elif text.startswith((b"<!doctype", b"<html")):
        kind = "is a web page, not a checkpoint: file-sharing sites hand one out in place of a large file. Download it again"
    elif text.startswith(b"version https://git-lfs"):
        kind = "is a pointer of Git LFS, not the checkpoint itself. Fetch it: git lfs pull"
    elif start.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"BZh", b"\xfd7zXZ", b"Rar!")):
        kind = "is compressed. Unpack it first"
    elif _is_tar(start):
        kind = (
            "is a tar archive: either something to unpack, or a checkpoint of PyTorch before 0.1.10, which cannot be read"
            " without running the code in it. Load and save such a one again in the PyTorch that made it, in a sandbox"
        )
    elif not start.startswith((ZIP_START, b"\x80")):
        kind = f"is no file that torch.save wrote: it begins with {start[:8]!r}"
        if path.suffix.lower() in (".yml", ".yaml"):
            kind = "is a config, not a checkpoint: pass the .pt file, and this one with `--config`"
    if kind:
        raise CheckpointError(f"{path} {kind}.")


def _is_tar(start: bytes) -> bool:
    """
    Whether `tarfile` would take these first 512 bytes for an archive's header, as torch lets it try on whatever is no zip
    archive. Only the header's fields are looked at: reading on can take for ever. A pickle can be a header, too.
    """
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    except (ValueError, OverflowError):
        return True
    return True


def _check_directory(file: BinaryIO, size: int) -> int:
    """
    Hold an archive to the one form in which torch.save writes it: records, directory, end, and nothing else. In any
    other (bytes before or behind it, a second directory, offsets that lead elsewhere) two readers could see two archives,
    and what is inspected here would not be what torch loads. Returns the number of records.
    """

    def read(position: int, form: str) -> tuple[int, ...]:
        if position < 0:
            raise zipfile.BadZipFile("it is too short")
        file.seek(position)
        return struct.unpack(form, file.read(struct.calcsize(form)))

    end = size - 22
    signature, disk, first_disk, here, total, length, start, comment = read(end, "<4s4H2LH")
    if signature != b"PK\x05\x06" or comment:
        raise zipfile.BadZipFile("it does not end with the archive's directory")
    # Larger archives have a second end, with a pointer to it between the two.
    if end >= 20 and (locator := read(end - 20, "<4sLQL"))[0] == b"PK\x06\x07":
        signature, rest, _, _, disk, first_disk, here, total, length, start = read(end - 76, "<4sQ2H2L4Q")
        if locator[1:] != (0, end - 76, 1) or signature != b"PK\x06\x06" or rest != 44:
            raise zipfile.BadZipFile("its directory is not where it should be")
        end -= 76
    if disk or first_disk or here != total or start + length != end:
        raise zipfile.BadZipFile("its directory is not where it should be")
    if length > MAX_PICKLE_BYTES:
        raise zipfile.BadZipFile(f"its directory has {length:,} bytes")
    return total


def _inspect_zip(path: Path) -> Inert:
    size = path.stat().st_size
    with _damage(path):
        with open(path, "rb") as file:
            num_records = _check_directory(file, size)
        archive = zipfile.ZipFile(path)
        if len(archive.infolist()) != num_records:
            raise zipfile.BadZipFile("its directory holds more or fewer records than it says")
    with archive:
        if any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist()):
            raise CheckpointError(f"{path} is a TorchScript program, not a checkpoint: it holds code.")
        members, lowered = {}, set()
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise CheckpointError(
                    f"{path}: {member.filename!r} is compressed, {member.compress_size:,} bytes that claim to be"
                    f" {member.file_size:,}; torch.save never compresses. It is another kind of zip archive, or a trap."
                )
            if member.flag_bits & 0x1 or member.header_offset + member.file_size > size:
                raise CheckpointError(f"{path}: {member.filename!r} is encrypted or longer than the file.")
            # Fields beside the name can lead readers to other names and places; torch.save writes the one for large files.
            is_plain = member.filename == member.orig_filename and member.extra[:2] in (b"", b"\x01\x00")
            if not is_plain or len(member.extra) not in (0, 12, 20, 28):
                raise CheckpointError(f"{path}: {member.filename[:80]!r} has fields that torch.save does not write.")
            # torch's reader does not tell upper from lower case, and ends a name at its first zero byte.
            name = member.filename
            below = name.partition("/")[2]
            if not below.isascii() or not name.isprintable() or name.lower() in lowered:
                raise CheckpointError(
                    f"{path} holds {name[:80]!r} twice, or under a name that torch.save does not give."
                )
            lowered.add(name.lower())
            members[name] = member
        tops = {name.split("/")[0] for name in members}
        top = tops.pop() if len(tops) == 1 else None
        if f"{top}/data.pkl" not in members:
            names = ", ".join(sorted(members)[:5])
            raise CheckpointError(
                f"{path} is a zip archive, but not of torch.save: it holds {names or 'nothing'}. If a checkpoint lies in"
                " it, unpack it first."
            )
        capitals = next((name for name in members if name[len(top) :] != name[len(top) :].lower()), None)
        if capitals is not None:
            raise CheckpointError(f"{path} holds {capitals!r}, a name that torch.save does not give.")
        if sum(member.file_size for member in members.values()) > size:
            raise CheckpointError(f"{path} holds records that overlap: it is no file that torch.save wrote.")
        pickled, byteorder = members[f"{top}/data.pkl"], members.get(f"{top}/byteorder")
        if pickled.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path}: {pickled.file_size:,} bytes of structure are too many for a checkpoint.")
        with _damage(path):
            content = archive.read(pickled)
            order = b"little" if byteorder is None else archive.open(byteorder).read(16)
        if order != b"little":
            raise CheckpointError(f"{path} was not written on a little-endian machine, which is not supported.")

    def check_storage(storage: StorageRecord) -> None:
        member = members.get(f"{top}/data/{storage.key}")
        there = 0 if member is None else member.file_size
        if storage.num_bytes != there:
            raise CheckpointError(
                f"{path}: storage {storage.key!r} claims {storage.num_elements:,} numbers, {storage.num_bytes:,} bytes,"
                f" but {there:,} bytes are there."
            )

    return _Interpreter(path, check_storage).run(content)[0]


def _inspect_legacy(path: Path) -> Inert:
    """Magic number, protocol, machine, content, keys of the storages: five pickles; then each storage's bytes."""
    size = path.stat().st_size
    storages: dict[str, StorageRecord] = {}
    claimed = 0

    def check_storage(storage: StorageRecord) -> None:
        nonlocal claimed
        if storage.key not in storages:
            storages[storage.key] = storage
            claimed += storage.num_bytes
        if claimed > size:
            raise CheckpointError(f"{path}: storages up to {storage.key!r} claim more bytes than the file's {size:,}.")

    with open(path, "rb") as file:

        def run(check: Callable[[StorageRecord], None] | None = None) -> Inert:
            start = file.tell()
            content, length = _Interpreter(path, check).run(file.read(MAX_PICKLE_BYTES))
            file.seek(start + length)
            return content

        magic = run()
        if magic != LEGACY_MAGIC or isinstance(magic, bool):
            raise CheckpointError(
                f"{path} is a pickle, but not one that torch.save wrote (it does not begin with its magic number). Such a"
                " file can only be read by running it, which is not done here."
            )
        if run() != LEGACY_PROTOCOL:
            raise CheckpointError(f"{path} has another protocol than {LEGACY_PROTOCOL}.")
        machine = run()
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise CheckpointError(f"{path} was not written on a little-endian machine, which is not supported.")
        content = run(check_storage)
        keys = run()
        if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
            raise CheckpointError(f"{path}: the list of storages does not fit the content.")
        for key in keys:
            start = file.tell()
            header = file.read(8)
            numbers = struct.unpack("<q", header)[0] if len(header) == 8 else 0
            storage = storages[key]
            if numbers != storage.num_elements or start + 8 + storage.num_bytes > size:
                raise CheckpointError(
                    f"{path}: storage {key!r} claims {storage.num_elements:,} numbers, {storage.num_bytes:,} bytes; the"
                    f" file says {numbers:,} there and {size - start - 8:,} bytes are left. It may be truncated."
                )
            file.seek(storage.num_bytes, os.SEEK_CUR)
        if file.tell() != size:
            raise CheckpointError(
                f"{path} has {size - file.tell():,} bytes behind its last storage: no checkpoint has."
            )
    return content


# --------------------------------------------------------------------------------------------------------------------
# The pickle

_MARK = object()


class _Interpreter:
    """
    Walks over a pickle's operations with inert values. Nothing is imported and nothing is called.

    Args:
        path (`Path`): The file, for messages.
        check_storage (`Callable`, *optional*): Refuses a storage whose bytes are not there. Without it, the pickle may
            hold no tensors.
    """

    def __init__(self, path: Path, check_storage: Callable[[StorageRecord], None] | None):
        self.path = path
        self.check_storage = check_storage
        self.stack: list = []
        self.memo: dict[int, object] = {}
        self.storages: dict[str, StorageRecord] = {}

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is refused: its pickle {reason}. No checkpoint of the original needs that; nothing was run."
        )

    def run(self, source: bytes) -> tuple[Inert, int]:
        """Interpret the pickle that bytes begin with; returns its content and its length."""
        try:
            for count, (operation, argument, position) in enumerate(pickletools.genops(source)):
                if count >= MAX_OPERATIONS:
                    raise self.refuse(f"has more than {MAX_OPERATIONS:,} operations")
                if operation.name == "STOP":
                    break
                self.step(operation.name, argument)
            (result,) = self.stack
        except CheckpointError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
            # An empty stack, a value of another kind, a declared length that is not there.
            raise self.refuse(f"is malformed or truncated ({type(error).__name__}: {str(error)[:200]})") from error
        return result, position + 1

    def step(self, name: str, argument: object) -> None:
        stack = self.stack
        if name == "PROTO":
            if argument > 2:
                raise self.refuse(f"has protocol {argument}, where torch.save writes 2")
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"):
            stack.append(argument)
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            length = int(name[-1])
            items = [self.pop() for _ in range(length)]
            stack.append(tuple(reversed(items)))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = [self.pop()] if name == "APPEND" else self.pop_to_mark()
            if type(stack[-1]) is not list:
                raise self.refuse("appends to something that is no list")
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.pop_to_mark()
            if not isinstance(stack[-1], dict) or len(items) % 2:
                raise self.refuse("sets items of something that is no dictionary")
            for key, value in zip(items[::2], items[1::2]):
                # Other keys could take for ever to hash.
                if type(key) is not str and (type(key) is not int or abs(key) >= 2**63):
                    raise self.refuse(
                        f"has a key of a dictionary that is no string or number but a {type(key).__name__}"
                    )
                stack[-1][key] = value
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            if argument not in CONSTRUCTORS and argument not in STORAGE_DTYPES:
                name = str(argument).replace(" ", ".")[:200]
                is_module = name.startswith("torch.nn.modules.")
                raise self.refuse(f"would import {name!r}" + (", a whole module with its code" if is_module else ""))
            stack.append(Global(argument))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            stack.append(self.call(function, arguments))
        elif name == "BUILD":
            state = self.pop()
            # A module's state dict carries the versions of its modules this way.
            if type(stack[-1]) is not OrderedDictRecord or type(state) is not dict or set(state) - {"_metadata"}:
                raise self.refuse("sets attributes of an object")
        elif name == "BINPERSID":
            stack.append(self.make_storage(self.pop()))
        else:
            raise self.refuse(f"has the operation {name}, which torch.save does not write")

    def pop(self) -> object:
        item = self.stack.pop()
        if item is _MARK:
            raise self.refuse("is malformed")
        return item

    def pop_to_mark(self) -> list:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def call(self, function: object, arguments: object) -> object:
        if type(function) is not Global or type(arguments) is not tuple:
            raise self.refuse("calls something that is no function")
        if function.name == "collections OrderedDict" and not arguments:
            return OrderedDictRecord()
        if function.name == "torch._utils _rebuild_parameter" and type(arguments[0]) is TensorRecord:
            return arguments[0]
        if function.name == "torch._utils _rebuild_tensor_v2":
            return self.make_tensor(*arguments)
        raise self.refuse(f"calls {function.name.replace(' ', '.')} with other arguments than torch.save writes")

    def make_storage(self, reference: object) -> StorageRecord:
        kind, dtype, key, location, num_elements, *view = reference
        if kind != "storage" or type(dtype) is not Global or dtype.name not in STORAGE_DTYPES:
            raise self.refuse("refers to something that is no storage")
        is_key = type(key) is str and len(key) <= MAX_KEY_LENGTH
        if not is_key or type(location) is not str or not _is_count(num_elements) or any(view):
            raise self.refuse("refers to a storage in an unknown way")
        storage = StorageRecord(key, STORAGE_DTYPES[dtype.name], num_elements)
        if self.check_storage is None:
            raise self.refuse("refers to a storage where there can be none")
        if self.storages.setdefault(key, storage) != storage:
            raise self.refuse(f"describes storage {key!r} in two ways")
        self.check_storage(storage)
        return storage

    def make_tensor(
        self, storage, offset, shape, strides, requires_grad=False, backward_hooks=None, metadata=None
    ) -> TensorRecord:
        is_valid = (
            type(storage) is StorageRecord
            and _is_count(offset)
            and type(shape) is tuple
            and type(strides) is tuple
            and len(shape) == len(strides) <= MAX_DIMENSIONS
            and all(map(_is_count, (*shape, *strides)))
            and type(requires_grad) is bool
            and not backward_hooks
            and not metadata
        )
        if not is_valid:
            raise self.refuse("describes a tensor in an unknown way")
        num_elements = 1
        for length in shape:
            num_elements *= length
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
        if num_elements and last >= storage.num_elements or num_elements > storage.num_elements:
            raise self.refuse(
                f"declares a tensor of shape {shape} and strides {strides} at {offset}, {num_elements:,} numbers, over a"
                f" storage of {storage.num_elements:,}"
            )
        return TensorRecord(storage, shape)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48
