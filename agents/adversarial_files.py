"""What GAIL and AIRL keep on the disk: a file of the whole trainer, and runs that go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor, nn

from rlsmooth.agents.adversarial_state import argument_names, build_trainer, for_net, set_run_state, trainer_state
from rlsmooth.agents.agent_file import load_parameters
from rlsmooth.agents.exact_checkpoint import ExactCheckpointCallback, load_checkpoint
from rlsmooth.agents.model_classes import ALGORITHM_BASES, Algorithm
from rlsmooth.agents.model_state import (
    extra_modules,
    load_extra_modules,
    load_optimizers,
    optimizers,
    plain_attributes,
    set_plain_attributes,
)
from rlsmooth.agents.normalization import apply_normalization, encode_normalization
from rlsmooth.agents.reward_file import with_suffix
from rlsmooth.agents.spaces import check_same_spaces
from rlsmooth.data import Demonstrations
from rlsmooth.data.space_json import space_from_json, space_to_json
from rlsmooth.training import SafeFileError, read_safe_file, tree_from_json, tree_to_json, write_safe_file

if TYPE_CHECKING:
    from rlsmooth.agents.adversarial import AdversarialImitation

__all__ = ["ResumedImitation", "SavedImitation"]

FORMAT_NAME = "rlsmooth-imitation"
FORMAT_VERSION = 1
ROUNDS = "rlsmooth.agents.adversarial_rounds.Rounds"
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError, AssertionError)


@dataclass(frozen=True, kw_only=True)
class ResumedImitation:
    """A run of GAIL or AIRL that stands where its last checkpoint was written.

    Go on by `run.trainer.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)`.

    Attributes:
        trainer: with its generator and the environments.
        callback: to be given to `trainer.learn`, in the place that it had; it goes on writing checkpoints.
        total_timesteps: what the run was to reach, in environment steps.
        remaining_timesteps: what is left of it; 0 for a finished run.
        is_exact: whether the environments are where they were; False: `learn` starts new episodes.
    """

    trainer: Any
    callback: ExactCheckpointCallback
    total_timesteps: int
    remaining_timesteps: int
    is_exact: bool


class SavedImitation:
    """The part of `GAIL` and `AIRL` that reads and writes files."""

    def save(self, path: str | Path) -> Path:
        """Write a file of the whole trainer: arguments, generator, reward network, optimisers, counters.

        Not kept: the demonstrations, the environment, a replay buffer, and the generator's latest rows, which the next
        round makes anew. The generator alone is kept by `save_agent`, the network alone by `save_reward_net`. A run
        that may be killed needs `ExactCheckpointCallback` and `resume`.

        Args:
            path: `.zip` is added to a name without a suffix, and a missing folder made.

        Returns:
            The path written.

        Raises:
            ValueError: the folder can't be written to.
        """
        trainer = cast("AdversarialImitation", self)
        path = with_suffix(path)
        algorithm = _algorithm(trainer.gen_algo)
        generator, tensors = _generator_state(algorithm)
        state, of_trainer = tree_to_json(trainer_state(trainer), "trainer")
        config = {
            "trainer": state,
            "generator": generator,
            "spaces": [space_to_json(space) for space in (algorithm.observation_space, algorithm.action_space)],
        }
        write_safe_file(
            path,
            config,
            tensors={**tensors, "trainer": of_trainer},
            format_name=FORMAT_NAME,
            format_version=FORMAT_VERSION,
        )
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        demonstrations: Demonstrations,
        gen_algo: BaseAlgorithm,
        reward_net: nn.Module | None = None,
        *,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a file of `save`, and go on from there. Runs no code that the file could name.

        `learn(..., reset_num_timesteps=False)` then goes on counting.

        Args:
            path: the file.
            demonstrations: those of before, or others in the same spaces.
            gen_algo: built as before, with its environment; it gets parameters, optimisers, counters, and the
                statistics of its `VecNormalize`.
            reward_net: one of your own, built as before; None: built as the file says.
            custom_objects: argument to value, of the trainer or of the network, in place of the file's; needed where
                these are classes of your own.

        Raises:
            SafeFileError: the file is damaged, of another class, or does not fit `gen_algo` or `reward_net`.
            ValueError: spaces that differ.
        """
        path = Path(path).expanduser()
        path = path if path.exists() or path.suffix else path.with_name(f"{path.name}.zip")
        content = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
        algorithm = _algorithm(gen_algo)
        build = cast("type[AdversarialImitation]", cls)
        try:
            observation_space, action_space = map(space_from_json, content.config["spaces"])
            state = tree_from_json(content.config["trainer"], content.tensors["trainer"])
            generator = dict(content.config["generator"])
            kind = str(generator["class"])
        except MALFORMED as error:
            raise SafeFileError(f"{str(path)!r} is malformed ({error!r}). Use another copy.") from error
        check_same_spaces(
            "gen_algo", (algorithm.observation_space, algorithm.action_space), (observation_space, action_space)
        )
        if kind != type(algorithm).__name__:
            raise SafeFileError(
                f"{str(path)!r} has a {kind}, gen_algo is a {type(algorithm).__name__}: build it as before."
            )
        try:
            trainer = build_trainer(
                build,
                path,
                state,
                demonstrations,
                algorithm,
                reward_net=reward_net,
                custom_objects=custom_objects or {},
            )
            _set_generator_state(path, algorithm, generator, content.tensors)
        except SafeFileError:
            raise
        except MALFORMED as error:
            raise SafeFileError(f"{str(path)!r} does not fit: {error}") from error
        return cast("Self", trainer)

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        demonstrations: Demonstrations,
        env: GymEnv | str,
        *,
        device: torch.device | str = "auto",
        reward_net: nn.Module | None = None,
        model_class: type[Algorithm] | None = None,
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
    ) -> ResumedImitation:
        """The run of `learn` with an `ExactCheckpointCallback`, as it stood when its last checkpoint was written.

        On the CPU the parameters of generator and network at the end equal those of a run that was never cut off.

        Args:
            folder: `save_path` of the callback.
            demonstrations: those of the run.
            env: built and wrapped as that of the run, with as many environments.
            device: as in Stable-Baselines3.
            reward_net: one of your own, built as before; None: built as the checkpoint says.
            model_class: see `load_agent`.
            policy_class: see `load_agent`.
            custom_objects: argument to value, of the trainer (`disc_opt_cls`) or generator (see `load_agent`); of
                those that the checkpoint marks as its writer's own, of the network too.
            tensorboard_log: as of the run.
            verbose: as in Stable-Baselines3.

        Raises:
            ValueError: there is no run in the folder, or environments or demonstrations are others, or
                `custom_objects` has another learning rate.
            SafeFileError: no checkpoint can be read, or it is of another class, or does not fit.

        Example:
            >>> import tempfile
            >>> from stable_baselines3 import PPO
            >>> from rlsmooth.agents.gail import GAIL
            >>> from rlsmooth.data import cartpole_v1
            >>> folder = tempfile.mkdtemp()
            >>> generator = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu")
            >>> _ = GAIL(cartpole_v1(), generator, seed=0).learn(128, ExactCheckpointCallback(64, folder))
            >>> run = GAIL.resume(folder, cartpole_v1(), "CartPole-v1", device="cpu")
            >>> run.trainer.rounds, run.remaining_timesteps
            (2, 0)
        """
        build = cast("type[AdversarialImitation]", cls)
        names = argument_names(build)
        custom = dict(custom_objects or {})
        for name in ("disc_learning_rate", "disc_opt_kwargs"):
            if name in custom:
                raise ValueError(
                    f"custom_objects has {name}, and a resumed run goes on as before: `load` takes it, for a new run."
                )
        run = load_checkpoint(
            folder,
            env,
            device=device,
            model_class=model_class,
            policy_class=policy_class,
            custom_objects={name: value for name, value in custom.items() if name not in names},
            tensorboard_log=tensorboard_log,
            verbose=verbose,
        )
        path = Path(folder).expanduser()
        state = run.callback_states.get(ROUNDS)
        if state is None:
            raise SafeFileError(f"{str(path)!r} holds a run without a discriminator: use load_checkpoint.")
        try:
            trainer = build_trainer(
                build,
                path,
                state["run"]["trainer"],
                demonstrations,
                run.model,
                reward_net=reward_net,
                custom_objects=for_net(state["run"]["trainer"], custom, names),
            )
        except SafeFileError:
            raise
        except MALFORMED as error:
            raise SafeFileError(f"{str(path)!r} does not fit: {error}") from error
        set_run_state(trainer, state["run"], path)
        return ResumedImitation(
            trainer=trainer,
            callback=run.callback,
            total_timesteps=run.total_timesteps,
            remaining_timesteps=run.remaining_timesteps,
            is_exact=run.is_exact,
        )


