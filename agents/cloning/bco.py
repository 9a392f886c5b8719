"""Behavioural cloning from observation: infer the actions by an inverse dynamics model, then clone them, smoothed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias, final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from rlsmooth.agents.cloning.bc import SmoothingLike
from rlsmooth.agents.cloning.collection import collect
from rlsmooth.agents.cloning.inverse_dynamics import InverseDynamics
from rlsmooth.agents.cloning.rounds import (
    COLLECTING,
    INVERSE_DYNAMICS,
    LEARNING,
    RoundsCheckpoint,
    RoundsModel,
)
from rlsmooth.agents.cloning.training_data import ReferenceLike, Smoothings, as_smoothings, fingerprint, one_or_list
from rlsmooth.agents.cloning.transition_features import INPUTS, Inputs
from rlsmooth.agents.heads import CategoricalHead
from rlsmooth.agents.sb3 import Callbacks
from rlsmooth.agents.spaces import check_same_spaces
from rlsmooth.checks import check_choice, check_optional_folder, check_positive_int
from rlsmooth.data import Demonstrations, ObservationOnly, concatenate
from rlsmooth.data.observation_only import transitions_with_next
from rlsmooth.schedules import LearningRate, as_schedule
from rlsmooth.training import SafeFileError
from rlsmooth.training.distributed import Ranks
from rlsmooth.training.mlp_engine import Engine
from rlsmooth.training.run import RESUME_FILE, check_given_again, open_progress_bar
from rlsmooth.training.safe_file import decode_smoothing, encode_smoothing
from rlsmooth.untrusted import Count

PseudoLabels: TypeAlias = Literal["hard", "soft"]
INVERSE_SHOWN = ("accuracy", "cross_entropy", "ece")
TRANSITIONS_FILE = "transitions_{}.npz"


class BCOCheckpoint(RoundsCheckpoint):
    """What a checkpoint holds besides tensors."""

    total_rounds: Count
    fingerprint: str


@final
class BCO(RoundsModel):
    """Clone demonstrations that do not contain the actions.

    Each round (1) collects transitions by the policy, in the first round by random actions, (2) learns from all
    transitions so far which action leads from one observation to the next (`InverseDynamics`), (3) gives the
    demonstrations' pairs of observations the actions that it infers, (4) trains the policy on these pseudo-labels,
    smoothed:

        loss = CE(smoothed pseudo-label, pi) + kl_coef · KL(reference‖pi)     (nats; see `BC`)

    A wrong pseudo-label that is cloned without smoothing makes a policy that is certain of it, and that repeats it
    when the next round's transitions are collected. Actions that the masks forbid are neither taken nor inferred, and
    get no smoothing mass. Actions of `Demonstrations` are read for the tag `bco/pseudo_label_accuracy` alone.

    One round is the paper's BCO(0), several are BCO(alpha). Source: Torabi et al. 2018, "Behavioral cloning from
    observation". The agent is used as an algorithm of Stable-Baselines3, whose timesteps are its transitions. A seeded
    run repeats bit for bit.

    Log lines, one a round, under `bco/`: `round`, `transitions`, `inverse_dynamics_accuracy` and
    `inverse_dynamics_cross_entropy` (on transitions that are held out), `pseudo_label_confidence` (mean probability of
    the labels), `pseudo_label_accuracy` (share of the components that are the demonstrated ones, if these are known; of
    a Box `pseudo_label_error`, root mean square), `cross_entropy`, `nll_hard`, `accuracy`, `policy_entropy`,
    `entropy_frac`, `entropy_frac_min`, `kl_uniform`, `kl_reference`, `smoothing` (as under `bc/`, towards the
    pseudo-labels), and with an `eval_env` `mean_reward`, `mean_reward_sampled` and so on.

    Args:
        policy: a name such as `"MlpPolicy"`, a policy class, or a policy that is built already; see `BC`.
        env: an environment (id, Gymnasium or VecEnv) to act in, or `(observation_space, action_space)` for an agent
            that only acts.
        demonstrations: `ObservationOnly` or `Demonstrations`; None for an agent that only acts.
        smoothing: of the pseudo-labels: alpha, a schedule, a `Smoothing`, or one for each MultiDiscrete dimension.
        kl_coef: coefficient of the KL term, 0 or more.
        reference: of the KL term; None: uniform over the legal actions. See `BC`.
        reference_std: Box only: standard deviation of the broad Gaussian that smoothing mixes in; None: half the width.
        action_bins: Box only: clone, and infer, so many bins a dimension; None: a Gaussian policy.
        pseudo_labels: `"hard"`: the most probable action; `"soft"`: all probabilities, for a Discrete action space.
        n_rounds: rounds of one call of `learn`.
        transitions_per_round: made in each round, divided among the environments; at least 10, a tenth is held out.
        n_epochs: passes over the demonstrations in each round.
        learning_rate: of the policy: a number, `"lin_1e-3"`, or a callable; a schedule runs once a round.
        batch_size: of both trainings.
        max_grad_norm: to which the gradient's norm is clipped; None: not.
        l2_coef: of half the sum of the policy's squared parameters.
        engine: of the clone's updates, `"torch"` or `"numpy"`; see `BC`.
        policy_kwargs: as SB3's.
        inverse_smoothing: of the inverse dynamics model.
        inverse_inputs: `"difference"` or `"pair"`, see `InverseDynamics`.
        inverse_epochs: most passes over the transitions; training stops when held-out ones get no better.
        inverse_learning_rate: a number or `"lin_1e-3"`.
        inverse_net_arch: sizes of its hidden layers.
        seed: of the initial weights, the order of the data, the environments; None: drawn from torch's generator.
        device: as SB3's.
        tensorboard_log: folder for TensorBoard files; None: none.
        verbose: 0 nothing, 1 logs on the terminal.
        checkpoint_folder: for transitions and for checkpoints that `resume` continues from; None: none are written.
        eval_env: environment of an evaluation at the end of each round; None: there are none.
        n_eval_episodes: episodes of an evaluation, so many deterministic and so many sampled.

    Attributes:
        bc: the clone: what `SmoothedPPO.from_bc` takes.
        inverse_dynamics: of the last round; None before the first.
        transitions: all that were made; None before the first round.
        round: how many rounds are done.
        pairs: what is cloned, with placeholders for the actions; None for an agent that only acts.
        history: the numbers of each round's log line, without `bco/`.

    Raises:
        TypeError: an argument of a kind that is not listed; see `BC`.
        ValueError: a value outside its range, spaces that differ, soft pseudo-labels for another action space than a
            Discrete one; see `BC`.

    Examples:
        >>> from rlsmooth.data import ObservationOnly, cartpole_v1
        >>> seen = ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(2, seed=0)
        >>> agent = BCO("MlpPolicy", "CartPole-v1", seen, n_rounds=1, transitions_per_round=500, seed=0)
        >>> agent = agent.learn()
        >>> agent.num_timesteps, len(agent.transitions), sorted(agent.history[0])[:2]
        (500, 500, ['accuracy', 'cross_entropy'])
    """

    PREFIX: ClassVar[str] = "bco"
    FOLDER: ClassVar[str] = "checkpoint_folder"
    CHECKPOINT: ClassVar[type[RoundsCheckpoint]] = BCOCheckpoint
    OWN_ARGUMENTS: ClassVar[tuple[str, ...]] = (
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
        engine: Engine = "torch",
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
        _check_demonstrations(demonstrations)
        check_choice("pseudo_labels", pseudo_labels, ("hard", "soft"))
        self.pseudo_labels = pseudo_labels
        self.n_rounds = check_positive_int("n_rounds", n_rounds)
        self.transitions_per_round = check_positive_int("transitions_per_round", transitions_per_round, minimum=10)
        self.n_epochs = check_positive_int("n_epochs", n_epochs)
        self.inverse_inputs = inverse_inputs
        self.inverse_epochs = check_positive_int("inverse_epochs", inverse_epochs)
        self.inverse_learning_rate = inverse_learning_rate
        self.inverse_net_arch = [check_positive_int("inverse_net_arch", size) for size in inverse_net_arch]
        self.checkpoint_folder = check_optional_folder("checkpoint_folder", checkpoint_folder)
        target = {"smoothing": smoothing, "kl_coef": kl_coef, "reference": reference, "reference_std": reference_std}
        update = {"learning_rate": learning_rate, "batch_size": batch_size, "max_grad_norm": max_grad_norm}
        clone: dict[str, Any] = {**target, **update, "l2_coef": l2_coef, "action_bins": action_bins, "engine": engine}
        self._set_up(
            policy,
            env,
            demonstrations,
            clone=clone,
            policy_kwargs=policy_kwargs,
            seed=seed,
            device=device,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            eval_env=eval_env,
            n_eval_episodes=n_eval_episodes,
        )
        self.batch_size = self.bc.batch_size
        if pseudo_labels == "soft" and not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(
                f"pseudo_labels='soft' needs a Discrete action space, this one is {self.action_space!r}: use 'hard'."
            )
        self.inverse_smoothing = inverse_smoothing
        self.inverse_smoothings = as_smoothings(inverse_smoothing, self.bc.head)
        _check_inverse_arguments(inverse_inputs, inverse_learning_rate, self.inverse_smoothings)

        self.pairs: Demonstrations | None = None
        self._true_actions: NDArray[Any] | None = None
        self.fingerprint: str | None = None
        if demonstrations is not None:
            own = (self.observation_space, self.action_space)
            self.pairs, self._true_actions = _read_pairs(demonstrations, own)
            self.fingerprint = fingerprint(self.pairs)
        self.inverse_dynamics: InverseDynamics | None = None
        self.parts: list[Demonstrations] = []
        self.transitions: Demonstrations | None = None
        self.total_rounds = 0

    def learn(self, callback: Callbacks = None, *, tb_log_name: str = "BCO", progress_bar: bool = False) -> Self:
        """Make `n_rounds` rounds, or after `resume` those that are missing.

        A second call continues with the same policy, transitions and log, for `n_rounds` more.

        Args:
            callback: SB3's callbacks, one or a list; a rollout is a round's collection, a step one of all environments.
                One that returns False ends the training there; the round that it breaks off leaves nothing.
            tb_log_name: of the run's folder in `tensorboard_log`.
            progress_bar: show one, of rounds.

        Returns:
            The agent itself.

        Raises:
            ValueError: no demonstrations, no environment, an argument that the file could not keep, a checkpoint
                folder with another run in it.
            TrainingDivergedError: the loss or a parameter became NaN or infinite.
        """
        self._check_can_learn("demonstrations", self.pairs)
        if not self.is_resumed:
            self.total_rounds = self.round + self.n_rounds
        steps_per_round = -(-self.transitions_per_round // self.n_envs) * self.n_envs
        planned = self.num_timesteps + (self.total_rounds - self.round) * steps_per_round
        with (
            self._training(callback, tb_log_name, planned) as listener,
            open_progress_bar(
                self.total_rounds, self.round, "round", shown=progress_bar and Ranks.current().is_main
            ) as bar,
        ):
            while self.round < self.total_rounds and self._one_round(listener, bar):
                bar.update()
        return self

    def _one_round(self, listener: BaseCallback | None, bar: Any) -> bool:
        """Collect, learn the inverse dynamics, label, clone; returns False if a callback ended it."""
        assert self.env is not None
        assert self.pairs is not None
        bar.set_postfix_str("collecting")
        made = self._take_collected()
        if made is None:
            with self._rollout(listener) as after_step:
                made = collect(
                    None if self.round == 0 else self.bc,
                    self.env,
                    self.transitions_per_round,
                    seed=self._seed_of(COLLECTING),
                    check=self._check_observations,
                    after_step=after_step,
                )
            if any(Ranks.current().any(made is None)):
                return False
            self._keep_collected(made)
        parts = [*self.parts, made]
        transitions = concatenate(parts)

        bar.set_postfix_str("inverse dynamics")
        inverse = self._learn_inverse_dynamics(transitions)

        bar.set_postfix_str("cloning")
        labelled, found = _pseudo_labelled(
            self.pairs, inverse, soft=self.pseudo_labels == "soft", true_actions=self._true_actions
        )
        clone, cloned = self._train_clone(labelled, self.n_epochs)
        line = {"round": float(self.round + 1), "transitions": float(self.num_timesteps), **found, **cloned}
        for name in INVERSE_SHOWN:
            if f"val_{name}" in inverse.metrics:
                line[f"inverse_dynamics_{name}"] = inverse.metrics[f"val_{name}"]
        self.bc, self.inverse_dynamics, self.parts, self.transitions = clone, inverse, parts, transitions
        self.round += 1
        self._end_round(line, bar)
        return True

    def _learn_inverse_dynamics(self, transitions: Demonstrations) -> InverseDynamics:
        return InverseDynamics(
            transitions.observation_space,
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
        ).fit(transitions, checkpoint_folder=self._part_folder(INVERSE_DYNAMICS))

    # ---- files

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
        return cls._read(
            path, env, demonstrations, device=device, policy_class=policy_class, custom_objects=custom_objects
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
        """The agent of the last checkpoint; `learn` then makes what is missing.

        On the CPU the parameters at the end equal those of a run that was never cut off, bit for bit. A round that was
        cut off is resumed from the last checkpoint of its training. What was cut off while it collected transitions
        collects them again; SIGINT and SIGTERM let a command collect them all first. Callbacks start anew: their own
        state is not kept.

        Args:
            checkpoint_folder: of the run.
            env: an environment like the run's, with as many environments.
            demonstrations: the same as those of the run.
            eval_env: an evaluation environment like the run's.
            tensorboard_log: the folder for TensorBoard files that the run had.
            verbose: 0 nothing, 1 logs on the terminal.
            device: as SB3's.
            policy_class: of a policy of your own.
            custom_objects: in place of what the file has, as in `load`.

        Raises:
            SafeFileError: no checkpoint can be read.
            ValueError: there is no run, or the demonstrations or the number of environments are others.
        """
        run = cls._folder_of_run(checkpoint_folder)
        run.check_resumable()
        agent = cls._read(
            run.path / RESUME_FILE,
            env,
            demonstrations,
            device=device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            eval_env=eval_env,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            checkpoint_folder=run.path,
        )
        cls._restore_checkpoint(agent, run)
        run.delete_leftovers(TRANSITIONS_FILE.format(r"\d+"))
        return agent

    @classmethod
    def _read(
        cls,
        path: str | Path,
        env: GymEnv | str | None,
        demonstrations: Demonstrations | ObservationOnly | None,
        *,
        device: torch.device | str,
        policy_class: type[BasePolicy] | None,
        custom_objects: Mapping[str, Any] | None,
        **others: Any,
    ) -> Self:
        file = cls._read_file(path, env, device=device, policy_class=policy_class, custom_objects=custom_objects)
        recipes = decode_smoothing(file.arguments["inverse_smoothing"], "inverse_smoothing", file.path)
        if recipes is None:
            raise SafeFileError(f"{str(file.path)!r} has no inverse_smoothing. Use another copy.")
        file.arguments["inverse_smoothing"] = one_or_list(recipes)
        return cls._build(file, file.bc.env, demonstrations, device=device, **others)

    def _own_arguments(self) -> dict[str, Any]:
        return {**super()._own_arguments(), "inverse_smoothing": encode_smoothing(self.inverse_smoothings)}

    def _kept(self, made: Demonstrations | None) -> dict[str, Any]:
        return {"total_rounds": self.total_rounds, "fingerprint": self.fingerprint}

    def _save_round(self, folder: Path, number: int, made: Demonstrations | None = None) -> None:
        part = self.parts[number] if made is None else made
        part.save(folder / TRANSITIONS_FILE.format(number + 1))

    def _restore(self, folder: Path, config: Mapping[str, Any] | None) -> None:
        self.is_resumed, self.total_rounds = True, self.n_rounds
        if config is not None:
            check_given_again({"demonstrations": config["fingerprint"]}, {"demonstrations": self.fingerprint}, folder)
            with_collected = config.get("collected_timesteps")
            count = self.round + (with_collected is not None)
            self.parts = [Demonstrations.load(folder / TRANSITIONS_FILE.format(place + 1)) for place in range(count)]
            if with_collected is not None:
                self._collected = self.parts.pop(), with_collected
            self.transitions = concatenate(self.parts) if self.parts else None
            self.total_rounds = config["total_rounds"]


def _check_demonstrations(value: object) -> None:
    """Raise TypeError unless `value` is something to clone from observation, or None."""
    if value is not None and not isinstance(value, (Demonstrations, ObservationOnly)):
        raise TypeError(
            f"demonstrations must be ObservationOnly or Demonstrations, got {type(value).__name__}: "
            "use ObservationOnly.from_trajectories."
        )


def _check_inverse_arguments(inputs: object, learning_rate: object, smoothings: Smoothings) -> None:
    """Check the arguments of the inverse dynamics model before there is one; no file can hold a callable."""
    check_choice("inverse_inputs", inputs, INPUTS)
    if not isinstance(learning_rate, (float, int, str)):
        raise TypeError(f'inverse_learning_rate={learning_rate!r} must be a number or "lin_1e-3".')
    try:
        as_schedule(learning_rate)
    except ValueError as error:
        raise ValueError(f"inverse_learning_rate={learning_rate!r} can't be used: {error}") from error
    if any(callable(recipe.alpha) for recipe in smoothings):
        raise TypeError('inverse_smoothing has a callable alpha, which no file can hold: use a number or "lin_0.1".')


def _read_pairs(
    given: Demonstrations | ObservationOnly, own: tuple[spaces.Space[Any], spaces.Space[Any]]
) -> tuple[Demonstrations, NDArray[Any] | None]:
    """The pairs of observations, with placeholders for the actions, and the true actions if they are known.

    `own` are the agent's observation space and action space. Raises ValueError for other spaces, masks that don't fit
    the action space, and no pair at all.
    """
    actions = None
    if isinstance(given, Demonstrations):
        check_same_spaces("demonstrations", (given.observation_space, given.action_space), own)
        actions = np.asarray(given.actions[transitions_with_next(given)])
        given = ObservationOnly.from_demonstrations(given)
    check_same_spaces("demonstrations", (given.observation_space, own[1]), own)
    return given.as_demonstrations(own[1]), actions


def _pseudo_labelled(
    pairs: Demonstrations, inverse: InverseDynamics, *, soft: bool, true_actions: NDArray[Any] | None
) -> tuple[Demonstrations, dict[str, float]]:
    """The same transitions with the actions that `inverse` infers, and how sure and how right these are.

    With `soft` they get all probabilities too, as `action_probs`. The numbers are `pseudo_label_confidence` (mean
    probability of the labels; not for a Box) and, where the true actions are known, `pseudo_label_accuracy` (share of
    right components) or, for a Box, `pseudo_label_error` (root mean square).
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
