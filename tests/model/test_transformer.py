"""The Transformers: causality, inputs that count and inputs that cannot, sizes, torch's own layers as references."""

import pytest
import torch
from conftest import N_IDS, random_batch
from model_checks import (
    FEATURES,
    SIZES,
    changed_steps,
    check_skip_padding,
    copy_attention,
    copy_layer,
    gradient_norms,
    other_track,
    overfit,
    perturbations,
    random_sessions,
    randomise,
    seq_output,
    shapes,
    skip_output,
)
from sized_models import SeqTransformer, SkipTransformer
from torch import nn
from torch.nn.functional import pad
from torch.testing import assert_close

from model.attention import Attention, DecoderLayer, EncoderLayer, Memory, causal
from model.decoding import greedy
from model.dropout import Dropout
from model.embeddings import TrackEmbedding, TrackHead
from utils.data import schema
from utils.data.vocab import BOS, N_SPECIAL, PAD, SKIP, UNK
from utils.evaluation.predict import predict_seq, predict_skip
from utils.evaluation.scores import evaluate_seq, evaluate_skip
from utils.training.losses import full_softmax, seq_loss, skip_loss, track_loss
from utils.training.options import LossConfig


def skip_model(**options):
    torch.manual_seed(0)
    return SkipTransformer(N_IDS, FEATURES, **SIZES | options).eval()


def seq_model(**options):
    torch.manual_seed(0)
    return SeqTransformer(N_IDS, FEATURES, **SIZES | options).eval()


# --- Causality


@pytest.mark.parametrize("step", [0, 4, 9])
def test_causal_skip_sees_tracks_up_to_its_own(step):
    batch = random_batch()
    changed = batch._replace(target_tracks=other_track(batch.target_tracks, (0, step)))
    model = skip_model(causal=True)
    assert changed_steps(skip_output(model, batch), skip_output(model, changed)).tolist() == [
        t >= step for t in range(10)
    ]


def test_skip_without_causality_sees_all_tracks():
    batch = random_batch()
    changed = batch._replace(target_tracks=other_track(batch.target_tracks, (0, 9)))
    model = skip_model(causal=False)
    assert changed_steps(skip_output(model, batch), skip_output(model, changed)).all()


@pytest.mark.parametrize("step", [0, 4, 9])
def test_seq_sees_tracks_before_its_own(step):
    batch = random_batch()
    changed = batch._replace(target_tracks=other_track(batch.target_tracks, (0, step)))
    model = seq_model()
    assert changed_steps(seq_output(model, batch), seq_output(model, changed)).tolist() == [t > step for t in range(10)]


# --- Every input counts, or is hidden


@pytest.mark.parametrize("build", [(skip_model, skip_output), (seq_model, seq_output)], ids=["skip", "seq"])
@pytest.mark.parametrize("skip_encoding", ["none", "token", "embedding"])
@pytest.mark.parametrize("use_log", [False, True])
def test_inputs(build, skip_encoding, use_log):
    make, output = build
    model, batch = make(skip_encoding=skip_encoding, use_log=use_log), random_batch(seed=1)
    before = output(model, batch)
    for name, changed in perturbations(batch).items():
        shown = name in ("tracks", "order") or (use_log if name in schema.LOG_COLUMNS else skip_encoding != "none")
        if name == "tracks" and skip_encoding == "token" and batch.history.skips[0, 3] >= 4:
            shown = False  # a skipped track is the SKIP token, whatever it was
        difference = (output(model, changed) - before)[0].abs().max()
        assert (difference > 1e-5) == shown, name


def test_token_encoding_is_the_skip_token():
    batch = random_batch()
    token, none = skip_model(skip_encoding="token", use_log=False), skip_model(skip_encoding="none", use_log=False)
    skipped = batch.history.skips > schema.SKIP_2
    assert 0.2 < skipped.float().mean() < 0.6
    replaced = batch._replace(history=batch.history._replace(tracks=batch.history.tracks.masked_fill(skipped, SKIP)))
    assert_close(skip_output(token, batch), skip_output(none, replaced))


