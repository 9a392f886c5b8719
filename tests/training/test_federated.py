"""Federated training against hand-written loops of torch, a numpy mean, and closed forms of its guarantees."""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from rlsmooth.audits import counts_llg, optimal_margin, round_counts
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import (
    ClipAndNoise,
    CuriousServer,
    FedAvg,
    FederatedClient,
    FederatedTrainer,
    FedSGD,
    TrainingDivergedError,
    dirichlet_split,
    even_split,
    group_split,
    label_dp_epsilon,
)
from rlsmooth.training.federated import weighted_mean
from rlsmooth.training.federated_client import draw_labels, get_parameters, set_parameters
from rlsmooth.training.seeding import epoch_permutation
from support import KilledError

CLASSES, COUNT = 4, 50
GENERATOR = torch.Generator().manual_seed(5)
INPUTS = torch.randn(COUNT, 3, generator=GENERATOR) * 3 + 1
LABELS = torch.randint(CLASSES, (COUNT,), generator=GENERATOR)
PARTS = [np.arange(0, 7), np.arange(7, 29), np.arange(29, 50)]


def network(kind: str = "mlp") -> nn.Module:
    torch.manual_seed(3)
    extra = {"mlp": [], "norm": [nn.BatchNorm1d(8)], "dropout": [nn.Dropout(0.5)]}[kind]
    return nn.Sequential(nn.Linear(3, 8), *extra, nn.Tanh(), nn.Linear(8, CLASSES))


def clients(module: nn.Module, **settings) -> list[FederatedClient]:
    return [
        FederatedClient(module, INPUTS[part], LABELS[part], CLASSES, seed=seed, **{"batch_size": 8, **settings})
        for seed, part in enumerate(PARTS)
    ]


