"""Reads Mach-O files and MLX's wheels: exports, imports by library, signature."""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lief

lief.logging.disable()

SELF = "self"
FLAT = "flat lookup"
WEAK = "weak lookup"
SPECIAL = {0: SELF, -1: "main executable", -2: FLAT, -3: WEAK}


@dataclass(frozen=True)
class Import:
    """A symbol that dyld must find, and where it looks for it."""

    symbol: str
    library: str


class Image:
    """One arm64 Mach-O file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        fat = lief.MachO.parse(list(content))
        if fat is None:
            raise ValueError("not a Mach-O file")
        self.architectures = len(fat)
        self.binary = fat.at(0)

    def exports(self) -> set[str]:
        return {symbol.name for symbol in self.binary.exported_symbols}

    def libraries(self) -> set[str]:
        own_name = lief.MachO.LoadCommand.TYPE.ID_DYLIB
        return {
            library.name
            for library in self.binary.libraries
            if library.command != own_name
        }

    def imports(self) -> set[Import]:
        found = set()
        for binding in self.binary.bindings:
            if not binding.has_symbol:
                continue
            if binding.has_library:
                library = binding.library.name
            else:
                library = SPECIAL.get(binding.library_ordinal, "unknown")
            found.add(Import(binding.symbol.name, library))
        return found

    def rpaths(self) -> list[str]:
        return [
            command.path
            for command in self.binary.commands
            if isinstance(command, lief.MachO.RPathCommand)
        ]

    def minimum_macos(self) -> tuple[int, ...]:
        return tuple(self.binary.build_version.minos)

    def nanobind_tags(self) -> set[str]:
        """Keys under which nanobind modules share their types."""
        found = re.findall(rb"nanobind_[a-z0-9_]*_a\d+_v\d+[a-z_]*", self.content)
        return {tag.decode() for tag in found}

    def signature_error(self) -> str | None:
        """Why the code signature does not cover the file, or None."""
        if not self.binary.has_code_signature:
            return "it is not signed"
        command = self.binary.code_signature
        blob = self.content[command.data_offset :][: command.data_size]
        for directory in _code_directories(blob):
            return _check_pages(self.content, directory)
        return "the signature has no code directory"


def _code_directories(blob: bytes) -> Iterator[bytes]:
    """Code directories of an embedded signature (big-endian super blob)."""
    magic, _, count = struct.unpack(">III", blob[:12])
    if magic != 0xFADE0CC0:
        return
    for i in range(count):
        _, offset = struct.unpack_from(">II", blob, 12 + 8 * i)
        if struct.unpack_from(">I", blob, offset)[0] == 0xFADE0C02:
            yield blob[offset:]


def _check_pages(content: bytes, directory: bytes) -> str | None:
    fields = struct.unpack_from(">9I4B", directory, 0)
    hash_offset, slots, limit = fields[4], fields[7], fields[8]
    hash_size, _, _, page_bits = fields[9:13]
    page = 1 << page_bits
    for slot in range(slots):
        start = slot * page
        digest = hashlib.sha256(content[start : min(start + page, limit)]).digest()
        stored = directory[hash_offset + slot * hash_size :][:hash_size]
        if digest[:hash_size] != stored:
            return f"page {slot} does not match its hash"
    return None


@dataclass
class MLXWheels:
    """MLX's wheels for one macOS version, in one folder."""

    folder: Path

    def _read(self, wheel: str, pattern: str) -> bytes:
        for path in sorted(self.folder.glob(wheel)):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if re.fullmatch(pattern, name):
                        return archive.read(name)
        raise FileNotFoundError(f"{self.folder} has no {wheel} with {pattern}")

    def library(self) -> Image:
        return Image(self._read("mlx_metal-*.whl", r"mlx/lib/libmlx\.dylib"))

    def core(self, tag: str) -> Image:
        """mlx.core for a Python tag such as cp312."""
        return Image(self._read(f"mlx-*-{tag}-*.whl", r"mlx/core\..*\.so"))