@pytest.mark.parametrize("state", [1, 2, 3, 4, 5])
def test_skip_embedding_tells_all_states_apart(state):
    batch = random_batch()
    model = skip_model(use_log=False)
    skips = batch.history.skips.clone()
    skips[0, 3] = 0
    unknown = skip_output(model, batch._replace(history=batch.history._replace(skips=skips)))
    skips = skips.clone()
    skips[0, 3] = state
    known = skip_output(model, batch._replace(history=batch.history._replace(skips=skips)))
    assert (known - unknown)[0].abs().max() > 1e-4


def test_features_reach_the_output():
    batch = random_batch()
    for make, output in ((skip_model, skip_output), (seq_model, seq_output)):
        model = make()
        before = output(model, batch)
        for track in (batch.history.tracks[0, 3], batch.target_tracks[0, 3]):
            model.decoder.tracks.features.copy_(FEATURES)
            assert_close(output(model, batch), before)
            model.decoder.tracks.features[track] += 1
            assert (output(model, batch) - before).abs().max() > 1e-3


def test_a_model_without_features():
    model = SkipTransformer(N_IDS, torch.zeros(N_IDS, 0), **SIZES)
    assert model.encoder.embed.tracks.project is None
    assert torch.isfinite(skip_output(model, random_batch())).all()
    with pytest.raises(ValueError, match="features have 3 rows for 45 ids"):
        SkipTransformer(N_IDS, torch.zeros(3, 2), **SIZES)


@pytest.mark.parametrize("build", [(skip_model, skip_output), (seq_model, seq_output)], ids=["skip", "seq"])
def test_targets_skips_and_logs_have_no_way_in(build):
    make, output = build
    batch = random_batch()
    changed = batch._replace(target_skips=1 - batch.target_skips)
    model = make(use_log=True, skip_encoding="embedding")
    assert_close(output(model, batch), output(model, changed), rtol=0, atol=0)


# --- Padding


@pytest.mark.parametrize("options", [{"causal": True}, {"causal": False}])
def test_skip_padding_does_not_matter(options):
    check_skip_padding(skip_model(**options), random_batch())


def test_seq_padding_does_not_matter():
    batch, model = random_batch(), seq_model(use_log=True, skip_encoding="embedding")
    reference = seq_output(model, batch)
    history = batch.history
    for row in range(len(history.tracks)):
        n, m = int((history.tracks[row] != PAD).sum()), int((batch.target_tracks[row] != PAD).sum())
        short = type(history)(*(tensor[row : row + 1, 10 - n :] for tensor in history))
        alone = model(short, model.previous_tracks(short, batch.target_tracks[row : row + 1, :m]))
        assert_close(alone[0], reference[row, :m], atol=1e-5, rtol=1e-5)


# --- Parameters and sizes


@pytest.mark.parametrize("skip_encoding", ["none", "token", "embedding"])
@pytest.mark.parametrize("use_log", [False, True])
def test_every_parameter_of_skip_gets_a_gradient(skip_encoding, use_log):
    model, batch = skip_model(skip_encoding=skip_encoding, use_log=use_log), random_batch()
    norms = gradient_norms(model, skip_loss(model, batch)[0])
    assert [name for name, norm in norms.items() if not norm > 0] == []
    assert (model.decoder.tracks.table.weight.grad[PAD] == 0).all()


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("start", ["last", "bos"])
@pytest.mark.parametrize("loss", ["full", "sampled", "gbce"])
def test_every_parameter_of_seq_gets_a_gradient(tie_weights, start, loss):
    model = seq_model(tie_weights=tie_weights, start=start, skip_encoding="embedding", use_log=True)
    loss_of_tracks = track_loss(LossConfig(name=loss), torch.ones(N_IDS).long())
    norms = gradient_norms(model, seq_loss(model, random_batch(), loss_of_tracks)[0])
    assert [name for name, norm in norms.items() if not norm > 0] == []
    assert (model.decoder.tracks.table.weight.grad[BOS].abs().sum() > 0) == (start == "bos")


