"""DAgger: the learner visits states of its own making, and the expert labels them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias, final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from rlsmooth.agents.cloning.bc import SmoothingLike
from rlsmooth.agents.cloning.collection import Collected, agreement, collect_round
from rlsmooth.agents.cloning.expert import Expert, ExpertLike, ExpertTargets
from rlsmooth.agents.cloning.rounds import COLLECTING, RoundsCheckpoint, RoundsModel
from rlsmooth.agents.cloning.training_data import ReferenceLike, fingerprint
from rlsmooth.agents.sb3 import Callbacks
from rlsmooth.agents.spaces import check_demonstrations, check_same_spaces
from rlsmooth.checks import check_choice, check_in_range, check_optional_folder, check_positive_int
from rlsmooth.data import Demonstrations, concatenate
from rlsmooth.schedules import LearningRate
from rlsmooth.targets import one_hot
from rlsmooth.training import SafeFileError
from rlsmooth.training.distributed import Ranks
from rlsmooth.training.mlp_engine import Engine
from rlsmooth.training.run import RESUME_FILE, Progress, RunFolder, delete_temporary_files, open_progress_bar
from rlsmooth.untrusted import Count, Positive

BetaSchedule: TypeAlias = int | float | Callable[[int], float]
PLACEHOLDER_SCHEDULE = 15
"""For a function that a file could not keep; `learn` refuses to start."""


def as_beta_schedule(given: BetaSchedule) -> Callable[[int], float]:
    """The probability that an action is the expert's, as a function of the round, which counts from 0.

    Args:
        given: a whole number n: from 1 in round 0 straight down to 0 in round n (imitation's `LinearBetaSchedule`); a
            float b in (0, 1]: `b ** round` (its `ExponentialBetaSchedule`); or a function, whose values are checked.

    Raises:
        TypeError: it is none of these; the function's value is no number.
        ValueError: it is outside its range; the function's value is outside [0, 1].

    Examples:
        >>> [as_beta_schedule(4)(number) for number in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
        >>> [as_beta_schedule(0.5)(number) for number in (0, 1, 2)]
        [1.0, 0.5, 0.25]
    """
    if callable(given):
        return lambda number: check_in_range(f"beta_schedule({number})", given(number), 0.0, 1.0)
    value: object = None if isinstance(given, bool) else given  # numpy's numbers are neither int nor float
    if isinstance(value, Integral):
        rounds = check_positive_int("beta_schedule", value)
        return lambda number: max(0.0, (rounds - number) / rounds)
    if isinstance(value, Real):
        base = check_in_range("beta_schedule", value, 0.0, 1.0, low_open=True)
        return lambda number: base**number
    raise TypeError(
        f"beta_schedule must be a whole number of rounds, a float in (0, 1] or a function of the round, got {given!r}."
    )


class DAggerCheckpoint(RoundsCheckpoint):
    """What a checkpoint holds besides tensors."""

    total_timesteps: Count
    num_timesteps_at_start: Count
    initial: str | None
    episodes: list[Positive]
    fingerprints: list[str]


@final
class DAgger(RoundsModel):
    """Clone an expert that can be asked, on the states that the clone itself gets into, with smoothed targets.

    Plain cloning (`BC`) sees the expert's states only. Where a small mistake leads elsewhere, the clone does not know
    what to do, and the mistakes add up: quadratically in the episode's length, where DAgger's grow linearly. Each round
    (1) collects episodes by a mixture policy: in every step with probability beta the expert, else the learner; (2)
    asks the expert for its action at every state on the way; (3) adds these to all transitions so far; (4) trains the
    policy on all of them by `BC`, whose targets are smoothed:

        loss = CE(smoothed target, pi) + kl_coef · KL(reference‖pi)     (nats; see `BC`)

    Source: Ross et al. 2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online
    Learning", algorithm 3.1. Rounds, schedules and defaults are those of the imitation library's
    `SimpleDAggerTrainer`, but for the smoothing. The agent is used as an algorithm of Stable-Baselines3. A seeded
    run repeats bit for bit, if the expert says the same to the same observations.

    Episodes must end: put a `TimeLimit` around an environment whose own never do. Masks are asked from an
    environment that has `action_masks()`: the learner takes no illegal action, an illegal one of the expert is an
    error.

    Log lines, one a round, under `dagger/`: `round` (how many are done), `beta`, `learner_share` (of the steps),
    `transitions` (of all rounds, and initial ones), `expert_agreement` (share of this round's states at which the
    learner, before it was trained on them, would have done what the expert did; of a Box `expert_error`, root mean
    square), `cross_entropy`, `nll_hard`, `accuracy`, `ece`, `policy_entropy`, `entropy_frac`, `entropy_frac_min`,
    `kl_uniform`, `kl_reference`, `smoothing` (as under `bc/`, over all transitions, after training), with an `eval_env`
    `mean_reward`, `mean_reward_sampled` and so on; and imitation's `mean_episode_reward` (of the mixture policy),
    `total_timesteps`, `round_num` (from 0), `round_episode_count`, `round_timestep_count`.

    Args:
        policy: a name such as `"MlpPolicy"`, a policy class, or a policy that is built already; see `BC`.
        env: an environment (id, Gymnasium or VecEnv) to act in, or `(observation_space, action_space)` for an agent
            that only acts. A `VecNormalize` must not be training.
        expert: an SB3 algorithm or policy, an agent of ours, the path of an agent file (see `load_agent`), or a
            function. With an id or a single environment a function gets one observation and returns one action, with a
            vectorised one it gets and returns batches; one that needs three arguments is called as in imitation,
            `(observations, state, episode_start) -> (actions, state)`, with batches. Maskable policies get the masks,
            recurrent ones their state, and a model trained in a `VecNormalize` its own normalised observations. None
            for an agent that only acts.
        demonstrations: of the expert, to begin with; part of the data of every round (imitation's `expert_trajs`).
        expert_targets: `"actions"`, or `"probabilities"`: clone the probabilities of all the expert's actions in place
            of the one that it takes, smoothed as labels are; for a Discrete action space. A function then returns
            probabilities `[K]` (batches: `[n, K]`). Of a policy that knows no masks the legal actions' probabilities
            are divided by their sum; a function must leave illegal ones at 0 itself.
        expert_deterministic: ask for the expert's most probable action, else a sampled one; a function that returns
            actions does not get it.
        learner_deterministic: the mixture's learner takes its most probable action, else a sampled one.
        beta_schedule: a whole number n: from 1 in round 0 straight down to 0 in round n; a float b in (0, 1]:
            `b ** round`; or a function of the round, with values in [0, 1].
        rollout_round_min_episodes: a round ends when it has so many episodes and ...
        rollout_round_min_timesteps: ... they so many steps.
        bc_train_n_epochs: passes over all transitions in each round.
        smoothing: of the expert's labels: alpha, a schedule, a `Smoothing`, or one for each MultiDiscrete dimension.
        kl_coef: coefficient of the KL term, 0 or more.
        reference: of the KL term; None: uniform over the legal actions. See `BC`.
        reference_std: Box only: standard deviation of the broad Gaussian that smoothing mixes in; None: half the width.
        action_bins: Box only: clone so many bins a dimension; None: a Gaussian policy.
        learning_rate: a number, `"lin_1e-3"`, or a callable; a schedule runs once a round.
        batch_size: transitions of a minibatch.
        max_grad_norm: to which the gradient's norm is clipped; None: not.
        l2_coef: of half the sum of the policy's squared parameters.
        engine: of the clone's updates, `"torch"` or `"numpy"`; see `BC`.
        policy_kwargs: as SB3's.
        seed: of the initial weights, the order of the data, the environments; None: drawn from torch's generator.
        device: as SB3's.
        tensorboard_log: folder for TensorBoard files; None: none.
        verbose: 0 nothing, 1 logs on the terminal.
        scratch_dir: where each round's episodes go, and checkpoints that `resume` continues from; None: nowhere.
        eval_env: environment of an evaluation at the end of each round; None: there are none.
        n_eval_episodes: episodes of an evaluation, so many deterministic and so many sampled.

    Attributes:
        bc: the clone: what `SmoothedPPO.from_bc` takes.
        expert: the argument.
        initial: the initial demonstrations, or None.
        rounds: the transitions of each round, labelled by the expert.
        demonstrations: all of it; None before the first round without initial ones. There are neither rewards nor next
            observations: those belong to what was done, which need not be what the expert says.
        round: how many rounds are done.
        history: the numbers of each round's log line, without `dagger/`.
        num_timesteps: steps that were made, without those that an environment had to make after its last episode.

    Raises:
        TypeError: an argument of a kind that is not listed; see `BC`.
        ValueError: a value outside its range, spaces that differ, probabilities of another action space than a Discrete
            one; see `BC`.

    Examples:
        >>> from rlsmooth.envs import IdentityEnv
        >>> env = IdentityEnv(4, episode_length=10)
        >>> agent = DAgger("MlpPolicy", env, env.expert_action, rollout_round_min_timesteps=50, learning_rate=0.01,
        ...     bc_train_n_epochs=20, seed=0, device="cpu").learn(100)
        >>> agent.round, agent.num_timesteps, len(agent.demonstrations), agent.history[-1]["accuracy"]
        (2, 100, 100, 1.0)
    """

    PREFIX: ClassVar[str] = "dagger"
    FOLDER: ClassVar[str] = "scratch_dir"
    CHECKPOINT: ClassVar[type[RoundsCheckpoint]] = DAggerCheckpoint
    OWN_ARGUMENTS: ClassVar[tuple[str, ...]] = (
        "expert_targets",
        "expert_deterministic",
        "learner_deterministic",
        "beta_schedule",
        "rollout_round_min_episodes",
        "rollout_round_min_timesteps",
        "bc_train_n_epochs",
        "seed",
        "n_eval_episodes",
    )

    def __init__(
        self,
        policy: str | type[BasePolicy] | BasePolicy,
        env: GymEnv | str | tuple[spaces.Space[Any], spaces.Space[Any]],
        expert: ExpertLike | None,
        *,
        demonstrations: Demonstrations | None = None,
        expert_targets: ExpertTargets = "actions",
        expert_deterministic: bool = True,
        learner_deterministic: bool = False,
        beta_schedule: BetaSchedule = 15,
        rollout_round_min_episodes: int = 3,
        rollout_round_min_timesteps: int = 500,
        bc_train_n_epochs: int = 4,
        smoothing: SmoothingLike | Sequence[SmoothingLike] = 0.1,
        kl_coef: float = 0.0,
        reference: ReferenceLike | Sequence[ReferenceLike] | None = None,
        reference_std: float | None = None,
        action_bins: int | None = None,
        learning_rate: LearningRate = 1e-3,
        batch_size: int = 32,
        max_grad_norm: float | None = None,
        l2_coef: float = 0.0,
        engine: Engine = "torch",
        policy_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        scratch_dir: str | Path | None = None,
        eval_env: GymEnv | str | None = None,
        n_eval_episodes: int = 10,
    ) -> None:
        check_choice("expert_targets", expert_targets, ("actions", "probabilities"))
        self.expert_targets = expert_targets
        self.expert_deterministic = bool(expert_deterministic)
        self.learner_deterministic = bool(learner_deterministic)
        # A file keeps plain numbers only.
        self.beta_schedule = beta_schedule.item() if isinstance(beta_schedule, np.generic) else beta_schedule
        self.beta = as_beta_schedule(beta_schedule)
        self.rollout_round_min_episodes = check_positive_int("rollout_round_min_episodes", rollout_round_min_episodes)
        self.rollout_round_min_timesteps = check_positive_int(
            "rollout_round_min_timesteps", rollout_round_min_timesteps
        )
        self.bc_train_n_epochs = check_positive_int("bc_train_n_epochs", bc_train_n_epochs)
        self.scratch_dir = check_optional_folder("scratch_dir", scratch_dir)
        self._progress = Progress()
        target = {"smoothing": smoothing, "kl_coef": kl_coef, "reference": reference, "reference_std": reference_std}
        update = {"learning_rate": learning_rate, "batch_size": batch_size, "max_grad_norm": max_grad_norm}
        clone: dict[str, Any] = {**target, **update, "l2_coef": l2_coef, "action_bins": action_bins, "engine": engine}
        shown = self._set_up(
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
        self._is_batched = isinstance(env, VecEnv)
        self._shown = None if self.env is None else _as_given(self.env, env)
        self.expert = expert
        self._asked: Expert | None = None
        if self._shown is not None:
            shown = self._shown.observation_space
            if expert is not None:
                self._asked = self._expert_in(self._shown, expert)
        self.initial = (
            None if demonstrations is None else _initial_transitions(demonstrations, shown, self.action_space)
        )
        self.rounds: list[Demonstrations] = []
        self._aggregated: Demonstrations | None = None

    @property
    def num_timesteps(self) -> int:
        """The number of steps so far, those left out that an environment had to make after its last episode."""
        return self._progress.step

    @num_timesteps.setter
    def num_timesteps(self, count: int) -> None:
        self._progress.step = count

    @property
    def _total_timesteps(self) -> int:  # by the name that callbacks know from Stable-Baselines3
        return self._progress.end

    @property
    def demonstrations(self) -> Demonstrations | None:
        """All transitions so far, labelled by the expert; None where there are none."""
        if self._aggregated is None and (self.initial is not None or self.rounds):
            self._aggregated = _aggregate(self.initial, self.rounds)
        return self._aggregated

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Use another environment from now on; see `ActingModel.set_env`."""
        super().set_env(env, force_reset)
        assert self.env is not None
        self._is_batched, self._shown, self._asked = isinstance(env, VecEnv), _as_given(self.env, env), None

    def learn(
        self,
        total_timesteps: int,
        callback: Callbacks = None,
        *,
        tb_log_name: str = "DAgger",
        progress_bar: bool = False,
    ) -> Self:
        """Make whole rounds until there are `total_timesteps` steps or more (imitation's `train`).

        A second call continues with the same policy, transitions, round number and log, for so many steps more. After
        `resume` it must have the same total as the call that was cut off.

        Args:
            total_timesteps: of all environments together.
            callback: SB3's callbacks, one or a list; a rollout is a round's collection, a step one of all environments.
                One that returns False ends the training there; the round that it breaks off leaves nothing.
            tb_log_name: of the run's folder in `tensorboard_log`.
            progress_bar: show one, of steps.

        Returns:
            The agent itself.

        Raises:
            TypeError: `total_timesteps` is no whole number.
            ValueError: no expert, no environment, an argument that the file could not keep, another total than that of
                the run that is resumed, a scratch folder with another run in it, an illegal action of the expert,
                initial demonstrations without the masks that the environment has.
            TrainingDivergedError: the loss or a parameter became NaN or infinite.
        """
        total = check_positive_int("total_timesteps", total_timesteps)
        self._check_can_learn("expert", self.expert)
        if (size := Ranks.current().size) > 1:
            raise ValueError(f"DAgger trains in one process, and there are {size}: use more environments.")
        self._check_masks()
        self._progress.begin(total, "total_timesteps", is_resumed=self.is_resumed)
        end = self._progress.end
        with (
            self._training(callback, tb_log_name, end) as listener,
            open_progress_bar(end, self.num_timesteps, "step", shown=progress_bar) as bar,
        ):
            while not self._progress.is_over and self._one_round(listener, bar):
                pass
        return self

    def _check_masks(self) -> None:
        """Raise ValueError unless all transitions so far have masks, or none, as the environment has or lacks them."""
        assert self.env is not None
        has_masks = self.env.has_attr("action_masks")
        parts = [] if self.initial is None else [("demonstrations", self.initial)]
        parts += [(f"the transitions of round {number}", part) for number, part in enumerate(self.rounds)]
        for name, part in parts:
            if (part.action_masks is not None) != has_masks:
                raise ValueError(
                    f"{name} {'lack' if has_masks else 'have'} action_masks, which the environment "
                    f"{'has' if has_masks else 'lacks'}: record and train in the same environment."
                )

    def _one_round(self, listener: BaseCallback | None, bar: Any) -> bool:
        """Collect, ask, add, clone; returns False if a callback ended it."""
        assert self._shown is not None
        assert self.expert is not None
        if self._asked is None or self._asked.origin is not self.expert:
            self._asked = self._expert_in(self._shown, self.expert)
        bar.set_postfix_str("collecting")
        beta = self.beta(self.round)
        made = self._take_collected()
        if made is None:
            with self._rollout(listener, bar) as after_step:
                made = collect_round(
                    self.bc,
                    self._asked,
                    self._shown,
                    beta=beta,
                    min_episodes=self.rollout_round_min_episodes,
                    min_timesteps=self.rollout_round_min_timesteps,
                    seed=self._seed_of(COLLECTING),
                    learner_deterministic=self.learner_deterministic,
                    check=self._check_observations,
                    after_step=after_step,
                )
            if made is None:
                return False
            self._keep_collected(made)

        bar.set_postfix_str("cloning")
        agreed = agreement(self.bc, made.demonstrations)
        rounds = [*self.rounds, made.demonstrations]
        together = _aggregate(self.initial, rounds)
        clone, cloned = self._train_clone(together, self.bc_train_n_epochs)
        line = {
            "round": float(self.round + 1),
            "round_num": float(self.round),
            "beta": beta,
            "learner_share": made.learner_share,
            "transitions": float(len(together)),
            "total_timesteps": float(self.num_timesteps),
            "round_episode_count": float(len(made.returns)),
            "round_timestep_count": float(len(made.demonstrations)),
            "mean_episode_reward": float(made.returns.mean()),
            **agreed,
            **cloned,
        }
        self.bc, self.rounds, self._aggregated = clone, rounds, together
        self.round += 1
        self._end_round(line, bar)
        return True

    def _expert_in(self, env: VecEnv, expert: ExpertLike) -> Expert:
        return Expert(
            expert,
            env,
            targets=self.expert_targets,
            deterministic=self.expert_deterministic,
            batched=self._is_batched,
        )

    # ---- files

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: GymEnv | str | None = None,
        expert: ExpertLike | None = None,
        *,
        demonstrations: Demonstrations | None = None,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a file of `save`. Runs no code that the file could name.

        `learn` then starts with round 0 again, from the policy of the file.

        Args:
            path: the file.
            env: an environment with the same spaces; acting needs none.
            expert: to learn from; acting needs none.
            demonstrations: to begin with, for example those that the saved agent had.
            device: as SB3's.
            policy_class: of a policy of your own.
            custom_objects: `beta_schedule`, `learning_rate`, `smoothing` and `reference` in place of the file's, and
                constructor arguments of a policy of your own.

        Raises:
            SafeFileError: the file is damaged, or of another kind of agent.
            ValueError: spaces that differ.
        """
        return cls._read(
            path,
            env,
            expert,
            device=device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            demonstrations=demonstrations,
        )

    @classmethod
    def resume(
        cls,
        scratch_dir: str | Path,
        env: GymEnv | str,
        expert: ExpertLike,
        *,
        eval_env: GymEnv | str | None = None,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """The agent of the last checkpoint; `learn` with the same total then makes what is missing.

        On the CPU the parameters at the end equal those of a run that was never cut off, bit for bit, if the expert is
        the same and says the same to the same observations. A round that was cut off is resumed from the last
        checkpoint of its training, and the expert is not asked again. What was cut off while it collected episodes
        collects them again; SIGINT and SIGTERM let a command collect them all first. Callbacks start anew: their own
        state is not kept.

        Args:
            scratch_dir: of the run; the initial demonstrations are there.
            env: an environment like the run's, with as many environments.
            expert: the same as that of the run.
            eval_env: an evaluation environment like the run's.
            tensorboard_log: the folder for TensorBoard files that the run had.
            verbose: 0 nothing, 1 logs on the terminal.
            device: as SB3's.
            policy_class: of a policy of your own.
            custom_objects: in place of what the file has, as in `load`.

        Raises:
            SafeFileError: no checkpoint can be read.
            DemonstrationsFileError: the episodes of a round are missing or damaged.
            ValueError: there is no run, the number of environments is another, or the episodes are not the run's.
        """
        run = cls._folder_of_run(scratch_dir)
        run.check_resumable()
        initial = _initial_path(run.path)
        agent = cls._read(
            run.path / RESUME_FILE,
            env,
            expert,
            device=device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            demonstrations=Demonstrations.load(initial) if initial.is_file() else None,
            eval_env=eval_env,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            scratch_dir=run.path,
        )
        cls._restore_checkpoint(agent, run)
        run.delete_leftovers()
        for folder in (*run.path.glob("demos"), *run.path.glob("demos/round-*")):
            if folder.is_dir():
                delete_temporary_files(folder, r"initial\.npz", r"\d{3,}\.npz")
        return agent

    @classmethod
    def _read(
        cls,
        path: str | Path,
        env: GymEnv | str | None,
        expert: ExpertLike | None,
        *,
        device: torch.device | str,
        policy_class: type[BasePolicy] | None,
        custom_objects: Mapping[str, Any] | None,
        **others: Any,
    ) -> Self:
        custom = dict(custom_objects or {})
        given = {name: custom.pop(name) for name in ("beta_schedule",) if name in custom}
        file = cls._read_file(path, env, device=device, policy_class=policy_class, custom_objects=custom)
        is_missing = file.arguments["beta_schedule"] is None and "beta_schedule" not in given
        if file.arguments["beta_schedule"] is None:
            file.arguments["beta_schedule"] = PLACEHOLDER_SCHEDULE
        # The environment as it was given: its kind decides how a function is asked.
        agent = cls._build(file, env, expert, device=device, **given, **others)
        if is_missing:
            agent.missing = (*agent.missing, "beta_schedule")
        return agent

    def _own_arguments(self) -> dict[str, Any]:
        own = super()._own_arguments()
        return own if not callable(self.beta_schedule) else {**own, "beta_schedule": None}

    def _begin_checkpoints(self, run: RunFolder) -> None:
        path = _initial_path(run.path)
        if self.initial is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.initial.save(path)
        super()._begin_checkpoints(run)

    def _kept(self, made: Collected | None) -> dict[str, Any]:
        parts = self.rounds if made is None else [*self.rounds, made.demonstrations]
        return {
            "total_timesteps": self._progress.end,
            "num_timesteps_at_start": self._progress.start,
            "initial": None if self.initial is None else fingerprint(self.initial),
            "episodes": [part.num_episodes for part in parts],
            "fingerprints": [fingerprint(part) for part in parts],
            "collected": None if made is None else {"returns": made.returns.tolist(), "share": made.learner_share},
        }

    def _save_round(self, folder: Path, number: int, made: Collected | None = None) -> None:
        part = self.rounds[number] if made is None else made.demonstrations
        _round_folder(folder, number).mkdir(parents=True, exist_ok=True)
        for place in range(part.num_episodes):
            part.select_episodes([place]).save(_episode_path(folder, number, place))

    def _restore(self, folder: Path, config: Mapping[str, Any] | None) -> None:
        if config is None:
            return
        collected, timesteps = config.get("collected"), config.get("collected_timesteps")
        rounds = self.round + (collected is not None)
        kept = {len(config["episodes"]), len(config["fingerprints"]), rounds, self.round + (timesteps is not None)}
        if len(kept) > 1 or config["num_timesteps_at_start"] > self.num_timesteps:
            raise SafeFileError(f"{str(folder)!r} has a checkpoint whose counts disagree. Use another copy.")
        if config["initial"] != (None if self.initial is None else fingerprint(self.initial)):
            raise ValueError(f"{str(_initial_path(folder))!r} does not hold what the run was started with.")
        for number, (count, known) in enumerate(zip(config["episodes"], config["fingerprints"], strict=True)):
            episodes = [Demonstrations.load(_episode_path(folder, number, place)) for place in range(count)]
            self.rounds.append(concatenate(episodes))
            if fingerprint(self.rounds[-1]) != known:
                raise ValueError(f"{str(_round_folder(folder, number))!r} does not hold the episodes of this run.")
        if collected is not None and timesteps is not None:
            made = Collected(self.rounds.pop(), np.array(collected["returns"]), collected["share"])
            self._collected = made, timesteps
        self._progress.start, self._progress.end = config["num_timesteps_at_start"], config["total_timesteps"]
        self.is_resumed = True


def _initial_path(folder: Path) -> Path:
    return folder / "demos" / "initial.npz"


def _round_folder(folder: Path, number: int) -> Path:
    return folder / "demos" / f"round-{number:03d}"


def _episode_path(folder: Path, number: int, place: int) -> Path:
    return _round_folder(folder, number) / f"{place:03d}.npz"


def _as_given(env: VecEnv, given: object) -> VecEnv:
    """The environment without the image transposer that Stable-Baselines3 puts around what the caller gave.

    Demonstrations and functions as experts know images in the caller's layout; policies transpose what they get.
    """
    return env.venv if isinstance(env, VecTransposeImage) and env is not given else env


def _initial_transitions(
    given: Demonstrations, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Demonstrations:
    """Initial demonstrations as rounds have them: without rewards and next observations, images in the same layout.

    The spaces are the environment's. Raises TypeError for no demonstrations, ValueError for other spaces.
    """
    check_demonstrations("demonstrations", given)
    check_same_spaces(
        "demonstrations", (given.observation_space, given.action_space), (observation_space, action_space)
    )
    whole = given[:]
    seen = whole.observations
    return Demonstrations(
        observations={key: _in_layout(seen[key], observation_space[key]) for key in seen}
        if isinstance(seen, dict) and isinstance(observation_space, spaces.Dict)
        else _in_layout(np.asarray(seen), observation_space),
        actions=whole.actions,
        observation_space=observation_space,
        action_space=action_space,
        episode_ends=given.episode_ends,
        terminations=whole.terminations,
        truncations=whole.truncations,
        action_masks=whole.action_masks,
        weights=whole.weights,
        action_probs=whole.action_probs,
    )


def _aggregate(initial: Demonstrations | None, rounds: Sequence[Demonstrations]) -> Demonstrations:
    """The initial demonstrations and all rounds so far, one after the other.

    Where one part has soft targets the others' actions become such, of probability 1; where one has weights the others
    weigh 1.
    """
    parts = [*([] if initial is None else [initial]), *rounds]
    latest = parts[-1].observation_space  # another environment may show images in another layout
    parts = [
        part if part.observation_space == latest else _initial_transitions(part, latest, part.action_space)
        for part in parts
    ]
    if any(part.action_probs is not None for part in parts):
        parts = [_with_soft_targets(part) for part in parts]
    if any(part.weights is not None for part in parts):
        parts = [
            part if part.weights is not None else part.replace_unchecked(weights=np.ones(len(part))) for part in parts
        ]
    return concatenate(parts)


def _with_soft_targets(part: Demonstrations) -> Demonstrations:
    """The same with `action_probs`: where there are none, the actions have probability 1."""
    if part.action_probs is not None:
        return part
    assert isinstance(part.action_space, spaces.Discrete)
    labels = torch.from_numpy(part.action_labels)
    certain = one_hot(labels, int(part.action_space.n)).dense(torch.float64).numpy()
    return part.replace_unchecked(action_probs=certain)


def _in_layout(images: NDArray[Any], space: spaces.Space[Any]) -> NDArray[Any]:
    """Images whose channels come first where the environment's come last, or the other way round."""
    shape = space.shape or ()
    if images.shape[1:] == shape or len(shape) != 3:
        return images
    last = np.moveaxis(images, 1, -1)
    return last if last.shape[1:] == shape else np.moveaxis(images, -1, 1)
