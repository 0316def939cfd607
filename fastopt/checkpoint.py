"""The state of an optimizer in one file, which is whole or is refused.

A checkpoint is a safetensors file, never a pickle. The arrays of the state are its tensors, ``state.<i>.<slot>`` for
parameter i: F32 and F64, BF16 for state in bfloat16, U8 for state in 8 bits, and I16 for the ``low`` of split
parameters. Two entries of its metadata hold the rest: ``fastopt`` is JSON, all else that `Optimizer.state_dict` gives
(counts, parameter groups, schedules) with a SHA-256 for every array; ``fastopt.digest`` is the SHA-256 of the header,
its length included, as it was with 64 zeros in the place of the digest.

A file is written beside its place, reaches the disk, and then takes the place of the old one: whoever is stopped in the
middle leaves the old file or the new one. The digests find damage, not forgery: whoever can write the file can compute
them anew. Reading runs no code of the file's choosing, and allocates no array that the file does not hold.
"""

# Design of the JSON: numbers, strings and lists stand for themselves; whatever else there is (see `Packer.pack`) is an
# object with a single key, which begins with "$". Schedules are in a list of their own, so that a `ReduceOnPlateau`
# which several groups share is one object again when read.

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from types import ModuleType
from typing import Any

import numpy as np

from fastopt import schedules
from fastopt.engine import bfloat16_dtype
from fastopt.errors import CheckpointError, MissingExtraError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["load", "save"]

VERSION = 2  # version 1 had F32 and F64 alone; a file that needs no more still says 1, for earlier readers
READABLE = (1, 2)
BLANK = b"0" * 64
DIGEST = re.compile(rb'"fastopt\.digest":"([0-9a-f]{64})"')
WRITTEN = {
    "float32": "float32", "float64": "float64", "bfloat16": "bfloat16", "uint16": "bfloat16", "uint8": "uint8",
    "int16": "int16",
}  # fmt: skip
"""The types that arrays can have -> what safetensors calls them. There is no state of uint16 but bfloat16."""
READ = {"F32": "<f4", "F64": "<f8", "BF16": "<u2", "U8": "|u1", "I16": "<i2"}
LARGEST_HEADER = 100_000_000  # that the library reads
Path = str | bytes | os.PathLike[Any]


def save(state_dict: Mapping[str, Any], slots: Iterable[str], path: Path) -> None:
    """Write a state dict of `Optimizer.state_dict` into a file: see `Optimizer.save`.

    `slots` names the entries of a parameter's state that are arrays.
    """
    require_safetensors()
    name = os.fsdecode(path)
    if not os.path.basename(name):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    target = os.path.realpath(name)  # what a link leads to is replaced
    packer = Packer(slots)
    document = packer.document(state_dict)
    try:
        with replacing(target) as temporary:
            write(temporary, packer.arrays, document, target)
    except OSError as error:  # which names a temporary file that nobody has heard of
        raise OSError(error.errno, error.strerror, target) from error


def load(path: Path) -> dict[str, Any]:
    """The state dict in a file of `Optimizer.save`, for `Optimizer.load_state_dict` or to look at.

    Parameters
    ----------
    path : str, bytes or path-like
        The file.

    Returns
    -------
    dict
        What `Optimizer.state_dict` gave, to the bit, with arrays of its own in C order, and schedules made anew.

    Raises
    ------
    CheckpointError
        If the file is not whole and unchanged, or no checkpoint of this version of the format.
    OSError
        If it cannot be read: FileNotFoundError, PermissionError and so on.
    """
    name = os.fsdecode(path)
    with open(name, "rb") as file:
        return read(file, name)


