"""BERT-augmented Transformers: what BERT may see, that it stays as it is, sizes, DropNet, decoding."""

import numpy as np
import pytest
import torch
from conftest import N_IDS, random_batch
from model_checks import (
    FEATURES,
    SIZES,
    changed_steps,
    check_skip_padding,
    gradient_norms,
    other_track,
    overfit,
    perturbations,
    random_sessions,
    seq_output,
    shapes,
    skip_output,
    with_branch,
)
from sized_models import (
    BertAugmentedSeqTransformer,
    BertAugmentedSkipTransformer,
    BertTransformer,
    SeqTransformer,
    SkipTransformer,
)
from torch.testing import assert_close

from model import bert_augmented
from model.attention import Attention, BertBranch, DecoderLayer, EncoderLayer, Memory
from model.decoding import beam_search, greedy
from model.dropnet import DropNet
from utils.data import schema
from utils.data.vocab import PAD
from utils.evaluation.predict import predict_skip, seq_predictor
from utils.evaluation.scores import evaluate_seq, evaluate_skip
from utils.training.loop import update
from utils.training.losses import full_softmax, seq_loss, skip_loss, track_loss
from utils.training.optimizers import make_optimizers
from utils.training.options import LossConfig

BERT_SIZES = {"d_model": 12, "n_heads": 3, "n_layers": 1, "d_ff": 20}
CPU = torch.device("cpu")


def bert_model(**options):
    return BertTransformer(N_IDS, FEATURES, **BERT_SIZES | options)


def seq_model(*, bert=None, finetune_bert=False, **options):
    torch.manual_seed(0)
    bert = bert_model(**(bert or {}))
    transformer = SeqTransformer(N_IDS, FEATURES, **with_branch(SIZES | {"d_bert": bert.d_model} | options))
    return BertAugmentedSeqTransformer(transformer, bert, finetune_bert=finetune_bert).eval()


def skip_model(*, bert=None, finetune_bert=False, **options):
    torch.manual_seed(0)
    bert = bert_model(**(bert or {}))
    transformer = SkipTransformer(N_IDS, FEATURES, **with_branch(SIZES | {"d_bert": bert.d_model} | options))
    return BertAugmentedSkipTransformer(transformer, bert, finetune_bert=finetune_bert).eval()


BOTH = pytest.mark.parametrize(
    ("make", "output"), [(skip_model, skip_output), (seq_model, seq_output)], ids=["skip", "seq"]
)


def read_by_bert(model, run):
    """What BERT is given while `run` runs."""
    inputs = []
    with model.bert.register_forward_pre_hook(lambda module, args: inputs.append(args)):
        run()
    return inputs


# --- What is seen


def test_bert_reads_the_history_only_to_continue_it():
    batch, model = random_batch(), seq_model()
    for run in (lambda: seq_output(model, batch), lambda: model.begin(batch.history)):
        ((tracks,),) = read_by_bert(model, run)
        assert torch.equal(tracks, batch.history.tracks)


def test_bert_reads_all_tracks_for_skips():
    batch, model = random_batch(), skip_model()
    ((tracks,),) = read_by_bert(model, lambda: skip_output(model, batch))
    assert torch.equal(tracks[:, :10], batch.history.tracks)
    assert torch.equal(tracks[:, 10:], batch.target_tracks)


@pytest.mark.parametrize("step", [0, 4, 9])
def test_seq_sees_tracks_before_its_own(step):
    batch = random_batch()
    changed = batch._replace(target_tracks=other_track(batch.target_tracks, (0, step)))
    model = seq_model()
    assert changed_steps(seq_output(model, batch), seq_output(model, changed)).tolist() == [t > step for t in range(10)]


@pytest.mark.parametrize("causal", [True, False])
def test_skip_sees_all_target_tracks_by_way_of_bert(causal):
    batch, model = random_batch(), skip_model(causal=causal)
    changed = batch._replace(target_tracks=other_track(batch.target_tracks, (0, 9)))
    before, after = skip_output(model, batch), skip_output(model, changed)
    assert changed_steps(before, after).all()
    with torch.no_grad():  # without BERT's part only the causal mask counts
        for module in model.modules():
            if isinstance(module, EncoderLayer | DecoderLayer) and hasattr(module, "bert_attention"):
                module.bert_attention.value.weight.zero_()
    assert changed_steps(skip_output(model, batch), skip_output(model, changed))[:9].any() == (not causal)


