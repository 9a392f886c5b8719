from __future__ import annotations

import hashlib
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import Tensor, nn

from rlsmooth.agents.files.policy_file import load_agent_file, save_agent_file
from rlsmooth.training import SafeFileError


def make(build: type[ActorCriticPolicy] = ActorCriticPolicy, **arguments: Any) -> ActorCriticPolicy:
    return build(spaces.Box(-1, 1, (4,)), spaces.Discrete(3), lr_schedule=lambda _: 1e-3, **arguments)


def save(path: Path, policy: BasePolicy) -> Path:
    return save_agent_file(path, kind="bc", policy=policy, config={"steps": 3})


def test_another_kind_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SafeFileError, match="holds a 'bc' agent, not 'ppo'"):
        load_agent_file(save(tmp_path / "a.zip", make()), kind="ppo")


def test_what_is_no_policy_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="policy is a Linear"):
        save(tmp_path / "a", nn.Linear(1, 1))  # type: ignore[arg-type]
    dqn = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu")
    with pytest.raises(TypeError, match="policy is a QNetwork"):
        save(tmp_path / "a", dqn.policy.q_net)
    assert not (tmp_path / "a.zip").exists()


def test_a_policy_that_could_not_be_built_again_is_an_error_when_it_is_saved(tmp_path: Path) -> None:
    class Narrow(ActorCriticPolicy):
        def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any) -> None:
            super().__init__(observation_space, action_space, lr_schedule)

    with pytest.raises(ValueError, match=r"Narrow that could not be built again.*_get_constructor_parameters"):
        save(tmp_path / "a", make(Narrow))


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can't be written"):
        save(tmp_path / "file" / "agent", make())


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], object]) -> Path:
    """A forger's copy: contents changed, and all hashes right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    head = json.loads(members.pop("config.json"))
    change(head["config"], members)
    head["members"] = {name: hashlib.sha256(payload).hexdigest() for name, payload in members.items()}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(head))
        for name, payload in members.items():
            archive.writestr(name, payload)
    return path


def test_a_rewritten_file_is_read_like_any_other(tmp_path: Path) -> None:
    policy = make()
    path = rewrite(save(tmp_path / "a.zip", policy), lambda config, members: None)
    loaded = load_agent_file(path, device="cpu").policy.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in policy.state_dict().items())


HOSTILE = [
    "os.system",
    "builtins.eval",
    "eval",
    "__import__('os').system",
    "canary",
    "canary.run",
    "torch.nn.Tanh",
    "",
    3,
    None,
]


@pytest.mark.parametrize(
    "name", [*HOSTILE, ["canary", "run"], {"module": "canary"}, {"__custom__": "canary.run"}], ids=str
)
@pytest.mark.parametrize("where", ["class", "activation_fn", "features_extractor_class", "optimizer_class"])
def test_a_class_that_is_not_in_the_tables_is_never_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: Any
) -> None:
    mark = tmp_path / "code ran"
    (tmp_path / "canary.py").write_text(f"open({str(mark)!r}, 'w')\ndef run(*a, **k): pass\n")
    monkeypatch.syspath_prepend(tmp_path)

    def change(config: dict[str, Any], _: dict[str, bytes]) -> None:
        (config["policy"] if where == "class" else config["policy"]["arguments"])[where] = name

    with pytest.raises(SafeFileError, match=r"a\.zip"):
        load_agent_file(rewrite(save(tmp_path / "a.zip", make()), change))
    assert not mark.exists()
    assert "canary" not in sys.modules


@pytest.mark.parametrize(
    "arguments",
    [
        {"observation_space": {"type": "os.system"}},
        {"observation_space": "gymnasium.spaces.Box"},
        {"action_space": {"type": "Dict", "spaces": []}},
        {"net_arch": "os.system"},
        {"net_arch": [-1]},
        {"net_arch": {"__tensor__": "none"}},
        {"net_arch": [10**15]},
        {"features_extractor_kwargs": {"__class__": "x"}},
        {"features_extractor_kwargs": 3},
        {"optimizer_kwargs": {"lr": 3}},
        {"optimizer_kwargs": {"params": []}},
        {"lr_schedule": "x"},
        {"unknown": 1},
        {"self": 1},
        {"squash_output": True},
    ],
    ids=str,
)
def test_hostile_arguments_are_one_clear_error(tmp_path: Path, arguments: dict[str, Any]) -> None:
    def change(config: dict[str, Any], _: dict[str, bytes]) -> None:
        config["policy"]["arguments"].update(arguments)

    with pytest.raises(SafeFileError, match=r"a\.zip"):
        load_agent_file(rewrite(save(tmp_path / "a.zip", make()), change))


class Bomb:
    """Unpickling it makes a file: the proof that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["data.pkl", "archive/data.pkl", "policy.pth", "policy.pkl", "extra.safetensors"])
