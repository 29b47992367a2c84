"""GPU kernels: what they are, how they are compiled and launched. Nothing in here imports TensorFlow.

kernels/       the kernels in Triton and what each of their arguments means; kernels/roles/ those for Hopper whose
               warps have roles, kernels/steps/ those of decoding
cuda/          the kernels in CUDA C++ for compute capability 7.0 and 7.5 (V100, T4), whose tensor cores Triton lacks
compilers.py   which of the two compilers, Triton and NVRTC, are installed
key.py         what decides the machine code of a pass, in one word
manifest.py    which kernels a pass is made of and how each is launched, as data
steps.py       the same two for a decoding step of a whole model
tuning.py      tile sizes, warps and stages for a GPU, out of tuned/
compile.py     the command that compiles them, in a process of its own
launcher/      C++: looks the compiled kernels up and puts them on TensorFlow's stream
"""
