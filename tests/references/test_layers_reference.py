"""Layers beside torch's own with copied weights, and beside the published equations written out in plain steps.

All in float64, so that a difference is a mistake and not rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import sqrt

import pytest
import torch
from conftest import N_IDS, random_batch
from model_checks import FEATURES, randomise
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.testing import assert_close

from model.attention import Attention, BertBranch, DecoderLayer, EncoderLayer, Memory, causal
from model.dropout import Dropout
from model.embeddings import HistoryEmbedding, TrackEmbedding
from model.recurrent import Encoder, LuongAttention, Recurrent
from utils.data.vocab import PAD

D, HEADS, FF, D_BERT = 12, 3, 20, 8
B, T, M = 4, 5, 7


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(module: nn.Module) -> nn.Module:
    """With biases and norms away from their start, in evaluation."""
    randomise(module)
    return module.eval()


def shown(b: int, m: int) -> Tensor:
    """Which of m positions are shown, bool (b, m): at random, at least one."""
    mask = torch.rand(b, m) < 0.6
    mask[torch.arange(b), torch.randint(m, (b,))] = True
    return mask


def agree(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Equal outputs, and equal gradients of a random weighing of them."""
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(ours)
    both = (torch.autograd.grad((output * weights).sum(), inputs, retain_graph=True) for output in (ours, theirs))
    for mine, other in zip(*both, strict=True):
        assert mine.abs().max() > 0
        assert_close(mine, other, rtol=1e-8, atol=1e-8)


# Attention, beside torch's


def give_weights(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    """Ours into torch's. Our keys have no bias; torch's get a random one, which the softmax must not see."""
    names = ("query", "key", "value")
    with torch.no_grad():
        if theirs.in_proj_weight is not None:
            theirs.in_proj_weight.copy_(torch.cat([getattr(ours, name).weight for name in names]))
        else:
            for name in names:
                getattr(theirs, f"{name[0]}_proj_weight").copy_(getattr(ours, name).weight)
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.randn(D), ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)


@pytest.mark.parametrize("d_memory", [D, D_BERT])
@pytest.mark.parametrize("seed", range(3))
def test_attention_is_torchs(d_memory: int, seed: int) -> None:
    torch.manual_seed(seed)
    ours = made(Attention(D, HEADS, d_memory=d_memory, dropout=0.0))
    theirs = nn.MultiheadAttention(D, HEADS, kdim=d_memory, vdim=d_memory, batch_first=True)
    give_weights(ours, theirs)
    x, states = torch.randn(B, T, D, requires_grad=True), torch.randn(B, M, d_memory, requires_grad=True)
    mask = shown(B * T, M).view(B, T, M)  # another one for each query
    hidden = (~mask).repeat_interleave(HEADS, dim=0)
    expected, weights = theirs(x, states, states, attn_mask=hidden)
    assert (weights[~mask] == 0).all()
    agree(ours(x, Memory(states, mask)), expected, x, states)


def give_layer(ours: EncoderLayer | DecoderLayer, theirs: nn.Module) -> None:
    give_weights(ours.attention, theirs.self_attn)
    for number, place in ((1, 0), (2, 3)):
        getattr(theirs, f"linear{number}").load_state_dict(ours.feed_forward[place].state_dict())
    for number, norm in enumerate(ours.norms, start=1):
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())


def test_encoder_layers_are_torchs_encoder() -> None:
    """Two layers, one above the other; the mask of the history."""
    ours = [made(EncoderLayer(D, HEADS, FF, dropout=0.0)) for _ in range(2)]
    theirs = [nn.TransformerEncoderLayer(D, HEADS, FF, dropout=0.0, batch_first=True) for _ in range(2)]
    x, real = torch.randn(B, M, D, requires_grad=True), shown(B, M)
    y = expected = x
    for mine, other in zip(ours, theirs, strict=True):
        give_layer(mine, other)
        y, expected = mine(y, real[:, None]), other(expected, src_key_padding_mask=~real)
    agree(y, expected, x)


def test_decoder_layers_are_torchs_decoder() -> None:
    """A causal mask of the targets, and the history's mask; step by step it is the same."""
    ours = [made(DecoderLayer(D, HEADS, FF, dropout=0.0)) for _ in range(2)]
    theirs = [nn.TransformerDecoderLayer(D, HEADS, FF, dropout=0.0, batch_first=True) for _ in range(2)]
    x, states = torch.randn(B, T, D, requires_grad=True), torch.randn(B, M, D, requires_grad=True)
    real, mask = shown(B, M), causal(T, x.device)
    memory = Memory(states, real[:, None])
    y = expected = stepped = x
    for mine, other in zip(ours, theirs, strict=True):
        give_layer(mine, other)
        give_weights(mine.cross_attention, other.multihead_attn)
        past = mine.attention.remember(Memory(x[:, :0], torch.ones(B, 1, 0, dtype=torch.bool)))
        steps = []
        for step in stepped.split(1, dim=1):
            output, past = mine.step(step, past, mine.remember(memory))
            steps.append(output)
        y, stepped = mine(y, mask, memory), torch.cat(steps, dim=1)
        expected = other(expected, states, tgt_mask=torch.ones(T, T).triu(1).bool(), memory_key_padding_mask=~real)
    agree(y, expected, x, states)
    agree(stepped, expected, x, states)


