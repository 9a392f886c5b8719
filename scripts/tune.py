"""Search for the settings of a command, in several processes if you like, and train the best ones on fresh seeds.

rlsmooth tune bc -- --demonstrations cartpole-v1-noisy --n-episodes 12
rlsmooth tune ppo --trials 60 -- --env CartPole-v1 -n 30000 --eval-freq 5000
rlsmooth tune classify --space mine.yml -- --data digits --label-noise 0.2
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import itertools
import math
import re
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from rlsmooth.checks import check_positive_int, check_writable_folder, lock_folder, unlock_folder
from rlsmooth.scripts.arguments import alias, environment_kwargs
from rlsmooth.scripts.command import EXPECTED, parse_arguments, run_command
from rlsmooth.scripts.run_folder import command_line, read_json, read_settings, write_json, write_settings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

SPACES = Path(__file__).parent / "hyperparams" / "tune"
INSTALL = 'pip install "rlsmooth[optuna]"'
NAME = re.compile(r"\w[\w.+-]*")
WAIT_S = 0.05
Report = Callable[[int, float], None]
"""Takes a place in a training and its measure there, and raises TrialPruned if it is not worth going on."""


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
    """A YAML file of what to search: by option, {low, high, log} or {choices}. Default: the package's own."""
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
    base = parse_arguments(f"rlsmooth {args.command}", module.Args, list(args.options))
    if getattr(base, "resume", None) is not None:
        raise ValueError("--resume is not for the command that is tuned: a study resumes by itself, leave it out.")
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
    import yaml

    from rlsmooth.untrusted import read_regular, refused

    path = args.space or SPACES / f"{args.command}.yml"
    try:
        with refused(path, ValueError, "Name a YAML file of what to search.", "can't be read"):
            table = yaml.safe_load(read_regular(path))
    except ValueError as error:
        raise ValueError(f"space={error}") from error
    if not isinstance(table, dict) or not table:
        raise ValueError(f"space={str(path)!r} must be a mapping of options to {{low, high, log}} or {{choices}}.")
    names = {field.name for field in dataclasses.fields(base)}
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in args.options if word.startswith("-")}
    given |= {re.split("[=:]", word)[0] for word in getattr(base, "hyperparams", ())}
    for name, entry in table.items():
        if name not in names and "hyperparams" not in names:
            raise ValueError(f"space: {name!r} is no option of rlsmooth {args.command}.")
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

    from rlsmooth.scripts.hyperparameters import with_numbers

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
    read = parse_arguments(f"rlsmooth {command}", type(base), words)
    changes: dict[str, Any] = {name: getattr(read, name) for name in names}
    if others := tuple(f"{name}={value}" for name, value in settings.items() if name not in names):
        changes["hyperparams"] = (*base.hyperparams, *others)
    return dataclasses.replace(base, **changes)


