"""Compiled libraries: what they are made of, how they are built and kept, and which of them this process uses.

devices.py     the one door for everything above: "the kernels, or None where plain TensorFlow has to run"
cuda.py        which GPUs there are, and where their kernels lie
loading.py     a library into this process, once
folders.py     where built files lie, and whose files are trusted
cache.py       a library's file: prebuilt, built before, or built now
compiler.py    g++ on one library
libraries.py   what each library is made of
machine.py     the processor, and times by the host's clock
timing.py      device time of TensorFlow code
"""
