"""Trained models for use elsewhere: weights in another precision or another program's layout, and a model card beside them."""
