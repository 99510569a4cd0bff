"""Vectors of tracks in a file that any tool can read, and the neighbours of a track.

    python -m utils.track_vectors --vectors RUN/track_embeddings.safetensors --track t_123
    python -m utils.track_vectors --vectors RUN/track_embeddings.safetensors --track t_123 --k 20 --data data/demo

`track_embeddings.safetensors` holds `vectors`, float32 (V, D), and in its metadata the hash of the vocabulary; beside
it, `vocabulary.txt` names the rows, one a line: five special ids, then the tracks, the most played first.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from heapq import nlargest
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from model.embeddings import TrackEmbedding
from utils.cli import UserError, check_at_least, cli
from utils.dataloaders import Dataset
from utils.files import atomic_file
from utils.vocab import N_SPECIAL, vocabulary_hash

VECTORS, VOCABULARY, PICTURE = "track_embeddings.safetensors", "vocabulary.txt", "embedding.png"
MOST_PLAYED = 5000
"""Tracks of the picture."""
COLOURED_BY = "acousticness"
"""Audio feature that colours the picture, if the dataset has it; else its first."""


@dataclass
class Config:
    """Which track's neighbours."""

    vectors: Path
    """File of vectors, with vocabulary.txt beside it."""
    track: str
    """Track id of the source."""
    k: int = 10
    """How many neighbours."""
    data: Path | None = None
    """Dataset folder of the vectors, to show plays as well."""

    def __post_init__(self) -> None:
        check_at_least(self, "neighbours", k=1)


@dataclass
class TableConfig:
    """A model's table of tracks: where it comes from, and which tracks have rows of their own."""

    vectors: str = ""
    """File of track vectors that it starts from, of python -m utils.word2vec or a pre-training run; empty for random
    ones."""
    freeze: bool = False
    """Leave it as it is at the start; with tie_weights it is the output table, too."""
    min_plays: int = 0
    """Tracks with fewer training plays have no row of their own: shared rows and audio features make their vectors."""
    shared_rows: int = 1
    """Rows that these tracks share; 0 leaves them their features."""

    def __post_init__(self) -> None:
        check_at_least(self, "table", min_plays=0, shared_rows=0)
        if not self.min_plays and self.shared_rows != TableConfig.shared_rows:
            raise UserError(
                "table.shared_rows has no meaning without table.min_plays, which says what tracks share rows"
            )


class TrackVectors(NamedTuple):
    """A vector for each id of a vocabulary."""

    vectors: Tensor
    """float32 (V, D)"""
    names: list[str]
    """V names: the source's ids of the tracks, and the special ids in angle brackets."""
    vocabulary_hash: str


class Neighbour(NamedTuple):
    """A track near another."""

    id: int
    cosine: float


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
        # Bytes, as safetensors' own files may be read by their owner only.
        temporary.write_bytes(save({"vectors": vectors.detach().float().cpu().contiguous()}, metadata=metadata))