def gap(one: nn.Module, two: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@pytest.mark.usefixtures("quick_paths")  # a loop by another way of the loss is equal to rounding
@pytest.mark.parametrize("kind", ["mlp", "norm"])
@pytest.mark.parametrize(("optimizer", "keep", "bound"), [("sgd", False, 0), ("sgd", True, 0), ("adam", True, 1e-6)])
def test_one_client_trains_as_a_plain_loop_does(kind, optimizer, keep, bound):
    module, central = network(kind), network(kind)
    options = {"lr": 0.03} if optimizer == "adam" else {"lr": 0.03, "momentum": 0.9 if keep else 0.0}
    client = FederatedClient(
        module, INPUTS, LABELS, CLASSES, smoothing=0.2, optimizer=optimizer, learning_rate=0.03,
        momentum=options.get("momentum", 0.0), batch_size=12, local_epochs=2, keep_optimizer=keep, seed=4,
    )  # fmt: skip
    FederatedTrainer(module, [client]).train(3)
    loop = (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)(central.parameters(), **options)
    for epoch in range(6):
        for places in epoch_permutation(4, epoch, COUNT).split(12):
            loss = cross_entropy(central(INPUTS[places]), Smoothing(0.2)(LABELS[places], CLASSES))
            loop.zero_grad()
            loss.backward()
            loop.step()
    assert gap(module, central) <= bound


def test_one_client_with_weights_clips_and_decays_as_a_plain_loop_does():
    module, central = network().double(), network().double()
    weights = torch.rand(COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    settings = {"smoothing": 0.2, "batch_size": 12, "seed": 4, "sample_weight": weights.numpy()}
    rate = {"learning_rate": 0.03, "weight_decay": 0.2, "max_grad_norm": 0.3}
    inputs = INPUTS.double()
    client = FederatedClient(module, inputs, LABELS, CLASSES, optimizer="adam", keep_optimizer=True, **settings, **rate)
    results = [client.fit(client.get_parameters({}), {})[1] for _ in range(3)]
    assert results == pytest.approx([weights.sum().item()] * 3)
    loop = torch.optim.AdamW(central.parameters(), 0.03, weight_decay=0.2)
    for epoch in range(3):
        for places in epoch_permutation(4, epoch, COUNT).split(12):
            losses = cross_entropy(central(inputs[places]), Smoothing(0.2)(LABELS[places], CLASSES), reduction="none")
            loop.zero_grad()
            ((weights[places] * losses).mean() / weights.mean()).backward()
            nn.utils.clip_grad_norm_(central.parameters(), 0.3)
            loop.step()
    assert gap(module, central) < 1e-9
    assert client.fingerprint() != FederatedClient(module, inputs, LABELS, CLASSES).fingerprint()
    for name, value in (("sample_weight", weights), ("max_grad_norm", 1.0)):
        with pytest.raises(ValueError, match=f"{name} can't be used with a defence"):
            FederatedClient(module, inputs, LABELS, CLASSES, defence="randomised_labels", **{name: value})


def test_a_fresh_adam_each_round_is_not_central_training():
    trained = []
    for keep in (False, True):
        module = network()
        FederatedTrainer(module, clients(module, optimizer="adam", keep_optimizer=keep)).train(3)
        trained.append(module)
    assert gap(*trained) > 1e-3


def test_shared_gradients_make_the_step_on_all_samples():
    module, central = network().double(), network().double()
    module.register_buffer("count", torch.tensor(7))  # a buffer stays as it is
    mask = torch.rand(COUNT, CLASSES, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[torch.arange(COUNT), LABELS] = True
    members = [
        FederatedClient(module, INPUTS[part].double(), LABELS[part], CLASSES, mask=mask[part], share="gradients")
        for part in PARTS
    ]
    FederatedTrainer(module, members, strategy=FedSGD(0.5)).train(2)
    optimizer = torch.optim.SGD(central.parameters(), 0.5)
    for _ in range(2):
        optimizer.zero_grad()
        target = Smoothing(0.1)(LABELS, CLASSES, mask=mask)
        cross_entropy(central(INPUTS.double()), target, mask=mask).backward()
        optimizer.step()
    central.register_buffer("count", torch.tensor(7))
    assert gap(module, central) < 1e-12


def test_the_mean_is_by_samples_and_keeps_counters():
    generator = np.random.default_rng(0)
    sent = [([generator.normal(size=(3, 2)).astype(np.float32), np.array(count)], count) for count in (1, 5, 94)]
    mean, counter = weighted_mean(sent)
    expected = np.average(np.stack([arrays[0] for arrays, _ in sent]).astype(np.float64), axis=0, weights=[1, 5, 94])
    assert mean.dtype == np.float32
    assert counter == 94
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="no samples"):
        weighted_mean([])


# ---- splits


@pytest.mark.parametrize("concentration", [0.05, 0.5, 1e6])
def test_a_dirichlet_split_gives_each_sample_to_one_client(concentration):
    labels = np.random.default_rng(1).integers(0, 5, 3000)
    parts = dirichlet_split(labels, 6, concentration, seed=2)
    assert sorted(np.concatenate(parts).tolist()) == list(range(3000))
    assert all(map(len, parts))
    shares = np.stack([np.bincount(labels[part], minlength=5) for part in parts]) / np.bincount(labels)
    spread = shares.std(axis=0).mean()  # of a Dirichlet share: sqrt((1/6) (5/6) / (6 c + 1))
    assert spread == pytest.approx(math.sqrt(5 / 36 / (6 * concentration + 1)), rel=0.35, abs=2e-3)
    assert [part.tolist() for part in dirichlet_split(labels, 6, concentration, seed=2)] == [p.tolist() for p in parts]


def test_even_and_grouped_splits():
    parts = even_split(100, 7, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    assert {len(part) for part in parts} == {14, 15}
    assert parts[0].tolist() != even_split(100, 7, seed=2)[0].tolist()
    assert [part.tolist() for part in group_split(np.array([3, -1, 3]))] == [[1], [0, 2]]


# ---- defences


def clipped_mean(module: nn.Module, inputs, labels, bound: float) -> list[torch.Tensor]:
    """The mean of the samples' gradients, each clipped to `bound` in the norm over all parameters."""
    total = [torch.zeros_like(part) for part in module.parameters()]
    for one, label in zip(inputs, labels, strict=True):
        loss = nn.functional.cross_entropy(module(one[None]), label[None], label_smoothing=0.1)
        gradient = torch.autograd.grad(loss, list(module.parameters()))
        norm = math.sqrt(sum(float(part.double().square().sum()) for part in gradient))
        total = [kept + part * min(1.0, bound / norm) for kept, part in zip(total, gradient, strict=True)]
    return [part / len(labels) for part in total]


def test_clipped_gradients_and_their_noise():
    module, start = network(), get_parameters(network())
    expected = torch.cat([part.flatten() for part in clipped_mean(network(), INPUTS, LABELS, 0.5)]).numpy()
    settings = {"share": "gradients", "batch_size": 8}  # which does not count
    plain = FederatedClient(module, INPUTS, LABELS, CLASSES, defence=ClipAndNoise(0.5, 0.0), **settings)
    sent, _, metrics = plain.fit(start, {})
    np.testing.assert_allclose(np.concatenate([part.ravel() for part in sent]), expected, atol=2e-6)
    assert metrics["epsilon"] == math.inf
    noisy = FederatedClient(module, INPUTS, LABELS, CLASSES, defence=ClipAndNoise(0.5, 4.0), **settings)
    draws = [np.concatenate([part.ravel() for part in noisy.fit(start, {})[0]]) - expected for _ in range(30)]
    assert np.std(draws) == pytest.approx(4.0 * 0.5 / COUNT, rel=0.05)  # 2,040 normal draws: 3 standard errors
    assert noisy.epsilon == ClipAndNoise(0.5, 4.0).epsilon(1.0, 30)
    again = FederatedClient(module, INPUTS, LABELS, CLASSES, defence=ClipAndNoise(0.5, 4.0), **settings)
    np.testing.assert_array_equal(draws[0], np.concatenate([p.ravel() for p in again.fit(start, {})[0]]) - expected)


def image_network(middle: nn.Module, activation: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    convolutions = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), middle, activation)
    return nn.Sequential(convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES))


IMAGES = torch.randn(COUNT, 1, 4, 4, generator=GENERATOR)


def test_private_steps_of_convolutions():
    module = image_network(nn.GroupNorm(2, 4), nn.ReLU())
    expected = torch.cat([part.flatten() for part in clipped_mean(module, IMAGES, LABELS, 0.5)])
    settings = {"smoothing": 0.1, "share": "gradients"}
    plain = FederatedClient(module, IMAGES, LABELS, CLASSES, defence=ClipAndNoise(0.5, 0.0), **settings)
    sent, _, _ = plain.fit(get_parameters(module), {})
    np.testing.assert_allclose(np.concatenate([part.ravel() for part in sent]), expected.numpy(), atol=2e-6)


def test_a_private_step_that_draws_no_sample_is_noise_alone():
    module = nn.Sequential(
        nn.ConvTranspose2d(1, 1, 1), nn.Flatten(), nn.Linear(16, CLASSES)
    )  # takes no empty minibatch
    start = get_parameters(module)
    noisy = FederatedClient(
        module, IMAGES[:9], LABELS[:9], CLASSES, defence=ClipAndNoise(0.5, 4.0), batch_size=1, learning_rate=1e-6
    )
    draws = []
    for number in range(1, 5):  # steps of 0 to 3 samples
        after, _, metrics = noisy.fit(start, {"server_round": number})
        moved = np.concatenate([(a.astype(np.float64) - b).ravel() for a, b in zip(after, start, strict=True)])
        draws.append(moved / 1e-6 / 3)
        assert math.isfinite(metrics["loss"])
    assert np.std(draws) == pytest.approx(4.0 * 0.5, rel=0.15)


class _Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.spare = nn.Linear(16, CLASSES), nn.Linear(16, 2)

    def forward(self, inputs):
        return self.head(inputs.flatten(1))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (image_network(nn.BatchNorm2d(4), nn.ReLU()), r"layer '0.1' is a BatchNorm2d.*GroupNorm"),
        (image_network(nn.BatchNorm2d(4, affine=False), nn.ReLU()), "layer '0.1' is a BatchNorm2d"),
        (image_network(nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU()), "'0.1' .*running statistics"),
        (image_network(nn.Identity(), nn.ReLU(inplace=True)), "Layer '0.2' works in place: .*inplace=False"),
        (nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(4, 2)), "'1.self_attn' is a MultiheadAttention"),
        (_Spare(), "no logit depends on its parameter 'spare.weight': freeze it"),
    ],
)
@pytest.mark.parametrize("share", ["weights", "gradients"])
def test_a_layer_without_private_gradients_is_named(module, says, share):
    with pytest.raises(ValueError, match=f"module can't be trained with ClipAndNoise: .*{says}"):
        FederatedClient(module, IMAGES, LABELS, CLASSES, defence=ClipAndNoise(1.0, 1.0), share=share)


