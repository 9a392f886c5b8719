"""Search for the settings of a command, in several processes if you like, and train the best ones on fresh seeds.

rlsmooth tune bc -- --n-episodes 4 --action-noise 0.2 --validation-fraction 0.25
rlsmooth tune ppo --trials 60 -- --env CartPole-v1 -n 30000 --eval-freq 5000
rlsmooth tune classify --space mine.yml -- --data digits --label-noise 0.2
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import io
import itertools
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from rlsmooth.checks import check_positive_int, check_writable_folder, lock_folder, unlock_folder
from rlsmooth.scripts.arguments import alias
from rlsmooth.scripts.command import EXPECTED, parse, run_command
from rlsmooth.scripts.run_folder import command_line, read_json, read_settings, write_json, write_settings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

SPACES = Path(__file__).parent / "hyperparams" / "tune"
INSTALL = 'pip install "rlsmooth[optuna]"'
NAME = re.compile(r"\w[\w.+-]*")
OF_ONE_RUN = (
    "resume",
    "log_folder",
    "tensorboard_log",
    "progress",
    "verbose",
    "devices",
    "checkpoint_freq",
    "save_freq",
)
"""Options of a command that have no meaning in a search."""
WAIT_S = 0.05
Report = Callable[[int, float], None]
"""Takes a place in a training and its measure there, and raises TrialPruned if the training is to end there."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Search for settings of a command, and compare the best ones with the default on fresh seeds.

    The options of the command (data or environment, how long to train, and all that is not searched) come after --.
    """

    command: Annotated[Literal["bc", "classify", "ppo"], tyro.conf.Positional]
    """What to tune."""
    options: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """After --: options of the command."""
    space: Path | None = None
    """A YAML file of what to search: for each option {low, high, log} or {choices}. Default: the package's own."""
    trials: int = 40
    """How many settings to try, in all processes together."""
    final_seeds: int = 10
    """On how many fresh seeds to train the best settings and the default ones; 0: on none."""
    seed: int = 0
    """Decides which settings are tried."""
    study: str | None = None
    """Names the folder, <log folder>/tune/<study>/. The same command resumes its study, or works on it beside other
    processes. Default: <command>_<env or data>."""
    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The study goes to a folder in it."""


class Tuned(NamedTuple):
    """How a command is tuned.

    Attributes:
        data: the option that names what it trains on.
        train: trains by the command's arguments, and returns the measures; the first one is what is searched for. It
            reports that one on the way. The last argument: whether to take the measures that cost more too.
        measures: their names, and whether more is better.
    """

    data: str
    train: Callable[[Any, Report, bool], dict[str, float]]
    measures: Mapping[str, bool]


def main(args: Args) -> Path:
    """Make trials until all are made, train the best settings on fresh seeds, and return the study's folder.

    Raises:
        ImportError: Optuna is missing.
        ValueError: an argument is wrong, or the folder holds a study of other arguments.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError(f"rlsmooth tune needs Optuna: {INSTALL}.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_positive_int("trials", args.trials)
    if check_positive_int("final_seeds", args.final_seeds, minimum=0) == 1:
        raise ValueError("final_seeds=1 shows no spread: give at least 2, or 0 for none.")
    module = importlib.import_module(f"rlsmooth.scripts.{args.command}")
    base, shared = parse(args.command, module.Args, list(args.options))
    if shared.seeds or shared.save_conf:
        raise ValueError("--seeds and --save-conf after -- are not for a search: leave them out.")
    if shared.conf:  # what it says now: a file that changes is another study
        args = dataclasses.replace(args, options=tuple(shlex.split(command_line(args.command, base))[2:]))
    for field in dataclasses.fields(base):
        if field.name in OF_ONE_RUN and getattr(base, field.name) != field.default:
            option = field.name.replace("_", "-")
            raise ValueError(f"--{option} after -- is for single runs, which a search does not keep: leave it out.")
    entries = read_space(args, base)
    search = Search(args, base, entries)
    print(f"The study is in {search.folder}. Start the same command again to resume it, or beside this one to help.")
    search.run()
    return search.folder


# ---- what is searched


def read_space(args: Args, base: Any) -> dict[str, dict[str, Any]]:
    """The entries of the file of what to search.

    Raises:
        ValueError: it can't be read, an entry is malformed or names no option, or its option is given after --.
    """
    from rlsmooth.scripts.hyperparameters import read_table

    path = args.space or SPACES / f"{args.command}.yml"
    table = read_table("space", path, "options to {low, high, log} or {choices}")
    if not table:
        raise ValueError(f"space={str(path)!r} names nothing to search.")
    fields = {field.name: field.default for field in dataclasses.fields(base)}
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in args.options if word.startswith("-")}
    given |= {name for name, default in fields.items() if getattr(base, name) != default}  # by a short option
    given |= {re.split("[=:]", word)[0] for word in getattr(base, "hyperparams", ())}
    for name, entry in table.items():
        if (name not in fields and "hyperparams" not in fields) or name in OF_ONE_RUN:
            near = difflib.get_close_matches(str(name), fields, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"space: {name!r} is no option of rlsmooth {args.command} that can be searched{meant}.")
        if name == "seed":
            raise ValueError("space: seed can't be searched: luck does not carry over to other seeds. Leave it out.")
        if name in given:
            raise ValueError(f"{name} is both searched and given after --: leave it out of one of the two (--space).")
        distribution(name, entry)
        for value in entry.get("choices", [entry.get("low"), entry.get("high")]):
            with_settings(args.command, base, {name: value})  # refuses what the option does not take
    return {str(name): dict(entry) for name, entry in table.items()}


