"""Files that nobody vouches for: nothing is executed, nothing is written, no memory is taken for what is not there."""

import copy
import io
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch

from mcvd_diffusers.conversion import CheckpointError, convert_checkpoint
from mcvd_diffusers.conversion.untrusted import inspect_checkpoint, load_checkpoint
from original_mcvd import REFERENCE, original_checkpoint, save_original


CONFIG = {
    "data": {"channels": 1, "image_size": 8, "num_frames": 1, "num_frames_cond": 1, "num_frames_future": 0}
    | {"prob_mask_cond": 0.0, "prob_mask_future": 0.0},
    "model": {"ngf": 8, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [], "n_head_channels": -1}
    | {"spade": False, "spade_dim": 8, "cond_emb": False, "dropout": 0.0},
}


class Evil:
    """What pickle calls when it loads this: a function of the attacker's choice."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def zip_of(path, content, storages=None, top="archive", compression=zipfile.ZIP_STORED, extra=None):
    """A file in torch.save's layout, with a pickle of our choice."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{top}/data.pkl", content)
        archive.writestr(f"{top}/version", "3\n")
        for key, value in (storages or {}).items():
            archive.writestr(f"{top}/data/{key}", value)
        for name, value in (extra or {}).items():
            archive.writestr(name, value)


def tensor_pickle(numel=4, shape=(4,), strides=(1,), offset=0, key="0", kind="FloatStorage"):
    """The pickle of one tensor, as torch.save writes it, with numbers of our choice."""
    out = io.BytesIO()
    pickler = pickle.Pickler(out, protocol=2)
    pickler.persistent_id = lambda item: (
        ("storage", getattr(torch, kind), key, "cpu", numel) if isinstance(item, Storage) else None
    )

    class Storage:
        pass

    arguments = (Storage(), offset, shape, strides, False, {})
    pickler.dump([Evil(torch._utils._rebuild_tensor_v2, *arguments), {}, 1, 4, {}])
    return out.getvalue()


def raw(*parts):
    """A pickle of protocol 2 from operations."""
    return b"\x80\x02" + b"".join(parts) + b"."


