"""Tutorial: audit a cloned policy."""

# %% [markdown]
# # Audit a policy
#
# A policy is cloned from two demonstrators, a skilled one and one that slips. Before it is used, two questions: is it
# as overconfident on the one as on the other, and what could somebody who sees its training's gradients learn of the
# data? Would smoothing have helped?
#
# Run it with `python audit.py`: half a minute, and one figure. The command is `rlsmooth audit logs/bc/CartPole-v1_1
# --demonstrations cartpole-v1 cartpole-v1-noisy`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from rlsmooth.agents import BC, action_layers
from rlsmooth.audits import attack_batches, attack_rows, fit_group_temperatures, gap_disparity, group_calibration
from rlsmooth.data import cartpole_v1, concatenate, record

ALPHAS = (0.0, 0.1, 0.3)
NAMES = ("skilled", "slips")
COLOURS = {"skilled": "#0072B2", "slips": "#D55E00"}

# %% [markdown]
# ## Two demonstrators, three parts
#
# The package's demonstrations are the skilled one's. The other one plays a clone of them, and a fifth of the moves are
# slips.
#
# Half of the episodes to train on, a quarter to fit corrections on, a quarter to measure on. The audited policy must
# not have seen the last.

# %%
skilled = cartpole_v1()
player = BC("MlpPolicy", None, skilled, smoothing=0.0, seed=0, device="cpu").learn(10)
random = np.random.default_rng(0)
slips = record(
    lambda o: random.integers(2) if random.random() < 0.2 else player.predict(o)[0], "CartPole-v1", 24, seed=1
)

parts = {"training": [], "tuning": [], "test": []}
for demonstrator in (skilled, slips):
    training, rest = demonstrator.split(0.5, seed=0)
    for part, episodes in zip(parts, (training, *rest.split(0.5, seed=0)), strict=True):
        parts[part].append(episodes)
data = {part: concatenate(both) for part, both in parts.items()}
groups = {part: np.repeat(NAMES, [len(one) for one in both]) for part, both in parts.items()}
print({part: len(transitions) for part, transitions in data.items()})


def logits_of(agent: BC, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits and the demonstrated actions of a part."""
    (layer,) = action_layers(agent, data[part])
    assert layer.bias is not None
    return layer.features @ layer.weight.mT + layer.bias, layer.labels


def by_group(logits: torch.Tensor, labels: torch.Tensor) -> tuple[list, float]:
    """Calibration of both groups, and the difference of their gaps."""
    confidences, chosen = logits.softmax(-1).max(-1)
    hits = chosen == labels
    disparity = gap_disparity(confidences, hits, groups["test"], reference="skilled")
    return group_calibration(confidences, hits, groups["test"]), disparity.estimate


# %% [markdown]
# ## Is it as right as it is sure?
#
# The signed gap is mean confidence less accuracy: above 0 is overconfident.

# %%
common = dict(seed=0, device="cpu", engine="numpy")
agents = {a: BC("MlpPolicy", None, data["training"], smoothing=a, **common).learn(20) for a in ALPHAS}
measured = {f"alpha {alpha:g}": by_group(*logits_of(agent, "test")) for alpha, agent in agents.items()}

corrections = fit_group_temperatures(*logits_of(agents[0.0], "tuning"), groups["tuning"], bias=True)
logits, labels = logits_of(agents[0.0], "test")
measured["alpha 0,\ncorrected by group"] = by_group(corrections.calibrated(logits, groups["test"]), labels)

for title, (lines, disparity) in measured.items():
    gaps = ", ".join(f"{line.group} {line.gap:+.3f}" for line in lines)
    print(f"{title!r:32} {gaps}; difference {disparity:+.3f}")

# %% [markdown]
# ## What do gradients give away?
#
# Somebody who sees the gradient of one transition, as the server of federated training does, computes its action.

# %%
found, prior = {}, {}
for alpha, agent in agents.items():
    (layer,), (own,) = (action_layers(agent, data[part].select_episodes([0])) for part in ("training", "tuning"))
    results = {1: attack_rows(layer)}
    for result in attack_batches(layer, [8, 32], alpha=alpha, auxiliary=own, seed=0):
        if "known" not in result.attack:  # no observer knows the mean probabilities
            results.setdefault(result.batch_size, []).append(result)
    for size, attacks in results.items():
        found.setdefault(size, []).append(max(attack.success.estimate for attack in attacks))
        prior[size] = attacks[0].prior
for size, shares in found.items():
    print(f"of {size} at once: {[round(share, 2) for share in shares]}, without the gradient {prior[size]:.2f}")

# %% [markdown]
# ## What came out
#
# **The policy is underconfident on the skilled demonstrator and overconfident on the other** (-0.04 and +0.03), because
# the slips can't be foreseen. Smoothing lowers both gaps and leaves their difference, +0.07, as it was: the policy is
# then wrong about both. A temperature and a bias for each group, fitted on a quarter of the episodes, bring both within
# 0.01 of 0.
#
# **Smoothing hides nothing.** The gradient of one transition gives its action away at every alpha. A minibatch of 8 or
# 32 hides more, smoothed or not: hardly more is found than by somebody who only knows how frequent the actions are. See
# [what gradients give away](../privacy.md) for what does help.
#
# ![Gaps of two groups with intervals, and the actions that were found](../images/audit.png)

# %%
figure, (gaps, attacks) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=[3, 2])
for place, (lines, _) in enumerate(measured.values()):
    for line in lines:
        x = place + (0.1 if line.group == "slips" else -0.1)
        interval = [[line.gap - line.gap_interval.low], [line.gap_interval.high - line.gap]]
        gaps.errorbar(
            [x], [line.gap], interval, fmt="o", color=COLOURS[line.group], label=line.group if place == 0 else ""
        )
gaps.axhline(0, color="grey", linestyle=":")
gaps.set_xticks(range(len(measured)), list(measured), fontsize=9)
gaps.set(title="Confidence less accuracy, held-out episodes")
gaps.legend(fontsize=8)
for number, alpha in enumerate(ALPHAS):
    places = np.arange(3) + 0.25 * (number - 1)
    attacks.bar(
        places,
        [found[size][number] for size in found],
        0.23,
        color=["#444444", "#888888", "#bbbbbb"][number],
        label=f"alpha {alpha:g}",
    )
attacks.hlines(list(prior.values()), np.arange(3) - 0.37, np.arange(3) + 0.37, "red", label="without the gradient")
attacks.set_xticks(range(3), ["one transition", "of 8 at once", "of 32 at once"], fontsize=9)
attacks.set(title="Actions found in gradients", ylim=(0, 1.3))
attacks.legend(fontsize=8, ncols=2, loc="upper left")
figure.savefig("audit.png", dpi=90)
