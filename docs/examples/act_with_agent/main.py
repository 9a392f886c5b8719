"""Load an agent and let it act: `python main.py agent.zip`."""

import sys

import gymnasium as gym

from rlsmooth.agents import BC

agent = BC.load(sys.argv[1])

env = gym.make("CartPole-v1")
observation, _ = env.reset(seed=0)
episode_return, done = 0.0, False
while not done:
    action, _ = agent.predict(observation, deterministic=True)
    observation, reward, terminated, truncated, _ = env.step(action)
    episode_return += float(reward)
    done = terminated or truncated
print(f"return {episode_return:.0f}")
