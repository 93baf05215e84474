"""Text that every machine has, as bytes, and a byte-level tokenizer for it."""

import gzip
import json
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

END_OF_TEXT = "<|endoftext|>"
"""Token 0: the NUL byte, which text never holds. Every other token is its byte."""

VOCAB_SIZE = 256

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Roles by name; an answer ends with the end of the text."""


def standard_library() -> list[bytes]:
    """The modules of the running Python's standard library, one text a file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idlelib", "encodings"}
    files = sorted(root.rglob("*.py"))
    return list(_texts(f for f in files if not skip & {*f.relative_to(root).parts}))


def other_text() -> list[bytes]:
    """C headers, manual pages and licences: text unlike the standard library.

    Python's own headers and the licences of installed packages are always there.
    """
    paths = sysconfig.get_paths()
    places = [
        (paths["include"], "*.h", 60),
        ("/usr/include", "*.h", 200),
        ("/usr/share/man/man1", "*", 100),
        ("/usr/share/common-licenses", "*", 20),
        (paths["purelib"], "*.dist-info/**/LICENSE*", 20),
    ]
    files: list[Path] = []
    for root, pattern, most in places:
        files += sorted(p for p in Path(root).glob(pattern) if p.is_file())[:most]
    return list(_texts(files))


def _texts(files: Iterable[Path]) -> Iterator[bytes]:
    for file in files:
        try:
            data = file.read_bytes()
            text = gzip.decompress(data) if file.suffix == ".gz" else data
            text.decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError):
            continue  # unreadable, or no UTF-8 text
        if len(text) > 200 and 0 not in text:
            yield text


class Corpus:
    """Texts joined into one array of tokens, a tenth of them held out.

    Args:
        texts (list[bytes]): UTF-8 texts without NUL bytes.
    """

    def __init__(self, texts: list[bytes]) -> None:
        if len(texts) < 10:
            raise ValueError(
                f"[corpus.Corpus] got {len(texts)} texts, need 10 or more to hold "
                "some out, name another source."
            )
        # Every tenth file, so that no file is on both sides.
        self.train = _join(t for i, t in enumerate(texts) if i % 10)
        self.valid = _join(texts[::10])

    def batch(self, step: int, size: int, length: int, seed: int = 0) -> mx.array:
        """Batch number `step`: a pure function of its arguments, so the number of
        steps done is all that a resumed run needs. Shape (size, length + 1)."""
        starts = np.random.default_rng((seed, step)).integers(
            len(self.train) - length - 1, size=size
        )
        return _rows(self.train, starts, length)

    def validation(self, count: int, length: int) -> mx.array:
        """`count` windows, evenly spread over the held-out text, as in batch()."""
        starts = np.linspace(0, len(self.valid) - length - 2, count).astype(int)
        return _rows(self.valid, starts, length)


def _join(texts: Iterable[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(text + b"\0" for text in texts), np.uint8)


def _rows(data: np.ndarray, starts: np.ndarray, length: int) -> mx.array:
    rows = np.stack([data[s : s + length + 1] for s in starts])
    return mx.array(rows.astype(np.int32))


def save_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json of the byte-level tokenizer."""
    vocab = {_printable(byte): byte for byte in range(1, VOCAB_SIZE)}
    vocab[END_OF_TEXT] = 0
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    end_of_text = {
        "id": 0,
        "content": END_OF_TEXT,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [end_of_text],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "trim_offsets": True},
        "post_processor": None,
        "decoder": {**byte_level, "trim_offsets": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _printable(byte: int) -> str:
    """The character that stands for a byte in byte-level vocabularies (GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in plain:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in plain].index(byte))
