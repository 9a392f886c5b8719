"""Fingerprints of data are bytes in checkpoints: those of runs that are under way must never change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlsmooth.data import Demonstrations
from rlsmooth.targets import uniform
from rlsmooth.training.run import fingerprint, spread_evenly

MOST = 4096


def described(values: Tensor) -> tuple[str, Tensor]:
    return f"{values.dtype} {tuple(values.shape)}", values


@pytest.mark.parametrize(
    ("count", "full", "digest"),
    [
        (30, False, "43c678fbe2c1daf57054aa61468dea7fb78252430c256202b298ae263285eeda"),
        (30, True, "33ec519b01285c4f4cd9563f30fd620a107e5199804eab1a76346810176c044d"),
        (10007, False, "d796bc92025408333ce9c875c7d4110e3894a35faef8737357eb6300c13c8077"),
        (10007, True, "eb5d868b1eedc346795d1e79ce6ac775cfff915fd4d32899201d5f695c6f1549"),
    ],
)
def test_demonstrations_keep_their_fingerprint(count: int, full: bool, digest: str) -> None:
    steps = np.arange(count)
    features = np.stack([steps / 8, -steps], axis=1).astype(np.float32)
    box = spaces.Box(-np.inf, np.inf, (2,))
    data = Demonstrations.from_arrays(
        {"b": features, "a": steps % 4} if full else features,
        steps % 3 + 5,
        observation_space=spaces.Dict([("b", box), ("a", spaces.Discrete(4))]) if full else box,
        action_space=spaces.Discrete(3, start=5),
        episode_ends=[count // 3, count],
        weights=steps / 4 if full else None,
        action_masks=np.ones((count, 3), bool) if full else None,
    )
    # Cut off, not rounded as elsewhere: these places are part of every checkpoint of a cloning agent.
    batch = data[np.unique(np.linspace(0, count - 1, min(count, MOST)).astype(np.int64))]
    observations = batch.observations if isinstance(batch.observations, dict) else {"": batch.observations}
    fields = {f"observations.{key}": value for key, value in sorted(observations.items())}
    fields |= {"actions": batch.actions, "action_masks": batch.action_masks, "weights": batch.weights}
    parts = [
        part
        for name, value in fields.items()
        if value is not None
        for part in (f"{name} {value.dtype} {value.shape}", value)
    ]
    head = f"{count} {data.observation_space} {data.action_space}"
    assert fingerprint(head, data.episode_ends, *parts) == digest


@pytest.mark.parametrize(
    ("count", "full", "digest"),
    [
        (30, False, "ef618f1bfda33cdba93f7beec09eefb2371036425693edbdbe7009a3e8d1fa50"),
        (30, True, "02683d35059261affc43950d77a492bad017007f52a3f927c704ecfe18da3607"),
        (10007, False, "bd1a4daf24a7b6f2c9d4f62bb906a801ab41670f6e07b246065850694b6bdf1c"),
        (10007, True, "d562183da0a93bea79f904084ef82c336de80d575a1ee100829a6a16c601fcf4"),
    ],
)
def test_labelled_samples_keep_their_fingerprint(count: int, full: bool, digest: str) -> None:
    steps = torch.arange(count)
    inputs, labels = torch.stack([steps / 8, -steps], 1).float(), steps % 3
    few = spread_evenly(count, MOST)
    parts = [*described(labels)]
    if full:  # training and validation samples, with weights, masks and targets
        sampled = (inputs[few], torch.ones(len(few), 3, dtype=torch.bool), uniform(labels[few], 3, 0.1).dense())
        parts += [part for values in ((steps / 4).double(), *sampled) for part in described(values)]
        parts += parts
    else:
        parts += described(inputs[few])
    assert fingerprint(repr(["a", "b", "c"]), *parts) == digest


@pytest.mark.parametrize(
    ("count", "dtype", "digest"),
    [
        (30, torch.float32, "0d7db14e63297304b30f6bd84a386edc4c6591df346ce48cac51c38ffdbd2ba1"),
        (30, torch.bfloat16, "5610304190a04f415ce61d9b8ba43b00be3f808541a092d214da75969edc9431"),
        (10007, torch.float32, "f6e19b573fa14c209f1cb9791d0bfbca55531fcd5160c0a97ef2d09cfecb465f"),
        (10007, torch.bfloat16, "5414fb24fe480b21a7a510440712890c37db8356fb2d4b4a1d33b010d47f53a0"),
    ],
)
def test_the_samples_of_a_gan_keep_their_fingerprint(count: int, dtype: torch.dtype, digest: str) -> None:
    steps = torch.arange(count)
    data = torch.stack([steps / 8, -steps], 1).to(dtype)
    head, _ = described(data)
    assert fingerprint(head, data[spread_evenly(count, MOST)]) == digest
