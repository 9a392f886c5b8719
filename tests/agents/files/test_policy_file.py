"""Agent files of policies: everything comes back, faults are named, and a stranger's file runs no code."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import (
    MaskableActorCriticCnnPolicy,
    MaskableActorCriticPolicy,
    MaskableMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticCnnPolicy, RecurrentActorCriticPolicy
from stable_baselines3 import DQN
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn

from rlsmooth.agents.files.policy_file import AgentFile, load_agent_file, save_agent_file
from rlsmooth.training import SafeFileError, rng_state
from support import Bomb, assert_equal, assert_raises, forge, put, samples

VECTOR = spaces.Box(-1, 1, (4,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
DICT = spaces.Dict({"vector": VECTOR, "image": IMAGE, "number": spaces.Discrete(3)})
MASKED_ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}
ACTIONS: dict[str, spaces.Space[Any]] = {**MASKED_ACTIONS, "Box": spaces.Box(-1, 1, (2,))}
POLICIES: dict[str, tuple[type[BasePolicy], spaces.Space[Any]]] = {
    "Mlp": (ActorCriticPolicy, VECTOR),
    "Cnn": (ActorCriticCnnPolicy, IMAGE),
    "MultiInput": (MultiInputActorCriticPolicy, DICT),
    "MaskableMlp": (MaskableActorCriticPolicy, VECTOR),
    "MaskableCnn": (MaskableActorCriticCnnPolicy, IMAGE),
    "MaskableMultiInput": (MaskableMultiInputActorCriticPolicy, DICT),
}
CASES = [(policy, name) for policy in POLICIES for name in (MASKED_ACTIONS if "Maskable" in policy else ACTIONS)]


class MyPolicy(ActorCriticPolicy):
    """A class that no file may name."""


class MyExtractor(BaseFeaturesExtractor):
    """An extractor that no file may name."""

    def __init__(self, observation_space: spaces.Box, width: int = 5) -> None:
        super().__init__(observation_space, width)
        self.layer = nn.Linear(observation_space.shape[0], width)

    def forward(self, observations: Tensor) -> Tensor:
        return torch.tanh(self.layer(observations))


def make(
    build: type[BasePolicy] = ActorCriticPolicy,
    observation_space: spaces.Space[Any] = VECTOR,
    action_space: spaces.Space[Any] = ACTIONS["Discrete"],
    **arguments: Any,
) -> Any:
    policy = build(observation_space, action_space, lr_schedule=lambda _: 1e-3, **arguments)
    with torch.no_grad():  # away from the initial weights, which are alike for one seed
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


def save(path: Path, policy: BasePolicy, **more: Any) -> Path:
    return save_agent_file(path, kind="bc", policy=policy, config={"steps": 3}, **more)


def assert_same_policy(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    assert one.observation_space == other.observation_space
    assert one.action_space == other.action_space
    mine, theirs = ({name: tensor.cpu() for name, tensor in each.state_dict().items()} for each in (one, other))
    assert_equal(mine, theirs)


@pytest.mark.parametrize(("name", "action"), CASES)
def test_actions_values_and_parameters_come_back(name: str, action: str, tmp_path: Path, device: torch.device) -> None:
    build, observation_space = POLICIES[name]
    policy = make(build, observation_space, ACTIONS[action]).to(device)
    path = save(tmp_path / "agent.zip", policy, tensors={"extra": torch.tensor([1, 2])})
    agent = load_agent_file(path, kind="bc", device=device)
    loaded: Any = agent.policy
    assert (agent.kind, agent.config, agent.tensors["extra"].tolist()) == ("bc", {"steps": 3}, [1, 2])
    assert_same_policy(policy, loaded)
    assert loaded.device.type == device.type
    assert not loaded.training
    rows = samples(observation_space, 6, 0)
    policy.set_training_mode(False)
    for deterministic in (True, False):
        torch.manual_seed(1)
        mine, _ = policy.predict(rows, deterministic=deterministic)
        torch.manual_seed(1)
        theirs, _ = loaded.predict(rows, deterministic=deterministic)
        np.testing.assert_array_equal(mine, theirs)
    tensors = obs_as_tensor(rows, device)
    assert torch.equal(policy.predict_values(tensors), loaded.predict_values(tensors))


@pytest.mark.parametrize("build", [RecurrentActorCriticPolicy, RecurrentActorCriticCnnPolicy])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"enable_critic_lstm": False, "n_lstm_layers": 2}, {"shared_lstm": True, "enable_critic_lstm": False}],
)
def test_recurrent_policies_come_back(build: type[BasePolicy], arguments: dict[str, Any], tmp_path: Path) -> None:
    observation_space = VECTOR if build is RecurrentActorCriticPolicy else IMAGE
    policy = make(build, observation_space, lstm_hidden_size=7, lstm_kwargs={"bias": False}, **arguments)
    loaded: Any = load_agent_file(save(tmp_path / "a", policy), device="cpu").policy
    assert_same_policy(policy, loaded)
    policy.set_training_mode(False)
    rows = samples(observation_space, 6, 0)
    state: Any = None
    mine_state: Any = None
    for row in range(3):
        mine, mine_state = policy.predict(rows[row], mine_state, deterministic=True)
        theirs, state = loaded.predict(rows[row], state, deterministic=True)
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(mine_state[0], state[0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"net_arch": []},
        {"net_arch": [8]},
        {"net_arch": {"pi": [8, 4], "vf": [16]}},
        {"activation_fn": nn.GELU, "ortho_init": False},
        {"activation_fn": nn.PReLU},
        {"share_features_extractor": False},
        {"log_std_init": -1.5},
        {"use_sde": True, "full_std": False, "use_expln": True, "squash_output": True},
        {"optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"betas": (0.8, 0.9), "weight_decay": 0.1}},
        {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
        {"optimizer_class": torch.optim.RMSprop},
        {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}},
    ],
    ids=str,
)
def test_every_constructor_argument_comes_back(arguments: dict[str, Any], tmp_path: Path) -> None:
    policy = make(action_space=ACTIONS["Box"], **arguments)
    loaded: Any = load_agent_file(save(tmp_path / "a", policy), device="cpu").policy
    assert_same_policy(policy, loaded)
    assert type(loaded.optimizer) is type(policy.optimizer)
    mine, theirs = (p.optimizer.state_dict()["param_groups"] for p in (policy, loaded))
    assert [{**group, "lr": 0} for group in mine] == [{**group, "lr": 0} for group in theirs]
    own = policy._get_constructor_parameters()
    for name, value in loaded._get_constructor_parameters().items():
        if name != "lr_schedule":
            assert value == own[name] or value in (None, False), name
    for name in ("share_features_extractor", "use_sde", "log_std_init", "ortho_init", "net_arch", "activation_fn"):
        assert getattr(loaded, name) == getattr(policy, name)
    assert bool(loaded.squash_output) == bool(policy.squash_output)
    loaded.predict(samples(VECTOR, 6, 0))


def test_extractor_arguments_come_back(tmp_path: Path) -> None:
    images = spaces.Box(0.0, 1.0, (1, 36, 36))
    small = make(ActorCriticCnnPolicy, images, normalize_images=False, features_extractor_kwargs={"features_dim": 16})
    loaded: Any = load_agent_file(save(tmp_path / "a", small), device="cpu").policy
    assert_same_policy(small, loaded)
    assert loaded.normalize_images is False
    combined = make(MultiInputActorCriticPolicy, DICT, features_extractor_kwargs={"cnn_output_dim": 8})
    loaded = load_agent_file(save(tmp_path / "b", combined), device="cpu").policy
    assert_same_policy(combined, loaded)
    assert type(loaded.features_extractor) is CombinedExtractor


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_keep_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    policy = make().to(dtype)
    assert_same_policy(policy, load_agent_file(save(tmp_path / "a", policy), device="cpu").policy)


def test_a_shared_extractor_is_written_once(tmp_path: Path) -> None:
    path = save(tmp_path / "a", make(ActorCriticCnnPolicy, IMAGE))
    size = sum(p.numel() * p.element_size() for p in make(ActorCriticCnnPolicy, IMAGE).parameters())
    assert path.stat().st_size < 1.05 * size


def test_loading_leaves_the_random_state(tmp_path: Path) -> None:
    for policy in (make(ActorCriticCnnPolicy, IMAGE), make(action_space=ACTIONS["Box"], use_sde=True)):
        path = save(tmp_path / "a", policy)
        before = rng_state()
        load_agent_file(path, device="cpu")
        assert all(torch.equal(tensor, before[name]) for name, tensor in rng_state().items())


def test_suffix_and_folder_are_made_as_in_stable_baselines3(tmp_path: Path) -> None:
    policy = make()
    assert save(tmp_path / "new" / "agent", policy) == tmp_path / "new" / "agent.zip"
    assert save(tmp_path / "agent.bin", policy) == tmp_path / "agent.bin"
    agent = load_agent_file(tmp_path / "new" / "agent")
    assert isinstance(agent, AgentFile)
    assert agent.kind == "bc"
    assert {"python", "rlsmooth", "torch", "stable_baselines3", "gymnasium"} <= set(agent.versions)
    assert load_agent_file(str(tmp_path / "new" / "agent.zip")).kind == "bc"
    assert_raises(SafeFileError, r"none\.zip' does not exist", load_agent_file, tmp_path / "none")


# ---- classes of the user's own
def test_a_policy_class_of_ones_own_must_be_passed(tmp_path: Path) -> None:
    policy = make(MyPolicy)
    path = save(tmp_path / "a.zip", policy)
    assert_raises(SafeFileError, r"test_policy_file\.MyPolicy.*policy_class=MyPolicy", load_agent_file, path)
    assert_same_policy(policy, load_agent_file(path, policy_class=MyPolicy, device="cpu").policy)
    assert_raises(TypeError, r"policy_class=.*is no policy class", load_agent_file, path, policy_class=nn.Linear)
    with pytest.raises(TypeError, match="policy_class='MyPolicy' is no policy class"):
        load_agent_file(path, policy_class="MyPolicy")  # type: ignore[arg-type]


def test_a_namesake_of_a_known_class_is_ones_own(tmp_path: Path) -> None:
    namesake = type("ActorCriticPolicy", (ActorCriticPolicy,), {})
    path = save(tmp_path / "a.zip", make(namesake))
    assert_raises(SafeFileError, "policy_class=ActorCriticPolicy", load_agent_file, path)
    extractor = type("FlattenExtractor", (FlattenExtractor,), {})
    path = save(tmp_path / "a.zip", make(features_extractor_class=extractor))
    with pytest.raises(SafeFileError, match=r"custom_objects=\{'features_extractor_class': FlattenExtractor\}"):
        load_agent_file(path)


def test_an_extractor_of_ones_own_must_be_passed(tmp_path: Path) -> None:
    policy = make(features_extractor_class=MyExtractor, features_extractor_kwargs={"width": 3})
    path = save(tmp_path / "a.zip", policy)
    assert_raises(SafeFileError, r"custom_objects=\{'features_extractor_class': MyExtractor\}", load_agent_file, path)
    given = {"features_extractor_class": MyExtractor}
    assert_same_policy(policy, load_agent_file(path, custom_objects=given, device="cpu").policy)


def test_an_activation_and_values_of_ones_own_must_be_passed(tmp_path: Path) -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    class Kept(MyPolicy):
        def __init__(self, *arguments: Any, hook: Any = None, table: Any = None, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.hook, self.table = hook, table

        def _get_constructor_parameters(self) -> dict[str, Any]:
            return {**super()._get_constructor_parameters(), "hook": self.hook, "table": self.table}

    policy = make(Kept, VECTOR, activation_fn=Square, hook=print, table=(torch.eye(2), {1: "x"}))
    path = save(tmp_path / "a.zip", policy)
    given: dict[str, Any] = {"activation_fn": Square}
    with pytest.raises(SafeFileError, match=r"hook is a builtin_function_or_method.*custom_objects=\{'hook': \.\.\.\}"):
        load_agent_file(path, policy_class=Kept, custom_objects=given)
    with pytest.raises(SafeFileError, match=r"custom_objects=\{'activation_fn': Square\}"):
        load_agent_file(path, policy_class=Kept, custom_objects={"hook": print})
    loaded: Any = load_agent_file(path, policy_class=Kept, custom_objects={**given, "hook": print}, device="cpu").policy
    assert_same_policy(policy, loaded)
    assert torch.equal(loaded.table[0], torch.eye(2))
    assert loaded.table[1] == {1: "x"}


# ---- without sb3-contrib
WITHOUT_CONTRIB = """
import sys
sys.modules["sb3_contrib"] = None  # as if it were not installed
from rlsmooth.agents.files.policy_file import load_agent_file, save_agent_file
from rlsmooth.training import SafeFileError
policy = load_agent_file(sys.argv[1]).policy
save_agent_file(sys.argv[1], kind="bc", policy=policy, config={})
print(type(policy).__name__)
try:
    load_agent_file(sys.argv[2])