@BOTH
@pytest.mark.parametrize("skip_encoding", ["none", "embedding"])
@pytest.mark.parametrize("use_log", [False, True])
def test_inputs(make, output, skip_encoding, use_log):
    model, batch = make(skip_encoding=skip_encoding, use_log=use_log), random_batch(seed=1)
    before = output(model, batch)
    for name, changed in perturbations(batch).items():
        shown = name in ("tracks", "order") or (use_log if name in schema.LOG_COLUMNS else skip_encoding != "none")
        assert ((output(model, changed) - before)[0].abs().max() > 1e-5) == shown, name


@BOTH
def test_a_track_behind_the_skip_token_is_seen_by_bert_alone(make, output):
    batch = random_batch()
    history = batch.history._replace(skips=torch.where(batch.history.tracks != PAD, 5, 0))
    batch = batch._replace(history=history)
    changed = batch._replace(history=history._replace(tracks=other_track(history.tracks, (0, 3))))
    model = make(skip_encoding="token")
    assert changed_steps(output(model, batch), output(model, changed)).all()


@BOTH
def test_targets_skips_and_logs_have_no_way_in(make, output):
    batch = random_batch()
    changed = batch._replace(target_skips=1 - batch.target_skips)
    model = make(use_log=True, skip_encoding="embedding")
    assert torch.equal(output(model, batch), output(model, changed))


def test_skip_padding_does_not_matter():
    check_skip_padding(skip_model(), random_batch())


def test_seq_padding_does_not_matter():
    batch, model = random_batch(), seq_model(use_log=True, skip_encoding="embedding")
    history, reference = batch.history, seq_output(model, batch)
    for row in range(6):
        n, m = int((history.tracks[row] != PAD).sum()), int((batch.target_tracks[row] != PAD).sum())
        short = type(history)(*(tensor[row : row + 1, 10 - n :] for tensor in history))
        alone = model(short, model.previous_tracks(short, batch.target_tracks[row : row + 1, :m]))
        assert_close(alone[0], reference[row, :m], atol=1e-5, rtol=1e-5)


# --- BERT stays as it is, or is trained


def loss_of(model, batch):
    if isinstance(model, bert_augmented.BertAugmentedSkipTransformer):
        return skip_loss(model, batch)
    return seq_loss(model, batch, track_loss(LossConfig(n_negatives=12), torch.ones(N_IDS).long()))


@BOTH
@pytest.mark.parametrize("finetune_bert", [False, True])
def test_parameters_that_get_a_gradient(make, output, finetune_bert):
    model = make(finetune_bert=finetune_bert, use_log=True, skip_encoding="embedding")
    norms = gradient_norms(model, loss_of(model, random_batch())[0])
    without = {name for name, norm in norms.items() if not norm > 0}
    of_bert = {name for name in norms if name.startswith("bert.")}
    assert len(of_bert) > 15
    assert without == (set() if finetune_bert else of_bert)
    assert all(p.grad is None for name, p in model.named_parameters() if name in without)


@BOTH
@pytest.mark.parametrize("sparse", [False, True])
def test_frozen_bert_does_not_change_by_a_bit(make, output, sparse):
    """Its weights by training steps with decay, its states by training mode."""
    model = make(dropout=0.3, sparse=sparse, bert={"dropout": 0.3, "sparse": sparse})
    batch = random_batch()
    states = model.bert(batch.history.tracks)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizers = make_optimizers(model, lr=0.01, weight_decay=0.1)
    assert len(optimizers) == 1 + sparse
    for _ in range(3):
        model.train()
        assert not any(module.training for module in model.bert.modules())
        assert model.transformer.training
        update(model, loss_of, batch, optimizers, clip=1.0, precision="auto")
        model.eval()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) > 40
    assert {name.split(".")[0] for name in changed} == {"transformer"}
    assert torch.equal(model.train().bert(batch.history.tracks), states)


