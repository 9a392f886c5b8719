"""Behavioural cloning from observation: what was done is guessed from what was seen, then cloned with smoothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, TypeVar, cast, final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.cloning.bc import BC, SmoothingLike
from rlsmooth.agents.cloning.collection import collect, join
from rlsmooth.agents.cloning.inverse_dynamics import InverseDynamics
from rlsmooth.agents.cloning.rounds import (
    ACTING,
    CLONE_SHOWN,
    LEARNING,
    RoundsModel,
    check_no_other_run,
    check_resumable,
    clone_arguments,
    delete_leftovers,
    one_or_list,
    read_own_arguments,
    restore_round,
    save_round,
    train_quietly,
)
from rlsmooth.agents.cloning.training_data import ReferenceLike, Smoothings, as_smoothings, fingerprint
from rlsmooth.agents.cloning.transition_features import INPUTS, Inputs
from rlsmooth.agents.heads import CategoricalHead
from rlsmooth.agents.sb3 import Callbacks
from rlsmooth.agents.spaces import check_same_spaces
from rlsmooth.checks import check_choice, check_positive_int, check_writable_folder
from rlsmooth.data import Demonstrations, ObservationOnly
from rlsmooth.data.observation_only import transitions_with_next
from rlsmooth.schedules import LearningRate, as_schedule
from rlsmooth.training import SafeFileError, latest_checkpoint
from rlsmooth.training.run import RESUME_FILE
from rlsmooth.training.safe_file import decode_smoothing, encode_smoothing

if TYPE_CHECKING:
    pass

__all__ = [
    "BCO",
    "SavedBCO",
    "begin_checkpoints",
    "check_inverse_arguments",
    "check_observed",
    "check_ready",
    "pseudo_labelled",
    "read_pairs",
    "write_checkpoint",
]


def check_observed(value: object) -> None:
    """Raise TypeError unless `value` is something to clone from observation, or None."""
    if value is not None and not isinstance(value, (Demonstrations, ObservationOnly)):
        raise TypeError(
            f"demonstrations must be ObservationOnly or Demonstrations, got {type(value).__name__}: "
            "use ObservationOnly.from_trajectories."
        )


def check_inverse_arguments(inputs: object, learning_rate: object, smoothings: Smoothings) -> None:
    """Check what the inverse dynamics model will be given, before there is one.

    Raises:
        TypeError: a callable, which no file can hold: resuming a run would ask for it.
        ValueError: an unknown word, or a learning rate that is not above 0.
    """
    check_choice("inverse_inputs", inputs, INPUTS)
    if not isinstance(learning_rate, (float, int, str)):
        raise TypeError(f'inverse_learning_rate={learning_rate!r} must be a number or "lin_1e-3".')
    try:
        as_schedule(learning_rate)
    except ValueError as error:
        raise ValueError(f"inverse_learning_rate={learning_rate!r} can't be used: {error}") from error
    if any(callable(recipe.alpha) for recipe in smoothings):
        raise TypeError('inverse_smoothing has a callable alpha, which no file can hold: use a number or "lin_0.1".')


def read_pairs(
    given: Demonstrations | ObservationOnly, own: tuple[spaces.Space[Any], spaces.Space[Any]]
) -> tuple[Demonstrations, NDArray[Any] | None]:
    """The pairs of observations, with actions of no meaning, and the true actions if they are known.

    Args:
        given: what to clone.
        own: the agent's observation space and action space.

    Raises:
        ValueError: spaces that differ, masks that don't fit the action space, no pair at all.
    """
    actions = None
    if isinstance(given, Demonstrations):
        check_same_spaces("demonstrations", (given.observation_space, given.action_space), own)
        actions = np.asarray(given.actions[transitions_with_next(given)])
        given = ObservationOnly.from_demonstrations(given)
    check_same_spaces("demonstrations", (given.observation_space, own[1]), own)
    return given.as_demonstrations(own[1]), actions


def check_ready(agent: BCO) -> None:
    """Raise ValueError unless the agent has all that `learn` needs."""
    agent._check_can_learn()
    if agent.pairs is None:
        raise ValueError("demonstrations is None, so there is nothing to clone: give them to BCO(...) or BCO.load.")


def pseudo_labelled(
    pairs: Demonstrations, inverse: InverseDynamics, *, soft: bool, true_actions: NDArray[Any] | None
) -> tuple[Demonstrations, dict[str, float]]:
    """The same transitions with the most probable actions, and how sure and how right these are.

    Args:
        pairs: whose observations, next observations and masks are read; the actions are not.
        inverse: fitted.
        soft: give them all probabilities too, as `action_probs`; a Discrete action space.
        true_actions: `[N, ...]`, if they are known.

    Returns:
        The demonstrations, and `pseudo_label_confidence` (mean probability of the labels; not for a Box) and
        `pseudo_label_accuracy` (share of right components) or, for a Box, `pseudo_label_error` (root mean square).
    """
    masks: Any = pairs.action_masks
    actions = inverse.predict(pairs.observations, pairs.next_observations, masks)
    found: dict[str, float] = {}
    probabilities: Any = None
    if isinstance(inverse.bc.head, CategoricalHead):
        probabilities = inverse.probabilities(pairs.observations, pairs.next_observations, masks)
        groups = probabilities if isinstance(probabilities, tuple) else (probabilities,)
        most = [group.max(axis=-1).reshape(len(pairs), -1) for group in groups]
        found["pseudo_label_confidence"] = float(np.concatenate(most, axis=1).mean(dtype=np.float64))
    if true_actions is not None:
        if isinstance(pairs.action_space, spaces.Box):
            gaps = actions.astype(np.float64) - true_actions
            found["pseudo_label_error"] = float(np.sqrt(np.mean(gaps**2)))
        else:
            found["pseudo_label_accuracy"] = float(np.mean(actions == true_actions))
    # Known to be right: predictions are legal actions, probabilities sum to 1.
    return pairs.replace_unchecked(actions=actions, action_probs=probabilities if soft else None), found


Model = TypeVar("Model", bound="SavedBCO")

OWN = "bco"
OWN_ARGUMENTS = (
    "pseudo_labels",
    "n_rounds",
    "transitions_per_round",
    "n_epochs",
    "inverse_smoothing",
    "inverse_inputs",
    "inverse_epochs",
    "inverse_learning_rate",
    "inverse_net_arch",
    "seed",
    "n_eval_episodes",
)


class SavedBCO(RoundsModel):
    """The part of `BCO` that reads and writes files."""

    def save(self, path: str | Path) -> Path:
        """Write the clone's agent file, which `BC.load`, `load_agent` and every command read, with the own arguments.

        The inverse dynamics model has a file of its own: `inverse_dynamics.save`.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: the folder can't be written to.
        """
        agent = cast("BCO", self)
        return agent.bc.save(path, {OWN: _arguments(agent)})

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: GymEnv | str | None = None,
        demonstrations: Demonstrations | ObservationOnly | None = None,
        *,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a file of `save`. Runs no code that the file could name.

        `learn` then starts with round 1 again, from the policy of the file.

        Args:
            path: the file.
            env: an environment with the same spaces; acting needs none.
            demonstrations: to train on; acting needs none.
            device: as SB3's.
            policy_class: of a policy of your own.
            custom_objects: `learning_rate`, `smoothing` and `reference` in place of the file's, and constructor
                arguments of a policy of your own.

        Raises:
            SafeFileError: the file is damaged, or of another kind of agent.
            ValueError: spaces that differ.
        """
        return _load(
            cls, path, env, demonstrations, device=device, policy_class=policy_class, custom_objects=custom_objects
        )

    @classmethod
    def resume(
        cls,
        checkpoint_folder: str | Path,
        env: GymEnv | str,
        demonstrations: Demonstrations | ObservationOnly,
        *,
        eval_env: GymEnv | str | None = None,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """The agent after the last round that was kept; `learn` then makes the rounds that are missing.

        On the CPU the parameters at the end equal those of a run that was never cut off, bit for bit. A round that was
        cut off is made again from its beginning. Callbacks start anew: their own state is not kept.

        Args:
            checkpoint_folder: of the run.
            env: as of the run, with as many environments.
            demonstrations: the same as those of the run.
            eval_env: as of the run.
            tensorboard_log: as of the run.
            verbose: as SB3's.
            device: as SB3's.
            policy_class: see `load`.
            custom_objects: see `load`.

        Raises:
            SafeFileError: no checkpoint can be read.
            ValueError: there is no run, or the demonstrations or the number of environments are others.
        """
        folder = check_resumable("checkpoint_folder", checkpoint_folder)
        model = _load(
            cls,
            folder / RESUME_FILE,
            env,
            demonstrations,
            device=device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            eval_env=eval_env,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            checkpoint_folder=folder,
        )
        _read_checkpoint(cast("BCO", model), folder)
        delete_leftovers(folder)
        model._kept_in = folder.resolve()
        return model


def begin_checkpoints(agent: BCO) -> None:
    """Put into the folder what tells how the run began, or, of a run that goes on, how far it is to go.

    Raises:
        ValueError: the folder holds another run's checkpoints.
    """
    folder = agent.checkpoint_folder
    assert folder is not None
    check_no_other_run(agent, "checkpoint_folder", folder)
    if agent.round > 0:
        # The resume file last: a kill in between then leaves no run that seems to begin with a trained policy.
        for number, part in enumerate(agent.parts):
            part.save(_transitions_path(folder, number))
        write_checkpoint(agent)
    agent.save(folder / RESUME_FILE)


def write_checkpoint(agent: BCO) -> None:
    """Write all that rounds change: the round's transitions, then parameters, optimiser and counters."""
    folder = agent.checkpoint_folder
    assert folder is not None
    last = len(agent.parts) - 1
    agent.parts[last].save(_transitions_path(folder, last))
    save_round(agent, folder, {"total_rounds": agent.total_rounds, "fingerprint": agent.fingerprint})


def _read_checkpoint(agent: BCO, folder: Path) -> None:
    agent.is_resumed, agent.total_rounds = True, agent.n_rounds
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:  # killed in the first round: the resume file is the beginning itself
        return
    config = checkpoint.config
    if config["fingerprint"] != agent.fingerprint:
        raise ValueError(f"demonstrations: these are not those that the run in {str(folder)!r} was started with.")
    restore_round(agent, checkpoint)
    agent.parts = [Demonstrations.load(_transitions_path(folder, number)) for number in range(agent.round)]
    agent.transitions = join(agent.parts)
    agent.total_rounds = int(config["total_rounds"])


def _transitions_path(folder: Path, number: int) -> Path:
    return folder / f"transitions_{number + 1}.npz"


def _load(
    model_class: type[Model],
    path: str | Path,
    env: GymEnv | str | None,
    demonstrations: Demonstrations | ObservationOnly | None,
    *,
    device: torch.device | str,
    policy_class: type[BasePolicy] | None,
    custom_objects: Mapping[str, Any] | None,
    **others: Any,
) -> Model:
    check_observed(demonstrations)
    path, own = read_own_arguments(path, OWN, OWN_ARGUMENTS, "BCO")
    bc = BC.load(path, env, device=device, policy_class=policy_class, custom_objects=custom_objects)
    recipes = decode_smoothing(own["inverse_smoothing"], "inverse_smoothing", path)
    if recipes is None:
        raise SafeFileError(f"{str(path)!r} has no inverse_smoothing. Use another copy.")
    arguments = {**own, **clone_arguments(bc), "inverse_smoothing": one_or_list(recipes)}
    build: Any = model_class
    spaces = (bc.observation_space, bc.action_space)
    try:
        model: Any = build(
            bc.policy, spaces if bc.env is None else bc.env, demonstrations, device=device, **arguments, **others
        )
    except TypeError as error:
        raise SafeFileError(f"{str(path)!r} has malformed arguments ({error}). Use another copy.") from error
    model.missing = bc.missing
    loaded: Model = model
    return loaded


def _arguments(agent: BCO) -> dict[str, Any]:
    special = {"inverse_smoothing": encode_smoothing(agent.inverse_smoothings)}
    return {name: special[name] if name in special else getattr(agent, name) for name in OWN_ARGUMENTS}


PseudoLabels: TypeAlias = Literal["hard", "soft"]
INVERSE_SHOWN = ("accuracy", "cross_entropy", "ece")


@final
class BCO(SavedBCO):
    """Clone demonstrations that do not tell the actions.

    Each round (1) lets the policy act, in the first round at random, (2) learns from all transitions so far which
    action leads from one observation to the next (`InverseDynamics`), (3) labels the demonstrations' pairs with it,
    (4) trains the policy on these pseudo-labels, smoothed:

        loss = CE(smoothed pseudo-label, pi) + kl_coef · KL(reference‖pi)     (nats; see `BC`)

    A wrong pseudo-label that is cloned without smoothing makes a policy that is certain of it, and that acts on it
    when the next round's transitions are made. Actions that the masks forbid are neither taken nor guessed, and get no
    smoothing mass. Actions of `Demonstrations` are not looked at, but for the tag `bco/pseudo_label_accuracy`.

    One round is the paper's BCO(0), several are BCO(alpha). Source: Torabi et al. 2018, "Behavioral cloning from
    observation". The agent is used as a model of Stable-Baselines3, whose timesteps are its transitions. A seeded run
    repeats bit for bit.

    Log lines, one a round, under `bco/`: `round`, `transitions`, `inverse_dynamics_accuracy` and
    `inverse_dynamics_cross_entropy` (on transitions that are held out), `pseudo_label_confidence` (mean probability of
    the labels), `pseudo_label_accuracy` (share of the components that are the demonstrated ones, if these are known;
    of a Box `pseudo_label_error`, root mean square), `cross_entropy`, `nll_hard`, `accuracy`, `policy_entropy`,
    `entropy_frac`, `kl_uniform`, `kl_reference`, `smoothing` (as under `bc/`, towards the pseudo-labels), and with an
    `eval_env` `mean_reward`, `mean_reward_sampled` and so on.

    Args:
        policy: as of `BC`.
        env: an environment (id, Gymnasium or VecEnv) to act in, or `(observation_space, action_space)` for an agent
            that only acts.
        demonstrations: `ObservationOnly` or `Demonstrations`; None for an agent that only acts.
        smoothing: of the pseudo-labels; as of `BC`.
        kl_coef: as of `BC`.
        reference: as of `BC`.
        reference_std: as of `BC`.
        action_bins: as of `BC`; for the inverse dynamics model too.
        pseudo_labels: `"hard"`: the most probable action; `"soft"`: all probabilities, for a Discrete action space.
        n_rounds: rounds of one call of `learn`.
        transitions_per_round: made in each round, divided among the environments; at least 10, a tenth is held out.
        n_epochs: passes over the demonstrations in each round.
        learning_rate: of the policy; as of `BC`, a schedule runs once a round.
        batch_size: of both trainings.
        max_grad_norm: as of `BC`.
        l2_coef: as of `BC`.
        policy_kwargs: as SB3's.
        inverse_smoothing: of the inverse dynamics model.
        inverse_inputs: see `InverseDynamics`.
        inverse_epochs: most passes over the transitions; training stops when held-out ones get no better.
        inverse_learning_rate: a number or `"lin_1e-3"`.
        inverse_net_arch: sizes of its hidden layers.
        seed: as of `BC`; of the environments too.
        device: as SB3's.
        tensorboard_log: folder for TensorBoard files; None: none.
        verbose: 0 nothing, 1 logs on the terminal.
        checkpoint_folder: where each round ends with a checkpoint that `resume` goes on from; None: none are written.
        eval_env: environment of an evaluation at the end of each round; None: there are none.
        n_eval_episodes: episodes of an evaluation, so many deterministic and so many sampled.

    Attributes:
        bc: the clone: what `SmoothedPPO.from_bc` takes.
        inverse_dynamics: of the last round; None before the first.
        transitions: all that were made; None before the first round.
        round: how many rounds are done.
        pairs: what is cloned, with actions of no meaning; None for an agent that only acts.
        history: the numbers of each round's log line, without `bco/`.

    Raises:
        TypeError: an argument of a kind that is not listed; see `BC`.
        ValueError: a value outside its range, spaces that differ, soft pseudo-labels for another action space than a
            Discrete one; see `BC`.

    Example:
        >>> from rlsmooth.data import ObservationOnly, cartpole_v1
        >>> watched = ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(2, seed=0)
        >>> agent = BCO("MlpPolicy", "CartPole-v1", watched, n_rounds=1, transitions_per_round=500, seed=0)
        >>> agent = agent.learn()
        >>> agent.num_timesteps, len(agent.transitions), sorted(agent.history[0])[:2]
        (500, 500, ['accuracy', 'cross_entropy'])
    """

    PREFIX: ClassVar[str] = "bco"

    def __init__(
        self,
        policy: str | type[BasePolicy] | BasePolicy,
        env: GymEnv | str | tuple[spaces.Space[Any], spaces.Space[Any]],
        demonstrations: Demonstrations | ObservationOnly | None,
        *,
        smoothing: SmoothingLike | Sequence[SmoothingLike] = 0.1,
        kl_coef: float = 0.0,
        reference: ReferenceLike | Sequence[ReferenceLike] | None = None,
        reference_std: float | None = None,
        action_bins: int | None = None,
        pseudo_labels: PseudoLabels = "hard",
        n_rounds: int = 5,
        transitions_per_round: int = 2000,
        n_epochs: int = 10,
        learning_rate: LearningRate = 1e-3,
        batch_size: int = 64,
        max_grad_norm: float | None = None,
        l2_coef: float = 0.0,
        policy_kwargs: Mapping[str, Any] | None = None,
        inverse_smoothing: SmoothingLike | Sequence[SmoothingLike] = 0.0,
        inverse_inputs: Inputs = "difference",
        inverse_epochs: int = 50,
        inverse_learning_rate: float | str = 1e-3,
        inverse_net_arch: Sequence[int] = (64, 64),
        seed: int | None = None,
        device: torch.device | str = "auto",
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        checkpoint_folder: str | Path | None = None,
        eval_env: GymEnv | str | None = None,
        n_eval_episodes: int = 10,
    ) -> None:
        check_observed(demonstrations)
        check_choice("pseudo_labels", pseudo_labels, ("hard", "soft"))
        self.pseudo_labels = pseudo_labels
        self.n_rounds = check_positive_int("n_rounds", n_rounds)
        self.transitions_per_round = check_positive_int("transitions_per_round", transitions_per_round, minimum=10)
        self.n_epochs = check_positive_int("n_epochs", n_epochs)
        self.inverse_inputs = inverse_inputs
        self.inverse_epochs = check_positive_int("inverse_epochs", inverse_epochs)
        self.inverse_learning_rate = inverse_learning_rate
        self.inverse_net_arch = [check_positive_int("inverse_net_arch", size) for size in inverse_net_arch]
        self.n_eval_episodes = check_positive_int("n_eval_episodes", n_eval_episodes)
        self.tensorboard_log = None
        if tensorboard_log is not None:
            self.tensorboard_log = str(check_writable_folder("tensorboard_log", tensorboard_log))
        self.verbose = verbose
        self.checkpoint_folder = None
        if checkpoint_folder is not None:
            self.checkpoint_folder = check_writable_folder("checkpoint_folder", checkpoint_folder)
        if env is None:
            raise TypeError("env is None: give an environment, or (observation_space, action_space) to act only.")
        self.env, observation_space, self.action_space = agent_spaces.resolve_spaces(env, None, verbose)
        self._clone_arguments: dict[str, Any] = {
            "smoothing": smoothing,
            "kl_coef": kl_coef,
            "reference": reference,
            "reference_std": reference_std,
            "action_bins": action_bins,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "max_grad_norm": max_grad_norm,
            "l2_coef": l2_coef,
        }
        self.bc = BC(
            policy,
            (observation_space, self.action_space),
            None,
            policy_kwargs=policy_kwargs,
            seed=seed,
            device=device,
            **self._clone_arguments,
        )
        self.policy, self.seed, self.device = self.bc.policy, self.bc.seed, self.bc.device
        self.eval_env = None if eval_env is None else agent_spaces.wrap_env("eval_env", eval_env, verbose)
        self.observation_space, self.bins = self.bc.observation_space, self.bc.bins
        self.action_start = self.bc.action_start
        own = (self.observation_space, self.action_space)
        agent_spaces.check_all_spaces(own, None, None, self.eval_env)
        self.batch_size = self.bc.batch_size
        if pseudo_labels == "soft" and not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(
                f"pseudo_labels='soft' needs a Discrete action space, this one is {self.action_space!r}: use 'hard'."
            )
        self.inverse_smoothing = inverse_smoothing
        self.inverse_smoothings = as_smoothings(inverse_smoothing, self.bc.head)
        check_inverse_arguments(inverse_inputs, inverse_learning_rate, self.inverse_smoothings)

        self.pairs: Demonstrations | None = None
        self._true_actions: NDArray[Any] | None = None
        self.fingerprint: str | None = None
        if demonstrations is not None:
            self.pairs, self._true_actions = read_pairs(demonstrations, own)
            self.fingerprint = fingerprint(self.pairs)

        self.inverse_dynamics: InverseDynamics | None = None
        self.parts: list[Demonstrations] = []
        self.transitions: Demonstrations | None = None
        self.round = self.total_rounds = 0
        self.history: list[dict[str, float]] = []
        self.num_timesteps = 0
        self.n_envs = 1 if self.env is None else self.env.num_envs
        self.is_resumed = False
        self.missing: tuple[str, ...] = ()
        self._logger = None
        self._has_logger = self._has_custom_logger = False

    def learn(self, callback: Callbacks = None, *, tb_log_name: str = "BCO", progress_bar: bool = False) -> Self:
        """Make `n_rounds` rounds, or after `resume` those that are missing.

        A second call goes on: with the same policy, transitions and log, for `n_rounds` more.

        Args:
            callback: SB3's callbacks, one or a list; a rollout is a round's acting, a step one of all environments. One
                that returns False ends the training there; the round that it breaks off leaves nothing.
            tb_log_name: of the run's folder in `tensorboard_log`.
            progress_bar: show one, of rounds.

        Returns:
            The agent itself.

        Raises:
            ValueError: no demonstrations, no environment, an argument that the file could not keep, a checkpoint
                folder with another run in it.
            TrainingDivergedError: see `BC.learn`.
        """
        check_ready(self)
        if not self.is_resumed:
            self.total_rounds = self.round + self.n_rounds
        self._prepare_logger(tb_log_name, goes_on=self.is_resumed)
        if self.checkpoint_folder is not None and not self.is_resumed:
            begin_checkpoints(self)
        self.is_resumed = False
        listener = self._prepare_callback(callback)
        if listener is not None:
            missing = (self.total_rounds - self.round) * self._steps_per_round
            listener.on_training_start({"self": self, "total_timesteps": self.num_timesteps + missing}, globals())
        with tqdm(total=self.total_rounds, initial=self.round, unit="round", disable=not progress_bar) as bar:
            while self.round < self.total_rounds and self._one_round(listener, bar):
                bar.update()
        if listener is not None:
            listener.on_training_end()
        return self

    def _one_round(self, listener: BaseCallback | None, bar: Any) -> bool:
        """Act, learn what actions do, label, clone; returns False if a callback ended it."""
        assert self.env is not None
        assert self.pairs is not None
        bar.set_postfix_str("acting")
        if listener is not None:
            listener.on_rollout_start()
        before = self.num_timesteps
        made = collect(
            None if self.round == 0 else self.bc,
            self.env,
            self.transitions_per_round,
            seed=self._seed_of(ACTING),
            after_step=lambda: self._after_step(listener),
        )
        if made is None:
            self.num_timesteps = before
            return False
        if listener is not None:
            listener.on_rollout_end()
        parts = [*self.parts, made]
        transitions = join(parts)

        bar.set_postfix_str("inverse dynamics")
        inverse = InverseDynamics(
            made.observation_space,
            self.action_space,
            smoothing=self.inverse_smoothing,
            inputs=self.inverse_inputs,
            action_bins=self._clone_arguments["action_bins"],
            learning_rate=self.inverse_learning_rate,
            batch_size=self.batch_size,
            max_epochs=self.inverse_epochs,
            policy_kwargs={"net_arch": self.inverse_net_arch},
            seed=self._seed_of(LEARNING),
            device=self.device,
        ).fit(transitions)

        bar.set_postfix_str("cloning")
        labelled, found = pseudo_labelled(
            self.pairs, inverse, soft=self.pseudo_labels == "soft", true_actions=self._true_actions
        )
        clone = self._new_clone(labelled)
        cloned = train_quietly(clone, self.n_epochs)
        found |= {name: cloned[name] for name in CLONE_SHOWN if name in cloned}
        self.bc, self.inverse_dynamics, self.parts, self.transitions = clone, inverse, parts, transitions
        self.round += 1
        found |= {
            f"inverse_dynamics_{name}": inverse.metrics[f"val_{name}"]
            for name in INVERSE_SHOWN
            if f"val_{name}" in inverse.metrics
        }
        if self.eval_env is not None:
            bar.set_postfix_str("playing")
            found |= self.evaluate()
        self._log({"round": float(self.round), "transitions": float(self.num_timesteps), **found})
        if self.checkpoint_folder is not None:
            write_checkpoint(self)
        return True

    @property
    def _steps_per_round(self) -> int:
        return -(-self.transitions_per_round // self.n_envs) * self.n_envs

    def _after_step(self, listener: BaseCallback | None) -> bool:
        self.num_timesteps += self.n_envs
        return listener is None or listener.on_step()
