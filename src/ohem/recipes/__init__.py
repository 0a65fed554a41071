"""Recipes: everything that decides a training run, as one typed file. Those in this folder ship with the package."""
