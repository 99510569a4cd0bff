"""A trained network as one more source of candidates, and what it says of each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.decoding import SeqModel
from utils.data import schema
from utils.data.batch import History
from utils.data.vocab import N_SPECIAL

PROPOSED = 100
"""Most probable tracks that become candidates."""
NETWORK_FEATURES = ("network", "network, relative", "network rank")
"""What a network says of a candidate: log P, log P less that of the best track, 1 / rank (0 beyond `PROPOSED`)."""


class NetworkSource:
    """A model that reads only the tracks of a history, and continues sessions step by step.

    Args:
        model: on `device`.
        device: of the model.
        history_size: plays of a history that it was made for; of longer ones it reads the last.
    """

    def __init__(self, model: SeqModel, device: torch.device, *, history_size: int) -> None:
        self.model = model
        self.device = device
        self.history_size = history_size
        model.eval()

    @torch.inference_mode()
    def __call__(self, history: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Proposed tracks int32 (N, K), the best first, and log P float32 (N, V) after histories int (N, S)."""
        tracks = torch.from_numpy(history[:, -self.history_size :].astype(np.int64)).to(self.device)
        nothing = torch.zeros(*tracks.shape, len(schema.LOG_COLUMNS), dtype=torch.uint8, device=self.device)
        of_tracks = History(tracks, torch.zeros_like(tracks), nothing)
        states = self.model(of_tracks, self.model.start(of_tracks))[:, 0]  # (N, D)
        scores = self.model.logits(states).float()  # (N, V)
        proposed = scores.topk(min(PROPOSED, scores.shape[1] - N_SPECIAL)).indices
        log_p = scores.sub_(scores.logsumexp(1, keepdim=True))
        return proposed.cpu().numpy().astype(np.int32), log_p.cpu()


def describe(ids: np.ndarray, rows: np.ndarray, proposed: np.ndarray, log_p: Tensor) -> np.ndarray:
    """`NETWORK_FEATURES` of candidates (M,) of histories (N,): float32 (M, 3).

    Args:
        ids, rows: (M,), the candidates, and whose each is, in order of row and id.
        proposed, log_p: of `NetworkSource`.
    """
    own = log_p[torch.from_numpy(rows), torch.from_numpy(ids.astype(np.int64))].numpy()
    best = log_p[:, N_SPECIAL:].amax(1).numpy()[rows]
    keys = np.arange(len(proposed))[:, None] * log_p.shape[1] + proposed  # (N, K)
    order = keys.ravel().argsort()
    place = np.searchsorted(keys.ravel()[order], rows * log_p.shape[1] + ids).clip(max=len(order) - 1)
    found = keys.ravel()[order][place] == rows * log_p.shape[1] + ids
    rank = order[place] % proposed.shape[1] + 1
    return np.stack([own, own - best, np.where(found, 1 / rank, 0.0)], axis=1).astype(np.float32)
