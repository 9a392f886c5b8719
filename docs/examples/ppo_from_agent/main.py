"""Start SB3's PPO from a cloned policy: `python main.py agent.zip`."""

import sys

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from rlsmooth.agents import BC

agent = BC.load(sys.argv[1], device="cpu")

model = PPO("MlpPolicy", "CartPole-v1", n_steps=512, learning_rate=1e-4, clip_range=0.05, seed=0, device="cpu")
agent.warm_start(model)  # the actor; the critic starts untrained, hence the small steps above

env = Monitor(gym.make("CartPole-v1"))
before, _ = evaluate_policy(model, env, n_eval_episodes=5)
model.learn(total_timesteps=2048)
after, _ = evaluate_policy(model, env, n_eval_episodes=5)
print(f"return before {before:.0f}, after {after:.0f}")
