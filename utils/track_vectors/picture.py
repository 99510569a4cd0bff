"""A picture of track vectors: the most played tracks by two principal components."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor
from tqdm import tqdm

from utils.core.files import atomic_file
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL

MOST_PLAYED = 5000
"""How many tracks the picture shows."""
COLOURED_BY = "acousticness"
"""Audio feature that colours the picture, if the dataset has it; else its first."""


def plot_vectors(path: Path, vectors: Tensor, dataset: Dataset) -> None:
    """Draw the most played tracks by the first two principal components of their vectors (V, D).

    Without audio features there is nothing to colour them by, and one track or one dimension has no two components:
    then a line says so, and there is no picture.
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
    low, high = colour.quantile(torch.tensor([0.02, 0.98])).tolist()  # outliers would leave the others no colours
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