def require_safetensors() -> ModuleType:
    """The library, or the error that says what brings it."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise MissingExtraError(
            'writing a checkpoint needs safetensors: pip install "fastopt[checkpoint]" brings it'
        ) from error
    return safetensors


# --- Writing


def write(path: str, arrays: Mapping[str, np.ndarray], document: str, called: str) -> None:
    """Write a checkpoint into `path`, with the digest of its header, as far as the disk. Messages call it `called`."""
    safetensors = require_safetensors()
    try:
        specs = {name: spec_of(safetensors, array) for name, array in arrays.items()}
        safetensors.serialize_file(specs, path, metadata={"fastopt": document, "fastopt.digest": BLANK.decode()})
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise CheckpointError(f"{called} could not be written: {error}") from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), path) from error
    with open(path, "r+b") as file:
        header = file.read(8)
        length = int.from_bytes(header, "little")
        if length > LARGEST_HEADER:
            raise CheckpointError(f"{called} would need a header of {length:,} bytes; {LARGEST_HEADER:,} can be read")
        header += file.read(length)
        at = header.index(b'"fastopt.digest":"' + BLANK) + len(b'"fastopt.digest":"')
        file.seek(at)
        file.write(hashlib.sha256(header).hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())


def spec_of(safetensors: ModuleType, array: np.ndarray) -> Any:
    """What the library wants to know of an array: as its ``save_file``, which cannot say that uint16 is bfloat16."""
    kind = array.dtype.name
    if kind not in WRITTEN:
        raise CheckpointError(f"an array of {kind} cannot be written; there are: {', '.join(WRITTEN)}")
    if hasattr(safetensors, "TensorSpec"):  # from version 0.8 on; the array has to outlive it
        return safetensors.TensorSpec(
            dtype=WRITTEN[kind], shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes
        )
    return {"dtype": WRITTEN[kind], "shape": array.shape, "data": array.tobytes()}


@contextlib.contextmanager
def replacing(target: str) -> Iterator[str]:
    """A file to write, which takes the place of `target` if the body ends well, and leaves nothing behind if not."""
    parent, name = os.path.split(target)
    mode = None
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(target).st_mode
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{target} is there and is no regular file; it is not replaced")
        if not os.access(target, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), target)
    remove_leftovers(parent, name)
    with own_folder(parent, name) as folder:
        temporary = os.path.join(folder, "new")
        with open(temporary, "xb") as file:  # which gives it the mode that new files have
            mode = mode or os.fstat(file.fileno()).st_mode
        yield temporary
        os.chmod(temporary, stat.S_IMODE(mode))
        with synced(parent):
            os.replace(temporary, target)


@contextlib.contextmanager
def own_folder(parent: str, name: str) -> Iterator[str]:
    """A new folder beside a file, locked as long as it is used: a killed process leaves it unlocked."""
    folder, lock = "", None
    try:
        while lock is None:
            folder = tempfile.mkdtemp(prefix=f".{stem(name)}.", suffix=".saving", dir=parent)
            lock = try_lock(folder)
            if lock is not None and lock >= 0 and not os.path.isdir(folder):
                os.close(lock)  # it was taken for a leftover before it was locked
                lock = None
        yield folder
    finally:
        try:
            if folder:  # else none was made
                remove(folder)
        finally:
            if lock is not None and lock >= 0:
                os.close(lock)


def remove_leftovers(parent: str, name: str) -> None:
    """Remove what saves of this file that were killed have left."""
    for folder in glob.glob(os.path.join(glob.escape(parent), f".{glob.escape(stem(name))}.????????.saving")):
        try:
            lock = try_lock(folder)
        except OSError:  # it is somebody else's, or no folder
            continue
        if lock is not None and lock >= 0:
            remove(folder)
            os.close(lock)


def remove(folder: str) -> None:
    """Remove a folder of `own_folder`, and what a save or safetensors puts there; nothing else that is in it."""
    with contextlib.suppress(OSError):  # first what takes no descriptor, of which none may be left
        os.unlink(os.path.join(folder, "new"))
    with contextlib.suppress(OSError):
        os.rmdir(folder)
        return
    for file in glob.glob(os.path.join(glob.escape(folder), ".tmp*")):
        with contextlib.suppress(OSError):
            os.unlink(file)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def stem(name: str) -> str:
    """What the folders beside a file begin with: its name, which leaves no room for more if it is very long."""
    raw = os.fsencode(name)
    return name if len(raw) <= 200 else hashlib.sha256(raw).hexdigest()


def try_lock(folder: str) -> int | None:
    """A descriptor that holds the lock of a folder, None if another has it; -1 where folders cannot be locked."""
    if fcntl is None:
        return -1
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return -1
    return descriptor


@contextlib.contextmanager
def synced(folder: str) -> Iterator[None]:
    """Have a renaming in the body reach the disk, where a folder can be opened and synced."""
    descriptor = -1
    try:
        if os.name != "nt":
            with contextlib.suppress(PermissionError):  # one may write to it, and not read it
                descriptor = os.open(folder, os.O_RDONLY)
        yield
        if descriptor >= 0:
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                    raise  # else the file system has no such thing
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def sha256(array: np.ndarray) -> str:
    """The digest of an array's bytes, in C order."""
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