def distribution(name: str, entry: Any) -> BaseDistribution:
    """What Optuna draws an option from.

    Raises:
        ValueError: the entry is malformed.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from rlsmooth.scripts.run_folder import with_numbers

    problem = f"space: {name}: {entry!r} must be {{low: number, high: number, log: true or false}} or {{choices: list}}"
    if not isinstance(entry, dict):
        raise ValueError(f"{problem}.")
    if entry.keys() == {"choices"} and isinstance(entry["choices"], list) and entry["choices"]:
        if all(isinstance(choice, (bool, int, float, str, type(None))) for choice in entry["choices"]):
            return CategoricalDistribution(entry["choices"])
        raise ValueError(f"{problem}; several words, such as sizes of layers, are one choice in quotes.")
    ends: list[Any] = with_numbers([entry.get("low"), entry.get("high")])
    log = entry.get("log", False)
    is_range = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
    if not is_range or not isinstance(log, bool) or not entry.keys() <= {"low", "high", "log"}:
        raise ValueError(f"{problem}.")
    low, high = ends
    if not -math.inf < low <= high < math.inf or (log and low <= 0):
        raise ValueError(f"space: {name}: low={low} must not be above high={high}, nor 0 or below where log is true.")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def with_settings(command: str, base: Any, settings: Mapping[str, Any]) -> Any:
    """The command's arguments with other settings: options by name, and all others as hyperparameters."""
    names = {field.name for field in dataclasses.fields(base)} & settings.keys()
    words: list[str] = []
    for name in names:
        value, option = settings[name], name.replace("_", "-")
        is_switch = isinstance(value, bool)
        words += [f"--{'no-' if value is False else ''}{option}", *([] if is_switch else shlex.split(str(value)))]
    read, _ = parse(command, type(base), words)
    changes: dict[str, Any] = {name: getattr(read, name) for name in names}
    if others := tuple(f"{name}={value}" for name, value in settings.items() if name not in names):
        changes["hyperparams"] = (*base.hyperparams, *others)
    return dataclasses.replace(base, **changes)


# ---- a study


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Only one process at a time is inside the block; one that is killed leaves it."""
    while True:
        try:
            lock_folder(folder)
            break
        except ValueError:
            time.sleep(WAIT_S)
    try:
        yield
    finally:
        unlock_folder(folder)


class JournalLock:
    """Whose turn it is to append to Optuna's journal: a killed process leaves neither its turn nor half a line behind.

    Args:
        journal: the file.
        folder: what the writing process reserves.
    """

    def __init__(self, journal: Path, folder: Path) -> None:
        self.journal, self.folder = journal, folder
        self.held = ExitStack()

    def acquire(self) -> bool:
        """Wait for the turn, and remove what a killed process has begun to write."""
        self.held.enter_context(reserved(self.folder))
        with self.journal.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let others write."""
        self.held.close()


