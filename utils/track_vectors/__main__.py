"""The neighbours of a track, by its vector.

python -m utils.track_vectors --vectors RUN/track_embeddings.safetensors --track t_123
python -m utils.track_vectors --vectors RUN/track_embeddings.safetensors --track t_123 --k 20 --data data/demo
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.core.checks import check_at_least
from utils.core.cli import TYPE_CHECKING, cli

if TYPE_CHECKING:
    from utils.track_vectors.neighbours import Neighbour


@dataclass
class Config:
    """Which track's neighbours."""

    vectors: Path
    """File of vectors, with vocabulary.txt beside it."""
    track: str
    """Track id, as in the source."""
    k: int = 10
    """How many neighbours."""
    data: Path | None = None
    """Dataset folder that the vectors belong to, to show plays as well."""

    def __post_init__(self) -> None:
        check_at_least(self, "", k=1)


def main(config: Config) -> list[Neighbour]:
    """Print the neighbours of a track and return them."""
    from utils.data.dataset import Dataset
    from utils.track_vectors.files import load_vectors
    from utils.track_vectors.neighbours import find_track, nearest

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
