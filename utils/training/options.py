"""Options that the training scripts share. Nothing here imports torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from utils.core.checks import check_at_least, check_used
from utils.core.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass
class TrainConfig:
    """How long and how to train."""

    epochs: int = 5
    """Passes over the training sessions."""
    batch_size: int = 256
    """Sessions in a step."""
    lr: float = 1e-4
    """Peak learning rate of Adam."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of the weights of linear layers."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 for no clipping."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after the warm-up; cosine falls to zero at the last epoch's end."""
    evaluate_every: int = 0
    """Steps between validations; 0 for the end of each epoch only."""
    patience: int = 0
    """Validations without a new best after which training stops; 0 to never stop early."""
    max_seconds: float = 0.0
    """Training time after which to stop, validations not counted; 0 for no limit."""
    clock: Literal["wall", "processor"] = "wall"
    """What max_seconds counts: wall-clock time, or processor time of this process (of all its threads), which other
    jobs on a shared machine do not use up."""
    precision: Precision = "auto"
    """Precision of the forward pass (autocast); auto is bfloat16 where the processor multiplies it fast."""
    compiled: bool = False
    """Compile the model (torch.compile), which takes minutes before the first step. For GPUs: benchmarks.gpu --compiled
    true tells whether it helps; on the CPU it does not (docs/log.md)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        check_at_least(self, "train", epochs=1, batch_size=1, weight_decay=0, clip=0, warmup_steps=0)
        check_at_least(self, "train", evaluate_every=0, patience=0, max_seconds=0)
        if not self.lr > 0:
            raise UserError(f"train.lr is {self.lr}; it must be positive")


@dataclass
class RunConfig:
    """Where the run is written, and its seed."""

    label: str = ""
    """Name of the row in the leaderboard; the experiment's name if empty."""
    seed: int = 1
    """Seed of the weights, the order of the sessions and dropout."""
    seeds: int = 1
    """Number of runs to make, with run.seed, run.seed + 1, ..."""
    folder: str = "runs"
    """Folder of all runs."""
    name: str = ""
    """Name of the run's own folder; the time if empty."""
    resume: str | None = None
    """Folder of an interrupted run to resume; give its config.yml as --config."""

    def __post_init__(self) -> None:
        check_at_least(self, "run", seed=0, seeds=1)


Weighting = Literal["uniform", "maa"]


@dataclass
class LossConfig:
    """Loss of predictions among all tracks."""

    name: Literal["full", "sampled", "gbce"] = "sampled"
    """full: softmax over all tracks (the original). sampled: an estimate of it from negatives that a batch shares.
    gbce: binary cross-entropy of the target and the negatives, calibrated."""
    n_negatives: int = 2048
    """sampled, gbce: negatives drawn for each batch."""
    in_batch: bool = False
    """sampled: take the other targets of the batch as negatives, too."""
    power: float = 0.75
    """sampled, gbce: negatives are drawn in proportion to training plays to this power; 0 draws uniformly."""
    calibration: float = 0.75
    """gbce: t, from 0 (overconfident, plain binary cross-entropy) to 1 (unbiased scores)."""

    def __post_init__(self) -> None:
        check_at_least(self, "loss", n_negatives=1, power=0, calibration=0)
        for name, most in (("n_negatives", 1_000_000), ("calibration", 1)):
            if getattr(self, name) > most:
                raise UserError(f"loss.{name} is {getattr(self, name)}; it must be at most {most}")
        drawn = ("sampled", "gbce")
        check_used(self, "loss", "name", n_negatives=drawn, power=drawn, in_batch=("sampled",), calibration=("gbce",))

    @property
    def is_sparse(self) -> bool:
        """Whether the loss looks at some tracks only, so that gradients of the track tables can be row-sparse."""
        return self.name != "full"


@dataclass
class MaskingConfig:
    """Which plays of a session BERT has to find."""

    rate: float = 0.2
    """Probability that a play is selected. Of the selected plays, 80 % are masked, 10 % become a random track, 10 %
    stay."""
    last_item: float = 0.0
    """Share of the sessions in which only the last play is masked, as when a session is continued (BERT4Rec)."""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UserError(f"masking.rate is {self.rate}; it must be above 0 and at most 1")
        if not 0 <= self.last_item <= 1:
            raise UserError(f"masking.last_item is {self.last_item}; it must be from 0 to 1")


@dataclass
class TableConfig:
    """A model's track table: what it starts from, and which tracks have rows of their own."""

    vectors: str = ""
    """File of track vectors to start from, made by python -m utils.track_vectors.word2vec or a pre-training run; empty
    for random ones."""
    freeze: bool = False
    """Do not train the table; with tie_weights it is the output table, too."""
    min_plays: int = 0
    """Tracks with fewer training plays have no row of their own: shared rows and audio features make their vectors."""
    shared_rows: int = 1
    """Rows that these tracks share; 0 leaves them only their audio features."""

    def __post_init__(self) -> None:
        check_at_least(self, "table", min_plays=0, shared_rows=0)
        if not self.min_plays and self.shared_rows != TableConfig.shared_rows:
            raise UserError(
                "table.shared_rows has no meaning without table.min_plays, which says what tracks share rows"
            )


@dataclass
class CasesConfig:
    """From which training sessions the scorer learns; its memory then knows only the sessions before them."""

    share: float = 0.1
    """Share of the training sessions in a fold: the last ones, or those before the next fold. Give a fold the length of
    the time that predictions are meant for."""
    folds: int = 1
    """Folds, each with a memory of the sessions before it."""
    remember_valid: bool = True
    """The memory of test takes in the validation sessions, too, which are before it: nothing is trained for that."""
    max_cases: int = 60_000
    """About how many cases (a history and the track that follows it) to learn from, from evenly spaced sessions."""

    def __post_init__(self) -> None:
        check_at_least(self, "cases", folds=1, max_cases=1)
        if not 0 < self.share * self.folds < 1:
            raise UserError(
                f"cases.share is {self.share} and cases.folds {self.folds}: the folds must leave sessions to remember; "
                "make their product smaller than 1"
            )
