"""The classification trainer, and what trainers share: safe files, checkpoints, random state."""

from rlsmooth.training.checkpoint import (
    Checkpoint,
    checkpoint_steps,
    latest_checkpoint,
    load_optimizer,
    optimizer_to_tensors,
    save_checkpoint,
)
from rlsmooth.training.classifier import Classifier
from rlsmooth.training.discriminator import (
    DiscriminatorStatistics,
    accumulated_discriminator_step,
    check_targets,
    discriminator_loss,
    discriminator_statistics,
    discriminator_step,
)
from rlsmooth.training.divergence import TrainingDivergedError
from rlsmooth.training.federated import (
    CuriousServer,
    FedAvg,
    FederatedTrainer,
    FedSGD,
    dirichlet_split,
    even_split,
    group_split,
)
from rlsmooth.training.federated_client import ClipAndNoise, FederatedClient, label_dp_epsilon
from rlsmooth.training.gan import GANTrainer, generator_loss
from rlsmooth.training.gan_cases import (
    GANCase,
    ModeCoverage,
    gan_case,
    image_discriminator,
    image_generator,
    mode_coverage,
)
from rlsmooth.training.safe_file import (
    SafeFile,
    SafeFileError,
    read_safe_file,
    tree_from_json,
    tree_to_json,
    write_safe_file,
)
from rlsmooth.training.seeding import (
    epoch_permutation,
    execution_state,
    isolated_rng,
    rng_state,
    seed_everything,
    set_rng_state,
    warn_if_execution_differs,
)
from rlsmooth.training.self_training import SelfTraining
from rlsmooth.training.self_training_report import (
    ConfirmationBias,
    GradientBins,
    RoundReport,
    confirmation_bias,
    gradient_bins,
    logit_gradient_norms,
)

__all__ = [
    "Checkpoint",
    "Classifier",
    "ClipAndNoise",
    "ConfirmationBias",
    "CuriousServer",
    "DiscriminatorStatistics",
    "FedAvg",
    "FedSGD",
    "FederatedClient",
    "FederatedTrainer",
    "GANCase",
    "GANTrainer",
    "GradientBins",
    "ModeCoverage",
    "RoundReport",
    "SafeFile",
    "SafeFileError",
    "SelfTraining",
    "TrainingDivergedError",
    "accumulated_discriminator_step",
    "check_targets",
    "checkpoint_steps",
    "confirmation_bias",
    "dirichlet_split",
    "discriminator_loss",
    "discriminator_statistics",
    "discriminator_step",
    "epoch_permutation",
    "even_split",
    "execution_state",
    "gan_case",
    "generator_loss",
    "gradient_bins",
    "group_split",
    "image_discriminator",
    "image_generator",
    "isolated_rng",
    "label_dp_epsilon",
    "latest_checkpoint",
    "load_optimizer",
    "logit_gradient_norms",
    "mode_coverage",
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
