"""Detectors: backbones, RoI head and Fast R-CNN."""
