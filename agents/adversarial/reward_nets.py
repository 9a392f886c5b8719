"""Networks that score transitions: the logit of a discriminator, and AIRL's reward with its potential."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import (
    get_flattened_obs_dim,
    is_image_space,
    maybe_transpose,
    preprocess_obs,
)
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
)
from torch import Tensor, nn

from rlsmooth.agents.files.policy_file import decode_arguments, encode_arguments, load_parameters
from rlsmooth.agents.spaces import check_network_space, shifted, start_of
from rlsmooth.checks import check_in_range, check_positive_int, check_writable_folder
from rlsmooth.data.arrays import forward
from rlsmooth.training import SafeFileError, isolated_rng, read_safe_file, write_safe_file
from rlsmooth.training.safe_file import with_zip_suffix
from rlsmooth.untrusted import budget, modules_within, refused

TensorObservations: TypeAlias = Tensor | dict[str, Tensor]

INDICATOR = 10.0
"""The input that means True. The absorbing state has the features of the mean state, and a few hundred small updates
must be able to tell the two apart: by a 1, its logit lags behind those of the real states for all of a short run."""

SMALLEST_IMAGE = 36
"""Side that `NatureCNN`'s three convolutions need."""
DISC_LEARNING_RATE = 1e-3


class Transitions(NamedTuple):
    """Transitions on a device, as networks read them.

    Attributes:
        observations: `[B, ...]`, or a dict of such, channels first.
        actions: `[B, *action_space.shape]`.
        next_observations: those after the actions; at the end of an episode its last ones.
        terminated: bool `[B]`: the step led to a terminal state. A time limit is no such state.
        absorbing: bool `[B]`: the transition is the self-loop of the absorbing state behind a terminal one; what else
            it holds does not count. None: no transition is.
    """

    observations: TensorObservations
    actions: Tensor
    next_observations: TensorObservations
    terminated: Tensor
    absorbing: Tensor | None = None