except SafeFileError as error:
    print(error)
"""


def test_sb3_contrib_is_needed_only_for_its_own_policies(programs: Any, tmp_path: Path) -> None:
    plain, masked = save(tmp_path / "a", make()), save(tmp_path / "b", make(MaskableActorCriticPolicy))
    finished = programs.run(WITHOUT_CONTRIB, tmp_path, str(plain), str(masked))
    assert finished.returncode == 0, finished.stderr
    name, message = finished.stdout.splitlines()
    assert name == "ActorCriticPolicy"
    assert "rlsmooth[contrib]" in message
    assert "b.zip" in message


# ---- faults
def test_another_kind_or_what_is_no_policy_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SafeFileError, match="holds a 'bc' agent, not 'ppo': read it by load_agent"):
        load_agent_file(save(tmp_path / "b.zip", make()), kind="ppo")
    assert_raises(TypeError, "policy is a Linear", save, tmp_path / "a", nn.Linear(1, 1))
    dqn = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu")
    assert_raises(TypeError, "policy is a QNetwork", save, tmp_path / "a", dqn.policy.q_net)
    assert not (tmp_path / "a.zip").exists()


def test_a_policy_that_could_not_be_built_again_is_an_error_when_it_is_saved(tmp_path: Path) -> None:
    class Narrow(ActorCriticPolicy):
        def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any) -> None:
            super().__init__(observation_space, action_space, lr_schedule)

    with pytest.raises(ValueError, match=r"Narrow that could not be built again.*_get_constructor_parameters"):
        save(tmp_path / "a", make(Narrow))


def test_a_rewritten_file_is_read_like_any_other(tmp_path: Path) -> None:
    policy = make()
    path = forge(save(tmp_path / "a.zip", policy), lambda config, members: None)
    assert_same_policy(policy, load_agent_file(path, device="cpu").policy)


HOSTILE = ["os.system", "builtins.eval", "eval", "__import__('os').system", "canary", "canary.run", "torch.nn.Tanh"]
HOSTILE += ["", 3, None]


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

    keys = ("config", "policy", where) if where == "class" else ("config", "policy", "arguments", where)
    path = forge(save(tmp_path / "a.zip", make()), lambda head, _: put(head, keys, name))
    assert_raises(SafeFileError, r"a\.zip", load_agent_file, path)
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
    path = save(tmp_path / "a.zip", make())
    forge(path, lambda head, _: head["config"]["policy"]["arguments"].update(arguments))
    assert_raises(SafeFileError, r"a\.zip", load_agent_file, path)


@pytest.mark.parametrize("name", ["data.pkl", "archive/data.pkl", "policy.pth", "policy.pkl", "extra.safetensors"])
def test_pickled_members_are_never_run(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "code ran"
    path = save(tmp_path / "a.zip", make())
    forge(path, lambda _, members: members.update({name: pickle.dumps(Bomb(mark))}))
    assert_raises(SafeFileError, r"a\.zip", load_agent_file, path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "lose",
    [
        lambda head, _: head["config"].pop("kind"),
        lambda head, _: head["config"].pop("policy"),
        lambda head, _: head["config"].pop("config"),
        lambda head, _: head["config"]["policy"].pop("class"),
        lambda head, _: head["config"]["policy"].pop("arguments"),
        lambda _, members: members.pop("extra.safetensors"),
    ],
)
def test_a_lost_part_is_a_clear_error(lose: Any, tmp_path: Path) -> None:
    path = forge(save(tmp_path / "a.zip", make()), lose)
    assert_raises(SafeFileError, "lacks a part of an agent file", load_agent_file, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("action_net.bias"), r"lacks action_net\.bias"),
        (lambda state: state.update(more=torch.ones(1)), "has more, which the policy lacks"),
        (lambda state: state.update({"action_net.bias": torch.ones(9)}), r"bias has shape \(9,\), .* \(3,\)"),
        (lambda state: state.clear(), "and 7 more"),
    ],
)
def test_weights_that_do_not_fit_are_a_clear_error(tmp_path: Path, change: Any, message: str) -> None:
    def rewritten(_: dict[str, Any], members: dict[str, bytes]) -> None:
        state = safetensors.torch.load(members["policy.safetensors"])
        change(state)
        members["policy.safetensors"] = safetensors.torch.save(state)

    with pytest.raises(SafeFileError, match=f"does not fit ActorCriticPolicy: .*{message}"):
        load_agent_file(forge(save(tmp_path / "a.zip", make()), rewritten))
