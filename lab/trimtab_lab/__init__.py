"""The lab: offline work that is neither a network nor a loss: rollouts, arena, worlds, rivals."""