def short(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def legacy(path, content, keys=(), tail=b"", protocol=1001, little_endian=True):
    machine = {
        "protocol_version": protocol,
        "little_endian": little_endian,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    with open(path, "wb") as file:
        for item in (0x1950A86A20F9469CFC6C, protocol, machine):
            pickle.dump(item, file, protocol=2)
        file.write(content)
        if keys is not None:
            pickle.dump(list(keys), file, protocol=2)
        file.write(tail)


def legacy_tar(path, marker):
    evil = pickle.dumps(Evil(os.system, f"touch {marker}"), protocol=2)
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(evil)
            tar.addfile(member, io.BytesIO(evil))


def truncated(path, size):
    torch.save(original_checkpoint(CONFIG), path)
    os.truncate(path, int(path.stat().st_size * size))


def appended(path, tail):
    torch.save([{}, {}, 1, 4, {}], path)
    with open(path, "ab") as file:
        file.write(tail)


def tampered(path, change):
    """An archive whose directory was changed before it was written."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([], 2))
        archive.writestr("archive/data/0", bytes(1000))
        change(archive)


def overlap(archive):
    """The same bytes once more under many names."""
    for number in range(50):
        member = copy.copy(archive.infolist()[1])
        member.filename = member.orig_filename = f"archive/data/{number + 1}"
        archive.filelist.append(member)


def encrypt(archive):
    archive.infolist()[1].flag_bits |= 0x1


def bare_tensor(numel):
    """The operations of a tensor of one number over storage "0", which is said to have so many."""
    storage = (
        b"(" + short("storage") + b"ctorch\nFloatStorage\n" + short("0") + short("cpu") + bytes([75, numel]) + b"tQ"
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x01\x85K\x01\x85\x89}tR"


def two_archives(path, join):
    """A good archive and another of the same layout, joined so that a careless reader would see the other."""
    whole, other = path.with_name("whole.zip"), path.with_name("other.zip")
    torch.save(original_checkpoint(CONFIG), whole)
    torch.save([*original_checkpoint(CONFIG)[:3], 9, {}], other)
    path.write_bytes(join(whole.read_bytes(), other.read_bytes()))
    whole.unlink()
    other.unlink()


def forged_end(good, evil):
    """The end of the archive points to the directory of the other one."""
    start = struct.unpack("<L", evil[-6:-2])[0]
    return evil + good[:-6] + struct.pack("<L", start) + good[-2:]


def forged_large_end(good, evil):
    """The pointer to the end of large archives leads to one of its own."""
    length, start = struct.unpack("<2L", evil[-10:-2])
    count = struct.unpack("<H", evil[-12:-10])[0]
    second = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
    return evil + second + good[:-22] + struct.pack("<4sLQL", b"PK\x06\x07", 0, len(evil), 1) + good[-22:]


def old_tar(kind, size):
    """A header of tar's oldest form, which has no magic; reading on would take for ever, or end in a crash."""
    header = bytearray(512)
    header[:4], header[156:157] = b"name", kind
    header[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 or size > 8**11 else b"%011o\0" % size
    header[148:156] = b"%06o\0 " % (sum(header) + 8 * 32)
    return bytes(header) + b"1" * 200_000


def tar_pickle():
    """The old format's beginning, of which the first 512 bytes are a header of tar's oldest form as well."""
    machine = pickle.dumps({"little_endian": True, "x": ""}, 2)
    start = (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        + pickle.dumps(1001, 2)
        + machine[: machine.index(b"X\x01\x00\x00\x00x")]
    )
    header = bytearray(start + short("x") + b"X" + struct.pack("<I", 200_512))
    header += b"0" * (512 - len(header))
    header[124:136], header[156:157] = b"%011o\0" % 200_000, b"x"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"1" * 200_512 + b"u."


def miscounted(path):
    """An archive that says it has one record fewer than are in its directory."""
    zip_of(path, pickle.dumps([], 2))
    content = bytearray(path.read_bytes())
    content[-14:-10] = struct.pack("<2H", 1, 1)
    path.write_bytes(content)


def polyglot(path, marker):
    """The old format with an archive behind it: two readers could see two files."""
    legacy(path, legacy_tensor(4), ["0"], struct.pack("<q", 4) + bytes(16))
    other = path.with_name("other.zip")
    zip_of(other, pickle.dumps(Evil(os.system, f"touch {marker}"), 2))
    path.write_bytes(path.read_bytes() + other.read_bytes())
    other.unlink()


def doubling(count):
    """Lists of which each holds the one before twice: short to write down, without end to print."""
    content = b"]q\x00"
    for number in range(1, count):
        before = bytes([number - 1])
        content += b"](h" + before + b"h" + before + b"eq" + bytes([number])
    return content


def second_directory(path):
    """An archive whose last directory, behind a comment, is another one than torch would read."""
    torch.save([{}, {}, 1, 4, {}], path)
    other = path.with_name("other.zip")
    zip_of(other, pickle.dumps(Evil(os.system, "true"), protocol=2))
    path.write_bytes(path.read_bytes() + other.read_bytes() + b"comment")
    other.unlink()


NESTED = b"]" * 50_000 + b"a" * 49_999
HASH_BOMB = (
    b"}" + b"K\x01\x85" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)) + b"K\x01s"
)

# name -> (how the file is made, what the message says)
HOSTILE = {
    "system in a zip": (
        lambda p, m: zip_of(p, pickle.dumps([{}, Evil(os.system, f"touch {m}"), 1, 4, {}], 2)),
        "would import 'posix.system'",
    ),
    "system, plain pickle": (
        lambda p, m: p.write_bytes(pickle.dumps(Evil(os.system, f"touch {m}"), 2)),
        "would import 'posix.system'",
    ),
    "eval, nested in a state dict": (
        lambda p, m: zip_of(p, pickle.dumps([{"a": [{"b": (1, Evil(eval, f"open({str(m)!r}, 'w')"))}]}, {}, 1, 4], 2)),
        "would import '__builtin__.eval'",
    ),
    "a pickle within a pickle": (
        lambda p, m: zip_of(
            p, pickle.dumps([Evil(pickle.loads, pickle.dumps(Evil(os.system, f"touch {m}"))), {}, 1, 4], 2)
        ),
        "would import",
    ),
    "torch's own nested loading": (
        lambda p, m: zip_of(p, pickle.dumps([Evil(torch.storage._load_from_bytes, b"x"), {}, 1, 4], 2)),
        "would import 'torch.storage._load_from_bytes'",
    ),
    "system by STACK_GLOBAL": (
        lambda p, m: zip_of(p, pickle.dumps(Evil(os.system, f"touch {m}"), 4)),
        "has protocol 4",
    ),
    "system by INST": (
        lambda p, m: zip_of(p, b"(S'touch " + str(m).encode() + b"'\nios\nsystem\n."),
        "has the operation MARK|has the operation STRING|has the operation INST",
    ),
    "STACK_GLOBAL under protocol 2": (
        lambda p, m: zip_of(p, raw(short("os"), short("system"), b"\x93", short(f"touch {m}"), b"\x85R")),
        "has the operation STACK_GLOBAL",
    ),
    "an object made by NEWOBJ": (
        lambda p, m: zip_of(p, raw(b"ccollections\nOrderedDict\n", b")\x81")),
        "has the operation NEWOBJ",
    ),
    "an extension code": (lambda p, m: zip_of(p, raw(b"\x82\x01")), "has the operation EXT1"),
    "attributes of a dictionary": (
        lambda p, m: zip_of(p, raw(b"ccollections\nOrderedDict\n)R}", short("items"), b"K\x01sb")),
        "sets attributes of an object",
    ),
    "a whole module": (
        lambda p, m: torch.save(torch.nn.Linear(1, 1), p),
        "would import 'torch.nn.modules.linear.Linear'",
    ),
    "numbers of numpy": (
        lambda p, m: zip_of(p, raw(b"cnumpy.core.multiarray\nscalar\n")),
        "would import 'numpy.core.multiarray.scalar'",
    ),
    "a terabyte of bytes": (
        lambda p, m: zip_of(
            p, raw(b"c__builtin__\nbytearray\n", b"\x8a\x06" + (10**12).to_bytes(6, "little"), b"\x85R")
        ),
        "would import '__builtin__.bytearray'",
    ),
    "system in the old format": (
        lambda p, m: legacy(p, pickle.dumps(Evil(os.system, f"touch {m}"), 2)),
        "would import 'posix.system'",
    ),
    "old tar format": (legacy_tar, "is a tar archive"),
    "TorchScript": (
        lambda p, m: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), p),
        "is a TorchScript program",
    ),
    "storage of 4 terabytes": (
        lambda p, m: zip_of(p, tensor_pickle(10**12, (10**12,)), {"0": bytes(16)}),
        "claims 1,000,000,000,000 numbers, 4,000,000,000,000 bytes, but 16 bytes are there",
    ),
    "storage that is not there": (lambda p, m: zip_of(p, tensor_pickle()), "16 bytes, but 0 bytes are there"),
    "storage of another type": (
        lambda p, m: zip_of(p, tensor_pickle(kind="DoubleStorage"), {"0": bytes(16)}),
        "claims 4 numbers, 32 bytes, but 16 bytes are there",
    ),
    "tensor larger than its storage": (
        lambda p, m: zip_of(p, tensor_pickle(4, (10**6, 10**6), (0, 0)), {"0": bytes(16)}),
        "declares a tensor of shape \\(1000000, 1000000\\)",
    ),
    "tensor beyond its storage": (
        lambda p, m: zip_of(p, tensor_pickle(4, (2,), (2,), 2), {"0": bytes(16)}),
        "declares a tensor of shape \\(2,\\) and strides \\(2,\\) at 2",
    ),
    "tensor of negative size": (
        lambda p, m: zip_of(p, tensor_pickle(4, (-1,)), {"0": bytes(16)}),
        "describes a tensor in an unknown way",
    ),
    "old format, 4 terabytes": (
        lambda p, m: legacy(p, legacy_tensor(10**12)),
        "claim more bytes than the file's",
    ),
    "old format, keys that no memory could print": (
        lambda p, m: legacy(p, legacy_tensor(4), keys=None, tail=b"\x80\x02](" + doubling(60) + b"e."),
        "the list of storages does not fit",
    ),
    "old format, keys nested without end": (
        lambda p, m: legacy(p, legacy_tensor(4), keys=None, tail=raw(b"](" + NESTED + b"e")),
        "the list of storages does not fit",
    ),
    "old format with an archive behind it": (polyglot, "bytes behind its last storage"),
    "old format of another protocol": (
        lambda p, m: legacy(p, pickle.dumps([], 2), protocol=1002),
        "has another protocol than 1001",
    ),
    "old format of another machine": (
        lambda p, m: legacy(p, pickle.dumps([], 2), little_endian=False),
        "not written on a little-endian machine",
    ),
    "old format, a storage before there can be one": (
        lambda p, m: p.write_bytes(tensor_pickle(1, (1,))),
        "refers to a storage where there can be none",
    ),
    "archive of another machine": (
        lambda p, m: zip_of(p, pickle.dumps([], 2), extra={"archive/byteorder": "big"}),
        "not written on a little-endian machine",
    ),
    "an archive before the archive": (
        lambda p, m: two_archives(p, lambda good, evil: evil + good),
        "directory is not where it should be",
    ),
    "an end that points elsewhere": (lambda p, m: two_archives(p, forged_end), "directory is not where it should be"),
    "a second end that points elsewhere": (
        lambda p, m: two_archives(p, forged_large_end),
        "directory is not where it should be",
    ),
    "names that differ in their case": (
        lambda p, m: zip_of(p, tensor_pickle(key="ab"), {"AB": bytes(16), "ab": bytes(16)}),
        "holds 'archive/data/ab' twice",
    ),
    "a byte order in capitals": (
        lambda p, m: zip_of(p, pickle.dumps([], 2), extra={"archive/BYTEORDER": "big"}),
        "holds 'archive/BYTEORDER', a name that torch.save does not give",
    ),
    "a pickle that is a tar header": (
        lambda p, m: p.write_bytes(tar_pickle()),
        "is a tar archive",
    ),
    "two fields of one place": (
        lambda p, m: tampered(
            p, lambda archive: setattr(archive.infolist()[0], "extra", struct.pack("<HHQ", 1, 8, 0) * 2)
        ),
        "has fields that torch.save does not write",
    ),
    "a field of another name": (
        lambda p, m: tampered(p, lambda archive: setattr(archive.infolist()[0], "extra", b"up\x05\x00\x01name")),
        "has fields that torch.save does not write",
    ),
    "more records than are stated": (lambda p, m: miscounted(p), "more or fewer records than it says"),
    "text of Python 2": (lambda p, m: zip_of(p, raw(b"U\x02\xc3\xa9")), "has the operation SHORT_BINSTRING"),
    "old tar, attributes without end": (
        lambda p, m: p.write_bytes(old_tar(b"x", 200_000)),
        "is a tar archive",
    ),
    "old tar, a name of 2^70 bytes": (
        lambda p, m: p.write_bytes(old_tar(b"L", 2**70)),
        "is a tar archive",
    ),
    "old tar, a name of less than nothing": (
        lambda p, m: p.write_bytes(old_tar(b"L", -600)),
        "is a tar archive",
    ),
    "records that overlap": (lambda p, m: tampered(p, overlap), "holds records that overlap"),
    "an encrypted record": (lambda p, m: tampered(p, encrypt), "is encrypted or longer than the file"),
    "a storage described in two ways": (
        lambda p, m: zip_of(p, raw(b"](", bare_tensor(4), bare_tensor(3), b"e"), {"0": bytes(16)}),
        "describes storage '0' in two ways",
    ),
    "a storage with a long name": (
        lambda p, m: zip_of(p, tensor_pickle(4, (4,), key="9" * 1000), {"9" * 1000: bytes(16)}),
        "refers to a storage in an unknown way",
    ),
    "a storage that is none": (
        lambda p, m: zip_of(p, raw(b"(", short("module"), b"NNNNtQ")),
        "something that is no storage",
    ),
    "a parameter of no tensor": (
        lambda p, m: zip_of(p, raw(b"ctorch._utils\n_rebuild_parameter\n(K\x01K\x02tR")),
        "calls torch._utils._rebuild_parameter with other arguments",
    ),
    "an ordered dictionary of pairs": (
        lambda p, m: zip_of(p, raw(b"ccollections\nOrderedDict\n]\x85R")),
        "calls collections.OrderedDict with other arguments",
    ),
    "a number that is called": (lambda p, m: zip_of(p, raw(b"K\x01)R")), "calls something that is no function"),
    "items of a number": (
        lambda p, m: zip_of(p, raw(b"K\x01K\x02K\x03s")),
        "sets items of something that is no dictionary",
    ),
    "appending to a dictionary": (lambda p, m: zip_of(p, raw(b"}K\x01a")), "appends to something that is no list"),
    "old format, truncated": (
        lambda p, m: legacy(p, legacy_tensor(4), ["0"], struct.pack("<q", 4) + bytes(8)),
        "It may be truncated",
    ),
    "compressed structure": (
        lambda p, m: zip_of(p, b"\x80\x02" + bytes(10**6), compression=zipfile.ZIP_DEFLATED),
        "is compressed, .* bytes that claim to be 1,000,002",
    ),
    "names outside the archive": (
        lambda p, m: zip_of(p, pickle.dumps([], 2), extra={"../../evil": "x"}),
        "is a zip archive, but not of torch.save",
    ),
    "two records of one name": (
        lambda p, m: zip_of(p, pickle.dumps([], 2), extra={"archive/data.pkl": "x"}),
        "holds 'archive/data.pkl' twice",
    ),
    "a comment behind the archive": (
        lambda p, m: appended(p, b"comment"),
        "does not end with the archive's directory",
    ),
    "a second directory": (lambda p, m: second_directory(p), "does not end with the archive's directory"),
    "another zip": (lambda p, m: zip_of(p, b"", top="documents", extra={"readme.txt": ""}), "but not of torch.save"),
    "lists in lists": (lambda p, m: zip_of(p, raw(NESTED)), "must hold the original's list"),
    "a list that holds itself": (lambda p, m: zip_of(p, raw(b"]q\x00h\x00a")), "must hold the original's list"),
    "a key that takes for ever to hash": (
        lambda p, m: zip_of(p, raw(HASH_BOMB)),
        "has a key of a dictionary that is no string or number but a tuple",
    ),
    "operations without end": (lambda p, m: zip_of(p, raw(b"N" * 1_000_001)), "has more than 1,000,000 operations"),
    "structure without end": (lambda p, m: zip_of(p, bytes(70 * 2**20)), "too many for a checkpoint"),
    "an empty stack": (lambda p, m: zip_of(p, raw(b"\x85")), "is malformed"),
    "a text longer than the file": (
        lambda p, m: zip_of(p, b"\x80\x02X\xff\xff\xff\x7fabc."),
        "is malformed or truncated",
    ),
    "no end": (lambda p, m: zip_of(p, b"\x80\x02]"), "is malformed or truncated"),
    "bad magic": (lambda p, m: p.write_bytes(b"\x7fELF" + bytes(100)), "is no file that torch.save wrote"),
    "another pickle": (lambda p, m: p.write_bytes(pickle.dumps([1, 2], 2)), "not one that torch.save wrote"),
    "empty": (lambda p, m: p.write_bytes(b""), "is empty"),
    "a web page": (lambda p, m: p.write_bytes(b"<!DOCTYPE html><title>Google Drive"), "is a web page"),
    "a pointer": (
        lambda p, m: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "is a pointer of Git LFS",
    ),
    "gzip": (lambda p, m: p.write_bytes(b"\x1f\x8b" + bytes(50)), "is compressed. Unpack it first"),
    "a pipe that never ends": (lambda p, m: os.mkfifo(p), "is no file"),
    "half of it": (lambda p, m: truncated(p, 0.5), "is damaged or truncated"),
    "nearly all of it": (lambda p, m: truncated(p, 0.999), "is damaged or truncated"),
    "a list of something else": (lambda p, m: torch.save([1, 2, 3], p), "it holds a list of 3"),
    "a bare state dict": (
        lambda p, m: torch.save({"a": torch.zeros(1)}, p),
        "it holds a dictionary with 1 entries. If all that is left is a state dict",
    ),
}


