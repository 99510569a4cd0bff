"""Layers with a branch to BERT: torch's own as references, and as the paper writes them."""

import pytest
import torch
from model_checks import copy_attention, copy_layer, randomise, with_branch
from torch import nn
from torch.testing import assert_close

from model.attention import DecoderLayer, EncoderLayer, Memory, causal

CPU = torch.device("cpu")


def encoder_inputs():
    x, hidden = torch.randn(3, 7, 16), torch.zeros(3, 7, dtype=torch.bool)
    hidden[0, :3] = hidden[2, :6] = True
    return x, hidden


def bert_memory(width=16):
    """BERT's states of other length than the layer's own, some of them hidden."""
    states, hidden = torch.randn(3, 9, width), torch.zeros(3, 9, dtype=torch.bool)
    hidden[1, 4:] = True
    return states, hidden


def encoder_layer(**options):
    torch.manual_seed(0)
    layer = EncoderLayer(16, 4, 32, **with_branch({"dropout": 0.0, "d_bert": 16} | options))
    randomise(layer)
    return layer.eval()


def decoder_layer(**options):
    torch.manual_seed(0)
    layer = DecoderLayer(16, 4, 32, **with_branch({"dropout": 0.0, "d_bert": 16} | options))
    randomise(layer)
    return layer.eval()


def only(branch, layer):
    """The layer, with one branch of its mix alone: "own" or "bert"."""
    layer.mix.forward = lambda own, bert: {"own": own, "bert": bert}[branch]
    return layer


def test_encoder_layer_with_a_tied_branch_is_torchs():
    ours = encoder_layer()
    ours.bert_attention.load_state_dict(ours.attention.state_dict())
    reference = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).train()
    copy_layer(ours, reference)
    x, hidden = encoder_inputs()
    memory = Memory(x, ~hidden[:, None])
    expected = reference(x, src_key_padding_mask=hidden)
    assert_close(ours(x, memory.mask, memory), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("branch", ["own", "bert", "tied"])
def test_decoder_layer_is_torchs(branch):
    """With one branch alone, whichever, torch's layer with that attention and that memory: residuals and all."""
    ours = decoder_layer()
    if branch == "tied":
        ours.bert_attention.load_state_dict(ours.cross_attention.state_dict())
    else:
        ours = only(branch, ours)
    reference = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True).train()
    copy_layer(ours, reference)
    copy_attention(ours.bert_attention if branch == "bert" else ours.cross_attention, reference.multihead_attn)
    x, mask = torch.randn(3, 5, 16), causal(5, CPU)
    encoder, bert = encoder_inputs(), bert_memory()
    if branch == "tied":
        bert = encoder
    memory, hidden = bert if branch == "bert" else encoder
    expected = reference(x, memory, tgt_mask=~mask[0], memory_key_padding_mask=hidden)
    memories = (Memory(states, ~hidden[:, None]) for states, hidden in (encoder, bert))
    assert_close(ours(x, mask, *memories), expected, atol=1e-5, rtol=1e-5)


def torchs_attention(ours, d_memory):
    """torch's own with our weights: (queries, memory, what of it is hidden) -> what is seen."""
    reference = nn.MultiheadAttention(16, 4, kdim=d_memory, vdim=d_memory, batch_first=True)
    copy_attention(ours, reference)
    return lambda x, states, hidden: reference(x, states, states, key_padding_mask=hidden)[0]


def test_encoder_layer_as_the_paper_writes_it():
    """The average of both attentions, BERT of another width."""
    ours = encoder_layer(d_bert=12)
    own, bert = torchs_attention(ours.attention, 16), torchs_attention(ours.bert_attention, 12)
    (x, hidden), (states, bert_hidden) = encoder_inputs(), bert_memory(12)
    h = ours.norms[0](x + 0.5 * (own(x, x, hidden) + bert(x, states, bert_hidden)))
    expected = ours.norms[1](h + ours.feed_forward(h))
    actual = ours(x, ~hidden[:, None], Memory(states, ~bert_hidden[:, None]))
    assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_decoder_layer_as_the_paper_writes_it():
    ours = decoder_layer(d_bert=12)
    (x, _), (memory, hidden), (states, bert_hidden) = encoder_inputs(), encoder_inputs(), bert_memory(12)
    mask = causal(7, CPU)
    s = ours.norms[0](x + ours.attention(x, Memory(x, mask)))
    own, bert = torchs_attention(ours.cross_attention, 16), torchs_attention(ours.bert_attention, 12)
    s = ours.norms[1](s + 0.5 * (own(s, memory, hidden) + bert(s, states, bert_hidden)))
    expected = ours.norms[2](s + ours.feed_forward(s))
    actual = ours(x, mask, Memory(memory, ~hidden[:, None]), Memory(states, ~bert_hidden[:, None]))
    assert_close(actual, expected, atol=1e-5, rtol=1e-5)