@BOTH
def test_bert_can_be_trained(make, output):
    model = make(finetune_bert=True, bert={"dropout": 0.3})
    batch = random_batch()
    before = {name: value.clone() for name, value in model.bert.named_parameters()}
    model.train()
    assert all(module.training for module in model.bert.modules())
    update(model, loss_of, batch, make_optimizers(model, lr=0.01), clip=0.0, precision="auto")
    assert [name for name, value in model.bert.named_parameters() if torch.equal(value, before[name])] == []
    assert (model.bert(batch.history.tracks) - model.bert(batch.history.tracks)).abs().max() > 1e-3
    model.eval()
    assert torch.equal(model.bert(batch.history.tracks), model.bert(batch.history.tracks))


# --- Names, sizes, errors


@BOTH
def test_a_plain_transformer_fits_in(make, output):
    """So one can start from it; what is new are the attentions to BERT."""
    model = make()
    plain = (SeqTransformer if make is seq_model else SkipTransformer)(N_IDS, FEATURES, **SIZES)
    assert {name.split(".")[0] for name in model.state_dict()} == {"transformer", "bert"}
    assert not any("bert" in name for name in plain.state_dict())
    fit = model.transformer.load_state_dict(plain.state_dict(), strict=False)
    assert fit.unexpected_keys == []
    assert len(fit.missing_keys) == 7 * 4  # weights and biases of 2 + 2 layers; keys have no bias
    assert all(".bert_attention." in name for name in fit.missing_keys)


@BOTH
def test_a_checkpoint_loads_alone(make, output):
    batch, model = random_batch(), make()
    other = make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert (output(other, batch) - output(model, batch)).abs().max() > 0.1
    other.load_state_dict(model.state_dict())
    assert torch.equal(output(other, batch), output(model, batch))


@BOTH
@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"d_model": 20}, "transformer.decoder.layers.1.bert_attention.query.weight"),
        ({"n_layers": 3}, "transformer.encoder.layers.2.bert_attention.query.weight"),
        ({"d_ff": 30}, "transformer.encoder.layers.0.feed_forward.0.weight"),
        ({"bert": {"d_model": 18}}, "transformer.encoder.layers.0.bert_attention.key.weight"),
        ({"bert": {"d_model": 18}}, "transformer.decoder.layers.0.bert_attention.value.weight"),
        ({"bert": {"d_model": 18}}, "bert.positions"),
        ({"bert": {"n_layers": 2}}, "bert.layers.1.norms.0.weight"),
        ({"bert": {"d_ff": 30}}, "bert.layers.0.feed_forward.0.weight"),
        ({"bert": {"max_length": 30}}, "bert.positions"),
    ],
)
def test_every_size_changes_a_shape(make, output, options, where):
    before, after = shapes(make()), shapes(make(**options))
    assert before.get(where) != after[where]


@BOTH
def test_heads_and_rates_arrive(make, output):
    model = make(n_heads=8, dropout=0.35, drop_net=0.7)
    attentions = [module for module in model.transformer.modules() if isinstance(module, Attention)]
    assert [(a.n_heads, a.dropout) for a in attentions] == [(8, 0.35)] * 10
    assert [module.p for module in model.modules() if isinstance(module, DropNet)] == [0.7] * 4


@BOTH
def test_what_does_not_fit(make, output):
    plain = SeqTransformer if make is seq_model else SkipTransformer
    augmented = BertAugmentedSeqTransformer if make is seq_model else BertAugmentedSkipTransformer
    with pytest.raises(ValueError, match="d_bert is 8, but BERT's d_model is 12"):
        make(d_bert=8)
    with pytest.raises(ValueError, match="d_bert is None, but BERT's d_model is 12"):
        augmented(plain(N_IDS, FEATURES, **SIZES), bert_model())
    with pytest.raises(ValueError, match="drop_net is 2"):
        make(drop_net=2)
    batch = random_batch()
    bert = Memory(torch.zeros(6, 10, 12), torch.ones(6, 1, 10, dtype=torch.bool))
    with pytest.raises(ValueError, match="states of BERT are given to a Transformer built with d_bert None"):
        plain(N_IDS, FEATURES, **SIZES)(batch.history, batch.target_tracks, bert=bert)
    with pytest.raises(ValueError, match="no states of BERT are given to a Transformer built with d_bert 12"):
        plain(N_IDS, FEATURES, **SIZES, branch=BertBranch(12, 0.0))(batch.history, batch.target_tracks)


