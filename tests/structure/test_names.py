"""The public names: sorted, complete, documented, and at least those that the design binds."""

from __future__ import annotations

import importlib
import inspect

import pytest

PACKAGES = [
    "rlsmooth",
    "rlsmooth.agents",
    "rlsmooth.audits",
    "rlsmooth.data",
    "rlsmooth.envs",
    "rlsmooth.losses",
    "rlsmooth.targets",
    "rlsmooth.training",
]

# Other people's programs call these: none may go, and a new one is added here with the change that brings it.
BINDING = {
    "rlsmooth": "__version__",
    "rlsmooth.agents": """
        AIRL BC BCO DAgger ExactCheckpointCallback GAIL InverseDynamics LearnedRewardVecEnv
        PolicyEntropyCallback RewardNet ShapedRewardNet SmoothedA2C SmoothedActorCriticCnnPolicy
        SmoothedActorCriticPolicy SmoothedMaskableActorCriticPolicy SmoothedMaskablePPO
        SmoothedMultiInputActorCriticPolicy SmoothedPPO SmoothedRecurrentActorCriticPolicy SmoothedRecurrentPPO
        load_agent load_reward_net save_agent save_reward_net
    """,
    "rlsmooth.audits": """
        accuracy adaptive_calibration_error average_mean_absolute_error brier_score calibration_error
        classification_summary classwise_calibration_error distance_at_k fit_temperature implied_alpha
        mean_absolute_error mean_logit_margin mistake_severity negative_log_likelihood optimal_margin
        ranked_probability_score risk_coverage
    """,
    "rlsmooth.data": "Demonstrations LabelledData ObservationOnly concatenate load_labelled record",
    "rlsmooth.losses": """
        binary_cross_entropy confidence_penalty cross_entropy entropy expected_value kl_divergence
        label_relaxation statistics
    """,
    "rlsmooth.targets": """
        Smoothing Target Tree boltzmann completed_q confidence_adaptive from_probs hierarchical hl_gauss kernel
        mixture one_hot ordinal prior sparse teacher two_hot uniform visit_counts
    """,
    "rlsmooth.training": "Classifier SelfTraining",
}


def sort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, each by the alphabet: ruff's rule RUF022 keeps the same order."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_has_no_name_twice(package: str) -> None:
    names = importlib.import_module(package).__all__
    assert list(names) == sorted(set(names), key=sort_key)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_all_exists_and_has_a_docstring(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert value.__doc__, f"{package}.{name} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_all_leaves_out_no_public_name(package: str) -> None:
    module = importlib.import_module(package)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and name != "annotations"  # from __future__
        and getattr(value, "__module__", package).split(".")[0] == "rlsmooth"
    }
    assert public <= set(module.__all__)


@pytest.mark.parametrize("name", ["sb3", "spaces"])
def test_all_of_a_module_of_services_lists_each_of_them(name: str) -> None:
    module = importlib.import_module(f"rlsmooth.agents.{name}")
    own = {
        found
        for found, value in vars(module).items()
        if inspect.isroutine(value) and value.__module__ == module.__name__ and not found.startswith("_")
    }
    assert own <= set(module.__all__)


@pytest.mark.parametrize("package", sorted(BINDING))
def test_the_names_that_the_design_binds_are_there(package: str) -> None:
    assert set(importlib.import_module(package).__all__) >= set(BINDING[package].split())


def test_every_public_function_of_the_libraries_shows_an_example() -> None:
    without = []
    for package in ("rlsmooth.audits", "rlsmooth.data", "rlsmooth.losses", "rlsmooth.targets"):
        module = importlib.import_module(package)
        functions = {name: getattr(module, name) for name in module.__all__ if inspect.isroutine(getattr(module, name))}
        assert functions, f"{package} has no public function"
        without += [
            f"{package}.{name}" for name, function in functions.items() if ">>>" not in (function.__doc__ or "")
        ]
    assert not without, f"no `>>>` example in: {', '.join(without)}"
