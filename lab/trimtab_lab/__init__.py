"""The lab: offline work on top of guidance and models: rollouts, arena, worlds, rivals."""
