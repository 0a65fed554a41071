"""Proposals: the candidate regions of an image. Made by selective search and kept, or read from published files."""
