"""Recurrent layers and their attention, beside torch's own and by hand."""

import pytest
import torch
from sized_models import Recurrent
from torch.testing import assert_close

from model.attention import Memory
from model.recurrent import LuongAttention


def test_first_weights():
    lstm, gru = Recurrent("lstm", 6, 4), Recurrent("gru", 6, 4)
    assert lstm.rnn.bias_ih_l0.tolist() == [0] * 4 + [1] * 4 + [0] * 8, "the forget gate is the second"
    for bias in (lstm.rnn.bias_hh_l0, gru.rnn.bias_ih_l0, gru.rnn.bias_hh_l0):
        assert (bias == 0).all()
    for cell in (lstm, gru):
        for gate in cell.rnn.weight_hh_l0.split(4):
            assert_close(gate @ gate.T, torch.eye(4))
        bound = (6 / (6 + 4)) ** 0.5  # Glorot and Bengio 2010, of each gate
        assert 0.8 * bound < cell.rnn.weight_ih_l0.abs().max() <= bound


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_reading_is_torchs_own_on_each_sequence(cell):
    torch.manual_seed(1)
    ours = Recurrent(cell, 3, 4, n_layers=2, bidirectional=True)
    x, lengths = torch.randn(3, 5, 3), torch.tensor([5, 1, 3])
    output, last = ours.read(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected, states = ours.rnn(x[row : row + 1, :length])
        assert_close(output[row, :length], expected[0])
        assert (output[row, length:] == 0).all()
        for mine, theirs in zip(last, states if cell == "lstm" else [states], strict=True):
            for layer in range(2):  # forward and backward of a layer side by side
                assert_close(mine[row, layer], theirs[2 * layer : 2 * layer + 2, 0].flatten())
        assert_close(last[0][row, 1, :4], expected[0, -1, :4], msg="forward: after the last play")
        assert_close(last[0][row, 1, 4:], expected[0, 0, 4:], msg="backward: after the first")


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_going_on_is_reading_on(cell):
    torch.manual_seed(1)
    ours, x = Recurrent(cell, 3, 4, n_layers=2), torch.randn(2, 6, 3)
    whole, last = ours.read(x, torch.tensor([6, 6]))
    _, middle = ours.read(x, torch.tensor([4, 4]))
    rest, end = ours(x[:, 4:], middle)
    assert_close(rest, whole[:, 4:])
    for mine, theirs in zip(end, last, strict=True):
        assert_close(mine, theirs)
        assert mine.shape == (2, 2, 4)


def test_attention_by_hand():
    """Scores 1 and -1 after softmax are 0.881 and 0.119; the third state is hidden."""
    attention = LuongAttention(1, 2)
    with torch.no_grad():
        attention.general.weight.copy_(torch.tensor([[1.0], [0.0]]))
        attention.combine.weight.copy_(torch.tensor([[1.0, 2.0, 0.5]]))
    memory = Memory(torch.tensor([[[0.5, 0.0], [-0.5, 1.0], [9.0, 9.0]]]), torch.tensor([[[True, True, False]]]))
    states = torch.tensor([[[2.0]]])
    weights = attention.weights(states, memory)
    assert_close(weights[0, 0], torch.tensor([0.880797, 0.119203, 0.0]), atol=1e-5, rtol=1e-5)
    context = [0.880797 * 0.5 - 0.119203 * 0.5, 0.119203]
    expected = torch.tensor(context[0] + 2 * context[1] + 0.5 * 2.0).tanh()
    assert_close(attention(states, memory)[0, 0, 0], expected, atol=1e-5, rtol=1e-5)