def test_opacus_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ImportError, match=r"pip install 'rlsmooth\[privacy\]'"):
        clients(network(), defence=ClipAndNoise(1.0, 1.0))


def test_epsilon_of_the_gaussian_mechanism_and_of_more_steps():
    orders = np.array([1 + x / 10 for x in range(1, 100)] + list(range(12, 64)))
    rdp = 3 * orders / (2 * 2.5**2)  # of three steps on all samples
    bound = rdp + np.log1p(-1 / orders) - (math.log(1e-5) + np.log(orders)) / (orders - 1)
    defence = ClipAndNoise(1.0, 2.5)
    assert defence.epsilon(1.0, 3) == pytest.approx(bound.min(), rel=1e-6)
    values = [defence.epsilon(0.1, steps) for steps in (0, 1, 10, 100)]
    assert values[0] == 0
    assert all(low < high for low, high in pairwise(values))


def test_drawn_labels_are_randomised_response():
    labels = torch.full((20_000,), 2)
    drawn = draw_labels(Smoothing(0.3), labels, CLASSES, seed=1)
    shares = torch.bincount(drawn, minlength=CLASSES) / len(labels)
    torch.testing.assert_close(shares, torch.tensor([0.075, 0.075, 0.775, 0.075]), atol=0.012, rtol=0)  # 4 sd
    assert label_dp_epsilon(0.3, CLASSES) == pytest.approx(math.log(1 + CLASSES * 0.7 / 0.3))
    target = Smoothing(0.3)(torch.tensor([1]), CLASSES)
    assert label_dp_epsilon(0.3, CLASSES) == pytest.approx(float(optimal_margin(target)), abs=1e-6)
    tree = Smoothing(0.1, Tree.from_nested({"a": ["b", "c"], "d": ["e", "f"]}))
    table = tree(torch.arange(4), 4).dense(torch.float64)
    ratios = [table[c, k] / table[d, k] for c in range(4) for d in range(4) for k in range(4) if table[:, k].any()]
    assert label_dp_epsilon(tree, 4) == pytest.approx(float(torch.stack(ratios).log().max()))
    assert label_dp_epsilon(0.0, 3) == math.inf
    client = FederatedClient(network(), INPUTS, LABELS, CLASSES, smoothing=0.3, defence="randomised_labels")
    hard = FederatedClient(
        network(), INPUTS, draw_labels(Smoothing(0.3), LABELS, CLASSES, seed=0), CLASSES, smoothing=0.0
    )
    one, two = (member.fit(get_parameters(network()), {})[0] for member in (client, hard))
    assert client.epsilon == label_dp_epsilon(0.3, CLASSES)
    assert all(map(np.array_equal, one, two))
    assert client.evaluate(one, {}) == (pytest.approx(hard_nll(one)), COUNT, client.evaluate(one, {})[2])