class RunningNorm(nn.Module):
    """Standardises its input by the mean and variance of all it has seen in training mode.

    Source: Welford (1962) in Chan et al.'s form for batches, as imitation's `RunningNorm`.

    Args:
        size: of the last axis.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, values: Tensor, is_left_out: Tensor | None = None) -> Tensor:
        """`(values - mean) / sqrt(variance + 1e-5)`; in training mode the batch is counted in first.

        Args:
            values: `[B, size]`.
            is_left_out: bool `[B]`, samples that are not counted.
        """
        if self.training:
            self._update(values.detach(), is_left_out)
        return (values - self.mean) / (self.variance + 1e-5).sqrt()

    @torch.no_grad()
    def _update(self, values: Tensor, is_left_out: Tensor | None) -> None:
        weight = torch.ones_like(values[:, :1])
        if is_left_out is not None:
            weight = weight.masked_fill(is_left_out.unsqueeze(-1), 0.0)
        count = weight.sum()
        mean = (weight * values).sum(0) / count.clamp(min=1.0)
        squares = (weight * (values - mean).square()).sum(0)
        total = self.count + count
        share = count / total.clamp(min=1.0)
        delta = mean - self.mean
        spread = self.count * self.variance + squares + delta.square() * self.count * share
        # Without a single sample so far nothing is known: mean 0 and variance 1 stay.
        self.variance.copy_(torch.where(total > 0, spread / total.clamp(min=1.0), self.variance))
        self.mean += delta * share
        self.count.copy_(total)


@final
class RewardNet(nn.Module):
    """The score `[B]` of transitions; high = expert. A logit for GAIL, the reward without shaping for AIRL.

    Observations and actions are preprocessed as in Stable-Baselines3 (images scaled, discrete values one-hot), the
    observations go through a features extractor, and all go, standardised, into a multilayer perceptron. The absorbing
    state (Kostrikov et al. 2019) has features of zero and an indicator of its own, as a next state too.

    Args:
        observation_space: channels first, as an algorithm's own `observation_space` is.
        action_space: Discrete, MultiDiscrete, MultiBinary or Box.
        net_arch: sizes of the hidden layers; imitation's default.
        use_state: read the observation.
        use_action: read the action.
        use_next_state: read the next observation.
        use_done: read whether the transition led to a terminal state.
        normalize_inputs: standardise by running statistics of the training batches.
        activation_fn: between layers.
        features_extractor_class: SB3's; None: Flatten, NatureCNN for images of 36 x 36 or more, Combined for Dicts.
        features_extractor_kwargs: its arguments.

    Attributes:
        arguments: all of the above, as another net like this one takes them.

    Raises:
        ValueError: nothing is to be read, or a space has axes that SB3's networks can't use.

    Examples:
        >>> net = RewardNet(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
        >>> observations = torch.zeros(5, 3)
        >>> actions, terminated = torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.bool)
        >>> net(Transitions(observations, actions, observations, terminated)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        net_arch: Sequence[int] = (32, 32),
        use_state: bool = True,
        use_action: bool = True,
        use_next_state: bool = False,
        use_done: bool = False,
        normalize_inputs: bool = True,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not (use_state or use_action or use_next_state or use_done):
            raise ValueError(
                "use_state, use_action, use_next_state and use_done are all False: the net needs an input."
            )
        check_network_space("observation_space", observation_space)
        check_network_space("action_space", action_space)
        self.arguments: dict[str, Any] = {
            "observation_space": observation_space,
            "action_space": action_space,
            "net_arch": [int(size) for size in net_arch],
            "use_state": bool(use_state),
            "use_action": bool(use_action),
            "use_next_state": bool(use_next_state),
            "use_done": bool(use_done),
            "normalize_inputs": bool(normalize_inputs),
            "activation_fn": activation_fn,
            "features_extractor_class": features_extractor_class or _default_extractor(observation_space),
            "features_extractor_kwargs": dict(features_extractor_kwargs or {}),
        }
        self.observation_space, self.action_space = observation_space, action_space
        self.use_state, self.use_action = use_state, use_action
        self.use_next_state, self.use_done = use_next_state, use_done
        build = self.arguments["features_extractor_class"]
        extract = self.arguments["features_extractor_kwargs"]
        self.extractor: BaseFeaturesExtractor | None = None
        if use_state or use_next_state:
            self.extractor = build(observation_space, **extract)
        features = 0 if self.extractor is None else self.extractor.features_dim
        size = features * (use_state + use_next_state) + get_flattened_obs_dim(action_space) * use_action
        self.norm = RunningNorm(size) if normalize_inputs and size else None
        indicators = 1 + use_next_state + use_done
        self.layers = nn.Sequential(*create_mlp(size + indicators, 1, list(net_arch), activation_fn))

    def forward(self, transitions: Transitions) -> Tensor:
        """The score, `[B]`."""
        terminated = transitions.terminated.bool()
        absorbing = torch.zeros_like(terminated) if transitions.absorbing is None else transitions.absorbing
        inputs = []
        if self.use_state:
            inputs.append(self._features(transitions.observations, absorbing))
        if self.use_next_state:
            inputs.append(self._features(transitions.next_observations, absorbing | terminated))
        if self.use_action:
            start = start_of(self.action_space)
            given = transitions.actions if start is None else shifted(transitions.actions, start, sign=-1)
            actions = preprocess_obs(given, self.action_space)
            assert isinstance(actions, Tensor)
            inputs.append(actions.flatten(1).masked_fill(absorbing.unsqueeze(-1), 0.0))
        columns = [absorbing]
        if self.use_next_state:
            columns.append(absorbing | terminated)
        if self.use_done:
            columns.append(terminated)
        indicators = INDICATOR * torch.stack(columns, dim=-1).float()
        if inputs:
            joined = torch.cat(inputs, dim=-1)  # B, features
            if self.norm is not None:
                # The absorbing state lies in the middle of the data, told apart by its indicator.
                joined = self.norm(joined, absorbing).masked_fill(absorbing.unsqueeze(-1), 0.0)
            indicators = torch.cat((joined, indicators), dim=-1)
        score: Tensor = self.layers(indicators).squeeze(-1)
        return score

    def _features(self, observations: TensorObservations, absorbing: Tensor) -> Tensor:
        assert self.extractor is not None
        features: Tensor = self.extractor(preprocess_obs(observations, self.observation_space))
        return features.masked_fill(absorbing.unsqueeze(-1), 0.0)


@final
class ShapedRewardNet(nn.Module):
    """AIRL's `f(s, a, s') = g(s, a) + gamma · h(s') - h(s)`, `[B]` (Fu et al. 2018, equation 5).

    The potential h of the absorbing state is 0, so that shaping adds up to `-h(first state)` over an episode that
    terminates.

    Args:
        reward: g.
        gamma: the discount factor, in [0, 1].
        potential_net_arch: sizes of h's hidden layers; imitation's default.

    Raises:
        ValueError: gamma is outside [0, 1].

    Examples:
        >>> net = ShapedRewardNet(RewardNet(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)), gamma=0.99)
        >>> observations = torch.zeros(5, 3)
        >>> actions, terminated = torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.bool)
        >>> net(Transitions(observations, actions, observations, terminated)).shape
        torch.Size([5])
    """

    def __init__(self, reward: RewardNet, *, gamma: float = 0.99, potential_net_arch: Sequence[int] = (32, 32)) -> None:
        super().__init__()
        self.reward = reward
        self.potential_net_arch = [int(size) for size in potential_net_arch]
        self.gamma = check_in_range("gamma", gamma, 0.0, 1.0)
        self.potential = RewardNet(
            reward.observation_space,
            reward.action_space,
            net_arch=potential_net_arch,
            use_action=False,
            normalize_inputs=reward.norm is not None,
        )
        # A potential that is the same everywhere shapes nothing; only differences matter, so h(absorbing) = 0 is free.

    def forward(self, transitions: Transitions) -> Tensor:
        """The shaped score, `[B]`."""
        nothing = torch.zeros_like(transitions.terminated, dtype=torch.bool)
        absorbing = nothing if transitions.absorbing is None else transitions.absorbing
        base: Tensor = self.reward(transitions)
        here = self.potential(transitions._replace(terminated=nothing, absorbing=None)).masked_fill(absorbing, 0.0)
        was_training = self.potential.training
        if self.potential.norm is not None:
            self.potential.norm.eval()  # each state is counted once, as a state
        after = self.potential(
            transitions._replace(observations=transitions.next_observations, terminated=nothing, absorbing=None)
        )
        if self.potential.norm is not None:
            self.potential.norm.train(was_training)
        after = after.masked_fill(absorbing | transitions.terminated.bool(), 0.0)
        shaped: Tensor = base + self.gamma * after - here
        return shaped


def _default_extractor(space: spaces.Space[Any]) -> type[BaseFeaturesExtractor]:
    if isinstance(space, spaces.Dict):
        return CombinedExtractor
    if not is_image_space(space):
        return FlattenExtractor
    assert isinstance(space, spaces.Box)
    return NatureCNN if min(space.shape[1:]) >= SMALLEST_IMAGE else FlattenExtractor


def absorbing_transition(transitions: Transitions) -> Transitions:
    """One self-loop of the absorbing state; what else it holds is the first transition's, and does not count."""
    first = Transitions(*(map_parts(part, lambda values: values[:1]) for part in transitions))
    return first._replace(
        terminated=torch.zeros_like(first.terminated), absorbing=torch.ones_like(first.terminated, dtype=torch.bool)
    )


def map_parts(observations: Any, change: Callable[[Any], Any]) -> Any:
    """`change` of the observations, or of each part of a dict of them."""
    if isinstance(observations, dict):
        return {key: change(part) for key, part in observations.items()}
    return change(observations)


# ---- the parts of a trainer that concern its network


def build_net(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network with weights drawn from `seed`, the global generators left alone."""
    with isolated_rng(seed):
        return build()


def build_optimizer(
    net: nn.Module,
    disc_learning_rate: float | None,
    disc_opt_cls: type[torch.optim.Optimizer],
    disc_opt_kwargs: Mapping[str, Any] | None,
) -> torch.optim.Optimizer:
    """The discriminator's optimiser.

    Raises:
        TypeError: `disc_opt_cls` is no optimiser, or it does not take `disc_opt_kwargs`.
        ValueError: there are two learning rates, or one outside its range.
    """
    if not (isinstance(disc_opt_cls, type) and issubclass(disc_opt_cls, torch.optim.Optimizer)):
        raise TypeError(f"disc_opt_cls={disc_opt_cls!r} must be a class of torch.optim, such as torch.optim.Adam.")
    arguments = dict(disc_opt_kwargs or {})
    if "lr" not in arguments:
        rate = DISC_LEARNING_RATE if disc_learning_rate is None else disc_learning_rate
        arguments["lr"] = check_in_range("disc_learning_rate", rate, 0.0, low_open=True)
    elif disc_learning_rate is not None:
        raise ValueError(
            f"disc_learning_rate={disc_learning_rate} and disc_opt_kwargs['lr']={arguments['lr']}: give one of them."
        )
    build: Any = disc_opt_cls
    try:
        optimizer: torch.optim.Optimizer = build(net.parameters(), **arguments)
    except TypeError as error:
        raise TypeError(f"disc_opt_kwargs={arguments} do not fit {disc_opt_cls.__name__}: {error}") from error
    return optimizer


@torch.no_grad()
def check_absorbing(net: nn.Module, transitions: Transitions) -> None:
    """Check that a network, in any mode, gives the absorbing state one score.

    Args:
        net: of the user's own, perhaps.
        transitions: some that differ.

    Raises:
        ValueError: the score depends on what else a transition holds.
    """
    was_training = net.training
    net.eval()
    nothing = torch.zeros_like(transitions.terminated)
    scores = net(transitions._replace(terminated=nothing, absorbing=~nothing))
    net.train(was_training)
    if not torch.allclose(scores, scores[:1].expand_as(scores), rtol=1e-4, atol=1e-5):
        raise ValueError(
            "reward_net gives absorbing transitions different scores: mask what it reads where their `absorbing` is "
            "True (see RewardNet), or take terminal_states='as_is', which has no such transitions."
        )


def check_minibatch(demo_minibatch_size: int | None, demo_batch_size: int) -> int | None:
    """The transitions of each side that one backward pass takes; None: all.

    Raises:
        ValueError: it does not divide the batch.
    """
    if demo_minibatch_size is None:
        return None
    size = check_positive_int("demo_minibatch_size", demo_minibatch_size)
    if demo_batch_size % size:
        raise ValueError(
            f"demo_minibatch_size={size} must divide demo_batch_size={demo_batch_size}: "
            f"try {max(part for part in range(1, size + 1) if demo_batch_size % part == 0)}."
        )
    return size


# ---- rewards of arrays


RewardFunction: TypeAlias = Callable[[Any, NDArray[Any], Any, NDArray[np.bool_]], NDArray[np.float32]]
"""Of observations, actions, next observations (at the end of an episode its last) and `terminated`, float32 `[B]`."""


def reward_of(net: nn.Module, *, absorbing_is_zero: bool = False) -> RewardFunction:
    """The scores of a network as a function of arrays.

    Args:
        net: of `Transitions`. Images are given to a `RewardNet` channels first, whichever way they come.
        absorbing_is_zero: the score of the absorbing state is taken off every score, so that a terminal state is worth
            0, as algorithms take it; the net must know `Transitions.absorbing`, as a `RewardNet` does.

    Examples:
        >>> from gymnasium import spaces
        >>> reward = reward_of(RewardNet(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)))
        >>> states = np.zeros((5, 3), np.float32)
        >>> reward(states, np.zeros(5, np.int64), states, np.zeros(5, bool)).shape
        (5,)
    """
    base = net.reward if isinstance(net, ShapedRewardNet) else net
    space = base.observation_space if isinstance(base, RewardNet) else None

    @torch.no_grad()
    def reward(*arrays: Any, **named: Any) -> NDArray[np.float32]:
        if net.training:
            net.eval()
        device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
        transitions = transitions_from_arrays(*arrays, **named, space=space, device=device)
        found = net(transitions)
        if absorbing_is_zero:
            found = found - net(absorbing_transition(transitions))
        scores: NDArray[np.float32] = found.float().cpu().numpy()
        return scores

    return reward


def transitions_from_arrays(
    observations: Any,
    actions: NDArray[Any],
    next_observations: Any,
    terminated: NDArray[np.bool_],
    *,
    space: spaces.Space[Any] | None,
    device: torch.device,
) -> Transitions:
    """Arrays as networks read them, none of them absorbing; images as `space` has them, if it is given."""

    def tensors(values: Any) -> Any:
        return map_parts(values, lambda part: torch.as_tensor(forward(part), device=device))

    here, after = tensors(oriented(observations, space)), tensors(oriented(next_observations, space))
    ended = tensors(terminated)
    return Transitions(here, tensors(actions), after, ended, torch.zeros_like(ended))


def oriented(observations: Any, space: Any) -> Any:
    """Arrays of observations, images with their channels first as `space` has them, if it is given."""
    if isinstance(observations, dict):
        parts = {} if space is None else space.spaces
        return {key: oriented(part, parts.get(key)) for key, part in observations.items()}
    values = np.asarray(observations)
    return values if space is None else maybe_transpose(values, space)


# ---- files


FORMAT_NAME = "rlsmooth-reward"
FORMAT_VERSION = 1
PLAIN, SHAPED = "reward", "shaped"


def save_reward_net(net: RewardNet | ShapedRewardNet, path: str | Path) -> Path:
    """Write a reward network's file, whole or not at all.

    Args:
        net: a `RewardNet` or a `ShapedRewardNet`, such as `trainer.reward_net`; of AIRL, `trainer.reward_net.reward`
            is the part without shaping. Of extractors and activations of your own the file keeps the name only.
        path: `.zip` is added to a name without a suffix, and a missing folder made.

    Returns:
        The path written.

    Raises:
        TypeError: it is another module.
        ValueError: the folder can't be written to.

    Examples:
        >>> import tempfile
        >>> from gymnasium import spaces
        >>> net = RewardNet(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), net_arch=[16])
        >>> path = save_reward_net(net, f"{tempfile.mkdtemp()}/reward"); path.name
        'reward.zip'
        >>> load_reward_net(path).arguments["net_arch"]
        [16]
    """
    if not isinstance(net, (RewardNet, ShapedRewardNet)):
        raise TypeError(
            f"net is a {type(net).__name__}: pass a RewardNet or a ShapedRewardNet, or keep your own module's "
            "state_dict() by safetensors."
        )
    path = with_zip_suffix(path)
    check_writable_folder("path", path.parent)
    config, tensors = encode_net(net)
    write_safe_file(path, config, tensors=tensors, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
    return path


def load_reward_net(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    custom_objects: Mapping[str, Any] | None = None,
) -> RewardNet | ShapedRewardNet:
    """Read a file of `save_reward_net`. Runs no code that the file could name; the random state does not move.

    Args:
        path: the file.
        device: where the network goes.
        custom_objects: `features_extractor_class`, `features_extractor_kwargs` or `activation_fn` in place of the
            file's; needed where these are of your own.

    Returns:
        The network, in evaluation mode.

    Raises:
        SafeFileError: the file is damaged, is another kind of file, or asks for `custom_objects`.

    Examples:
        The one of `save_reward_net` reads its file again.
    """
    path = Path(path).expanduser()
    path = path if path.exists() else with_zip_suffix(path)
    content = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
    net = decode_net(path, content.config, content.tensors, custom_objects=custom_objects or {})
    return net.to(device).eval()


def encode_net(net: RewardNet | ShapedRewardNet) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """A network as JSON and groups of tensors."""
    base = net.reward if isinstance(net, ShapedRewardNet) else net
    arguments, of_arguments = encode_arguments(base.arguments)
    config: dict[str, Any] = {"kind": PLAIN, "arguments": arguments}
    if isinstance(net, ShapedRewardNet):
        config |= {"kind": SHAPED, "gamma": net.gamma, "potential_net_arch": net.potential_net_arch}
    return config, {"net": dict(net.state_dict()), "net_arguments": of_arguments}


def decode_net(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    custom_objects: Mapping[str, Any],
) -> RewardNet | ShapedRewardNet:
    """The network of `encode_net`.

    Args:
        path: what errors call the file.
        config: the JSON.
        tensors: the groups.
        custom_objects: argument to value, in place of the file's.

    Raises:
        SafeFileError: what it says is malformed, or does not fit.
    """
    present = {f"{group}/{name}": each for group, named in tensors.items() for name, each in named.items()}
    elements = sum(each.numel() for each in present.values())
    with misfits_refused(path), isolated_rng(), budget(elements), modules_within(present):
        known = {name: value for name, value in custom_objects.items() if name in config["arguments"]}
        arguments = decode_arguments(path, config["arguments"], tensors=tensors["net_arguments"], custom_objects=known)
        net: RewardNet | ShapedRewardNet = RewardNet(**arguments)
        if config["kind"] == SHAPED:
            assert isinstance(net, RewardNet)
            net = ShapedRewardNet(net, gamma=config["gamma"], potential_net_arch=config["potential_net_arch"])
        elif config["kind"] != PLAIN:
            raise ValueError(f"there is no kind of network {config['kind']!r}")
    own: Any = net
    load_parameters(path, own, tensors.get("net", {}))
    return net


@contextmanager
def misfits_refused(path: Path) -> Iterator[None]:
    """SafeFileError in place of whatever a file with a wrong content leads to."""
    with refused(path, SafeFileError, problem="is malformed or does not fit"):
        yield
