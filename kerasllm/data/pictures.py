"""Pictures from folders, tar archives, IDX files and tables. A record has the content of a JPEG or PNG file.

    {"image": b"\\x89PNG...", "label": "cat", "name": "train/cat/0001.png"}

What is damaged has no content, b"", and cleaning drops it, whatever its split.
"""

import gzip
import io
import struct
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kerasllm.data.source_settings import LABEL, NAME, PICTURE
from kerasllm.errors import UserError, did_you_mean

MAX_PIXELS = 1 << 26
"""Of a picture; a small file can hold far more, and would fill the memory."""
ORIENTATION = 0x0112
"""The tag of EXIF that says how a camera was held."""
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SERVED = {"JPEG": ({"L", "RGB"}, b"\xff\xd9", 0), "PNG": (None, b"IEND", 4)}
"""What `picture_decoding` reads as it is: format -> its kinds of pixels, None for all; the mark that it ends with, and
the bytes after that."""

Record = dict[str, str | bytes]


def png_of(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] (grey) or [H, W, 3] -> the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def readable(content: bytes) -> bytes:
    """The content of a picture file -> the same if it is a whole JPEG or PNG file, a PNG of any other that Pillow
    reads, of an animation its first picture; b"" for what is damaged, or has more than `MAX_PIXELS`."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as picture:
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are checked here
            if picture.width * picture.height > MAX_PIXELS:
                return b""
            picture.load()
            kinds, mark, after = SERVED.get(picture.format, ((), b"", 0))
            is_whole = 0 <= content.rfind(mark) <= len(content) - len(mark) - after
            if is_whole and (kinds is None or picture.mode in kinds):
                return content
            buffer = io.BytesIO()
            picture.convert("RGBA" if picture.has_transparency_data else "RGB").save(buffer, "PNG")
            return buffer.getvalue()
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):  # as Pillow's readers raise
        return b""


def read_picture(path: Path) -> bytes:
    """The content of a picture file, as `readable` gives it.

    Raises:
        UserError: it cannot be read, or is no picture.
    """
    try:
        content = readable(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not content:
        raise UserError(f"{path}: is damaged, or no picture, or has more than {MAX_PIXELS:,} pixels")
    return content


def odd_pictures() -> list[bytes]:
    """Small pictures of all kinds: grey, colour, palette, alpha, 1 and 16 bits, flat and tall, lying on their side."""
    draw = np.random.default_rng(0)
    color = Image.fromarray(draw.integers(0, 256, (9, 14, 3), dtype=np.uint8))
    lying = Image.Exif()
    lying[ORIENTATION] = 6
    kinds = [color, color.quantize(8), *(color.convert(mode) for mode in ("L", "RGBA", "LA", "1", "I;16"))]
    kinds += [color.resize(size) for size in ((1, 1), (40, 2), (2, 40))]
    files = [(picture, "PNG", {}) for picture in kinds]
    files += [(color, "JPEG", {}), (color.convert("L"), "JPEG", {}), (color, "JPEG", {"exif": lying.tobytes()})]
    contents = []
    for picture, form, options in files:
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        contents.append(buffer.getvalue())
    return contents


def find_pictures(file: str, data_dir: Path | None) -> tuple[Path, str]:
    """Where pictures lie: a folder, or a tar archive and the folder in it.

    Args:
        file: `animals/train`, `animals.tar.gz`, or `animals.tar.gz/train`.

    Raises:
        UserError: there is neither.
    """
    path = (data_dir or Path()) / file
    if path.exists():
        return path, ""
    for parent in path.parents:
        if parent.is_file():
            return parent, str(path.relative_to(parent))
        if parent.is_dir():
            missing = path.relative_to(parent).parts[0]
            hint = did_you_mean(missing, [each.name for each in parent.iterdir()])
            raise UserError(f"{parent / missing}: no such file or folder; {hint}")
    raise UserError(f"{path}: no such file or folder; name the folder of the data with --data-dir or KERASLLM_DATA")


def read_pictures(path: Path, inside: str = "") -> Iterator[Record]:
    """Yield the pictures of a folder in the order of their names, or of an archive in its own; the folder that holds a
    picture is its label.

    Args:
        path: a folder, or a tar archive, plain or packed.
        inside: the folder of the archive; "" for all of it.

    Raises:
        UserError: it cannot be read, or a picture lies in no folder.
    """
    files = _files_of_folder(path) if path.is_dir() else _files_of_archive(path, inside)
    for name, content in files:
        place = Path(name)
        if place.suffix.lower() not in SUFFIXES or place.name.startswith("."):
            continue
        if place.parent == Path():
            raise UserError(f"{path}: {name} lies in no folder; the folder that a picture lies in is its label")
        yield {PICTURE: readable(content), LABEL: place.parent.name, NAME: name}


def _files_of_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.rglob("*")):
        if file.is_file():
            try:
                yield file.relative_to(path).as_posix(), file.read_bytes()
            except OSError as error:
                raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def _files_of_archive(path: Path, inside: str) -> Iterator[tuple[str, bytes]]:
    prefix = f"{inside}/" if inside else ""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and name.startswith(prefix):
                    with closing(archive.extractfile(member)) as file:
                        yield name.removeprefix(prefix), file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: not a readable tar archive ({error})") from error


def read_idx(paths: Mapping[str, Path]) -> Iterator[Record]:
    """Yield the pictures of a pair of files as MNIST has them, plain or .gz.

    Args:
        paths: `image`, a file of bytes [N, H, W], and `label`, one of bytes [N].

    Raises:
        UserError: one cannot be read, is none of these, or they differ in length.

    Reference: [the IDX format](https://yann.lecun.com/exdb/mnist/), at the end of that page.
    """
    pictures, labels = _read_idx(paths[PICTURE], 3), _read_idx(paths[LABEL], 1)
    if len(pictures) != len(labels):
        raise UserError(f"{paths[PICTURE]} has {len(pictures)} pictures, and {paths[LABEL]} has {len(labels)} labels")
    for number, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
        yield {PICTURE: png_of(pixels), LABEL: str(label), NAME: f"{paths[PICTURE].name}#{number}"}


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """The bytes of an IDX file, uint8 with `rank` dimensions."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    header = 4 + 4 * rank
    if content[:4] != bytes([0, 0, 8, rank]):
        raise UserError(f"{path}: is no IDX file of bytes with {rank} dimensions")
    shape = struct.unpack(f">{rank}I", content[4:header].ljust(4 * rank, b"\0"))
    if len(content) != header + int(np.prod(shape)):
        size = " x ".join(map(str, shape))
        raise UserError(f"{path}: has {len(content)} bytes, and {size} of them were announced; get it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def picture_in(cell: Any, folder: Path, place: str) -> bytes:
    """The content of the picture that a cell of a table holds or names.

    Args:
        cell: the content itself, a path relative to `folder`, or `{"bytes": content, "path": path}`, as Hugging Face's
            datasets write it.
        place: what an error begins with.

    Raises:
        UserError: it is none of these, or there is no such file.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell:
        try:
            cell = (folder / cell).read_bytes()
        except OSError as error:
            raise UserError(f"{place}: {folder / cell}: cannot be read ({error.strerror})") from error
    if cell is not None and not isinstance(cell, bytes | str):
        raise UserError(f"{place}: holds a {type(cell).__name__}; the path of a picture, or its content, is needed")
    return readable(cell) if cell else b""