def hard_nll(parameters) -> float:
    module = network()
    set_parameters(module, parameters)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(INPUTS), LABELS))


# ---- runs

RUNS = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "keep_optimizer": True, "smoothing": "lin_0.3"},
    "adam": {"optimizer": "adam", "learning_rate": 0.01, "keep_optimizer": True},
    "noise": {"defence": ClipAndNoise(1.0, 1.0), "momentum": 0.5, "keep_optimizer": True},
    "drawn": {"defence": "randomised_labels"},
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", "norm"), ("adam", "dropout"), ("adam", "norm"), ("noise", "dropout"), ("drawn", "dropout")],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, name, kind):
    def trainer(folder, killed_in=None):
        module = network(kind)
        members = clients(module, **RUNS[name])
        server = CuriousServer(module, [LABELS[part] for part in PARTS], CLASSES, auxiliary=(INPUTS, LABELS))

        def audit(number, index, *sent):
            if number == killed_in and index > 0:
                raise KilledError
            return server(number, index, *sent)

        return FederatedTrainer(
            module, members, clients_per_round=2, audit=audit, evaluation=(INPUTS, LABELS), checkpoint_folder=folder
        )

    whole = trainer(tmp_path / "whole").train(6)
    with pytest.raises(KilledError):
        trainer(tmp_path / "run", killed_in=4).train(6)
    resumed = trainer(tmp_path / "run").train(6, resume=True)
    assert all(map(np.array_equal, whole.parameters, resumed.parameters))
    np.testing.assert_equal(whole.history, resumed.history)
    assert len(whole.history["audit_class_means"]) == 6
    assert len(whole.history["nll"]) == 6
    assert gap(whole.module, resumed.module) == 0


