"""Rivals of guidance: the base itself tuned for a reward, by RL or DPO, and soups of such policies.

rl.py           on-policy RL, on one reward or on a weighted sum of several (as Mo-PPO's)
train.py        a policy in a world's directory, by RL or by DPO
soups.py        Rewarded Soups: the mean of the weights of policies, each tuned for its own reward
divergence.py   how far a policy is from the base, exactly at every step
"""

from trimtab_lab.rivals.divergence import divergence
from trimtab_lab.rivals.soups import soup
from trimtab_lab.rivals.train import train

__all__ = ["divergence", "soup", "train"]
