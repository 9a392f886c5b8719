"""List what there is: algorithms, environments, data sets and shipped demonstrations.

rlsmooth list
rlsmooth list environments
"""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from importlib.util import find_spec
from typing import Annotated, Literal, get_args

import tyro

from rlsmooth.scripts.command import run_command

Kind = Literal["algorithms", "environments", "data-sets", "demonstrations"]
FAMILIES = (
    ("Gymnasium's", "CartPole-v1, Acrobot-v1, MountainCar-v0, Pendulum-v1, FrozenLake-v1", "gymnasium"),
    ("Box2D's", "LunarLander-v3, BipedalWalker-v3, CarRacing-v3", "Box2D"),
    ("MuJoCo's", "Swimmer-v5, Hopper-v5, HalfCheetah-v5", "mujoco"),
    ("MiniGrid's", "minigrid:MiniGrid-Empty-5x5-v0 with --env-wrapper minigrid.wrappers.FlatObsWrapper", "minigrid"),
    ("Atari's", "ale_py:ALE/Pong-v5 with --env-wrapper stable_baselines3.common.atari_wrappers.AtariWrapper", "ale_py"),
)
"""Families of environments, examples of ids as they are typed, and the package that each needs."""


@dataclasses.dataclass(frozen=True)
class Args:
    """List algorithms, environments, data sets and shipped demonstrations, as the options name them."""

    kinds: Annotated[tuple[Kind, ...], tyro.conf.Positional] = ()
    """What to list. Default: all of them."""


def main(args: Args) -> None:
    """Print the tables."""
    tables = {
        "algorithms": (algorithms, ""),
        "environments": (environments, 'The families: pip install "rlsmooth[envs]". Yours: --env module:id.'),
        "data-sets": (data_sets, "For --data of classify, self-train and federated, beside an .npz of your own."),
        "demonstrations": (demonstrations, "For --demonstrations, beside what `rlsmooth record` makes."),
    }
    for kind in args.kinds or get_args(Kind):
        list_rows, note = tables[kind]
        print(f"{kind}:")
        for name, *rest in list_rows():
            words = textwrap.wrap("; ".join(filter(None, rest)), 96)
            print(f"  {name:18}{f'{chr(10)}{chr(32) * 20}'.join(words)}")
        print(f"{note}\n" if note else "")


def algorithms() -> list[tuple[str, ...]]:
    """Commands that train, and the environments that their files have settings for."""
    from rlsmooth.scripts.hyperparameters import FOLDER  # imports torch, as the options need not
    from rlsmooth.scripts.main import GROUPS  # imports this module only when it is asked for it
    from rlsmooth.scripts.run_folder import read_yaml

    rows: list[tuple[str, ...]] = []
    for name, what in [pair for group in [*GROUPS.values()][:2] for pair in group.items()]:
        path = FOLDER / f"{name.replace('-', '_')}.yml"
        known = read_yaml(path, "") if path.is_file() else {}
        settings = ", ".join(env for env in known if env != "default" and not env.startswith("rlsmooth/"))
        rows.append((name, what, f"settings of its own for {settings}" if settings else ""))
    return rows


def environments() -> list[tuple[str, ...]]:
    """Ids of this package, and families of others with examples."""
    from rlsmooth.envs import ENVIRONMENTS

    ours = ("rlsmooth's", ", ".join(entry.id for entry in ENVIRONMENTS))
    return [ours, *((name, ids, "" if find_spec(module) else f"needs {module}") for name, ids, module in FAMILIES)]


def data_sets() -> list[tuple[str, ...]]:
    """The table in the documentation of `load_labelled`."""
    from rlsmooth.data import load_labelled

    found = re.findall(r'\| `"(.+?)"` \| (.+?) \| (.+?) \| (.+?) \|', load_labelled.__doc__ or "")
    return [(name, f"{samples} samples", classes, source) for name, samples, classes, source in found]


def demonstrations() -> list[tuple[str, ...]]:
    """The sets that ship with the package."""
    from rlsmooth.data import load_demonstrations
    from rlsmooth.data.shipped import SHIPPED
    from rlsmooth.scripts.arguments import size_words

    sets = [(name, load_demonstrations(name)) for name in SHIPPED]
    return [(name, f"{size_words(found)} of {found.metadata['env_id']}") for name, found in sets]


if __name__ == "__main__":
    sys.exit(run_command("list", Args, main))
