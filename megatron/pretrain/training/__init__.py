"""The training loop: state, one step, evaluation, and the conditions that end a run."""
