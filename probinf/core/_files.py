r"""Files that are either absent, old or complete, arrays with a checksum, and the lock of a folder."""

import contextlib
import errno
import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

_DAMAGE = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError, OSError)


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file that is either absent, old or complete, whenever the machine stops.

    Raises:
        OSError: the disk is full, or the folder is gone or read-only; the old file, if any, is untouched.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(arrays: dict[str, np.ndarray]) -> str:
    """Hash of names, dtypes, shapes and bytes."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Writes an npz file with its digest in it, and returns the digest; see `write_file`."""
    digest = digest_of(arrays)
    content: dict[str, Any] = {"digest": np.asarray(digest)} | arrays
    write_file(path, lambda file: np.savez(file, **content))
    return digest


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file whose digest is right, the digest among them.

    Raises:
        ValueError: the file is missing, cut or changed.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        claimed = str(arrays.pop("digest"))
    except _DAMAGE as error:
        raise ValueError(damaged_text(path, f"it cannot be read ({error})")) from error
    if digest_of(arrays) != claimed:
        raise ValueError(damaged_text(path, "its checksum is wrong"))
    arrays["digest"] = np.asarray(claimed)
    return arrays


def damaged_text(path: Path, why: str) -> str:
    """The message for a file that cannot be trusted."""
    return (
        f"{path} is damaged: {why}. Restore it from a copy, or begin again in another folder; "
        "`probinf.core.read_records` reads records that are whole"
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system frees when the process ends in whatever way.

    Raises:
        ValueError: another process, or another run of this process, holds it.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system: the second writer is not noticed
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(folder / "lock", "ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another run is writing to the checkpoint folder {folder}: wait for it, or give another folder"
            ) from error
        except OSError as error:
            # A read-only folder can still be read from, and some network disks have no locks.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOLCK, errno.ENOTSUP):
                raise
        yield
