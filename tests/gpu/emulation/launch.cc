// Runs a kernel's source on this CPU: launch(blocks, arguments), arguments as cuLaunchKernel takes them.
#include KERNEL_SOURCE

namespace {

void** arguments;

template <class... A, size_t... i>
void call(void (*kernel)(A...), std::index_sequence<i...>) {
  kernel(*static_cast<A*>(arguments[i])...);
}
template <class... A>
void call(void (*kernel)(A...)) {
  call(kernel, std::index_sequence_for<A...>());
}

}  // namespace

extern "C" void launch(int blocks, void** given) {
  arguments = given;
  emulation::body = [] { call(KERNEL_NAME); };
  emulation::blocks = blocks;
  for (int block = 0; block < blocks; ++block) emulation::run_block(block, kThreads, SHARED_BYTES);
}
