"""The paper's tables, figures and claims as commands: what to train, what to measure, and what follows from it."""
