"""`python -m blocksparse.tf1 PROGRAM.py [arguments]`: runs a program written for TensorFlow 1 and OpenAI's blocksparse
as it stands.

__main__.py      the command
program.py       the program as `__main__`: its arguments, its folder, its tracebacks
tensorflow1.py   what `import tensorflow` means in the program, and only there
numpy1.py        the names that NumPy has dropped since
one_rank.py      mpi4py for one process, where it is not installed
"""