# BERT-fused layers, as Zhu et al. (2020) write them


def written_out_attention(layer: Attention, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Each session, head and query by itself: softmax of q k / sqrt(d) over what is shown, times v."""
    width, out = D // HEADS, torch.zeros(x.shape)
    mask = mask.expand(-1, x.shape[1], -1)
    for b, t, head in product(range(x.shape[0]), range(x.shape[1]), range(HEADS)):
        part = slice(head * width, (head + 1) * width)
        query = layer.query.weight[part] @ x[b, t] + layer.query.bias[part]
        seen = states[b, mask[b, t]]
        chance = torch.exp(seen @ layer.key.weight[part].T @ query / sqrt(width))
        values = seen @ layer.value.weight[part].T + layer.value.bias[part]
        out[b, t, part] = (chance / chance.sum()) @ values
    return out @ layer.output.weight.T + layer.output.bias


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def feed_forward(layers: nn.Sequential, x: Tensor) -> Tensor:
    return (x @ layers[0].weight.T + layers[0].bias).clamp(min=0) @ layers[3].weight.T + layers[3].bias


def fused_inputs() -> tuple[Tensor, Memory, Memory]:
    """x, the encoder's states, BERT's states of another width and length."""
    encoder = Memory(torch.randn(B, M, D), shown(B, M)[:, None])
    return torch.randn(B, T, D), encoder, Memory(torch.randn(B, 9, D_BERT), shown(B, 9)[:, None])


def fused_encoder(layer: EncoderLayer, x: Tensor, mask: Tensor, bert: Memory, weight: float) -> Tensor:
    """h = norm(h + (1 - weight) Attn_S(h, H, H) + weight Attn_B(h, H_B, H_B)), then norm(h + FFN(h))."""
    own = written_out_attention(layer.attention, x, x, mask)
    theirs = written_out_attention(layer.bert_attention, x, *bert)
    h = norm(layer.norms[0], x + (1 - weight) * own + weight * theirs)
    return norm(layer.norms[1], h + feed_forward(layer.feed_forward, h))


def test_fused_encoder_layer_is_the_papers() -> None:
    layer = made(EncoderLayer(D, HEADS, FF, dropout=0.0, branch=BertBranch(D_BERT, 1.0)))
    x, _, bert = fused_inputs()
    mask = shown(B, T)[:, None]
    assert_close(layer(x, mask, bert), fused_encoder(layer, x, mask, bert, 0.5))
    # In training, DropNet of rate 1 takes one of both alone, each half of the time.
    alone = [fused_encoder(layer, x, mask, bert, weight) for weight in (0.0, 1.0)]
    layer.train()
    taken = []
    for _ in range(60):
        found = layer(x, mask, bert)
        distances = [float((found - one).abs().max().detach()) for one in alone]
        assert min(distances) < 1e-9 < 1e-3 < max(distances)
        taken.append(distances[1] < 1e-9)
    assert 15 <= sum(taken) <= 45


def test_fused_decoder_layer_is_the_papers() -> None:
    """s = norm(s + Attn_S), s = norm(s + (Attn_E + Attn_B) / 2), s = norm(s + FFN(s))."""
    layer = made(DecoderLayer(D, HEADS, FF, dropout=0.0, branch=BertBranch(D_BERT, 0.5)))
    x, encoder, bert = fused_inputs()
    mask = causal(T, x.device).expand(B, T, T)
    s = norm(layer.norms[0], x + written_out_attention(layer.attention, x, x, mask))
    seen = written_out_attention(layer.cross_attention, s, *encoder)
    seen = (seen + written_out_attention(layer.bert_attention, s, *bert)) / 2
    s = norm(layer.norms[1], s + seen)
    assert_close(layer(x, mask, encoder, bert), norm(layer.norms[2], s + feed_forward(layer.feed_forward, s)))


def cell_step(rnn: nn.LSTM | nn.GRU, suffix: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of one layer: LSTM (with c) or GRU, as torch's documentation writes them."""
    gates = [f"weight_ih{suffix}", f"bias_ih{suffix}"], [f"weight_hh{suffix}", f"bias_hh{suffix}"]
    of_x, of_h = (getattr(rnn, w) @ v + getattr(rnn, b) for (w, b), v in zip(gates, (x, h), strict=True))
    if isinstance(rnn, nn.LSTM):
        i, f, g, o = (of_x + of_h).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    (r_x, z_x, n_x), (r_h, z_h, n_h) = of_x.chunk(3), of_h.chunk(3)
    z = (z_x + z_h).sigmoid()
    return (1 - z) * (n_x + (r_x + r_h).sigmoid() * n_h).tanh() + z * h, c


def written_out_recurrence(rnn: nn.LSTM | nn.GRU, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One sequence (length, D): its output, and the last h and c of each layer (both directions side by side)."""
    last_h, last_c = [], []
    for layer in range(rnn.num_layers):
        outputs, ends = [], []
        for reverse in ("", "_reverse")[: 1 + rnn.bidirectional]:
            h = c = torch.zeros(rnn.hidden_size)
            states = []
            for step in x.flip(0) if reverse else x:
                h, c = cell_step(rnn, f"_l{layer}{reverse}", step, h, c)
                states.append(h)
            outputs.append(torch.stack(states[::-1] if reverse else states))
            ends.append((h, c))
        x = torch.cat(outputs, dim=1)
        last_h.append(torch.cat([h for h, _ in ends]))
        last_c.append(torch.cat([c for _, c in ends]))
    return x, last_h, last_c


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_reading_is_the_equations_and_torchs_packed_sequences(cell: str, bidirectional: bool, n_layers: int) -> None:
    layer = made(Recurrent(cell, D, 6, n_layers=n_layers, bidirectional=bidirectional, dropout=0.0))
    lengths = torch.tensor([3, M, 1, 5])
    x = torch.randn(B, M, D)  # what is behind the lengths must not count
    output, last = layer.read(x, lengths)
    packed, _ = layer.rnn(pack_sequence([row[:n] for row, n in zip(x, lengths, strict=True)], enforce_sorted=False))
    assert_close(output, pad_packed_sequence(packed, batch_first=True)[0])
    for b, n in enumerate(lengths.tolist()):
        expected, h, c = written_out_recurrence(layer.rnn, x[b, :n])
        assert_close(output[b, :n], expected)
        assert (output[b, n:] == 0).all()
        for part, states in zip(last, (h, c), strict=False):
            assert_close(part[b], torch.stack(states))
    assert len(last) == (2 if cell == "lstm" else 1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_encoder_reads_the_plays_alone(cell: str) -> None:
    """Padding on the left: the recurrence over the vectors of the plays only, and a bridge for the last state."""
    batch = random_batch(n=B)
    tracks = TrackEmbedding(N_IDS, D, FEATURES.double())
    embed = HistoryEmbedding(tracks, D, history_size=10, skip_encoding="embedding", use_log=True)
    encoder = made(Encoder(embed, D, cell=cell, d_hidden=6, n_layers=2, bidirectional=True, dropout=0.5))
    memory, last = encoder(batch.history)
    vectors, n_plays = embed(batch.history), (batch.history.tracks != PAD).sum(1).tolist()
    assert len(set(n_plays)) > 1
    for b, n in enumerate(n_plays):
        expected, *ends = written_out_recurrence(encoder.rnn.rnn, vectors[b, -n:])
        assert_close(memory.states[b, :n], expected)
        assert memory.mask[b, 0].tolist() == [True] * n + [False] * (10 - n)
        for part, bridge, states in zip(last, encoder.bridges, ends, strict=False):
            assert_close(part[b], torch.stack(states) @ bridge.weight.T + bridge.bias)


def test_luong_attention_is_the_papers() -> None:
    """score(h, s) = h W s; the context is the mean of s under their softmax; tanh(W_c [context; h])."""
    layer = LuongAttention(6, D)
    states, memory, real = torch.randn(B, T, 6), torch.randn(B, M, D), shown(B, M)
    found = layer(states, Memory(memory, real[:, None]))
    for b, t in product(range(B), range(T)):
        s = memory[b, real[b]]
        chance = torch.exp(s @ (layer.general.weight @ states[b, t]))
        both = torch.cat([chance @ s / chance.sum(), states[b, t]])
        # Weights are computed in float32 whatever comes in.
        assert_close(found[b, t], (layer.combine.weight @ both).tanh(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.77])
def test_dropout_keeps_expectations_and_draws_independently(p: float) -> None:
    layer, n, x = Dropout(p).train(), 20_000, torch.linspace(-2, 3, 24)
    drawn = layer(x.expand(n, 24).clone())
    assert_close(Dropout(p).eval()(x), x, rtol=0, atol=0)
    # The mean of n draws is x, within 4.5 standard errors.
    error = x.abs() * sqrt(p / (1 - p) / n)
    assert ((drawn.mean(0) - x).abs() <= 4.5 * error).all()
    kept = (drawn[:, x != 0] != 0).double()
    correlation = torch.corrcoef(kept.T).fill_diagonal_(0)
    assert correlation.abs().max() < 4.5 / sqrt(n)