# --- DropNet


@BOTH
def test_drop_net_acts_in_training_only(make, output):
    batch, model = random_batch(), make(drop_net=1.0, dropout=0.0)
    assert torch.equal(output(model, batch), output(model, batch))
    assert_close(output(model, batch), output(make(dropout=0.0), batch))
    model.train()
    outputs = [output(model, batch) for _ in range(12)]
    assert max((one - outputs[0]).abs().max() for one in outputs) > 1e-3


@BOTH
def test_each_layer_draws_for_itself_at_each_step(make, output):
    batch, model = random_batch(n=2), make(drop_net=1.0, n_layers=2).train()
    drawn = []

    def note(module, args, mix):
        own, bert = args
        drawn.append("own" if mix is own else "bert" if mix is bert else "average")

    for module in model.modules():
        if isinstance(module, DropNet):
            module.register_forward_hook(note)
    torch.manual_seed(0)
    for _ in range(120):
        output(model, batch)
    steps = np.array(drawn).reshape(120, 4) == "own"
    assert "average" not in drawn
    assert len(np.unique(steps, axis=0)) == 16, "all combinations of four layers occur"


# --- Decoding


@pytest.mark.parametrize("start", ["last", "bos"])
def test_step_by_step_equals_teacher_forced(start):
    batch, model = random_batch(), seq_model(start=start)
    previous = model.previous_tracks(batch.history, batch.target_tracks)
    assert torch.equal(previous[:, :1], model.start(batch.history))
    expected, state = model(batch.history, previous), model.begin(batch.history)
    for step in range(10):
        states, state = model.step(state, previous[:, step])
        assert_close(states, expected[:, step], atol=1e-5, rtol=1e-5)


def test_bert_is_read_once_to_decode():
    model, history = seq_model(), random_batch().history
    assert len(read_by_bert(model, lambda: greedy(model, history, 10))) == 1


def test_greedy_and_beams_are_the_models_own():
    """Greedy: the best track again and again, by the whole model; beams reorder BERT's states with the sessions."""
    batch, model = random_batch(), seq_model()
    with torch.no_grad():
        model.transformer.decoder.tracks.table.weight.mul_(10)
    tracks = greedy(model, batch.history, 6)
    session = model.start(batch.history)
    for step in range(6):
        best = model.logits(model(batch.history, session)[:, -1]).argmax(-1)
        assert torch.equal(tracks[:, step], best)
        session = torch.cat([session, best[:, None]], dim=1)
    beams = beam_search(model, batch.history, 4, width=3)
    previous = torch.cat([model.start(batch.history), beams.tracks[:, -1, :-1]], dim=1)
    log_p = model.logits(model(batch.history, previous)).log_softmax(-1)
    expected = log_p.gather(2, beams.tracks[:, -1, :, None])[..., 0].sum(1)
    assert_close(beams.log_probability[:, -1], expected, atol=1e-4, rtol=1e-4)


# --- Over-fitting


@pytest.fixture(scope="module")
def random_labels(tmp_path_factory):
    return random_sessions(tmp_path_factory.mktemp("random") / "data")


SMALL = {"dropout": 0.0, "d_model": 48, "n_layers": 1, "d_ff": 96, "bert": {"dropout": 0.0}}


def test_skips_of_64_sessions_by_heart(random_labels):
    model = skip_model(**SMALL)
    loader = overfit(model, skip_loss, random_labels, 70)
    maa = evaluate_skip(predict_skip(model, CPU, loader), loader.targets()).means()["maa"]
    assert maa > 0.95


def test_continuations_of_64_sessions_by_heart(random_labels):
    model = seq_model(**SMALL)
    loader = overfit(model, lambda m, b: seq_loss(m, b, full_softmax), random_labels, 70)
    predictions = seq_predictor(model, CPU)(loader)
    assert evaluate_seq(predictions, loader.targets(), n_ids=N_IDS).means()["maa"] > 0.95