class Packer:
    """Turns a state dict into JSON and the arrays that it speaks of."""

    def __init__(self, slots: Iterable[str]) -> None:
        self.slots = frozenset(slots)
        self.arrays: dict[str, np.ndarray] = {}
        self.schedules: list[list[Any]] = []
        self.known: dict[int, int] = {}  # the id of a schedule -> its place in the list

    def document(self, state_dict: Mapping[str, Any]) -> str:
        """The JSON; what it has no form for is an error."""
        unknown = state_dict.keys() - {"state", "param_groups", "fastopt"}
        if unknown:
            raise CheckpointError(f"state_dict() has what no file has a place for: {', '.join(map(repr, unknown))}")
        own = {key: self.value(value, f"fastopt[{key!r}]") for key, value in state_dict["fastopt"].items()}
        state = {str(i): self.entry(i, entry) for i, entry in state_dict["state"].items()}
        groups = [
            {self.key(key, k): self.value(value, f"param_groups[{k}][{key!r}]") for key, value in group.items()}
            for k, group in enumerate(state_dict["param_groups"])
        ]
        plain = all(array.dtype.kind == "f" for array in self.arrays.values())
        document = {
            "version": 1 if plain else VERSION, "fastopt": own, "state": state, "param_groups": groups,
            "schedules": self.schedules,
        }  # fmt: skip
        return json.dumps(document, separators=(",", ":"), allow_nan=False)

    def key(self, key: Any, k: int) -> str:
        """A key of group k."""
        if type(key) is not str:
            raise CheckpointError(f"param_groups[{k}] has the key {key!r:.200}; only strings can be written")
        return key

    def value(self, value: Any, what: str) -> Any:
        """A value of a group."""
        try:
            packed = self.pack(value, what)
            json.dumps(packed)
        except CheckpointError:
            raise
        except (ValueError, RecursionError) as error:  # an integer beyond what Python writes; a list in itself
            raise CheckpointError(f"{what} cannot be written: {error}") from error
        return packed

    def entry(self, i: int, entry: Mapping[str, Any]) -> dict[str, Any]:
        """The state of a parameter; its arrays are put beside the document."""
        packed = {}
        for name, value in entry.items():
            if name not in self.slots:
                packed[name] = self.pack(value, f"state[{i}][{name!r}]")
                continue
            array = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
            self.arrays[f"state.{i}.{name}"] = array
            packed[name] = {"$sha256": sha256(array)}
        return packed

    def pack(self, value: Any, what: str) -> Any:
        """A value as JSON has it."""
        kind = type(value)
        if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        if kind is float:
            return {"$float": repr(value)}
        if kind is list or kind is tuple:
            items = [self.pack(item, f"{what}[{k}]") for k, item in enumerate(value)]
            return items if kind is list else {"$tuple": items}
        if kind is dict:
            return {"$dict": [[self.pack(k, what), self.pack(v, f"{what}[{k!r}]")] for k, v in value.items()]}
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf" and not isinstance(
            value, np.ma.MaskedArray
        ):
            array = np.asarray(value, dtype=value.dtype.newbyteorder("<"))
            tag = "$array" if isinstance(value, np.ndarray) else "$scalar"
            return {tag: [array.dtype.str, list(array.shape), array.tobytes().hex()]}
        if kind in SCHEDULES.values():
            return {"$schedule": self.schedule(value, what)}
        raise CheckpointError(
            f"{what} = {value!r:.200} cannot be written: a number, string, list, tuple, dict or array, or a schedule "
            "of fastopt.schedules is needed"
        )

    def schedule(self, value: Any, what: str) -> int:
        """The place of a schedule in the list of schedules."""
        if id(value) not in self.known:
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            packed = {key: self.pack(item, f"{what}.{key}") for key, item in fields.items()}
            try:
                type(value)(**fields)
            except ValueError as error:  # an object that changes may have been given what its class refuses
                raise CheckpointError(f"{what} = {value!r:.200} could not be read again: {error}") from error
            self.known[id(value)] = len(self.schedules)
            self.schedules.append([type(value).__name__, packed])
        return self.known[id(value)]


# --- Reading

SCHEDULES: dict[str, type[schedules.Schedule]] = {
    name: getattr(schedules, name) for name in schedules.__all__ if name != "Schedule"
}
"""The schedules that a file may hold."""


def read(file: BufferedReader, path: str) -> dict[str, Any]:
    """The state dict in an open checkpoint, which `path` is the name of."""
    header = read_header(file, path)
    try:
        parsed = json.loads(header)
        text = parsed["__metadata__"]["fastopt"]
        document = json.loads(text)
        if type(document["version"]) is not int or document["version"] not in READABLE:
            known = " and ".join(map(str, READABLE))
            raise CheckpointError(f"{path} has version {document['version']!r}; versions {known} can be read")
        unpacker = Unpacker(document["schedules"])
        groups = [
            {key: unpacker.unpack(value) for key, value in group.items()} for group in document["param_groups"]
        ]
        state = read_state(path, document["state"], unpacker, read_arrays(file, parsed, path))
        own = {key: unpacker.unpack(value) for key, value in document["fastopt"].items()}
        return {"state": state, "param_groups": groups, "fastopt": own}
    except (CheckpointError, OSError, MemoryError):
        raise
    except Exception as error:  # the header is as somebody wrote it, who was not this module
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error!s:.200}") from error


