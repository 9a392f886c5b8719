"""What trainers share: safe files, checkpoints, random state. The trainers themselves come here later."""

from rlsmooth.training.checkpoint import (
    Checkpoint,
    checkpoint_steps,
    latest_checkpoint,
    load_optimizer,
    optimizer_to_tensors,
    save_checkpoint,
)
from rlsmooth.training.safe_file import SafeFile, SafeFileError, read_safe_file, write_safe_file
from rlsmooth.training.seeding import (
    epoch_permutation,
    execution_state,
    isolated_rng,
    rng_state,
    seed_everything,
    set_rng_state,
    warn_if_execution_differs,
)
from rlsmooth.training.tree import tree_from_json, tree_to_json

__all__ = [
    "Checkpoint",
    "SafeFile",
    "SafeFileError",
    "checkpoint_steps",
    "epoch_permutation",
    "execution_state",
    "isolated_rng",
    "latest_checkpoint",
    "load_optimizer",
    "optimizer_to_tensors",
    "read_safe_file",
    "rng_state",
    "save_checkpoint",
    "seed_everything",
    "set_rng_state",
    "tree_from_json",
    "tree_to_json",
    "warn_if_execution_differs",
    "write_safe_file",
]
