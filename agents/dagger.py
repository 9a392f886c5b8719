"""DAgger: the learner visits states of its own making, and the expert says what it would have done there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.bc import BC, SmoothingLike
from rlsmooth.agents.bc_run import Callbacks
from rlsmooth.agents.bc_targets import ReferenceLike
from rlsmooth.agents.dagger_collection import agreement, collect_round
from rlsmooth.agents.dagger_expert import Expert, ExpertLike, ExpertTargets
from rlsmooth.agents.dagger_files import SavedDAgger, begin_checkpoints, write_checkpoint
from rlsmooth.agents.dagger_schedule import BetaSchedule, as_beta_schedule
from rlsmooth.agents.dagger_setup import aggregate, check_ready, initial_rows, shown_by
from rlsmooth.agents.quiet_training import train_quietly
from rlsmooth.agents.rounds import ACTING, CLONE_SHOWN
from rlsmooth.checks import check_choice, check_positive_int, check_writable_folder
from rlsmooth.data import Demonstrations
from rlsmooth.schedules import LearningRate

__all__ = ["DAgger"]


@final
class DAgger(SavedDAgger):
    """Clone an expert that can be asked, on the states that the clone itself gets into, with smoothed targets.

    Plain cloning (`BC`) sees the expert's states only. Where a small mistake leads elsewhere, the clone does not know
    what to do, and the mistakes add up: quadratically in the episode's length, where DAgger's grow linearly. Each round
    (1) acts by a mixture, in every step with probability beta as the expert, else as the learner; (2) asks the expert
    for its action at every state on the way; (3) adds these to all transitions so far; (4) trains the policy on all of
    them by `BC`, whose targets are smoothed:

        loss = CE(smoothed target, pi) + kl_coef · KL(reference‖pi)     (nats; see `BC`)

    Source: Ross et al. 2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online
    Learning", algorithm 3.1. Rounds, schedules and defaults are those of the imitation library's
    `SimpleDAggerTrainer`, but for the smoothing. The agent is used as a model of Stable-Baselines3. A seeded run
    repeats bit for bit, if the expert says the same to the same observations.

    Episodes must end: put a `TimeLimit` around an environment that goes on for ever. Masks are asked from an
    environment that has `action_masks()`: the learner takes no illegal action, an illegal one of the expert is an
    error.

    Log lines, one a round, under `dagger/`: `round` (how many are done), `beta`, `learner_share` (of the steps),
    `transitions` (of all rounds, and initial ones), `expert_agreement` (share of this round's states at which the
    learner, before it was trained on them, would have done what the expert did; of a Box `expert_error`, root mean
    square), `cross_entropy`, `nll_hard`, `accuracy`, `ece`, `policy_entropy`, `entropy_frac`, `kl_uniform`,
    `kl_reference`, `smoothing` (as under `bc/`, over all transitions, after training), with an `eval_env`
    `mean_reward`, `mean_reward_sampled` and so on; and imitation's `mean_episode_reward` (of the mixture),
    `total_timesteps`, `round_num` (from 0), `round_episode_count`, `round_timestep_count`.

    Args:
        policy: as of `BC`.
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
        expert_deterministic: ask for the expert's most probable action, else a sampled one; says nothing to a function
            that returns actions.
        learner_deterministic: the mixture's learner takes its most probable action, else a sampled one.
        beta_schedule: a whole number n: from 1 in round 0 straight down to 0 in round n; a float b in (0, 1]:
            `b ** round`; or a function of the round, with values in [0, 1].
        rollout_round_min_episodes: a round ends when it has so many episodes and ...
        rollout_round_min_timesteps: ... they so many steps.
        bc_train_n_epochs: passes over all transitions in each round.
        smoothing: as of `BC`.
        kl_coef: as of `BC`.
        reference: as of `BC`.
        reference_std: as of `BC`.
        action_bins: as of `BC`.
        learning_rate: as of `BC`, a schedule runs once a round.
        batch_size: as of `BC`.
        max_grad_norm: as of `BC`.
        l2_coef: as of `BC`.
        policy_kwargs: as SB3's.
        seed: as of `BC`; of the environments too.
        device: as SB3's.
        tensorboard_log: folder for TensorBoard files; None: none.
        verbose: 0 nothing, 1 logs on the terminal.
        scratch_dir: where each round's episodes go, and a checkpoint that `resume` goes on from; None: nowhere.
        eval_env: environment of an evaluation at the end of each round; None: there are none.
        n_eval_episodes: episodes of an evaluation, so many deterministic and so many sampled.

    Attributes:
        bc: the clone: what `SmoothedPPO.from_bc` takes.
        expert: the argument.
        initial: the initial demonstrations, or None.
        rounds: what each round has seen, labelled by the expert.
        demonstrations: all of it; None before the first round without initial ones. There are neither rewards nor next
            observations: those belong to what was done, which need not be what the expert says.
        round: how many rounds are done.
        history: the numbers of each round's log line, without `dagger/`.
        num_timesteps: steps that were made, those left out that an environment had to make after its last episode.

    Raises:
        TypeError: an argument of a kind that is not listed; see `BC`.
        ValueError: a value outside its range, spaces that differ, probabilities of another action space than a Discrete
            one; see `BC`.

    Example:
        >>> from rlsmooth.envs import IdentityEnv
        >>> env = IdentityEnv(4, episode_length=10)
        >>> agent = DAgger("MlpPolicy", env, env.expert_action, rollout_round_min_timesteps=50, learning_rate=0.01,
        ...     bc_train_n_epochs=20, seed=0, device="cpu").learn(100)
        >>> agent.round, agent.num_timesteps, len(agent.demonstrations), agent.history[-1]["accuracy"]
        (2, 100, 100, 1.0)
    """

    PREFIX: ClassVar[str] = "dagger"

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
        self.n_eval_episodes = check_positive_int("n_eval_episodes", n_eval_episodes)
        self.tensorboard_log = None
        if tensorboard_log is not None:
            self.tensorboard_log = str(check_writable_folder("tensorboard_log", tensorboard_log))
        self.verbose = verbose
        self.scratch_dir = None if scratch_dir is None else check_writable_folder("scratch_dir", scratch_dir)
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
        self.observation_space, self.bins = self.bc.observation_space, self.bc.bins
        self._action_start = self.bc._action_start
        self.eval_env = None if eval_env is None else agent_spaces.wrap_env("eval_env", eval_env, verbose)
        agent_spaces.check_all_spaces((self.observation_space, self.action_space), None, None, self.eval_env)

        self._is_batched = isinstance(env, VecEnv)
        self._shown = None if self.env is None else shown_by(self.env, env)
        self.expert = expert
        self._asked: Expert | None = None
        if expert is not None and self._shown is not None:
            self._asked = self._expert_in(self._shown, expert)
        shown = observation_space if self._shown is None else self._shown.observation_space
        self.initial = None if demonstrations is None else initial_rows(demonstrations, shown, self.action_space)
        self.rounds: list[Demonstrations] = []
        self._aggregated: Demonstrations | None = None
        self.round = self.num_timesteps = 0
        self._total_timesteps = self._num_timesteps_at_start = 0
        self.history: list[dict[str, float]] = []
        self.n_envs = 1 if self.env is None else self.env.num_envs
        self.is_resumed = False
        self.missing: tuple[str, ...] = ()
        self._logger = None
        self._has_logger = self._has_custom_logger = False

    @property
    def demonstrations(self) -> Demonstrations | None:
        """All transitions so far, labelled by the expert; None where there are none."""
        if self._aggregated is None and (self.initial is not None or self.rounds):
            self._aggregated = aggregate(self.initial, self.rounds)
        return self._aggregated

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Use another environment from now on; see `ActingModel.set_env`."""
        super().set_env(env, force_reset)
        assert self.env is not None
        self._is_batched, self._shown, self._asked = isinstance(env, VecEnv), shown_by(self.env, env), None

    def learn(
        self,
        total_timesteps: int,
        callback: Callbacks = None,
        *,
        tb_log_name: str = "DAgger",
        progress_bar: bool = False,
    ) -> Self:
        """Make whole rounds until there are `total_timesteps` steps or more (imitation's `train`).

        A second call goes on: with the same policy, transitions, round number and log, for so many steps more. After
        `resume` it must have the same total as the call that was cut off.

        Args:
            total_timesteps: of all environments together.
            callback: SB3's callbacks, one or a list; a rollout is a round's acting, a step one of all environments. One
                that returns False ends the training there; the round that it breaks off leaves nothing.
            tb_log_name: of the run's folder in `tensorboard_log`.
            progress_bar: show one, of steps.

        Returns:
            The agent itself.

        Raises:
            TypeError: `total_timesteps` is no whole number.
            ValueError: no expert, no environment, an argument that the file could not keep, another total than that of
                the run that is resumed, a scratch folder with another run in it, an illegal action of the expert,
                initial demonstrations without the masks that the environment has.
            TrainingDivergedError: see `BC.learn`.
        """
        total = check_positive_int("total_timesteps", total_timesteps)
        check_ready(self)
        if self.is_resumed:
            planned = self._total_timesteps - self._num_timesteps_at_start
            if total != planned:
                raise ValueError(
                    f"the run that is resumed was for total_timesteps={planned}, not {total}: ask for more in another "
                    "call."
                )
        else:
            self._num_timesteps_at_start = self.num_timesteps
            self._total_timesteps = self.num_timesteps + total
        self._prepare_logger(tb_log_name, goes_on=self.is_resumed)
        if self.scratch_dir is not None and not self.is_resumed:
            begin_checkpoints(self)
        self.is_resumed = False
        listener = self._prepare_callback(callback)
        if listener is not None:
            listener.on_training_start({"self": self, "total_timesteps": self._total_timesteps}, globals())
        span = {"total": self._total_timesteps, "initial": self.num_timesteps, "unit": "step"}
        with tqdm(**span, disable=not progress_bar) as bar:
            while self.num_timesteps < self._total_timesteps and self._one_round(listener, bar):
                pass
        if listener is not None:
            listener.on_training_end()
        return self

    def _one_round(self, listener: BaseCallback | None, bar: Any) -> bool:
        """Act, ask, add, clone; returns False if a callback ended it."""
        assert self._shown is not None
        assert self.expert is not None
        if self._asked is None or self._asked.origin is not self.expert:
            self._asked = self._expert_in(self._shown, self.expert)
        bar.set_postfix_str("acting")
        if listener is not None:
            listener.on_rollout_start()
        before, beta = self.num_timesteps, self.beta(self.round)

        def after_step(num_kept: int) -> bool:
            self.num_timesteps += num_kept
            bar.update(num_kept)
            return listener is None or listener.on_step()

        try:
            made = collect_round(
                self.bc,
                self._asked,
                self._shown,
                beta=beta,
                min_episodes=self.rollout_round_min_episodes,
                min_timesteps=self.rollout_round_min_timesteps,
                seed=self._seed_of(ACTING),
                learner_deterministic=self.learner_deterministic,
                after_step=after_step,
            )
        except BaseException:  # the round leaves nothing
            self.num_timesteps = before
            raise
        if made is None:
            self.num_timesteps = before
            return False
        if listener is not None:
            listener.on_rollout_end()

        bar.set_postfix_str("cloning")
        agreed = agreement(self.bc, made.demonstrations)
        rounds = [*self.rounds, made.demonstrations]
        together = aggregate(self.initial, rounds)
        clone = self._new_clone(together)
        cloned = train_quietly(clone, self.bc_train_n_epochs)
        found = {
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
            **{name: cloned[name] for name in CLONE_SHOWN if name in cloned},
        }
        self.bc, self.rounds, self._aggregated = clone, rounds, together
        self.round += 1
        if self.eval_env is not None:
            bar.set_postfix_str("playing")
            found |= self.evaluate()
        self._log(found)
        if self.scratch_dir is not None:
            write_checkpoint(self)
        return True

    def _expert_in(self, env: VecEnv, expert: ExpertLike) -> Expert:
        return Expert(
            expert,
            env,
            targets=self.expert_targets,
            deterministic=self.expert_deterministic,
            batched=self._is_batched,
        )
