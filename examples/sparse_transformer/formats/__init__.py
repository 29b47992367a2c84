"""Reads the data sets of the paper from the files they come in. Nothing is downloaded."""


class DataError(ValueError):
    """A file that is missing, cut short or something else."""

    def __init__(self, path, problem: str, wanted: str):
        super().__init__(f"{path}: {problem}. Wanted: {wanted}")
        self.problem = problem
