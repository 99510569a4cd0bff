"""What the tests of all models share: tiny sizes, inputs with one thing changed, weights for torch's own layers."""

import numpy as np
import torch
from conftest import N_IDS, make_dataset
from torch import nn
from torch.testing import assert_close

from model.attention import BertBranch
from utils.data import schema
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL, PAD

SIZES = {"d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 24}
FEATURES = torch.cat([torch.zeros(N_SPECIAL, 3), torch.randn(N_IDS - N_SPECIAL, 3, generator=torch.manual_seed(7))])


def with_branch(options):
    """Options in which `d_bert` and `drop_net` have become a branch."""
    rest = {name: value for name, value in options.items() if name not in ("d_bert", "drop_net")}
    return rest | {"branch": BertBranch(options["d_bert"], options.get("drop_net", 0.0))}


def skip_output(model, batch):
    """Logits (B, T), 0 at padding."""
    return model(batch.history, batch.target_tracks) * (batch.target_tracks != PAD)


def check_skip_padding(model, batch):
    """Nothing depends on codes where there is no play, longer padding of the targets, other examples in the batch."""
    history = batch.history
    hidden = history.tracks == PAD
    assert hidden.any()
    reference = skip_output(model, batch)
    dirty = history._replace(
        skips=history.skips.masked_fill(hidden, 5), log=history.log.masked_fill(hidden[..., None], 1)
    )
    assert_close(skip_output(model, batch._replace(history=dirty)), reference)
    for row in range(len(hidden)):
        n, m = int((~hidden[row]).sum()), int((batch.target_tracks[row] != PAD).sum())
        short = type(history)(*(tensor[row : row + 1, 10 - n :] for tensor in history))
        alone = model(short, batch.target_tracks[row : row + 1, :m])
        assert_close(alone[0], reference[row, :m], atol=1e-5, rtol=1e-5)


def seq_output(model, batch):
    """States (B, T, D), 0 at padding."""
    states = model(batch.history, model.previous_tracks(batch.history, batch.target_tracks))
    return states * (batch.target_tracks != PAD)[..., None]


def other_track(tracks, place):
    """The same tracks, with the next id at `place`."""
    changed = tracks.clone()
    changed[place] = N_SPECIAL + (changed[place] - N_SPECIAL + 1) % (N_IDS - N_SPECIAL)
    return changed


def changed_steps(before, after):
    """At which steps of the first example an output differs."""
    difference = (before - after)[0].abs()
    return (difference if difference.dim() == 1 else difference.amax(-1)) > 1e-6


def perturbations(batch):
    """Name -> batch with one input of the first example changed at one play of its history."""
    history = batch.history
    skips, log = history.skips.clone(), history.log.clone()
    # From one skipped state (4 or 5) or one that is not to one of the other kind.
    skips[0, 3] = 2 if skips[0, 3] >= 4 else 5
    perturbed = {
        "tracks": batch._replace(history=history._replace(tracks=other_track(history.tracks, (0, 3)))),
        "skips": batch._replace(history=history._replace(skips=skips)),
        "order": batch._replace(history=history._replace(tracks=history.tracks.roll(1, 1))),
    }
    for column, (name, size) in enumerate(schema.LOG_COLUMNS.items()):
        changed = log.clone()
        changed[0, 3, column] = (changed[0, 3, column] + 1) % size
        perturbed[name] = batch._replace(history=history._replace(log=changed))
    return perturbed


def gradient_norms(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: float(p.grad.norm()) if p.grad is not None else 0.0 for name, p in model.named_parameters()}


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def copy_attention(ours, reference):
    """Our projections into torch's, which has one weight or three; ours has no bias of the keys."""
    weights = [ours.query.weight, ours.key.weight, ours.value.weight]
    width = len(ours.query.weight)
    with torch.no_grad():
        if reference.in_proj_weight is not None:
            reference.in_proj_weight.copy_(torch.cat(weights))
        else:
            for name, weight in zip("qkv", weights, strict=True):
                getattr(reference, f"{name}_proj_weight").copy_(weight)
        reference.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.zeros(width), ours.value.bias]))
    reference.out_proj.load_state_dict(ours.output.state_dict())


def randomise(module):
    """Norms and biases away from their trivial start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def copy_layer(ours, reference):
    copy_attention(ours.attention, reference.self_attn)
    reference.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    reference.linear2.load_state_dict(ours.feed_forward[3].state_dict())
    for i, norm in enumerate(ours.norms, start=1):
        getattr(reference, f"norm{i}").load_state_dict(norm.state_dict())


def random_sessions(folder):
    """64 sessions of random tracks with random skips: nothing to learn but by heart."""
    make_dataset(folder, n_sessions=64)
    rng = np.random.default_rng(0)
    n = len(np.load(folder / "train" / "tracks.npy"))
    np.save(folder / "train" / "skips.npy", rng.choice([schema.SKIP_PLAYED, schema.SKIP_1], n).astype(np.uint8))
    np.save(folder / "train" / "tracks.npy", rng.integers(N_SPECIAL, N_IDS, n).astype(np.int32))
    return Dataset.open(folder)


def overfit(model, loss_fn, dataset, steps):
    model.train()
    (batch,) = SessionLoader(dataset.train, batch_size=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss, count = loss_fn(model, batch)
        (loss / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return SessionLoader(dataset.train, batch_size=64)