def _algorithm(gen_algo: BaseAlgorithm) -> Algorithm:
    if not isinstance(gen_algo, ALGORITHM_BASES):
        raise TypeError(f"gen_algo must be an algorithm of Stable-Baselines3, got {type(gen_algo).__name__}.")
    return gen_algo


def _generator_state(algorithm: Algorithm) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    optimizer, of_optimizer = optimizers(algorithm)
    modules, of_modules = extra_modules(algorithm)
    normalization, of_normalization = encode_normalization(algorithm.get_vec_normalize_env())
    config = {
        "class": type(algorithm).__name__,
        "attributes": plain_attributes(algorithm),
        "optimizer": optimizer,
        "modules": modules,
        "normalization": normalization,
    }
    tensors = {
        "policy": algorithm.policy.state_dict(),
        "optimizer": of_optimizer,
        "modules": of_modules,
        "normalization": of_normalization,
    }
    return config, tensors


def _set_generator_state(
    path: Path, algorithm: Algorithm, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    normalizer = algorithm.get_vec_normalize_env()
    if (config["normalization"] is None) != (normalizer is None):
        wrapped = "no VecNormalize" if normalizer is None else "a VecNormalize"
        raise SafeFileError(f"{str(path)!r} does not fit: gen_algo's environment has {wrapped}: wrap it as before.")
    load_parameters(path, algorithm.policy, tensors["policy"])
    load_extra_modules(path, algorithm, config["modules"], tensors["modules"])
    load_optimizers(algorithm, config["optimizer"], tensors["optimizer"])
    set_plain_attributes(algorithm, config["attributes"])
    if normalizer is not None:
        apply_normalization(normalizer, config["normalization"], tensors["normalization"])