class Search:
    """A study in a folder, on which several processes may work: they take trials and final runs in turns.

    Whoever makes a trial keeps a folder reserved until it ends, however it ends. So a trial whose maker is gone counts
    as failed, and is made again with the same settings. Final runs are reserved in the same way.

    Args:
        args: of the command line.
        base: the arguments of the command that is tuned.
        entries: what is searched.

    Raises:
        ValueError: the folder can't be written to, or holds a study of other arguments.
    """

    def __init__(self, args: Args, base: Any, entries: Mapping[str, Any]) -> None:
        self.args, self.base, self.tuned = args, base, TUNED[args.command]
        self.goal, self.rises = next(iter(self.tuned.measures.items()))
        self.space = {name: distribution(name, entry) for name, entry in entries.items()}
        data = re.sub(r"[^\w.+-]", "-", getattr(base, self.tuned.data).removesuffix(".npz"))
        study = f"{args.command}_{data}" if args.study is None else args.study
        if not NAME.fullmatch(study):
            raise ValueError(
                f"study={study!r} must be the name of a folder: letters, digits, and . + - after the first."
            )
        check_writable_folder("log_folder", args.log_folder)
        self.folder = args.log_folder.expanduser() / "tune" / study
        self.is_new = not self.folder.exists()
        self.worker = uuid.uuid4().hex
        for part in ("turn", "writer", "final", f"workers/{self.worker}"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        if not lock_folder(self.folder / "workers" / self.worker):
            raise ValueError(f"log_folder={str(args.log_folder)!r} is on a drive without file locks: name another one.")
        with reserved(self.folder / "turn"):
            self._check_same(entries)
            self.study = self._open()

    def run(self) -> None:
        """Make trials and final runs until all are made, and write the report."""
        try:
            while self._work():
                pass
        except EXPECTED:
            if self.is_new and not self._finished() and len(self.study.trials) <= 1:
                shutil.rmtree(self.folder)  # an argument is wrong, and nothing has been trained
            raise
        finally:
            worker = self.folder / "workers" / self.worker
            unlock_folder(worker)
            shutil.rmtree(worker, ignore_errors=True)

    def _work(self) -> bool:
        """Make one trial, or else all final runs and the report; return whether there may be more to do."""
        trial = self._next_trial()
        if trial is not None:
            self._make(trial)
            return True
        if len(self._finished()) == len(self.study.get_trials(deepcopy=False)):
            best = self._best()
            runs = self._final_runs(best)
            if all(run is not None for run in runs.values()):
                self._write(best, runs)
                return False
        time.sleep(4 * WAIT_S)  # another process is training: if it is killed, that is done here
        return True

    # ---- trials

    def _check_same(self, entries: Mapping[str, Any]) -> None:
        """Write the arguments of a new study; raise ValueError if they differ from those of one that is there."""
        if not (self.folder / "config.json").exists():
            write_settings(self.folder, "tune", self.args, {"space": entries})
            return
        for part in ("arguments", "space"):
            there = read_settings(self.folder, "tune", part)
            here = {"command": self.args.command, "options": list(self.args.options), "seed": self.args.seed}
            for name, value in (here if part == "arguments" else entries).items():
                if there.get(name) != value:
                    raise ValueError(
                        f"{str(self.folder)!r} holds a study with {name}={there.get(name)!r}, not {value!r}: start it "
                        "as it was started, or name another one by --study."
                    )
            if part == "space" and there.keys() != entries.keys():
                raise ValueError(f"{str(self.folder)!r} searches {', '.join(there)}: name another study by --study.")

    def _open(self) -> Study:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        path = self.folder / "study.log"
        lock: Any = JournalLock(path, self.folder / "writer")
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(path), lock)),
            study_name="tune",
            direction="maximize" if self.rises else "minimize",
            pruner=optuna.pruners.MedianPruner(),
            load_if_exists=True,
        )

    def _next_trial(self) -> Trial | None:
        """The next trial to make, one that was lost before others; None if all are made or under way."""
        import optuna

        state = optuna.trial.TrialState
        with reserved(self.folder / "turn"):
            trials = self.study.get_trials(deepcopy=False)
            again = {trial.user_attrs.get("again") for trial in trials}
            for trial in trials:
                if trial.state == state.RUNNING and self._is_lost(trial.user_attrs.get("worker")):
                    if trial.number not in again and trial.params.keys() == self.space.keys():
                        self.study.enqueue_trial(trial.params, {"again": trial.number})
                    self.study.tell(trial.number, state=state.FAIL)
            count, waiting = self._count(), self.study.get_trials(deepcopy=False, states=(state.WAITING,))
            if count >= self.args.trials and not waiting:
                return None
            # A sampler of its own for each trial, so that a resumed study tries what an uninterrupted one does.
            self.study.sampler = optuna.samplers.TPESampler(seed=(self.args.seed * 1_000_003 + count) % 2**32)
            new = self.study.ask(self.space)
            new.set_user_attr("worker", self.worker)
            return new

    def _is_lost(self, worker: str | None) -> bool:
        """Whether the process that makes a trial is gone."""
        folder = self.folder / "workers" / (worker or "")
        if worker is None or not folder.is_dir():
            return True
        try:
            is_free = lock_folder(folder)
        except ValueError:
            return False
        if is_free:
            unlock_folder(folder)
        return is_free

    def _make(self, trial: Trial) -> None:
        import optuna

        def report(place: int, value: float) -> None:
            trial.report(value, place)
            if trial.should_prune():
                raise optuna.TrialPruned

        state, value, words = optuna.trial.TrialState.COMPLETE, math.nan, ""
        try:
            value = self._train(with_settings(self.args.command, self.base, trial.params), report)[self.goal]
        except optuna.TrialPruned:
            state, words = optuna.trial.TrialState.PRUNED, "ended early"
        except ArithmeticError as error:  # the loss became NaN
            words = f"{error}"
        except ValueError as error:  # these settings exclude each other; or another option is wrong, and all will fail
            if not self._finished():
                raise
            words = f"{error}"
        if state == optuna.trial.TrialState.COMPLETE and not math.isfinite(value):
            words = words or f"{self.goal} is {value}"
            trial.set_user_attr("failed", words)
            state = optuna.trial.TrialState.FAIL
        self.study.tell(trial, value if state == optuna.trial.TrialState.COMPLETE else None, state)
        print(f"Trial {trial.number}: {words or f'{self.goal} {value:.4g}'}", flush=True)

    def _train(self, args: Any, report: Report, *, is_final: bool = False) -> dict[str, float]:
        with redirect_stdout(io.StringIO()):
            return self.tuned.train(args, report, is_final)

    def _finished(self) -> list[Any]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def _count(self) -> int:
        """How many trials there are, without those that were lost."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(trial.state.name != "FAIL" or "failed" in trial.user_attrs for trial in trials)

    # ---- the best settings on fresh seeds

    def _best(self) -> Any:
        """The best trial.

        Raises:
            ArithmeticError: none has a value.
        """
        if all(trial.state.name != "COMPLETE" for trial in self._finished()):
            why = [trial.user_attrs["failed"] for trial in self._finished() if "failed" in trial.user_attrs]
            raise ArithmeticError(f"no trial in {str(self.folder)!r} has a finite {self.goal}. The last: {why[-1]}")
        return self.study.best_trial

    def _final_runs(self, best: Any) -> dict[tuple[str, int], dict[str, float] | None]:
        """The measures of the default and the chosen settings on each fresh seed; None: another process is at it."""
        found: dict[tuple[str, int], dict[str, float] | None] = {}
        arms = {"default": self.base, f"trial_{best.number}": with_settings(self.args.command, self.base, best.params)}
        seeds = range(self.base.seed + 1, self.base.seed + 1 + self.args.final_seeds)
        for seed, (arm, args) in itertools.product(seeds, arms.items()):
            folder = self.folder / "final" / f"{arm}_seed_{seed}"
            folder.mkdir(exist_ok=True)
            path, key = folder / "measures.json", ("default" if arm == "default" else "chosen", seed)
            found[key] = None
            try:
                lock_folder(folder)
            except ValueError:
                continue
            try:
                if not path.exists():
                    final = dataclasses.replace(args, seed=seed)
                    write_json(path, self._train(final, lambda place, value: None, is_final=True))
                    print(f"{key[0].capitalize()} settings, seed {seed}: done", flush=True)
                found[key] = read_json(path)
            finally:
                unlock_folder(folder)
        return found

    def _write(self, best: Any, runs: Mapping[tuple[str, int], Any]) -> None:
        """Write and print the report."""
        from rlsmooth.atomic import write_bytes_atomically

        chosen = with_settings(self.args.command, self.base, best.params)
        made, pruned = self._count(), sum(trial.state.name == "PRUNED" for trial in self._finished())
        lines = [f"# {self.folder.name}", "", f"{made} trials, of which {pruned} ended early. The best, trial "]
        lines[-1] += f"{best.number}, has {self.goal} {best.value:.4g} on the seed of the search ({self.base.seed}):"
        lines += ["", "```console", f"$ {command_line(self.args.command, chosen)}", "```", ""]
        summary: dict[str, Any] = {"trials": made, "best_trial": best.number, "settings": best.params, "final": {}}
        if runs:
            count = self.args.final_seeds
            lines += [f"On {count} fresh seeds, as mean and 95 % t interval, the differences seed by seed:", ""]
            lines += ["| measure | default | chosen | chosen - default | |", "|---|---|---|---|---|"]
        for name, rises in self.tuned.measures.items() if runs else ():
            values = {arm: [run[name] for (one, _), run in runs.items() if one == arm] for arm in ("default", "chosen")}
            cells, word = compared(values["default"], values["chosen"], rises=rises)
            lines.append(f"| {name} | {' | '.join(cells)} | {word} |")
            summary["final"][name] = {**values, "verdict": word}
        write_bytes_atomically(self.folder / "report.md", ("\n".join(lines) + "\n").encode())
        write_json(self.folder / "report.json", summary)
        print("\n".join(lines[2:]))


def compared(default: list[float], chosen: list[float], *, rises: bool) -> tuple[list[str], str]:
    """Both means and the difference, with intervals, in words; and whether the chosen settings are better."""
    from rlsmooth.audits.intervals import mean_interval

    intervals = [mean_interval(each) for each in (default, chosen)]
    intervals.append(mean_interval([one - two for one, two in zip(chosen, default, strict=True)]))
    low, high = intervals[-1].low, intervals[-1].high
    if low <= 0.0 <= high:
        word = "no different"
    else:
        word = "better" if (low > 0.0) == rises else "worse"
    return [f"{each.estimate:.4g} ({each.low:.4g} to {each.high:.4g})" for each in intervals], word


# ---- how each command is trained


def train_bc(args: Any, report: Report, is_final: bool) -> dict[str, float]:
    """Clone; the held-out loss is that of hard targets, since smoothing moves its own loss. Reports each epoch."""
    from rlsmooth.scripts import bc
    from rlsmooth.scripts.environment import limit_threads

    limit_threads(args.num_threads)
    bc.check_length(args)
    env = bc.evaluation_envs(args)
    training, validation = bc.load_data(args)
    if validation is None:
        raise ValueError(
            "validation_fraction: settings are compared on held-out episodes, and of fewer than ten none are held out "
            "by default: give --validation-fraction after --, such as 0.25."
        )
    agent = bc.make_agent(
        dataclasses.replace(args, eval_freq=-1), None, training, validation, env if is_final else None
    )

    def check(*_: Any) -> bool:
        epoch, rest = divmod(agent.num_timesteps, agent.batches_per_epoch)
        if rest == 0:
            report(epoch, agent.validate()["nll_hard"])
        return True

    total = bc.total_batches(args, agent)
    try:
        agent.learn(total_batches=total, callback=check, log_interval=total)
        found = {"held-out loss": agent.validate()["nll_hard"]}
        if is_final:
            played = agent.evaluate()
            found |= {"return": played["mean_reward"], "return, sampled": played["mean_reward_sampled"]}
    finally:
        env.close()
    return found


def train_classify(args: Any, report: Report, is_final: bool) -> dict[str, float]:
    """Classify; the held-out loss is that of hard targets, since smoothing moves its own loss. Reports each epoch."""
    import torch

    from rlsmooth.audits import negative_log_likelihood
    from rlsmooth.scripts import classify
    from rlsmooth.scripts.classification import check_numbers
    from rlsmooth.scripts.environment import check_device

    check_numbers(args)
    check_device(args.device)
    split = classify.load_data(args)
    if split.validation is None:
        raise ValueError("validation_fraction=0: settings are compared on held-out samples, hold out a fifth or so.")
    classifier = classify.make_classifier(args, split.training, classify.make_smoothing(args, split.training))

    def on_epoch(history: Mapping[str, list[float]]) -> None:
        losses = history["val_nll_hard"]
        report(len(losses), losses[-1])

    classify.fit(classifier, split, resume=False, on_epoch=on_epoch)
    found = {"held-out loss": classifier.history_["val_nll_hard"][classifier.best_epoch_ - 1]}
    if is_final:
        features, labels = split.test.features, split.test.labels
        found["test loss"] = float(negative_log_likelihood(classifier.logits(features), torch.from_numpy(labels)))
        found["test accuracy"] = classifier.score(features, labels)
    return found


def train_ppo(args: Any, report: Report, is_final: bool) -> dict[str, float]:
    """Train PPO; the return is that of deterministic episodes. Reports each evaluation after the first."""
    from stable_baselines3.common.callbacks import ConvertCallback
    from stable_baselines3.common.logger import Logger

    from rlsmooth.agents import SmoothedPPO
    from rlsmooth.scripts import on_policy
    from rlsmooth.scripts.hyperparameters import named_hyperparameters, resolve_hyperparameters
    from rlsmooth.scripts.on_policy_callbacks import Evaluations, Journal

    on_policy.check_numbers(args)
    values = on_policy.hyperparameter_values("ppo", args, SmoothedPPO, algorithm="ppo")
    with ExitStack() as closing:
        with named_hyperparameters(values, None):
            hyperparameters = resolve_hyperparameters(values, SmoothedPPO)
            eval_env = on_policy.evaluation_envs(args, hyperparameters)
            closing.callback(eval_env.close)
            env = on_policy.training_envs(args, hyperparameters)
            closing.callback(env.close)
            agent = on_policy.new_algorithm(SmoothedPPO, args, hyperparameters, env)
        agent.set_logger(Logger(None, []))
        folder = closing.enter_context(tempfile.TemporaryDirectory())
        journal = Journal(
            Evaluations(Path(folder) / "evaluations.npz"),
            eval_env,
            eval_freq=args.eval_freq,
            eval_episodes=args.eval_episodes,
            log_freq=hyperparameters.n_timesteps,
            seed=on_policy.evaluation_seed(args.seed),
            use_masks=False,
            best_agent=Path(folder) / "best.zip",
        )
        evaluations, reported = journal.evaluations, 1

        def check(*_: Any) -> bool:
            nonlocal reported
            if len(evaluations.steps) > reported:
                reported += 1
                report(reported - 1, float(evaluations.results[-1].mean()))
            return True

        agent.learn(hyperparameters.n_timesteps, [journal, ConvertCallback(check)], log_interval=None)
    last = evaluations.results[-1], evaluations.sampled[-1]
    return {"return": float(last[0].mean()), "return, sampled": float(last[1].mean())}


TUNED = {
    "bc": Tuned("env", train_bc, {"held-out loss": False, "return": True, "return, sampled": True}),
    "classify": Tuned("data", train_classify, {"held-out loss": False, "test loss": False, "test accuracy": True}),
    "ppo": Tuned("env", train_ppo, {"return": True, "return, sampled": True}),
}


if __name__ == "__main__":
    sys.exit(run_command("tune", Args, main))