def load_vectors(path: Path, *, vocabulary_hash: str | None = None) -> TrackVectors:
    """Read a file of vectors and `vocabulary.txt` beside it.

    Args:
        path: written by `save_vectors`.
        vocabulary_hash: of the dataset at hand, to be sure that rows mean the same tracks.

    Raises:
        UserError: a file is missing or no such file, or belongs to another vocabulary.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata, vectors = file.metadata() or {}, file.get_tensor("vectors")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; python -m utils.word2vec writes one, and so does train_bert_pretrain.py"
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


def table_rows(config: TableConfig, dataset: Dataset) -> tuple[int, int]:
    """`n_own` and `n_shared` of a model's `TrackEmbedding`: which tracks have rows of their own, and the others' rows.

    Raises:
        UserError: no track is as rare as `config` says.
    """
    if not config.min_plays:
        return dataset.n_ids, 0
    n_own = N_SPECIAL + int((dataset.train_plays[N_SPECIAL:] >= config.min_plays).sum())  # they come first
    if n_own == dataset.n_ids:
        raise UserError(
            f"table.min_plays is {config.min_plays}, and every track of {dataset.folder} has as many training plays; "
            "leave it out, or run the preprocessing with a lower --min_count"
        )
    return n_own, config.shared_rows


def load_table(tracks: TrackEmbedding, vectors: str, dataset: Dataset, *, width: str = "model.d_model") -> None:
    """Copy the vectors of a file, if one is named, into a table; special ids and shared rows keep what they have.

    Call it after the model has its first weights, or they replace the vectors (the seed's mistake).

    Args:
        tracks: the model's.
        vectors: the file; empty for none.
        dataset: whose tracks they are.
        width: the option that sets the table's width.

    Raises:
        UserError: see `load_vectors`, or they have another width than the table.
    """
    if not vectors:
        return
    loaded = load_vectors(Path(vectors), vocabulary_hash=dataset.vocabulary_hash).vectors
    own = slice(N_SPECIAL, tracks.n_own)
    d_model = tracks.table.embedding_dim
    if loaded.shape[1] != d_model:
        raise UserError(
            f"{vectors} has vectors of {loaded.shape[1]} dimensions, the model's tracks have {d_model}; "
            f"add --{width} {loaded.shape[1]}"
        )
    with torch.no_grad():
        tracks.table.weight[own] = loaded[own]


def _read_names(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode().removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; it names the rows of the vectors beside it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None


def _hash(names: list[str]) -> str:
    return vocabulary_hash(names[N_SPECIAL:])


def find_track(names: list[str], track: str) -> int:
    """The id of a track.

    Raises:
        UserError: there is no such track; names those that look like it.
    """
    try:
        return names.index(track, N_SPECIAL)
    except ValueError:
        # To compare all names as `get_close_matches` does takes seconds.
        alike = nlargest(100, names[N_SPECIAL:], key=lambda name: shared_ends(track, name))
        close = get_close_matches(track, alike, n=3)
        cure = f"did you mean {', '.join(close)}?" if close else f"see {VOCABULARY} beside the vectors"
        raise UserError(f"there is no track {track!r}; {cure}") from None


def shared_ends(a: str, b: str) -> int:
    """How many characters two names share at their beginning and at their end."""
    return sum(
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*both, strict=False)))
        for both in ((a, b), (a[::-1], b[::-1]))
    )


def nearest(vectors: Tensor, track: int, k: int) -> list[Neighbour]:
    """The tracks whose vectors have the highest cosine with that of `track`, without itself and the special ids.

    Args:
        vectors: float (V, D).
        track: an id.
        k: how many; fewer if there are not as many. Ties go to the smaller id.
    """
    unit = normalize(vectors.float(), dim=1)
    cosine = unit[N_SPECIAL:] @ unit[track]  # (V - N_SPECIAL,)
    order = cosine.argsort(descending=True, stable=True) + N_SPECIAL
    order = order[order != track][:k]
    return [Neighbour(int(i), float(cosine[i - N_SPECIAL])) for i in order]


def plot_vectors(path: Path, vectors: Tensor, dataset: Dataset) -> None:
    """Draw the most played tracks by the first two principal components of their vectors (V, D).

    Without audio features there is nothing to colour them by, and of one track or one dimension there are no two
    components: a line says so, and there is no picture.
    """
    names = dataset.info.get("features", {}).get("names", [])
    if not names:
        tqdm.write(f"{dataset.folder} has no audio features: no {path.name}")
        return
    shown = slice(N_SPECIAL, N_SPECIAL + MOST_PLAYED)
    points = vectors[shown].detach().float().cpu().numpy()
    if min(points.shape) < 2:
        tqdm.write(f"vectors of shape {points.shape} have no two components: no {path.name}")
        return
    pca = PCA(n_components=2)
    x, y = pca.fit_transform(points).T
    column = names.index(COLOURED_BY) if COLOURED_BY in names else 0
    colour = dataset.features[shown, column]
    low, high = colour.quantile(torch.tensor([0.02, 0.98])).tolist()  # a few outliers would leave no colours to others
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    dots = axes.scatter(x, y, c=colour, s=6, cmap="viridis", vmin=low, vmax=high, linewidths=0)
    figure.colorbar(dots, label=f"{names[column]} (standardised)")
    axes.set_title(f"The {len(x):,} most played tracks")
    x_share, y_share = pca.explained_variance_ratio_
    axes.set_xlabel(f"first component ({x_share:.1%} of the variance)")
    axes.set_ylabel(f"second component ({y_share:.1%})")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def main(config: Config) -> list[Neighbour]:
    """Print the neighbours of a track and return them."""
    dataset = None if config.data is None else Dataset.open(config.data)
    wanted = None if dataset is None else dataset.vocabulary_hash
    vectors, names, _ = load_vectors(config.vectors, vocabulary_hash=wanted)
    found = nearest(vectors, find_track(names, config.track), config.k)
    width = max(len(names[neighbour.id]) for neighbour in found)
    print(f"{'track':{width}}  cosine" + ("" if dataset is None else "   plays in training"))
    for neighbour in found:
        plays = "" if dataset is None else f"  {dataset.train_plays[neighbour.id]:18,}"
        print(f"{names[neighbour.id]:{width}}  {neighbour.cosine:6.3f}{plays}")
    return found


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
