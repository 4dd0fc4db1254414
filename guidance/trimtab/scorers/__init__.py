"""Scorer families behind one interface."""
