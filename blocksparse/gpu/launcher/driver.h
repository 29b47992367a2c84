// The CUDA driver, looked up at run time: the library also loads on a machine that has none.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace blocksparse::gpu {

using Result = int;              // CUresult
using Handle = void*;            // CUcontext, CUmodule, CUfunction, CUstream, CUevent
using DevicePointer = uint64_t;  // CUdeviceptr

// CUDA_MEMCPY2D: `height` runs of `width` bytes.
struct Copy2D {
  size_t from_x, from_y;
  int from_kind;
  const void* from_host;
  DevicePointer from;
  Handle from_array;
  size_t from_pitch;
  size_t to_x, to_y;
  int to_kind;
  void* to_host;
  DevicePointer to;
  Handle to_array;
  size_t to_pitch;
  size_t width, height;
};

struct Driver {
  Result (*error_string)(Result, const char**);
  Result (*stream_context)(Handle stream, Handle* context);
  Result (*push_context)(Handle context);
  Result (*pop_context)(Handle* context);
  Result (*context_device)(int* device);
  Result (*device_attribute)(int* value, int attribute, int device);
  Result (*load_module)(Handle* module, const void* image);
  Result (*module_function)(Handle* function, Handle module, const char* name);
  Result (*function_attribute)(Handle function, int attribute, int value);
  Result (*launch)(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, Handle stream, void** parameters, void** extra);
  Result (*copy_to_device)(DevicePointer to, const void* from, size_t bytes, Handle stream);
  Result (*set_bytes)(DevicePointer to, unsigned char value, size_t bytes, Handle stream);
  Result (*copy_rows)(const Copy2D* copy, Handle stream);
  Result (*set_rows)(DevicePointer to, size_t pitch, unsigned char value, size_t width, size_t height, Handle stream);
  Result (*synchronize_stream)(Handle stream);
  Result (*create_event)(Handle* event, unsigned flags);
  Result (*record_event)(Handle event, Handle stream);
  Result (*synchronize_event)(Handle event);
  Result (*elapsed_time)(float* milliseconds, Handle start, Handle stop);
  Result (*destroy_event)(Handle event);

  absl::Status check(Result result, absl::string_view what) const {
    if (result == 0) return absl::OkStatus();
    const char* text = nullptr;
    error_string(result, &text);
    return absl::InternalError(absl::StrCat(what, ": CUDA driver error ", result, " (", text ? text : "?", ")"));
  }
};

constexpr int kDynamicSharedLimit = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int kDeviceMemory = 2;        // CU_MEMORYTYPE_DEVICE
constexpr int kMultiprocessors = 16;    // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
constexpr int kCapabilityMajor = 75;    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
constexpr int kCapabilityMinor = 76;    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR

inline absl::StatusOr<const Driver*> get_driver() {
  static const absl::StatusOr<const Driver*> driver = []() -> absl::StatusOr<const Driver*> {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) return absl::UnavailableError(absl::StrCat("no CUDA driver: ", dlerror()));
    auto* found = new Driver;  // lives as long as the process
    absl::Status status;
    auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      if (function == nullptr) status.Update(absl::UnavailableError(absl::StrCat("libcuda.so.1 lacks ", name)));
    };
    find(found->error_string, "cuGetErrorString");
    find(found->stream_context, "cuStreamGetCtx");
    find(found->push_context, "cuCtxPushCurrent_v2");
    find(found->pop_context, "cuCtxPopCurrent_v2");
    find(found->context_device, "cuCtxGetDevice");
    find(found->device_attribute, "cuDeviceGetAttribute");
    find(found->load_module, "cuModuleLoadData");
    find(found->module_function, "cuModuleGetFunction");
    find(found->function_attribute, "cuFuncSetAttribute");
    find(found->launch, "cuLaunchKernel");
    find(found->copy_to_device, "cuMemcpyHtoDAsync_v2");
    find(found->set_bytes, "cuMemsetD8Async");
    find(found->copy_rows, "cuMemcpy2DAsync_v2");
    find(found->set_rows, "cuMemsetD2D8Async");
    find(found->synchronize_stream, "cuStreamSynchronize");
    find(found->create_event, "cuEventCreate");
    find(found->record_event, "cuEventRecord");
    find(found->synchronize_event, "cuEventSynchronize");
    find(found->elapsed_time, "cuEventElapsedTime");
    find(found->destroy_event, "cuEventDestroy_v2");
    if (!status.ok()) return status;
    return found;
  }();
  return driver;
}

// Makes the stream's context current for a scope: TensorFlow's and XLA's threads may hold another one.
class ContextScope {
 public:
  ContextScope(const Driver& driver, Handle stream) : driver_(driver) {
    status_ = driver.check(driver.stream_context(stream, &context_), "cuStreamGetCtx");
    if (status_.ok()) status_ = driver.check(driver.push_context(context_), "cuCtxPushCurrent");
  }
  ~ContextScope() {
    Handle popped;
    if (status_.ok()) driver_.pop_context(&popped);
  }
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

  const absl::Status& status() const { return status_; }
  Handle context() const { return context_; }

 private:
  const Driver& driver_;
  Handle context_ = nullptr;
  absl::Status status_;
};

}  // namespace blocksparse::gpu
