"""Demos: sounds made while training goes on, for people to hear."""
