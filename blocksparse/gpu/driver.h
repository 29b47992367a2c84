// The CUDA driver, looked up at run time: the library also loads on a machine that has none.
#ifndef BLOCKSPARSE_GPU_DRIVER_H_
#define BLOCKSPARSE_GPU_DRIVER_H_

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

struct Driver {
  Result (*ErrorString)(Result, const char**);
  Result (*StreamContext)(Handle stream, Handle* context);
  Result (*PushContext)(Handle context);
  Result (*PopContext)(Handle* context);
  Result (*ContextDevice)(int* device);
  Result (*DeviceAttribute)(int* value, int attribute, int device);
  Result (*LoadModule)(Handle* module, const void* image);
  Result (*ModuleFunction)(Handle* function, Handle module, const char* name);
  Result (*FunctionAttribute)(Handle function, int attribute, int value);
  Result (*Launch)(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, Handle stream, void** parameters,
                   void** extra);
  Result (*CopyToDevice)(DevicePointer to, const void* from, size_t bytes, Handle stream);
  Result (*SetBytes)(DevicePointer to, unsigned char value, size_t bytes, Handle stream);
  Result (*SynchronizeStream)(Handle stream);
  Result (*CreateEvent)(Handle* event, unsigned flags);
  Result (*RecordEvent)(Handle event, Handle stream);
  Result (*SynchronizeEvent)(Handle event);
  Result (*ElapsedTime)(float* milliseconds, Handle start, Handle stop);
  Result (*DestroyEvent)(Handle event);

  absl::Status Check(Result result, absl::string_view what) const {
    if (result == 0) return absl::OkStatus();
    const char* text = nullptr;
    ErrorString(result, &text);
    return absl::InternalError(absl::StrCat(what, ": CUDA driver error ", result, " (", text ? text : "?", ")"));
  }
};

constexpr int kDynamicSharedLimit = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int kCapabilityMajor = 75;           // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
constexpr int kCapabilityMinor = 76;           // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR

inline absl::StatusOr<const Driver*> GetDriver() {
  static const absl::StatusOr<const Driver*> driver = []() -> absl::StatusOr<const Driver*> {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) return absl::UnavailableError(absl::StrCat("no CUDA driver: ", dlerror()));
    auto* found = new Driver;  // lives as long as the process
    absl::Status status;
    auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      if (function == nullptr) status.Update(absl::UnavailableError(absl::StrCat("libcuda.so.1 lacks ", name)));
    };
    find(found->ErrorString, "cuGetErrorString");
    find(found->StreamContext, "cuStreamGetCtx");
    find(found->PushContext, "cuCtxPushCurrent_v2");
    find(found->PopContext, "cuCtxPopCurrent_v2");
    find(found->ContextDevice, "cuCtxGetDevice");
    find(found->DeviceAttribute, "cuDeviceGetAttribute");
    find(found->LoadModule, "cuModuleLoadData");
    find(found->ModuleFunction, "cuModuleGetFunction");
    find(found->FunctionAttribute, "cuFuncSetAttribute");
    find(found->Launch, "cuLaunchKernel");
    find(found->CopyToDevice, "cuMemcpyHtoDAsync_v2");
    find(found->SetBytes, "cuMemsetD8Async");
    find(found->SynchronizeStream, "cuStreamSynchronize");
    find(found->CreateEvent, "cuEventCreate");
    find(found->RecordEvent, "cuEventRecord");
    find(found->SynchronizeEvent, "cuEventSynchronize");
    find(found->ElapsedTime, "cuEventElapsedTime");
    find(found->DestroyEvent, "cuEventDestroy_v2");
    if (!status.ok()) return status;
    return found;
  }();
  return driver;
}

// Makes the stream's context current for a scope: TensorFlow's and XLA's threads may hold another one.
class ContextScope {
 public:
  ContextScope(const Driver& driver, Handle stream) : driver_(driver) {
    status_ = driver.Check(driver.StreamContext(stream, &context_), "cuStreamGetCtx");
    if (status_.ok()) status_ = driver.Check(driver.PushContext(context_), "cuCtxPushCurrent");
  }
  ~ContextScope() {
    Handle popped;
    if (status_.ok()) driver_.PopContext(&popped);
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

#endif  // BLOCKSPARSE_GPU_DRIVER_H_