def legacy_tensor(numel):
    content = tensor_pickle(numel, (numel,))
    # The old format has one more entry in a reference: whether it is a view.
    return content.replace(b"tq", b"Ntq", 1) if b"tq" in content else content


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_by_name(name, tmp_path):
    make, message = HOSTILE[name]
    marker, checkpoint, config = (tmp_path / x for x in ("executed", "checkpoint.pt", "config.yml"))
    save_original(tmp_path, CONFIG, checkpoint=[])
    (tmp_path / "checkpoint_4.pt").unlink()
    make(checkpoint, marker)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(checkpoint, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before and not marker.exists() and config in before


def test_the_corpus_is_really_hostile(tmp_path):
    """Loaded without care, the first file of the corpus runs its command: the test above can fail."""
    marker = tmp_path / "executed"
    HOSTILE["system in a zip"][0](tmp_path / "checkpoint.pt", marker)
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old format"])
def test_flipped_bytes_end_in_a_clear_error_or_in_a_state_dict(options, tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save(original_checkpoint(CONFIG), whole, **options)
    content, rng = whole.read_bytes(), random.Random(0)
    structure = content.index(b"optimizer" if b"optimizer" in content else b"module.")
    path, num_refused = tmp_path / "flipped.pt", 0
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 3])):
            around = rng.choice([64, 5_000, len(content)])
            changed[rng.randrange(max(0, structure - around), min(len(content), structure + around))] = rng.randrange(
                256
            )
        path.write_bytes(changed)
        try:
            inspect_checkpoint(path)
            load_checkpoint(path, inspect_checkpoint(path))
        except CheckpointError:
            num_refused += 1
    assert num_refused > 20


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old format"])
def test_inspection_tells_what_loading_gives(options, tmp_path):
    saved = original_checkpoint(CONFIG)
    saved[0]._metadata = {"": {"version": 1}}
    saved.append(torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T))
    path = tmp_path / "checkpoint.pt"
    torch.save(saved, path, **options)
    inspected, loaded = inspect_checkpoint(path), load_checkpoint(path, inspect_checkpoint(path))

    def compare(a, b):
        if torch.is_tensor(b):
            assert (a.shape, a.dtype) == (tuple(b.shape), b.dtype)
        elif isinstance(b, dict):
            assert list(a) == list(b)
            for key in b:
                compare(a[key], b[key])
        elif isinstance(b, (list, tuple)):
            assert type(a) is type(b) and len(a) == len(b)
            for pair in zip(a, b):
                compare(*pair)
        else:
            assert a == b

    compare(inspected, loaded)
    assert len(inspected) == 6