def test_pickled_members_are_never_run(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "code ran"
    path = rewrite(
        save(tmp_path / "a.zip", make()), lambda _, members: members.update({name: pickle.dumps(Bomb(mark))})
    )
    with pytest.raises(SafeFileError, match=r"a\.zip"):
        load_agent_file(path)
    assert not mark.exists()


@pytest.mark.parametrize("lost", ["kind", "policy", "config"])
def test_a_lost_part_is_a_clear_error(tmp_path: Path, lost: str) -> None:
    path = rewrite(save(tmp_path / "a.zip", make()), lambda config, _: config.pop(lost))
    with pytest.raises(SafeFileError, match="lacks a part of an agent file"):
        load_agent_file(path)


@pytest.mark.parametrize("lost", ["class", "arguments"])
def test_a_lost_part_of_the_policy_is_a_clear_error(tmp_path: Path, lost: str) -> None:
    path = rewrite(save(tmp_path / "a.zip", make()), lambda config, _: config["policy"].pop(lost))
    with pytest.raises(SafeFileError, match="lacks a part of an agent file"):
        load_agent_file(path)


def test_a_lost_member_is_a_clear_error(tmp_path: Path) -> None:
    path = rewrite(save(tmp_path / "a.zip", make()), lambda _, members: members.pop("extra.safetensors"))
    with pytest.raises(SafeFileError, match="lacks a part of an agent file"):
        load_agent_file(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("action_net.bias"), r"lacks action_net\.bias"),
        (lambda state: state.update(more=torch.ones(1)), "has more, which the policy lacks"),
        (
            lambda state: state.update({"action_net.bias": torch.ones(9)}),
            r"action_net\.bias has shape \(9,\), .* \(3,\)",
        ),
        (lambda state: state.clear(), "and 7 more"),
    ],
)
def test_weights_that_do_not_fit_are_a_clear_error(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    def rewritten(_: dict[str, Any], members: dict[str, bytes]) -> None:
        state = safetensors.torch.load(members["policy.safetensors"])
        change(state)
        members["policy.safetensors"] = safetensors.torch.save(state)

    with pytest.raises(SafeFileError, match=f"does not fit ActorCriticPolicy: .*{message}"):
        load_agent_file(rewrite(save(tmp_path / "a.zip", make()), rewritten))


def test_cut_short_or_flipped_at_many_places_is_one_clear_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.zip", make(net_arch=[4]))
    whole = path.read_bytes()
    for offset in range(0, len(whole), 37):
        for data in (whole[:offset], whole[:offset] + bytes([whole[offset] ^ 0x10]) + whole[offset + 1 :]):
            path.write_bytes(data)
            with pytest.raises(SafeFileError, match=r"a\.zip"):
                load_agent_file(path)


def test_other_files_are_clear_errors(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, device="cpu")
    model.save(tmp_path / "ppo.zip")
    with pytest.raises(SafeFileError, match="Load it with Stable-Baselines3"):
        load_agent_file(tmp_path / "ppo.zip")
    model.policy.save(str(tmp_path / "policy.pt"))
    with pytest.raises(SafeFileError, match=r"torch\.save file"):
        load_agent_file(tmp_path / "policy.pt")
