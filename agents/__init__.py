"""Agents: behavioural cloning with smoothed targets, and safe agent files."""

from rlsmooth.agents.agent_file import AgentFile, load_agent_file, save_agent_file
from rlsmooth.agents.bc import BC
from rlsmooth.agents.divergence import TrainingDivergedError

__all__ = ["BC", "AgentFile", "TrainingDivergedError", "load_agent_file", "save_agent_file"]
