"""Vectors of tracks in a file that any tool can read.

`track_embeddings.safetensors` holds `vectors`, float32 (V, D), and in its metadata the hash of the vocabulary; beside
it, `vocabulary.txt` names the rows, one a line: five special ids, then the tracks, the most played first.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.core.errors import UserError
from utils.core.files import atomic_file
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL, vocabulary_hash

VECTORS, VOCABULARY, PICTURE = "track_embeddings.safetensors", "vocabulary.txt", "embedding.png"


class TrackVectors(NamedTuple):
    """A vector for each id of a vocabulary."""

    vectors: Tensor
    """float32 (V, D)"""
    names: list[str]
    """V names: the source's ids of the tracks, and the special ids in angle brackets."""
    vocabulary_hash: str


def save_vectors(folder: Path, vectors: Tensor, dataset: Dataset) -> None:
    """Write vectors (V, D) and the names of their rows to a folder.

    Raises:
        ValueError: not one vector for each id of the dataset.
    """
    if vectors.ndim != 2 or len(vectors) != dataset.n_ids:
        raise ValueError(f"vectors of shape {tuple(vectors.shape)} for {dataset.n_ids} ids")
    with atomic_file(folder / VOCABULARY) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in dataset.track_names), encoding="utf-8", newline="\n")
    metadata = {"vocabulary_hash": dataset.vocabulary_hash, "n_ids": str(dataset.n_ids)}
    with atomic_file(folder / VECTORS) as temporary:
        # As bytes: only their owner can read files that safetensors writes itself.
        temporary.write_bytes(save({"vectors": vectors.detach().float().cpu().contiguous()}, metadata=metadata))


def load_vectors(path: Path, *, vocabulary_hash: str | None = None) -> TrackVectors:
    """Read a file of vectors and `vocabulary.txt` beside it.

    Args:
        path: written by `save_vectors`.
        vocabulary_hash: of the dataset at hand, to be sure that rows mean the same tracks.

    Raises:
        UserError: a file is missing, is no file of vectors, or belongs to another vocabulary.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata, vectors = file.metadata() or {}, file.get_tensor("vectors")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; python -m utils.track_vectors.word2vec writes one, "
            "and so does train_bert_pretrain.py"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no file of track vectors ({error})") from None
    names = _read_names(path.with_name(VOCABULARY))
    own = metadata.get("vocabulary_hash")
    if own != _hash(names) or len(names) != len(vectors):
        raise UserError(f"{path.with_name(VOCABULARY)} does not belong to {path}; copy both from the same run")
    if vocabulary_hash is not None and own != vocabulary_hash:
        raise UserError(
            f"{path} has the vectors of another vocabulary ({own[:12]}, the dataset has {vocabulary_hash[:12]}); use "
            "the dataset that they were trained on"
        )
    return TrackVectors(vectors, names, own)


def _read_names(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode().removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; it names the rows of the vectors beside it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None


def _hash(names: list[str]) -> str:
    return vocabulary_hash(names[N_SPECIAL:])
