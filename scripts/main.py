"""The `rlsmooth` command: `rlsmooth <command> --help` lists the options of each."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from rlsmooth import __version__
from rlsmooth.scripts.command import RL_ZOO, fail, run_command

GROUPS = {
    "imitate an expert": {
        "bc": "train behaviour cloning and write agent, report and logs",
        "bco": "clone from observation: label the demonstrations by pseudo-labels, then clone them",
        "dagger": "clone an expert that is asked about every state the learner visits: DAgger",
        "gail": "imitate by a discriminator: GAIL, with one-sided smoothing or without",
        "airl": "imitate by a discriminator and recover a reward: AIRL, with smoothing or without",
    },
    "learn from rewards": {
        "ppo": "train PPO, its policy smoothed or not",
        "a2c": "train A2C, its policy smoothed or not",
        "maskable-ppo": "train PPO with action masks (sb3-contrib), smoothed or not",
        "recurrent-ppo": "train PPO with a memory (sb3-contrib), smoothed or not",
    },
    "classify and generate": {
        "classify": "train a classifier with smoothed targets",
        "self-train": "train a classifier on a few labels and on its own pseudo-labels",
        "gan": "train a GAN with one-sided smoothing on a ready case",
        "federated": "train on samples that stay with clients, while the server estimates their labels",
    },
    "use agents and runs": {
        "record": "record demonstrations of a trained agent, or of an expert that is trained first",
        "evaluate": "run a saved agent and print its returns",
        "enjoy": "show or film an agent with its action probabilities and entropy",
        "audit": "measure an agent's or classifier's calibration by group, and what its gradients give away",
        "plot": "draw the report of a run again, or compare several",
        "push": "publish an agent with its card and report in a repository of a hub",
        "pull": "fetch an agent that was published",
        "tune": "search for the settings of bc, classify or ppo, and train the best ones on fresh seeds",
    },
    "look around": {
        "list": "list algorithms, environments, data sets and shipped demonstrations",
        "completion": "print the script by which a shell completes commands and options",
    },
}
COMMANDS = {name: what for group in GROUPS.values() for name, what in group.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (those of the process, if None) name; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        print(usage(), file=sys.stderr)
        return 2
    command, *rest = words
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    if command in ("-V", "--version"):
        print(f"rlsmooth {__version__}")
        return 0
    command = RL_ZOO.get(command, command)
    if command not in COMMANDS:
        close = difflib.get_close_matches(command.replace("_", "-"), COMMANDS, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        return fail("rlsmooth", f"{command!r} is no command{meant}: choose one of {', '.join(COMMANDS)}.")
    # Imported only now: `rlsmooth --help` needs no torch, and no command needs another's libraries.
    module = importlib.import_module(f"rlsmooth.scripts.{command.replace('-', '_')}")
    return run_command(command, module.Args, module.main, rest)


def usage() -> str:
    """The text of `rlsmooth --help`."""
    groups = (
        f"{title}:\n" + "\n".join(f"  {name:15}{what}" for name, what in group.items())
        for title, group in GROUPS.items()
    )
    lines = "\n\n".join(groups)
    return (
        "usage: rlsmooth COMMAND [OPTIONS]\n\n"
        f"Policies and classifiers with smoothed targets.\n\ncommands:\n\n{lines}\n\n"
        "rlsmooth COMMAND --help lists the options; rlsmooth --version prints the version."
    )


if __name__ == "__main__":
    sys.exit(main())
