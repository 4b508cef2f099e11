"""The embedded text corpus: sources and documentation that a Python installation of this project has anyway.

It is made of the standard library's sources and the docstrings of scientific packages that come with the dependencies
of this project: about 30 MB, English prose and code.  Nothing is imported, only read; so the corpus depends on the
versions that are installed, and a run's record says which they were, with a hash of every part.

    root/pydocs/<fingerprint>-<vocabulary>/     token shards; the fingerprint is of the files as they lie here

Reading the documents takes ten seconds, so a later use only compares the files' names, sizes and times of change; the
shards themselves are hashed whenever they are opened.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import platform
import shutil
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from fogzo.data.base import DataError
from fogzo.data.shards import (
    FORMAT,
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Manifest,
    ShardWriter,
    sha256_of,
    token_dtype,
)
from fogzo.data.text import TextData, open_text
from fogzo.data.tokenize import check_vocabulary, encode, end_of_text, in_test, train_tokenizer, vocabulary_of
from fogzo.errors import explained
from fogzo.runs.files import atomic_write, locked

PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scikit-learn", "scipy", "sympy")
FOLDERS = {"scikit-learn": "sklearn"}  # where the package is not called as its distribution
# tests hold little language; encodings and the last three are tables, or other people's packages
LEFT_OUT = {
    *("test", "tests", "testing", "idle_test", "__pycache__", "site-packages", "dist-packages"),
    *("encodings", "_vendor", "externals", "ensurepip"),
}
SMALLEST_DOCUMENT = 200  # characters; what is shorter is an empty __init__.py
TEST_SHARE = 0.05
RECIPE = "1"  # raise it when documents are chosen or cut otherwise
SHARD_TOKENS = 2**24


class Source(NamedTuple):
    """A folder of Python files; of ``whole`` ones the sources are taken, of others the docstrings."""

    name: str
    version: str
    root: Path
    whole: bool


@dataclass(frozen=True)
class Document:
    name: str  # package and path in it: the same on every machine
    text: str
    source: Source


def installed_sources() -> list[Source]:
    """Return the standard library, and those of PACKAGES that are installed."""
    sources = [Source("python", platform.python_version(), Path(sysconfig.get_path("stdlib")), whole=True)]
    for name in PACKAGES:
        spec = importlib.util.find_spec(FOLDERS.get(name, name))  # finds a package without importing it
        if spec is not None and spec.submodule_search_locations:
            with suppress(metadata.PackageNotFoundError):  # no version to record
                folder = Path(spec.submodule_search_locations[0])
                sources.append(Source(name, metadata.version(name), folder, whole=False))
    return sources


def pydocs(
    root: str | Path = "data",
    sequence: int = 128,
    vocabulary: int = 2048,
    sources: Sequence[Source] | None = None,
) -> TextData:
    """Return windows of the corpus, prepared at first use; its byte-level BPE tokenizer is trained on the train split.

    Documents (modules) are dealt to the splits by the hash of their name, about 5 % to the test split.

    Args:
        root: the shards lie in ``root/pydocs``.
        sequence: tokens of a window.
        vocabulary: most tokens that the tokenizer may have, from 257.
        sources: what to read; ``None``: :func:`installed_sources`.

    Raises:
        DataError: if no sources are found, the folder cannot be written, or prepared shards are damaged.
        UserError: if ``sequence`` or ``vocabulary`` are too small.
    """
    check_vocabulary(vocabulary)
    sources = installed_sources() if sources is None else sources
    cache = Path(root) / "pydocs"
    folder = cache / f"{fingerprint(sources, vocabulary)}-{vocabulary}"
    with explained(cache, "name a writable folder with data.root=FOLDER", problem="cannot be prepared", kind=DataError):
        if not (folder / MANIFEST).exists():
            cache.mkdir(parents=True, exist_ok=True)
            with locked(cache, wait=True):  # of several first uses at a time, one does the work
                if not (folder / MANIFEST).exists():
                    _prepare(folder, sources, vocabulary)
    return open_text(folder, sequence, f"remove {folder}, and it is made again at the next use")


def fingerprint(sources: Sequence[Source], vocabulary: int) -> str:
    """Return a hash of the files' names, sizes and times: quick, but different on another machine."""
    sha = hashlib.sha256(f"{FORMAT} {RECIPE} {TEST_SHARE} {vocabulary} {metadata.version('tokenizers')}\n".encode())
    for source in sources:
        sha.update(repr(source).encode())
        for name, path in _files(source):
            status = path.stat()
            sha.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return sha.hexdigest()[:16]


