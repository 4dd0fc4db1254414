"""Rollouts: answers sampled from the base, with their rewards, as JSON Lines."""
