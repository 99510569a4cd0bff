"""What a history's padding is to its embedding, whatever stands in the other arrays there."""

import pytest
import torch
from conftest import N_IDS, random_batch
from model_checks import FEATURES
from torch.testing import assert_close

from model.embeddings import HistoryEmbedding, TrackEmbedding
from utils.data.batch import History
from utils.data.schema import SKIP_1, SKIP_2, SKIP_PLAYED
from utils.data.vocab import PAD, SKIP


def embedding(skip_encoding: str) -> HistoryEmbedding:
    torch.manual_seed(0)
    tracks = TrackEmbedding(N_IDS, 6, FEATURES)
    return HistoryEmbedding(tracks, 6, history_size=10, skip_encoding=skip_encoding, use_log=False)


@pytest.mark.parametrize("code", [1 + SKIP_2, 1 + SKIP_1])
def test_a_skip_code_at_padding_is_no_play(code: int) -> None:
    """With the SKIP token, padding stays PAD and positions are still counted from the first play."""
    history, embed = random_batch().history, embedding("token")
    padding = history.tracks == PAD
    assert padding.any()
    dirty = history._replace(skips=history.skips.masked_fill(padding, code))
    assert_close(embed(dirty), embed(history), rtol=0, atol=0)


def test_token_encoding_by_hand() -> None:
    """Two plays behind one of padding: the second is skipped; all three have a skip code."""
    embed = embedding("token")
    tracks, skips = torch.tensor([[PAD, 9, 11]]), torch.tensor([[1 + SKIP_1, 1 + SKIP_PLAYED, 1 + SKIP_1]])
    x = embed(History(tracks, skips, torch.zeros(1, 3, 12, dtype=torch.uint8)))
    vectors = [embed.tracks(torch.tensor(track)) for track in (PAD, 9, SKIP)]
    start, end = embed.from_start.weight, embed.from_end[-3:]
    by_hand = [vectors[0] + start[0] + end[0], vectors[1] + start[0] + end[1], vectors[2] + start[1] + end[2]]
    assert_close(x[0], torch.stack(by_hand))
