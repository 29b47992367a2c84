// How the ops' own library reaches the XLA library, which holds the real kernels.
#pragma once

#include <cstdint>

#include "tensorflow/core/framework/op_kernel.h"

namespace blocksparse {

// The XLA library's function that makes the kernel of the op that is being constructed.
using MakeXlaKernel = tensorflow::OpKernel*(tensorflow::OpKernelConstruction* context);

// Python's function that builds or loads the XLA library: the address of its MakeXlaKernel, or null, and then what went
// wrong in error[size].
using LoadXla = MakeXlaKernel*(char* error, int64_t size);

}  // namespace blocksparse
