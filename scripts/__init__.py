"""The commands of `rlsmooth`, a file each."""
