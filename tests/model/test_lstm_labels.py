"""Labels and guesses of the recurrent skip model: what is fed from step to step."""

import pytest
import torch
from conftest import random_batch
from lstm_models import skip_model, spread, teacher_forced, variants
from model_checks import changed_steps, skip_output
from torch.testing import assert_close

from model.lstm import NO_LABEL
from utils.training.losses import loss_of_skips, skip_loss


@variants
@pytest.mark.parametrize("step", [0, 4, 8])
def test_a_label_tells_only_the_steps_after_it(options, step):
    batch, model = random_batch(), skip_model(causal=False, **options)
    labels = batch.target_skips.clone()
    labels[0, step] = 1 - labels[0, step]
    changed = batch._replace(target_skips=labels)
    assert changed_steps(teacher_forced(model, batch), teacher_forced(model, changed)).tolist() == [
        t > step for t in range(10)
    ]
    labels[0, step] = -1  # unknown is a third state
    assert changed_steps(teacher_forced(model, batch), teacher_forced(model, changed)).tolist() == [
        t > step for t in range(10)
    ]


@variants
@pytest.mark.parametrize("causal", [False, True])
def test_its_own_guesses_as_labels_are_free_running(options, causal):
    """One call with all labels is the same as one step after another."""
    batch, model = random_batch(n=40), spread(skip_model(causal=causal, **options))
    logits = model(batch.history, batch.target_tracks)
    guesses = (logits >= 0).long()
    assert 0.2 < guesses.float().mean() < 0.8
    assert_close(model(batch.history, batch.target_tracks, labels=guesses), logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model(batch.history, batch.target_tracks, labels=1 - guesses), logits, atol=1e-2)


@pytest.mark.parametrize(("p", "like"), [(0.0, "labels"), (1.0, "guesses")])
def test_scheduled_sampling_from_labels_to_guesses(p, like):
    batch = random_batch(n=40)
    model = spread(skip_model(dropout=0.0, scheduled_sampling=p)).train()
    sampled = teacher_forced(model, batch)
    plain = spread(skip_model()).eval()
    expected, other = teacher_forced(plain, batch), skip_output(plain, batch)
    if like == "guesses":
        expected, other = other, expected
    assert_close(sampled, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(sampled, other, atol=1e-2)


def test_scheduled_sampling_mixes_as_often_as_asked():
    """With labels that are the opposite of the guesses, each fed guess can be counted."""
    history, tracks = random_batch(n=2000, t=2).history, torch.full((2000, 2), 9)
    model = spread(skip_model(dropout=0.0, scheduled_sampling=0.3))
    guess = (model(history, tracks)[:, :1] >= 0).long()
    fed_guess, fed_other = (model(history, tracks, labels=first.expand(-1, 2))[:, 1] for first in (guess, 1 - guess))
    model.train()
    mixed = model(history, tracks, labels=(1 - guess).expand(-1, 2))[:, 1]
    was_guess = (mixed - fed_guess).abs() < (mixed - fed_other).abs()
    assert was_guess.float().mean() == pytest.approx(0.3, abs=0.04)
    assert_close(mixed, torch.where(was_guess, fed_guess, fed_other), atol=1e-4, rtol=1e-4)
    model.eval()
    assert_close(model(history, tracks, labels=(1 - guess).expand(-1, 2))[:, 1], fed_other, msg="in training only")


def test_what_stands_before_the_first_target():
    history = random_batch(n=6).history
    skips = history.skips.clone()
    skips[:, -1] = torch.arange(6)  # unknown, then the five states, of which the last two are skipped
    history = history._replace(skips=skips)
    assert skip_model().label_before(history).tolist() == [NO_LABEL, 0, 0, 0, 1, 1]
    assert skip_model(skip_encoding="token").label_before(history).tolist() == [NO_LABEL, 0, 0, 0, 1, 1]
    assert skip_model(skip_encoding="none").label_before(history).tolist() == [NO_LABEL] * 6


def test_without_previous_labels_training_and_prediction_agree():
    batch, model = random_batch(), skip_model(previous_label=False)
    assert model.label is None
    with pytest.raises(ValueError, match="labels are given to a model without previous_label"):
        teacher_forced(model, batch)
    with pytest.raises(ValueError, match="scheduled_sampling needs previous_label"):
        skip_model(previous_label=False, scheduled_sampling=0.5)
    with pytest.raises(ValueError, match=r"scheduled_sampling is 1\.5"):
        skip_model(scheduled_sampling=1.5)


def test_loss_of_skips_by_hand():
    logits = torch.tensor([[0.0, 2.0, 5.0]])
    total, count = loss_of_skips(logits, torch.tensor([[1, 0, -1]]))
    assert count == 2
    assert total.item() == pytest.approx(0.6931 + 2.1269, abs=1e-3)  # log 2 and log(1 + e^2)
    batch, model = random_batch(), skip_model(previous_label=False)
    logits = model(batch.history, batch.target_tracks)
    for weighting in ("uniform", "maa"):
        whole = skip_loss(model, batch, weighting=weighting)
        assert loss_of_skips(logits, batch.target_skips, weighting=weighting) == whole
