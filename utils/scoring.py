"""From a model to the scores of its run: the same prediction and decoding on train, valid and test.

Shapes: see the legend in `utils/batch.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.catalogue import Catalogue, rows_at_once
from model.decoding import HasHead, SeqModel, TargetModel, beam_search, greedy, sample
from model.filling import Order, SlotModel, fill
from utils import distributed
from utils.allocator import reuse_memory
from utils.batch import History, SessionBatch
from utils.cli import UserError, check_at_least, check_used
from utils.dataloaders import DataConfig, Dataset, SessionLoader
from utils.evaluation import (
    Labels,
    MaskedPredictions,
    Scores,
    SeqPredictions,
    SkipPredictions,
    evaluate_masked,
    evaluate_seq,
    evaluate_skip,
    save_predictions,
    session_slices,
)
from utils.files import atomic_file
from utils.schema import PREFIXES
from utils.vocab import N_SPECIAL, PAD

LOGIT_ROWS = 256
"""Rows of the (rows, V) score matrix that are held at once, at most: 105 MB at 103,000 tracks."""
_ROWS_IN_CACHE = 16
"""Rows of it that are looked at together, once they are computed."""

Predictions = SkipPredictions | SeqPredictions | MaskedPredictions
Predict = Callable[[SessionLoader], Predictions]
"""Predicts all examples of a loader, in order; the kind of what it returns says which task it is."""
Continue = Callable[[History, int], Tensor]
"""Continues sessions by so many tracks: int64 (B, length)."""


class Decoding(Protocol):
    """A config that chooses how sessions are continued."""

    def allowed_tracks(self, dataset: Dataset, data: DataConfig) -> Tensor | None:
        """The ids (A,) of the only tracks that may be predicted in sessions cut by `data`; nothing if all may be."""

    def continuation(self, model: Any, catalogue: Catalogue) -> Continue:
        """The function that it means, for a model that can be decoded so."""


@dataclass
class DecodingConfig:
    """How a seq model continues sessions track by track, on all splits alike."""

    method: Literal["greedy", "beam", "sample"] = "greedy"
    """greedy: the most probable track, again and again. beam: the most probable continuation that a beam search finds.
    sample: tracks drawn at random from the most probable ones."""
    beam_width: int = 10
    """beam: beginnings that are kept at each step."""
    top_p: float = 0.9
    """sample: draw among the most probable tracks that together have this probability (nucleus sampling)."""
    temperature: float = 1.0
    """sample: divides the scores; below 1 for more probable tracks, above 1 for more surprising ones."""
    no_repeat: int = 0
    """None of the last so many tracks of the session, history and continuation, comes next; 0 for no such rule."""
    allow_list: str | None = None
    """Text file of the only tracks that may be predicted: one track id of the source a line. Ranks and perplexity are
    over all tracks all the same."""
    seed: int = 0
    """sample: of the random numbers."""

    def __post_init__(self) -> None:
        check_at_least(self, "decoding", beam_width=1, no_repeat=0, temperature=0.001)
        if not 0 < self.top_p <= 1:
            raise UserError(f"decoding.top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.beam_width > 1000:
            raise UserError(f"decoding.beam_width is {self.beam_width}; it must be at most 1000")
        drawn = ("sample",)
        check_used(self, "decoding", "method", beam_width=("beam",), top_p=drawn, temperature=drawn, seed=drawn)

    def allowed_tracks(self, dataset: Dataset, data: DataConfig) -> Tensor | None:
        """The ids (A,) of the allow-list; without one, nothing.

        Raises:
            UserError: see `read_allow_list`; or the rule against repeats may leave no track for the last target.
        """
        allowed = read_allow_list(self.allow_list, dataset, option="decoding.allow_list")
        n_tracks = dataset.n_ids - N_SPECIAL if allowed is None else len(allowed)
        if n_tracks <= min(self.no_repeat, data.history_size + data.target_size - 1):
            raise UserError(
                f"decoding.no_repeat is {self.no_repeat}, but only {n_tracks} tracks may be predicted; make it smaller"
            )
        return allowed

    def continuation(self, model: SeqModel, catalogue: Catalogue) -> Continue:
        """See `model/decoding.py`."""
        common: dict[str, Any] = {"catalogue": catalogue, "no_repeat": self.no_repeat}
        if self.method == "beam":

            def best_beam(history: History, length: int) -> Tensor:
                return beam_search(model, history, length, width=self.beam_width, **common).tracks[:, 0]

            return best_beam
        if self.method == "sample":
            generator = torch.Generator().manual_seed(self.seed)
            common |= {"top_p": self.top_p, "temperature": self.temperature, "generator": generator}
            return partial(sample, model, **common)
        return partial(greedy, model, **common)


@dataclass
class FillingConfig:
    """How BERT continues sessions: it fills in masks behind the history, on all splits alike."""

    order: Order = "parallel"
    """parallel: all in one pass (the seed). confident: in each pass those that the model is most sure of.
    left_to_right: in each pass the next ones."""
    passes: int = 10
    """confident, left_to_right: equal shares in which the masks are filled. Time grows with it."""
    allow_list: str | None = None
    """Text file of the only tracks that may be predicted: one track id of the source a line. Ranks and perplexity are
    over all tracks all the same."""

    def __post_init__(self) -> None:
        check_at_least(self, "filling", passes=1)
        check_used(self, "filling", "order", passes=("confident", "left_to_right"))

    def allowed_tracks(self, dataset: Dataset, data: DataConfig) -> Tensor | None:
        """The ids (A,) of the allow-list; without one, nothing. How sessions are cut is of no matter here.

        Raises:
            UserError: see `read_allow_list`.
        """
        return read_allow_list(self.allow_list, dataset, option="filling.allow_list")

    def continuation(self, model: SlotModel, catalogue: Catalogue) -> Continue:
        """See `model/filling.py`."""
        return partial(fill, model, order=self.order, passes=self.passes, catalogue=catalogue)


def read_allow_list(file: str | None, dataset: Dataset, *, option: str) -> Tensor | None:
    """The ids (A,) of the tracks in a text file, one track id of the source a line; empty lines are passed over.

    Args:
        file: where the list is; nothing if there is none.
        dataset: knows the track ids.
        option: which option named the file.

    Raises:
        UserError: there is no such file, no track in it, or one that the dataset does not know.
    """
    if file is None:
        return None
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}: cannot read {path} as text: {error}") from error
    names = pd.Index(dataset.track_names[N_SPECIAL:])
    tracks = pd.Series(lines, index=range(1, len(lines) + 1), dtype=object).str.strip()
    tracks = tracks[tracks != ""]
    if tracks.empty:
        raise UserError(f"{path} holds no track; write one track id a line, or leave out {option}")
    places = names.get_indexer(tracks)
    if (places < 0).any():
        unknown = tracks[places < 0]
        others = f" (and {len(unknown) - 1:,} other lines)" if len(unknown) > 1 else ""
        raise UserError(
            f"{path}, line {unknown.index[0]}{others}: {dataset.folder} has no track {unknown.iloc[0]!r}; take the "
            f"line out, or see the track ids in {dataset.folder / 'tracks.parquet'}"
        )
    return torch.from_numpy(np.unique(places) + N_SPECIAL)


def score(predict: Predict, dataset: Dataset, data: DataConfig, *, folder: Path | None = None) -> dict[str, Any]:
    """Scores of a run, split -> `Scores.summary()`.

    The splits of `data.scored`, training sessions like the others, on a sample as large as the test split. With
    `data.every_prefix` there are entries `<split>_prefixes` too. `folder` (the run's) gets `predictions_test.npz` and
    `predictions_test_prefixes.npz`.
    """
    result = {}
    for prefixes in (False, True) if data.every_prefix else (False,):
        for split in data.scored:
            name = split + PREFIXES if prefixes else split
            loader, predictions, scores = score_split(predict, dataset, data, split, prefixes=prefixes)
            result[name] = scores.summary()
            if folder is not None and split == "test" and distributed.is_first():
                save_predictions(folder / f"predictions_{name}.npz", predictions, scores, loader.targets())
    return result


def score_split(
    predict: Predict,
    dataset: Dataset,
    data: DataConfig,
    split: str,
    *,
    prefixes: bool = False,
) -> tuple[SessionLoader, Predictions, Scores]:
    """Predict and score one split, at the half of each session or after every prefix."""
    reuse_memory()
    loader = scoring_loader(dataset, data, split, prefixes=prefixes)
    predictions = predict(loader)
    slices = None if prefixes else session_slices(loader, dataset.train)
    return loader, predictions, scores_of(predictions, loader, dataset, slices)


def scores_of(
    predictions: Predictions, loader: SessionLoader, dataset: Dataset, slices: dict[str, Labels] | None = None
) -> Scores:
    """Scores of the predictions of a loader's examples; those of hidden tracks have no slices.

    With slices there is the accuracy by training plays, too.
    """
    if isinstance(predictions, MaskedPredictions):
        return evaluate_masked(predictions, loader.targets())
    plays = None if slices is None else dataset.train_plays.numpy()
    if isinstance(predictions, SkipPredictions):
        return evaluate_skip(predictions, loader.targets(), slices=slices, train_plays=plays)
    return evaluate_seq(predictions, loader.targets(), n_ids=dataset.n_ids, slices=slices, train_plays=plays)


def validate(predict: Predict, dataset: Dataset, data: DataConfig) -> dict[str, float | None]:
    """Metrics of the validation split, without intervals: what training watches."""
    loader = scoring_loader(
        dataset, data, "valid", prefixes=data.every_prefix, max_sessions=data.valid_sessions or None
    )
    return scores_of(predict(loader), loader, dataset).means()


def scoring_loader(
    dataset: Dataset, data: DataConfig, split: str, *, prefixes: bool = False, max_sessions: int | None = None
) -> SessionLoader:
    """The ordered loader on which a split is scored: halves of sessions, or every prefix with its next track.

    Of the training sessions an evenly spaced sample is taken, as many as the test split has.
    """
    if split == "train":
        max_sessions = dataset.test.n_sessions
    return SessionLoader(
        dataset.split(split),
        batch_size=256,
        cut="every" if prefixes else "half",
        history_size=data.history_size,
        target_size=1 if prefixes else data.target_size,
        min_length=2 if prefixes else data.min_length,
        max_sessions=max_sessions,
    )


def skip_predictor(model: nn.Module, device: torch.device) -> Predict:
    """`predict_skip` of this model."""
    return partial(predict_skip, model, device)


def seq_predictor(
    model: TargetModel, device: torch.device, decoding: Decoding | None = None, allowed: Tensor | None = None
) -> Predict:
    """`predict_seq` of this model."""
    return partial(predict_seq, model, device, decoding=decoding, allowed=allowed)


@torch.inference_mode()
def predict_skip(model: nn.Module, device: torch.device, loader: SessionLoader) -> SkipPredictions:
    """Skip probabilities of all examples of `loader`, in order."""
    model.eval()
    probability = np.zeros((loader.n_examples, loader.target_size), np.float32)
    done = []
    for batch in shares(loader):
        history, targets = batch.inputs(device)
        done.append(batch.rows.numpy())
        probability[done[-1]] = model(history, targets).float().sigmoid().cpu().numpy()
    distributed.put_together(probability, rows=done)
    return SkipPredictions.of(probability)


@torch.inference_mode()
def predict_seq(
    model: TargetModel,
    device: torch.device,
    loader: SessionLoader,
    *,
    decoding: Decoding | None = None,
    allowed: Tensor | None = None,
) -> SeqPredictions:
    """Continuations, log-probabilities of the true tracks and full-catalogue ranks, in order.

    A step-by-step model judges each true track in the light of the true ones before it (teacher-forced). BERT is given
    the history only and judges all in one pass, whatever order its masks are filled in: its perplexity is that of
    independent guesses, not of a sequence.

    Args:
        model, device, loader: what predicts what, where.
        decoding: how sessions are continued, in a way that the model can; greedily if not given.
        allowed: int64 (A,), the tracks that may continue a session; all of them if not given.
    """
    model.eval()
    chosen: Decoding = decoding or DecodingConfig()
    continue_sessions = chosen.continuation(model, Catalogue(model.head, allowed))
    n, t = loader.n_examples, loader.target_size
    tracks = np.full((n, t), PAD, np.int32)
    log_probability = np.zeros((n, t), np.float32)
    rank = np.full(n, np.inf, np.float32)
    done = []
    for batch in shares(loader):
        rows = batch.rows.numpy()
        done.append(rows)
        history, targets = batch.inputs(device)
        states = model(history, model.previous_tracks(history, targets))  # (B, T, D)
        log_p, ranks = judge(model, states, targets)
        log_probability[rows], rank[rows] = log_p.cpu().numpy(), ranks[:, 0].cpu().numpy()
        tracks[rows] = continue_sessions(history, t).cpu().numpy()
    distributed.put_together(tracks, log_probability, rank, rows=done)
    return SeqPredictions(tracks, log_probability, rank)


def progress(loader: SessionLoader) -> tqdm:
    """The batches of a loader, with a bar from two seconds on."""
    return tqdm(loader, desc=f"predict {loader.arrays.folder.name}", leave=False, delay=2, unit="batch")


def shares(loader: SessionLoader) -> Iterator[SessionBatch]:
    """The same, but only the rows that this process predicts."""
    return (batch for batch in map(distributed.share, progress(loader)) if len(batch.rows))


def judge(model: HasHead, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What states think of the true tracks.

    Args:
        states: (B, T, D).
        targets: int64 (B, T).

    Returns:
        log-probability (B, T), 0 where the target is padding or outside the vocabulary;
        rank (B, T) from 0 among all tracks: ties count half, infinity where there is no probability.
    """
    inside = targets >= N_SPECIAL
    flat, labels = states[inside].float(), targets[inside] - N_SPECIAL
    weight, bias = model.head.weight[N_SPECIAL:].float(), model.head.bias[N_SPECIAL:].float()
    n = len(bias)
    log_p, ranks = torch.empty(2, len(labels), device=states.device)
    n_rows = rows_at_once(n, LOGIT_ROWS)
    scores = torch.empty(min(n_rows, len(labels)), n, device=states.device)  # one for all, and so is `lower`
    lower = torch.empty(min(_ROWS_IN_CACHE, len(scores)), n, device=states.device)
    for rows in torch.arange(len(labels), device=states.device).split(n_rows):
        torch.addmm(bias, flat[rows], weight.T, out=scores[: len(rows)])
        for few, of_few in zip(rows.split(_ROWS_IN_CACHE), scores[: len(rows)].split(_ROWS_IN_CACHE), strict=True):
            true = of_few.gather(1, labels[few, None])
            highest = of_few.amax(1, keepdim=True)
            # The sum of the signs is (tracks above) - (tracks below), and all but these are ties.
            signs = torch.sub(of_few, true, out=lower[: len(few)]).sign_().sum(1)
            ranks[few] = (n - 1 + signs) / 2
            log_p[few] = (true - highest)[:, 0] - of_few.sub_(highest).exp_().sum(1).log()
    nothing = torch.zeros(targets.shape, device=states.device)
    return nothing.masked_scatter(inside, log_p), (nothing + torch.inf).masked_scatter(inside, ranks)


def predictions_table(predictions: Predictions, loader: SessionLoader, dataset: Dataset) -> pd.DataFrame:
    """Predictions for people, one row a target: session, position in it, track, and what was predicted of it.

    Skip: `skip_probability`, `skip_predicted` and `skipped` (the truth, empty if unknown). Seq: `predicted_track_id`.
    Hidden tracks: `probability` and `rank` (1 for the most probable track).
    """
    targets = loader.targets()
    if isinstance(predictions, MaskedPredictions):  # anywhere in a session, not only behind its cut
        tracks, first = predictions.tracks, -loader.history_size
    else:
        tracks, first = targets.tracks, 0
    example, step = np.nonzero(tracks != PAD)
    session = targets.session[example]
    table = pd.DataFrame(
        {
            "session_id": loader.arrays.sessions["session_id"].to_numpy()[session],
            "position": loader.cuts[example] + first + step + 1,
            "track_id": dataset.track_names[tracks[example, step]],
        }
    )
    if isinstance(predictions, SkipPredictions):
        truth = targets.skips[example, step]
        table["skip_probability"] = predictions.probability[example, step]
        table["skip_predicted"] = predictions.decision[example, step]
        table["skipped"] = pd.array(truth == 1, dtype="boolean")
        table.loc[truth < 0, "skipped"] = pd.NA
    elif isinstance(predictions, MaskedPredictions):
        table["probability"] = np.exp(predictions.log_probability[example, step])
        table["rank"] = predictions.rank[example, step] + 1
    else:
        table["predicted_track_id"] = dataset.track_names[predictions.tracks[example, step]]
    return table


def print_scores(title: str, summary: dict[str, Any]) -> None:
    """Print one line for each metric of `Scores.summary()`, with its interval."""
    print(title)
    for name, value in summary["metrics"].items():
        if value["mean"] is not None:
            interval = "" if value["low"] is None else f"  [{value['low']:.4f}, {value['high']:.4f}]"
            print(f"  {name:15} {value['mean']:9.4f}{interval}")
    for name, value in summary["by_plays"].items():
        print(f"  accuracy of {value['n']:,} targets with {name} training plays: {value['mean']:.4f}")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as .csv or .parquet, atomically.

    Raises:
        UserError: another ending.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} must end in .csv or .parquet")
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False) if path.suffix == ".csv" else table.to_parquet(temporary, index=False)
