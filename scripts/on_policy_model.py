"""The environments and the algorithm that an on-policy run's arguments describe, checked before anything is written."""

from __future__ import annotations

from typing import Any, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rlsmooth.agents import BC
from rlsmooth.scripts.environment import check_device, make_envs, policy_alias
from rlsmooth.scripts.hyperparameters import Hyperparameters
from rlsmooth.scripts.on_policy_arguments import OnPolicyArgs
from rlsmooth.targets import Smoothing

__all__ = ["evaluation_envs", "new_model", "training_envs", "uses_masks"]

AlgorithmT = TypeVar("AlgorithmT", bound=BaseAlgorithm)
EVALUATION_SEED = 1_000_000  # other episodes than those to train on


def training_envs(args: OnPolicyArgs, hyperparameters: Hyperparameters) -> VecEnv:
    """The environments to train in, normalised if the hyperparameters say so."""
    env = make_envs(
        args.env, hyperparameters.n_envs, args.seed, vec_env=args.vec_env, env_kwargs=hyperparameters.env_kwargs
    )
    settings = _normalization(args, hyperparameters)
    return env if settings is None else VecNormalize(env, **settings)


def evaluation_envs(args: OnPolicyArgs, hyperparameters: Hyperparameters) -> VecEnv:
    """The environments to evaluate in; normalised by what training gathers, with rewards as they are."""
    env = make_envs(
        args.env,
        min(args.n_eval_envs, args.eval_episodes),
        evaluation_seed(args),
        env_kwargs=hyperparameters.env_kwargs,
    )
    settings = _normalization(args, hyperparameters)
    if settings is None:
        return env
    return VecNormalize(env, **{**settings, "training": False, "norm_reward": False})


def evaluation_seed(args: OnPolicyArgs) -> int:
    """The seed of each evaluation, so that two differ by the policy alone."""
    return (args.seed + EVALUATION_SEED) % 2**32


def uses_masks(algorithm: str, env: VecEnv, name: str) -> bool:
    """Whether the algorithm, by its command's name, trains with action masks.

    Raises:
        ValueError: it does, and the environment has none.
    """
    if algorithm != "maskable-ppo":
        return False
    from sb3_contrib.common.maskable.utils import is_masking_supported

    if not is_masking_supported(env):
        raise ValueError(f"env={name!r} has no action_masks(): use ppo, or an environment that has them.")
    return True


def new_model(
    algorithm: type[AlgorithmT], args: OnPolicyArgs, hyperparameters: Hyperparameters, env: VecEnv
) -> AlgorithmT:
    """A new algorithm, from scratch or from a cloned policy.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is wrong, two contradict each other, or the clone does not fit.
    """
    build: Any = algorithm
    arguments = {"seed": args.seed, "device": check_device(args.device), **hyperparameters.arguments}
    if args.from_bc is not None and args.reference != "uniform":
        raise ValueError("--reference can't be used with --from-bc: there KL is measured from the cloned policy.")
    _set_smoothing(args, arguments)
    if args.from_bc is None:
        if args.value_warmup_steps is not None:
            raise ValueError("--value-warmup-steps is for --from-bc: leave it out.")
        recurrent = "Recurrent" in algorithm.__name__
        policy = hyperparameters.policy or policy_alias(env.observation_space, recurrent=recurrent)
        model: AlgorithmT = build(policy, env, **arguments)
        return model
    path = args.from_bc / "agent.zip" if args.from_bc.is_dir() else args.from_bc
    if not path.is_file():
        raise ValueError(f"from_bc={str(args.from_bc)!r} is neither an agent's file nor a run's folder.")
    steps = args.value_warmup_steps
    if steps is None:
        steps = min(4_096, hyperparameters.n_timesteps // 10)
    elif steps >= hyperparameters.n_timesteps:
        raise ValueError(
            f"value_warmup_steps={steps} leaves nothing of n_timesteps={hyperparameters.n_timesteps}: give fewer."
        )
    clone = BC.load(path, device="cpu")
    started: AlgorithmT = build.from_bc(clone, env, value_warmup_steps=steps, **arguments)
    return started


def _set_smoothing(args: OnPolicyArgs, arguments: dict[str, Any]) -> None:
    """Numbers in place of words, and the reference beside the coefficient."""
    for name in ("smoothing", "exploration_floor"):
        if isinstance(arguments.get(name), str):
            arguments[name] = _number_or_word(arguments[name])
    if args.reference == "uniform":
        return
    has_target = any(arguments.get(name) is not None for name in ("target_entropy_frac", "target_entropy_nats"))
    smoothing = arguments.get("smoothing", 0.0)
    if smoothing == 0 and not has_target:
        raise ValueError(f"--reference {args.reference} does nothing without --smoothing: give it a coefficient.")
    arguments["smoothing"] = Smoothing(smoothing, args.reference)


def _number_or_word(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _normalization(args: OnPolicyArgs, hyperparameters: Hyperparameters) -> dict[str, Any] | None:
    settings = hyperparameters.normalize
    if settings is None:
        return None
    # The cloned policy has seen observations as they are.
    return dict(settings) if args.from_bc is None else {**settings, "norm_obs": False}