def test_genuine_checkpoint_needs_nothing_that_is_refused():
    content = inspect_checkpoint(REFERENCE / "checkpoint_concat" / "logs" / "checkpoint_4.pt")
    assert [type(item).__name__ for item in content] == ["OrderedDictRecord", "dict", "int", "int", "dict"]


def test_a_damaged_weight_is_found_by_its_checksum(tmp_path):
    save_original(tmp_path, CONFIG)
    path = tmp_path / "checkpoint_4.pt"
    weight = original_checkpoint(CONFIG)[4]["unet.all_modules.1.weight"].numpy().tobytes()
    content = path.read_bytes()
    assert content.count(weight) == 1
    path.write_bytes(content.replace(weight, weight[:-1] + bytes([weight[-1] ^ 1])))
    with pytest.raises(CheckpointError, match="is damaged: Bad CRC-32 for storage"):
        convert_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_declared_sizes_take_no_memory(tmp_path):
    """A file that claims 4 terabytes is refused within the memory that any conversion takes."""
    code = (
        "import resource, sys\n"
        "from mcvd_diffusers.conversion.untrusted import CheckpointError, inspect_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        inspect_checkpoint(path)\n"
        "    except CheckpointError:\n"
        "        print('refused')\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000\n"  # KiB
    )
    names = [
        "storage of 4 terabytes",
        "tensor larger than its storage",
        "old format, 4 terabytes",
        "a terabyte of bytes",
    ]
    paths = [tmp_path / f"{i}.pt" for i in range(len(names) + 2)]
    for name, path in zip(names, paths):
        HOSTILE[name][0](path, None)
    for start, path in zip((b"\x80\x02X\xff\xff\xff\xff", b"\x80\x02cx"), paths[-2:]):  # a text, a line, of 4 GB
        path.write_bytes(start)
        os.truncate(path, 5 * 10**9)  # of which the disk holds nothing
    out = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (out.stdout.split(), out.returncode) == (["refused"] * 6, 0), out.stderr


