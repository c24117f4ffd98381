"""From a checkpoint to a folder that others can use: merged, exported, described, with its licence."""
