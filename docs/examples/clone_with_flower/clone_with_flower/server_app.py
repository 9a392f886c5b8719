"""The server: it starts from a policy that has learned nothing, and saves the agent."""

from rlsmooth.agents import BC
from rlsmooth.integrations.flower import server_app

app = server_app(lambda context: BC("MlpPolicy", "CartPole-v1", None, smoothing=0.1, seed=0))
