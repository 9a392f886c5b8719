"""Public names, and formulas: where they may stand, sorted, complete, documented."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

from support import sources

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


# ---- no file outside rlsmooth.targets and rlsmooth.losses has a loss formula of its own


# Wherever they come from, except from our own libraries.
FORMULA_NAMES = """
    BCELoss BCEWithLogitsLoss CrossEntropyLoss KLDivLoss LogSoftmax NLLLoss binary_cross_entropy_with_logits kl_div
    log_softmax logsigmoid logsumexp nll_loss rel_entr xlogy
"""
FORMULAS = set(FORMULA_NAMES.split())
# Ours have the same names: these are foreign only where they come from one of these packages.
SHARED_FORMULAS = {"binary_cross_entropy", "cross_entropy", "entr", "entropy", "kl_divergence"}
FOREIGN = {"jax", "numpy", "scipy", "torch", "torchmetrics"}
MAY_HAVE_FORMULAS = ("rlsmooth/losses/", "rlsmooth/targets/", "scripts/bench/")  # benchmarks time hand-written ones


def origins(tree: ast.AST) -> dict[str, str]:
    """Map each imported local name to the dotted name that it stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module or ''}.{alias.name}"
    return found


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Give the full dotted name of `node`; one that starts at anything but an imported name begins with a dot."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{dotted(node.func, names)}()"
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


def is_formula(node: ast.AST, names: dict[str, str]) -> bool:
    """Tell whether `node` uses or defines a loss formula that is not from our two libraries."""
    if isinstance(node, ast.keyword):
        return node.arg == "label_smoothing"
    if isinstance(node, ast.FunctionDef):
        # SB3's distributions have an entropy() to override.
        return node.name in FORMULAS | SHARED_FORMULAS - {"entropy"}
    if not isinstance(node, (ast.Attribute, ast.Name)):
        return False
    name = dotted(node, names)
    first, last = name.split(".")[0], name.split(".")[-1]
    if name.endswith("softmax().log"):
        return True
    return (last in FORMULAS and first != "rlsmooth") or (last in SHARED_FORMULAS and first in FOREIGN)


def formulas(source: str) -> list[int]:
    """List the lines of `source` that have a loss formula of somebody else's or of their own."""
    tree = ast.parse(source)
    names = origins(tree)
    return [node.lineno for node in ast.walk(tree) if is_formula(node, names)]


def test_formulas_live_in_the_two_libraries() -> None:
    files = {name: source for name, source in sources().items() if not name.startswith(MAY_HAVE_FORMULAS)}
    found = [f"{name}:{line}" for name, source in files.items() for line in formulas(source)]
    assert not found, "use rlsmooth.losses instead:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.nn.functional.cross_entropy(x, y)",
        "import torch.nn.functional as F\nF.cross_entropy(x, y)",
        "from torch.nn import functional\nfunctional.kl_div(x, y)",
        "from torch.nn.functional import cross_entropy as ce\nce(x, y)",
        "import torch\ntorch.logsumexp(x, -1)",
        "def f(x):\n    return x.log_softmax(-1)",
        "f(x)[0].logsumexp(-1)",
        "from torch import nn\nnn.CrossEntropyLoss()",
        "loss = build(label_smoothing=0.1)",
        "def log_softmax(x):\n    return x",
        "import torch\ntorch.softmax(x, -1).log()",
        "from torch.distributions import kl_divergence\nkl_divergence(p, q)",
        "from scipy.special import rel_entr\nrel_entr(p, q)",
    ],
)
def test_a_planted_formula_is_found(source: str) -> None:
    assert len(formulas(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from rlsmooth.losses import cross_entropy, entropy\ncross_entropy(x, y) - entropy(x)",
        "import rlsmooth.losses\nrlsmooth.losses.kl_divergence(x, None, direction='policy_to_reference')",
        "from rlsmooth import losses\nlosses.cross_entropy(x, y)",
        "distribution.entropy()",
        "cross_entropy = 1.0\nprint(cross_entropy)",
        "kl_div = 0.0",
    ],
)
def test_our_own_formulas_and_plain_names_pass(source: str) -> None:
    assert formulas(source) == []