def test_a_run_is_resumed_only_with_its_own_samples_and_arguments(tmp_path):
    module = network()
    FederatedTrainer(module, clients(module), checkpoint_folder=tmp_path).train(2)

    def resume(*, rounds=2, change=lambda member: None, **settings):
        members = clients(module, **settings)
        change(members[1])
        FederatedTrainer(module, members, checkpoint_folder=tmp_path).train(rounds, resume=True)

    def other_label(member):
        member.labels = (member.labels + 1) % CLASSES

    with pytest.raises(ValueError, match="clients="):
        resume(learning_rate=0.2)
    with pytest.raises(ValueError, match=r"clients\[1\]: these are not"):
        resume(change=other_label)
    with pytest.raises(ValueError, match="rounds=2, not 3"):
        resume(rounds=3)
    with pytest.raises(ValueError, match="another run's checkpoints"):
        FederatedTrainer(module, clients(module), checkpoint_folder=tmp_path).train(2)


def test_an_audit_sees_what_is_sent_and_what_comes_back():
    module, seen = network(), []

    def audit(number, index, before, after, count, metrics):
        seen.append((number, index, count, not np.array_equal(before[0], after[0]), metrics["steps"]))
        return {"index": index}

    history = FederatedTrainer(module, clients(module), audit=audit).train(2).history
    expected = [(n, i, len(part), True, -(-len(part) // 8)) for n in (1, 2) for i, part in enumerate(PARTS)]
    assert seen == expected
    assert history["audit_index"] == [1.0, 1.0]


def test_an_attack_that_finds_nothing_is_no_number_in_the_history_and_in_checkpoints(tmp_path):
    module, nothing = network(), lambda number, index, *_: {"one": math.nan, "two": math.nan if index else 0.5}
    FederatedTrainer(module, clients(module), audit=nothing, checkpoint_folder=tmp_path).train(2)
    history = FederatedTrainer(module, clients(module), audit=nothing, checkpoint_folder=tmp_path)
    history = history.train(2, resume=True).history
    assert np.isnan(history["audit_one"]).all()
    assert history["audit_two"] == [0.5, 0.5]


def test_a_value_that_is_not_finite_ends_the_run(tmp_path):
    module = network()
    members = clients(module)
    trainer = FederatedTrainer(module, members, checkpoint_folder=tmp_path).train(2)
    members[1].learning_rate = math.inf
    with pytest.raises(TrainingDivergedError, match=r"round 3: clients\[1\] .*learning_rate.*good"):
        trainer.train(4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_1.zip", "checkpoint_2.zip"]


@pytest.mark.parametrize(
    ("message", "build"),
    [
        ("labels must be 0 to 3", lambda m: FederatedClient(m, INPUTS, LABELS + 1, CLASSES)),
        ("labels must be \\[N\\]", lambda m: FederatedClient(m, INPUTS, LABELS[1:], CLASSES)),
        ("inputs holds NaN", lambda m: FederatedClient(m, INPUTS / 0 * 0, LABELS, CLASSES)),
        ("optimizer", lambda m: FederatedClient(m, INPUTS, LABELS, CLASSES, optimizer="lbfgs")),
        ("defence='masks'", lambda m: FederatedClient(m, INPUTS, LABELS, CLASSES, defence="masks")),
        ("constant alpha", lambda m: clients(m, smoothing="lin_0.1", defence="randomised_labels")),
        ("share weights", lambda m: clients(network("norm"), share="gradients")),
        ("module can't be trained", lambda m: clients(network("norm"), defence=ClipAndNoise(1.0, 1.0))),
        ("max_norm", lambda m: ClipAndNoise(0.0, 1.0)),
        ("clients is empty", lambda m: FederatedTrainer(m, [])),
        ("clients_per_round=4", lambda m: FederatedTrainer(m, clients(m), clients_per_round=4)),
        ("FedAvg can't combine", lambda m: FederatedTrainer(m, clients(m, share="gradients"))),
        ("FedSGD can't combine", lambda m: FederatedTrainer(m, clients(m), strategy=FedSGD(0.1))),
        ("2 arrays", lambda m: set_parameters(m, get_parameters(m)[:2])),
        ("in parameters is|have shape", lambda m: set_parameters(m, [part.T for part in get_parameters(m)])),
        ("num_clients=51", lambda m: even_split(50, 51)),
        ("no split", lambda m: dirichlet_split(np.zeros(5, int), 5, 0.01)),
        ("needs the run's checkpoint_folder", lambda m: FederatedTrainer(m, clients(m)).train(1, resume=True)),
    ],
)
def test_bad_arguments_are_named(message, build):
    with pytest.raises(ValueError, match=message):
        build(network())


def test_what_clients_return_is_what_flower_takes():
    client = clients(network(), optimizer="adam")[1]
    parameters, count, metrics = client.fit(client.get_parameters({}), {})
    assert all(isinstance(part, np.ndarray) for part in parameters)
    assert count == len(PARTS[1])
    loss, evaluated, more = client.evaluate(parameters, {})
    assert isinstance(loss, float)
    assert evaluated == count
    assert {type(v) for v in (*metrics.values(), *more.values())} == {float}
    assert FedAvg().aggregate_fit(1, [(0, (parameters, count, metrics))], [])[0][0].dtype == np.float32


# ---- the server that looks on


@pytest.mark.parametrize("share", ["weights", "gradients"])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_a_server_with_the_clients_means_counts_exactly(share, alpha):
    module = network().double()
    few = torch.nonzero(LABELS < 3).squeeze(1)  # so that alpha can be inferred
    inputs, labels = INPUTS[few].double(), LABELS[few]
    settings = {"smoothing": alpha, "learning_rate": 0.3, "batch_size": None, "share": share}
    client = FederatedClient(module, inputs, labels, CLASSES, **settings)
    before = get_parameters(module)
    after, count, metrics = client.fit(before, {})
    for known in (alpha, None):  # the means of the client's classes are exact, and one class is absent
        everything = (INPUTS.double(), LABELS)
        server = CuriousServer(module, [labels], CLASSES, auxiliary=everything, smoothing=known, share=share)
        assert server(1, 0, before, after, count, metrics)["class_means"] == 1
    server = CuriousServer(module, [labels], CLASSES, auxiliary=(inputs, labels), smoothing=alpha, share=share)
    found = server(1, 0, before, after, count, metrics)
    assert found["mean_probabilities"] == found["class_means"] == found["prior"] == 1
    others = torch.zeros(4, 3, dtype=torch.float64), torch.tensor([3, 3, 3, 0])
    server = CuriousServer(module, [labels], CLASSES, auxiliary=others, smoothing="lin_0.4", share=share)
    halfway = server(1, 0, before, after, count, {**metrics, "progress_remaining": alpha / 0.4})
    shares = torch.bincount(labels, minlength=CLASSES) / len(labels)
    assert halfway["prior"] == pytest.approx(float(min(shares[0], 0.25)), abs=1.5 / len(labels))
    place = list(module.state_dict()).index("2.weight")
    step = after[place] if share == "gradients" else (before[place] - after[place]) / 0.3
    known = round_counts(counts_llg(torch.from_numpy(step), count), count)
    common = torch.minimum(known, torch.bincount(labels, minlength=CLASSES)).sum()
    assert halfway["llg"] == int(common) / count


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("share", ["weights", "gradients"])
def test_a_server_counts_under_masks(share, alpha):
    """The masks of samples have different numbers of classes, so that none has the floor alpha / K."""
    module, mask = network().double(), torch.rand(COUNT, CLASSES, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[torch.arange(COUNT), LABELS] = True
    settings = {"smoothing": alpha, "batch_size": None, "share": share, "mask": mask}
    client = FederatedClient(module, INPUTS.double(), LABELS, CLASSES, **settings)
    before = get_parameters(module)
    everything = INPUTS.double(), LABELS, mask
    server = CuriousServer(module, [LABELS], CLASSES, auxiliary=everything, smoothing=alpha, share=share, masks=[mask])
    found = server(1, 0, before, *client.fit(before, {}))
    assert found["mean_probabilities"] == found["class_means"] == 1
    assert set(found) == {"prior", "llg", "mean_probabilities", "class_means"}
    shares = torch.bincount(LABELS, minlength=CLASSES) / COUNT * mask
    blind = round_counts((shares / shares.sum(-1, keepdim=True)).sum(0), COUNT)
    assert found["prior"] == int(torch.minimum(blind, torch.bincount(LABELS)).sum()) / COUNT
    with pytest.raises(ValueError, match="masks must be"):
        CuriousServer(module, [LABELS], CLASSES, auxiliary=everything, masks=[mask[1:]])
    with pytest.raises(ValueError, match=r"labels\[0\]=\d is illegal"):
        FederatedClient(module, INPUTS.double(), LABELS, CLASSES, mask=~mask | (torch.arange(COUNT) > 0)[:, None])
    trainer = FederatedTrainer(
        module, [client], strategy=None if share == "weights" else FedSGD(0.1), evaluation=everything
    )
    last = trainer.train(1).history["nll"][-1]
    with torch.no_grad():
        logits = module(INPUTS.double()).masked_fill(~mask, -math.inf)
    assert last == pytest.approx(float(nn.functional.cross_entropy(logits, LABELS)))


class _Unordered(nn.Module):
    """Its layers in another order than that of its forward pass."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.head = nn.Linear(5, CLASSES, bias=bias)
        self.body = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
        self.spare = nn.Linear(5, CLASSES)

    def forward(self, inputs):
        return self.head(self.body(inputs))


def test_a_server_counts_nothing_where_targets_do_not_depend_on_labels():
    module = network()
    server = CuriousServer(
        module, [LABELS[part] for part in PARTS], CLASSES, auxiliary=(INPUTS, LABELS), smoothing="lin_1"
    )
    history = FederatedTrainer(module, clients(module, smoothing="lin_1"), audit=server).train(2).history
    assert np.isnan(history["audit_class_means"]).tolist() == [True, False]  # alpha 1, then less
    assert np.isfinite(history["audit_prior"]).all()


@pytest.mark.parametrize("bias", [True, False])
def test_a_server_follows_the_forward_pass(bias):
    unordered = _Unordered(bias=bias)
    ordered = nn.Sequential(*unordered.body, unordered.head)
    found = []
    for module in (unordered, ordered):
        client = FederatedClient(module, INPUTS, LABELS, CLASSES)
        server = CuriousServer(module, [LABELS], CLASSES, auxiliary=(INPUTS[:9], LABELS[:9]), smoothing=0.1)
        before = get_parameters(module)
        found.append(server(1, 0, before, *client.fit(before, {})))
        set_parameters(module, before)
    assert found[0] == found[1]
    assert len(found[0]) == (5 if bias else 2)


def test_a_server_without_a_bias_and_one_without_a_last_layer():
    bare = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, CLASSES, bias=False))
    server = CuriousServer(bare, [LABELS], CLASSES, auxiliary=(INPUTS, LABELS))
    client = FederatedClient(bare, INPUTS, LABELS, CLASSES)
    before = get_parameters(bare)
    assert set(server(1, 0, before, *client.fit(before, {}))) == {"prior", "llg"}
    with pytest.raises(TypeError, match=r"must end in an nn\.Linear"):
        CuriousServer(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), [LABELS], CLASSES, auxiliary=(INPUTS, LABELS))
    others = Smoothing(0.1, spread="others")
    with pytest.raises(ValueError, match="uniform over all classes"):
        CuriousServer(bare, [LABELS], CLASSES, auxiliary=(INPUTS, LABELS), smoothing=others)