@pytest.mark.parametrize("make", [skip_model, seq_model])
@pytest.mark.parametrize(
    ("option", "value", "where"),
    [
        ("d_model", 20, "encoder.norm.weight"),
        ("n_layers", 3, "decoder.layers.2.norms.0.weight"),
        ("d_ff", 30, "decoder.layers.0.feed_forward.0.weight"),
        ("history_size", 7, "encoder.embed.from_end"),
        ("target_size", 6, "decoder.positions"),
    ],
)
def test_every_size_changes_a_shape(make, option, value, where):
    before, after = shapes(make()), shapes(make(**{option: value}))
    assert before.get(where) != after[where]


@pytest.mark.parametrize("make", [skip_model, seq_model])
def test_heads_and_dropout_arrive(make):
    model = make(n_heads=8, dropout=0.35)
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    assert [(a.n_heads, a.dropout) for a in attentions] == [(8, 0.35)] * 6
    assert {module.p for module in model.modules() if isinstance(module, Dropout)} == {0.35}
    with pytest.raises(ValueError, match="16 is no multiple of n_heads 3"):
        make(n_heads=3)


def test_dropout_acts_in_training_only():
    batch, model = random_batch(), skip_model(dropout=0.5)
    assert_close(skip_output(model, batch), skip_output(model, batch), rtol=0, atol=0)
    model.train()
    assert (skip_output(model, batch) - skip_output(model, batch)).abs().max() > 1e-3


def test_encoder_and_decoder_share_the_tracks_and_nothing_else():
    model = skip_model()
    assert model.encoder.embed.tracks is model.decoder.tracks
    assert model.encoder.norm.weight is not model.decoder.norm.weight
    encoder, decoder = ({p.data_ptr(): n for n, p in m.named_parameters()} for m in (model.encoder, model.decoder))
    shared = {decoder[pointer] for pointer in encoder.keys() & decoder.keys()}
    assert shared == {"tracks.table.weight", "tracks.project.weight"}


def test_tied_weights_share_storage():
    tied, free = seq_model(tie_weights=True), seq_model()
    assert tied.head.weight is tied.decoder.tracks.table.weight
    assert free.head.weight.data_ptr() != free.decoder.tracks.table.weight.data_ptr()
    n_tied, n_free = (sum(p.numel() for p in model.parameters()) for model in (tied, free))
    assert n_free - n_tied == N_IDS * SIZES["d_model"]
    tied.load_state_dict(seq_model(tie_weights=True).state_dict())
    assert tied.head.weight is tied.decoder.tracks.table.weight


# --- References


def test_encoder_layer_is_torchs():
    torch.manual_seed(0)
    ours = EncoderLayer(16, 4, 32, dropout=0.0)
    randomise(ours)
    reference = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=False)
    copy_layer(ours, reference)
    x, hidden = torch.randn(3, 7, 16), torch.zeros(3, 7, dtype=torch.bool)
    hidden[0, :3] = hidden[2, :6] = True
    expected = reference(x, src_key_padding_mask=hidden)
    assert_close(ours(x, ~hidden[:, None]), expected, atol=1e-5, rtol=1e-5)


def test_decoder_layer_is_torchs():
    torch.manual_seed(0)
    ours = DecoderLayer(16, 4, 32, dropout=0.0)
    randomise(ours)
    reference = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=False)
    copy_layer(ours, reference)
    copy_attention(ours.cross_attention, reference.multihead_attn)
    x, memory, hidden = torch.randn(3, 5, 16), torch.randn(3, 7, 16), torch.zeros(3, 7, dtype=torch.bool)
    hidden[1, :4] = True
    mask = causal(5, x.device)
    expected = reference(x, memory, tgt_mask=~mask[0], memory_key_padding_mask=hidden)
    assert_close(ours(x, mask, Memory(memory, ~hidden[:, None])), expected, atol=1e-5, rtol=1e-5)


