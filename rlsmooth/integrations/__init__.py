"""Our targets and losses in other libraries' trainers, one library a module, imported only when it is used.

    rlsmooth.integrations.torchrl   loss modules for TorchRL: PPO with KL to a reference, and smoothed cloning
    rlsmooth.integrations.rllib     RLlib's PPO, BC and MARWIL with smoothed targets

Each module needs the extra of its name: `pip install "rlsmooth[torchrl]"`.
"""