def read_header(file: BufferedReader, path: str) -> bytes:
    """The JSON header of a safetensors file, if it is what its digest says."""
    size = os.fstat(file.fileno()).st_size
    length = file.read(8)
    n = int.from_bytes(length, "little")
    if len(length) < 8 or n > min(size - 8, LARGEST_HEADER):
        raise CheckpointError(f"{path} is no safetensors file, or has been cut: {size} bytes")
    header = file.read(n)
    found = DIGEST.findall(header)
    if len(found) != 1:
        raise CheckpointError(f"{path} is no checkpoint of fastopt: its header has {len(found)} digests, not one")
    if hashlib.sha256(length + header.replace(found[0], BLANK, 1)).hexdigest().encode() != found[0]:
        raise CheckpointError(f"{path} is damaged: the digest of its header differs")
    return header


def read_arrays(file: BufferedReader, header: Mapping[str, Any], path: str) -> dict[str, np.ndarray]:
    """The arrays of a file that was read up to the end of its header.

    Not by the library, which maps the file: whoever cuts it meanwhile would end this process.
    """
    size = os.fstat(file.fileno()).st_size - file.tell()
    entries = sorted((entry["data_offsets"], name, entry) for name, entry in header.items() if name != "__metadata__")
    arrays: dict[str, np.ndarray] = {}
    at = 0
    for (begin, end), name, entry in entries:
        dtype = np.dtype(READ[entry["dtype"]])
        shape = entry["shape"]
        if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
            raise CheckpointError(f"{path} is damaged: a number that is no size")
        if begin != at or end - begin != math.prod(shape) * dtype.itemsize or end > size:
            raise CheckpointError(f"{path} is damaged: {name} is not where it should be")
        array = np.empty(shape, dtype)
        if file.readinto(array.reshape(-1).view(np.uint8).data) != end - begin:
            raise CheckpointError(f"{path} is damaged: it was cut")
        arrays[name], at = array, end
    if at != size:
        raise CheckpointError(f"{path} is damaged: it has {size - at} bytes too many")
    return arrays


def read_state(
    path: str, entries: Mapping[str, Any], unpacker: Unpacker, arrays: dict[str, np.ndarray]
) -> dict[int, dict[str, Any]]:
    """The state of every parameter, with its arrays."""
    state: dict[int, dict[str, Any]] = {}
    for i, entry in entries.items():
        state[int(i)] = {}
        for name, value in entry.items():
            if not (isinstance(value, dict) and "$sha256" in value):
                state[int(i)][name] = unpacker.unpack(value)
                continue
            array = arrays.pop(f"state.{i}.{name}")
            if sha256(array) != value["$sha256"]:
                raise CheckpointError(f"{path} is damaged: the digest of state.{i}.{name} differs")
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            state[int(i)][name] = array.view(bfloat16_dtype()) if array.dtype == np.uint16 else array
    if arrays:
        raise CheckpointError(f"{path} holds arrays that belong to no parameter: {', '.join(sorted(arrays)):.200}")
    return state


class Unpacker:
    """Turns what `Packer.pack` made into what it was."""

    def __init__(self, made: list[Any]) -> None:
        self.schedules: list[Any] = []
        for name, fields in made:  # each speaks only of those before it
            self.schedules.append(SCHEDULES[name](**{key: self.unpack(value) for key, value in fields.items()}))

    def unpack(self, value: Any) -> Any:
        """The value that stands for this in a checkpoint."""
        if isinstance(value, list):
            return [self.unpack(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((tag, inner),) = value.items()
        if tag == "$float":
            return float(inner)
        if tag == "$tuple":
            return tuple(self.unpack(item) for item in inner)
        if tag == "$dict":
            return {self.unpack(key): self.unpack(item) for key, item in inner}
        if tag in ("$array", "$scalar"):
            kind, shape, digits = inner
            if not re.fullmatch("[<|][biuf][0-9]{1,2}", kind):  # NumPy compiles what stands in longer ones
                raise ValueError(f"an array of {kind}")
            array = np.frombuffer(bytes.fromhex(digits), kind).reshape(shape)
            array = array.astype(array.dtype.newbyteorder("="))
            return array if tag == "$array" else array[()]
        if tag == "$schedule":
            return self.schedules[inner]
        raise ValueError(f"{tag!r} is of no kind that is known")
