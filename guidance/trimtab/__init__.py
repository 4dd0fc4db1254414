"""Guidance at decode time: candidates, scoring, fusion, cache."""