def test_attention_over_a_memory_of_another_width():
    torch.manual_seed(0)
    ours = Attention(8, 2, d_memory=12, dropout=0.0)
    reference = nn.MultiheadAttention(8, 2, kdim=12, vdim=12, batch_first=True)
    copy_attention(ours, reference)
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 12)
    expected, _ = reference(x, memory, memory)
    assert_close(ours(x, Memory(memory, torch.ones(1, 1, 5, dtype=torch.bool))), expected, atol=1e-6, rtol=1e-5)


def test_track_embedding_by_hand():
    torch.manual_seed(0)
    embedding = TrackEmbedding(N_IDS, 6, FEATURES)
    tracks = torch.tensor([[PAD, UNK, 9]])
    expected = embedding.table.weight[tracks] + FEATURES[tracks] @ embedding.project.weight.T
    assert_close(embedding(tracks), expected)
    assert (embedding(tracks)[0, 0] == 0).all(), "padding is the zero vector"


def test_log_embedding_is_a_sum_of_the_known_codes():
    log = skip_model().encoder.embed.log
    codes = torch.zeros(1, 1, len(schema.LOG_COLUMNS), dtype=torch.uint8)
    assert (log(codes) == 0).all()
    sizes = list(schema.LOG_COLUMNS.values())
    codes[0, 0, 0], codes[0, 0, 7], codes[0, 0, -1] = 2, 24, sizes[-1] - 1
    rows = [2, sum(sizes[:7]) + 24, sum(sizes) - 1]
    assert_close(log(codes)[0, 0], log.table.weight[rows].sum(0))
    assert log.table.weight.shape[0] == sum(sizes)


# --- Decoding


def test_special_ids_are_never_predicted():
    head = TrackHead(N_IDS, 8)
    logits = head(torch.randn(50, 3, 8))
    assert (logits[..., :N_SPECIAL] == -torch.inf).all()
    assert torch.isfinite(logits[..., N_SPECIAL:]).all()
    model = seq_model()
    with torch.no_grad():
        model.head.bias[:N_SPECIAL] = 100
    assert (greedy(model, random_batch().history, 10) >= N_SPECIAL).all()


def test_start_tokens():
    batch = random_batch()
    last, bos = seq_model(start="last"), seq_model(start="bos")
    targets = batch.target_tracks
    expected = pad(targets[:, :-1], (1, 0))
    expected[:, 0] = batch.history.tracks[:, -1]
    assert_close(last.previous_tracks(batch.history, targets), expected)
    expected[:, 0] = BOS
    assert_close(bos.previous_tracks(batch.history, targets), expected)


# --- Over-fitting


@pytest.fixture(scope="module")
def random_labels(tmp_path_factory):
    return random_sessions(tmp_path_factory.mktemp("random") / "data")


def test_skip_learns_64_sessions_by_heart(random_labels):
    model = skip_model(dropout=0.0, d_model=48, n_layers=1, d_ff=96)
    loader = overfit(model, skip_loss, random_labels, 110)
    maa = evaluate_skip(predict_skip(model, torch.device("cpu"), loader), loader.targets()).means()["maa"]
    assert maa > 0.95


def test_seq_learns_64_sessions_by_heart(random_labels):
    model = seq_model(dropout=0.0, d_model=48, n_layers=1, d_ff=96)
    loader = overfit(model, lambda m, b: seq_loss(m, b, full_softmax), random_labels, 100)
    predictions = predict_seq(model, torch.device("cpu"), loader)
    assert evaluate_seq(predictions, loader.targets(), n_ids=N_IDS).means()["maa"] > 0.95
