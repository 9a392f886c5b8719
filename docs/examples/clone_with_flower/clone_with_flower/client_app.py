"""A client: it has every so many episodes of the demonstrations."""

from flwr.app import Context

from rlsmooth.agents import BC
from rlsmooth.data import Demonstrations, cartpole_v1
from rlsmooth.integrations.flower import client_app


def load(context: Context) -> Demonstrations:
    """The episodes of this client; in your project: a file of its own, that `context.node_config` names."""
    place, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    data = cartpole_v1()
    return data.select_episodes(range(place, data.num_episodes, count))


app = client_app(load, lambda data, prior: BC("MlpPolicy", None, data, smoothing=0.1, learning_rate=3e-3, seed=0))
