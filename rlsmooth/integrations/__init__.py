"""Our targets, losses and agents in other libraries, one library a module, imported only when it is used.

    rlsmooth.integrations.torchrl   loss modules for TorchRL: PPO with KL to a reference, and smoothed cloning
    rlsmooth.integrations.rllib     RLlib's PPO, BC and MARWIL with smoothed targets
    rlsmooth.integrations.flower    apps that clone and classify on data of several owners

Each module needs the extra of its name: `pip install "rlsmooth[torchrl]"`.
"""
