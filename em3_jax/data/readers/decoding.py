"""The bytes of a text file, whatever packs or encodes them, as UTF-8."""

import codecs
import lzma
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4", ".br": "brotli", ".xz": ""}
_MARKS = {  # longest first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_SAMPLE, _BLOCK = 1 << 12, 1 << 22
WAY_OUT = "say what it is with --encoding, e.g. latin-1, cp1252 or gb18030, or save it as UTF-8"


def plain_suffix(path: Path) -> str:
    """The suffix that says what kind of table a file is, in small letters: ".csv" of "a.CSV.gz"."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def utf8_bytes(path: Path, encoding: str, unpack_in: Path | None = None) -> np.ndarray:
    """[bytes] u8: the text in UTF-8, without a byte order mark.

    Args:
      path: a file, maybe compressed.
      encoding: as Python names it; "" = UTF-8, or UTF-16 and UTF-32 where they are certain.
      unpack_in: a folder for what is packed or encoded otherwise, which is read from there; None = in memory.

    Raises:
      UserError: it cannot be unpacked, or is not in that encoding.
    """
    raw = _unpacked(path, unpack_in)
    known = encoding or next((name for mark, name in _MARKS.items() if raw[:4].startswith(mark)), "")
    known = known or _without_mark(raw[:_SAMPLE])
    if not known:
        return np.frombuffer(raw, np.uint8)
    if known == "utf-8-sig":
        return np.frombuffer(raw, np.uint8)[len(codecs.BOM_UTF8) :]
    if unpack_in is not None:
        try:
            return np.frombuffer(_mapped(_recoded(raw, known), unpack_in), np.uint8)
        except (LookupError, UnicodeError):
            pass  # which is said below
    try:
        text = bytes(raw).decode(known)
    except LookupError:
        raise UserError(
            f"--encoding '{encoding}': Python knows no such encoding; e.g. utf-8, latin-1, cp1252"
        ) from None
    except UnicodeError as error:
        line = raw[: getattr(error, "start", 0)].count(b"\n") + 1
        raise UserError(f"{path} line {line}: not {known}, as was taken for its encoding; {WAY_OUT}") from None
    return np.frombuffer(text.removeprefix("\ufeff").encode("utf-8", "replace"), np.uint8)


def _without_mark(sample: bytes) -> str:
    """UTF-16 of mostly Latin letters has a zero in every second byte; no text in UTF-8 has."""
    zeros = np.frombuffer(sample[: len(sample) // 2 * 2], np.uint8).reshape(-1, 2) == 0
    low, high = zeros.mean(axis=0) if len(zeros) else (0.0, 0.0)
    if high > 0.25 and low == 0:
        return "utf-16-le"
    return "utf-16-be" if low > 0.25 and high == 0 else ""


def _unpacked(path: Path, unpack_in: Path | None) -> bytes | mmap.mmap:
    suffix = path.suffix.lower()
    try:
        if suffix in COMPRESSIONS and unpack_in is not None:
            with _opened(path) as stream:
                return _mapped(iter(lambda: stream.read(_BLOCK), b""), unpack_in)
        if suffix in COMPRESSIONS:
            with _opened(path) as stream:
                return stream.read()
        with open(path, "rb") as file:
            if file.seek(0, 2) == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (pa.ArrowException, lzma.LZMAError, EOFError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); fetch or write it again") from None


def _opened(path: Path) -> Any:
    """A stream of what a file packs."""
    suffix = path.suffix.lower()
    return lzma.open(path) if suffix == ".xz" else pa.input_stream(path, compression=COMPRESSIONS[suffix])


def _mapped(blocks: Iterator[bytes], folder: Path) -> bytes | mmap.mmap:
    """Bytes as a mapped file without a name, which is gone with who maps it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.writelines(blocks)
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b""


def _recoded(raw: bytes | mmap.mmap, encoding: str) -> Iterator[bytes]:
    """A text as UTF-8 without a byte order mark, a block at a time."""
    decoder, mark = codecs.getincrementaldecoder(encoding)(), "\ufeff"
    for first in range(0, len(raw), _BLOCK):
        text = decoder.decode(raw[first : first + _BLOCK], final=first + _BLOCK >= len(raw))
        yield text.removeprefix(mark).encode("utf-8", "replace")
        mark = "" if text else mark


def not_utf8(path: Path, data: np.ndarray) -> UserError:
    """What to say of a text that is not the UTF-8 it was taken for."""
    try:
        bytes(data).decode()
    except UnicodeDecodeError as error:
        line = int((data[: error.start] == b"\n"[0]).sum()) + 1
        return UserError(f"{path} line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); {WAY_OUT}")
    return UserError(f"{path}: not UTF-8; {WAY_OUT}")