def _files(source: Source) -> Iterator[tuple[str, Path]]:
    """Names and paths of the source's files, in an order that is the same everywhere."""
    for parent, folders, files in os.walk(source.root):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(parent) / file
                yield f"{source.name}/{path.relative_to(source.root).as_posix()}", path


def documents(sources: Sequence[Source]) -> list[Document]:
    """Return one for each module, each text once: a docstring that several modules share stays with the first."""
    chosen, known = [], set[bytes]()
    for source in sources:
        for name, path in _files(source):
            try:
                with tokenize.open(path) as file:  # in the encoding that the file declares, with \n for all line ends
                    text = file.read()
                parts = [text] if source.whole else list(docstrings(text))
            except (SyntaxError, ValueError):  # of another Python version, or a template
                continue
            hashes = [hashlib.sha256(part.encode("utf-8", "replace")).digest() for part in parts]
            text = "\n\n".join(part for part, known_as in zip(parts, hashes, strict=True) if known_as not in known)
            known.update(hashes)
            if len(text) >= SMALLEST_DOCUMENT:
                chosen.append(Document(name, text.encode("utf-8", "replace").decode(), source))
    return chosen


def docstrings(text: str) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and functions, each below a line that says whose it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes are the packages' affair
        waiting: list[tuple[str, ast.AST]] = [("", ast.parse(text))]
    while waiting:
        owner, node = waiting.pop(0)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring and docstring.strip():
                yield (f"{owner}:\n" if owner else "") + inspect.cleandoc(docstring).strip() + "\n"
        inner: list[tuple[str, ast.AST]] = []
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                inner.append((f"class {child.name}", child))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                inner.append((f"def {child.name}({ast.unparse(child.args)})", child))
        waiting = [*inner, *waiting]  # methods before the next class


def _prepare(folder: Path, sources: Sequence[Source], vocabulary: int) -> None:
    """Make the folder of shards, whole or not at all; called under the lock."""
    _say(f"preparing the embedded text in {folder.parent}, once, in three parts of some 20 s: reading sources")
    modules = documents(sources)
    if not modules:
        places = ", ".join(str(source.root) for source in sources)
        raise DataError(f"no Python sources were found in {places}, so there is no embedded text: reinstall Python")
    for left in [*folder.parent.glob("*.partial"), folder]:  # by a process that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir()
    _write(partial, modules, vocabulary)
    partial.rename(folder)


def _say(line: str) -> None:
    print(line, flush=True)


def _write(folder: Path, modules: Sequence[Document], vocabulary: int) -> None:
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for document in modules:
        splits["test" if in_test(document.name, TEST_SHARE) else "train"].append(document.text)
    size = sum(len(document.text) for document in modules)
    _say(f"training a tokenizer of {vocabulary:,} tokens on {size / 1e6:,.0f} million characters")
    tokenizer = train_tokenizer(splits["train"], vocabulary)
    atomic_write(folder / TOKENIZER, tokenizer.to_str(pretty=True).encode())
    size, end = vocabulary_of(tokenizer), end_of_text(tokenizer)
    written = {}
    for split, texts in splits.items():
        _say(f"tokenizing the {split} split, {len(texts):,} documents")
        writer = ShardWriter(folder, split, token_dtype(size), SHARD_TOKENS)
        for start in range(0, len(texts), 64):
            tokens, lengths = encode(tokenizer, texts[start : start + 64], end, writer.dtype)
            writer.add(tokens, len(lengths))
        written[split] = writer.finish()
    identity = {"name": f"byte-level BPE, {size} tokens, trained on pydocs", "sha256": sha256_of(folder / TOKENIZER)}
    Manifest(
        name="pydocs",
        tokenizer={**identity, "end_of_text": end},
        vocabulary=size,
        dtype=token_dtype(size).name,
        splits=written,
        sources=_account(modules),
    ).save(folder)


def _account(modules: Sequence[Document]) -> list[dict[str, Any]]:
    """What the record says of each source: version, documents, bytes and their hash."""
    accounts = []
    for source in dict.fromkeys(document.source for document in modules):
        texts = [document.text.encode() for document in modules if document.source == source]
        kind = "sources" if source.whole else "docstrings"
        sha = hashlib.sha256(json.dumps([hashlib.sha256(text).hexdigest() for text in texts]).encode()).hexdigest()
        accounts.append(
            {"name": source.name, "version": source.version, "kind": kind, "documents": len(texts)}
            | {"bytes": sum(map(len, texts)), "sha256": sha}
        )
    return accounts