def test_what_torch_says_about_unsafe_loading_is_not_passed_on(tmp_path):
    path = tmp_path / "checkpoint.pt"
    HOSTILE["system in a zip"][0](path, tmp_path / "executed")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, [])
    assert "It is not loaded in another way" in str(error.value) and "weights_only`" not in str(error.value)


def test_what_is_loaded_must_be_what_was_inspected(tmp_path):
    """The last fence: should two readers ever see two files, the difference ends it."""
    save_original(tmp_path, CONFIG)
    path = tmp_path / "checkpoint_4.pt"
    content = inspect_checkpoint(path)
    load_checkpoint(path, content)
    first = next(iter(content[4]))
    for other in (
        [*content[:3], 5, content[4]],
        content[:4],
        [*content[:4], {**content[4], "extra": 1}],
        [*content[:4], {**content[4], first: content[4]["unet.all_modules.1.weight"]}],
        tuple(content),
    ):
        with pytest.raises(CheckpointError, match="as something else than was inspected"):
            load_checkpoint(path, other)


def test_pickles_of_the_corpus_are_pickles():
    """What is refused as an operation, and not as malformed, is one that pickle would execute."""
    for content in (raw(HASH_BOMB), raw(NESTED), tensor_pickle()):
        assert list(pickletools.genops(content))[-1][0].name == "STOP"
