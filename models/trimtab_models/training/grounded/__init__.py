"""Training a language model itself with token-level guidance that preferences ground.

Sequences are preferred; tokens are trained on. A network of token rewards is taught by rankings of
the language model's own generations (objectives/plackett_luce.py), then says of every token how
much it is worth; the language model follows it. The two take turns until half of the training is
over, so that the rewards know the generations they judge.

    settings.py    settings of a run             guidance.py   generations, rankings, rewards
    losses.py      REINFORCE and weighted MLE     turns.py      what alternates, and when
    job.py         from data to a language model, with saves that a kill cannot hurt

Source: Yang et al., "Preference-grounded Token-level Guidance for Language Model Fine-tuning",
Algorithms 1 and 2.
"""