# ---- a study


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
        for part in ("turn", "final", f"workers/{self.worker}"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        lock_folder(self.folder / "workers" / self.worker)
        with self._turn():
            self._check_same(entries)
            self.study = self._open()

    def run(self) -> None:
        """Make trials and final runs until all are made, and write the report."""
        try:
            while self._work():
                pass
        except EXPECTED:
            if (
                self.is_new and not self._finished() and len(self.study.trials) <= 1
            ):  # an argument is wrong, and nothing has been trained
                shutil.rmtree(self.folder)
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
        if self._running():  # by another process: if it is killed, its trial is made here
            time.sleep(WAIT_S)
            return True
        best = self._best()
        runs = self._final_runs(best)
        if any(run is None for run in runs.values()):
            time.sleep(WAIT_S)
            return True
        self._write(best, runs)
        return False

    # ---- trials

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Only one process at a time is inside the block."""
        turn = self.folder / "turn"
        while True:
            try:
                lock_folder(turn)
                break
            except ValueError:
                time.sleep(WAIT_S)
        try:
            yield
        finally:
            unlock_folder(turn)

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

        path = (self.folder / "study.db").resolve()
        return optuna.create_study(
            storage=optuna.storages.RDBStorage(f"sqlite:///{path}", {"connect_args": {"timeout": 60}}),
            study_name="tune",
            direction="maximize" if self.rises else "minimize",
            pruner=optuna.pruners.MedianPruner(),
            load_if_exists=True,
        )

    def _next_trial(self) -> Trial | None:
        """The next trial to make, one that was lost before others; None if all are made or under way."""
        import optuna

        state = optuna.trial.TrialState
        with self._turn():
            trials = self.study.get_trials(deepcopy=False)
            again = {trial.user_attrs.get("again") for trial in trials}
            for trial in trials:
                if trial.state == state.RUNNING and self._is_lost(trial.user_attrs.get("worker")):
                    if trial.number not in again:
                        self.study.enqueue_trial(trial.params, {"again": trial.number})
                    self.study.tell(trial.number, state=state.FAIL)
            trials = self.study.get_trials(deepcopy=False)
            count = sum(trial.state != state.FAIL or "failed" in trial.user_attrs for trial in trials)
            if count >= self.args.trials and all(trial.state != state.WAITING for trial in trials):
                return None
            # A sampler of its own for each trial: a study that is resumed goes on as one that was never interrupted.
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
        except (ArithmeticError, TypeError, ValueError) as error:  # the loss became NaN, or settings exclude each other
            if not isinstance(error, ArithmeticError) and not self._finished():
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

    def _running(self) -> bool:
        return len(self._finished()) < len(self.study.get_trials(deepcopy=False))

    # ---- the best settings on fresh seeds

    def _best(self) -> Any:
        """The best trial.

        Raises:
            ArithmeticError: none has a value.
        """
        if all(trial.value is None or trial.state.name != "COMPLETE" for trial in self._finished()):
            raise ArithmeticError(f"no trial of {self.folder} has a finite {self.goal}: search lower learning rates.")
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
                is_ours = lock_folder(folder)
            except ValueError:
                continue
            if not path.exists():
                measures = self._train(dataclasses.replace(args, seed=seed), lambda place, value: None, is_final=True)
                write_json(path, measures)
                print(f"{key[0].capitalize()} settings, seed {seed}: {self.goal} {measures[self.goal]:.4g}", flush=True)
            found[key] = read_json(path)
            if is_ours:
                unlock_folder(folder)
        return found

    def _write(self, best: Any, runs: Mapping[tuple[str, int], Any]) -> None:
        """Write and print the report."""
        from rlsmooth.atomic import write_bytes_atomically

        chosen = with_settings(self.args.command, self.base, best.params)
        states = [trial.state.name for trial in self._finished()]
        made = len(states) - sum("again" in trial.user_attrs for trial in self._finished())
        lines = [f"# {self.folder.name}", ""]
        lines += [f"{made} trials, of which {states.count('PRUNED')} ended early. The best, trial {best.number}, has "]
        lines[-1] += f"{self.goal} {best.value:.4g} on the seed of the search ({self.base.seed}):"
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
    word = (
        "better"
        if (low > 0 if rises else high < 0)
        else "worse"
        if (high < 0 if rises else low > 0)
        else "no different"
    )
    return [f"{each.estimate:.4g} ({each.low:.4g} to {each.high:.4g})" for each in intervals], word


# ---- how each command is trained


def train_bc(args: Any, report: Report, is_final: bool) -> dict[str, float]:
    """Clone; the held-out loss is that of hard targets, since smoothing moves its own loss. Reports each epoch."""
    from rlsmooth.scripts import bc
    from rlsmooth.scripts.environment import evaluation_vectorization, limit_threads, make_envs

    limit_threads(args.num_threads)
    bc.check_length(args)
    training, validation = bc.load_data(args)
    if validation is None:
        raise ValueError(
            "validation_fraction: settings are compared on held-out episodes, and of fewer than ten none are held out "
            "by default: give --validation-fraction after --, such as 0.25."
        )
    env = None
    if is_final:
        vectorization = evaluation_vectorization(args.vectorization)
        kwargs = environment_kwargs(args)
        count = min(args.n_envs, args.eval_episodes)
        env = make_envs(args.env, count, args.seed, env_kwargs=kwargs, vectorization=vectorization)
    args = dataclasses.replace(args, checkpoint_freq=-1, eval_freq=-1)
    agent = bc.make_agent(args, None, training, validation, env)

    def check(*_: Any) -> bool:
        epoch, rest = divmod(agent.num_timesteps, agent.batches_per_epoch)
        if rest == 0:
            report(epoch, agent.validate()["nll_hard"])
        return True

    total = bc.total_batches(args, agent)
    agent.learn(total_batches=total, callback=check, log_interval=total)
    found = {"held-out loss": agent.validate()["nll_hard"]}
    if env is not None:
        played = agent.evaluate()
        found |= {"return": played["mean_reward"], "return, sampled": played["mean_reward_sampled"]}
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
    values = on_policy.hyperparameter_values("ppo", args, algorithm="ppo")
    with named_hyperparameters(values, None):
        hyperparameters = resolve_hyperparameters(values, SmoothedPPO)
        eval_env = on_policy.evaluation_envs(args, hyperparameters)
        env = on_policy.training_envs(args, hyperparameters)
        agent = on_policy.new_algorithm(SmoothedPPO, args, hyperparameters, env)
    agent.set_logger(Logger(None, []))
    with tempfile.TemporaryDirectory() as folder:
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

        try:
            agent.learn(hyperparameters.n_timesteps, [journal, ConvertCallback(check)], log_interval=None)
        finally:
            env.close()
            eval_env.close()
    last = evaluations.results[-1], evaluations.sampled[-1]
    return {"return": float(last[0].mean()), "return, sampled": float(last[1].mean())}


TUNED = {
    "bc": Tuned("env", train_bc, {"held-out loss": False, "return": True, "return, sampled": True}),
    "classify": Tuned("data", train_classify, {"held-out loss": False, "test loss": False, "test accuracy": True}),
    "ppo": Tuned("env", train_ppo, {"return": True, "return, sampled": True}),
}


if __name__ == "__main__":
    sys.exit(run_command("tune", Args, main))
