// BlocksparseMark: an identity that records an event on TensorFlow's stream, so that device time can be measured.
#include <mutex>
#include <utility>
#include <vector>

#include "driver.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/stream_executor/stream.h"

REGISTER_OP("BlocksparseMark")
    .Input("x: T")
    .Input("after: After")
    .Output("y: T")
    .Attr("T: type")
    .Attr("After: list(type) >= 0")
    .Attr("flush: int = 0")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::UnchangedShape)
    .Doc(R"doc(x; once it and `after` are ready, clears `flush` bytes to empty the caches and records an event.)doc");

namespace blocksparse::gpu {
namespace {

struct Event {
  Handle event, stream;
};

struct Marks {
  std::mutex mutex;
  std::vector<Event> events;
};

Marks& global_marks() {
  static auto* marks = new Marks;  // never destroyed: the driver may be gone when static objects go
  return *marks;
}

class Mark : public tensorflow::OpKernel {
 public:
  explicit Mark(tensorflow::OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("flush", &flush_));
  }

  void Compute(tensorflow::OpKernelContext* context) override {
    context->set_output(0, context->input(0));
    absl::StatusOr<const Driver*> driver = get_driver();
    OP_REQUIRES_OK(context, driver.status());
    void* stream = context->op_device_context()->stream()->platform_specific_handle().stream;
    ContextScope scope(**driver, stream);
    OP_REQUIRES_OK(context, scope.status());
    if (flush_ > 0) {
      tensorflow::Tensor scratch;
      OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_UINT8, {flush_}, &scratch));
      const auto at = reinterpret_cast<DevicePointer>(scratch.data());
      OP_REQUIRES_OK(context, (*driver)->check((*driver)->set_bytes(at, 0, flush_, stream), "clearing scratch"));
    }
    Handle event;
    OP_REQUIRES_OK(context, (*driver)->check((*driver)->create_event(&event, 0), "creating an event"));
    OP_REQUIRES_OK(context, (*driver)->check((*driver)->record_event(event, stream), "recording an event"));
    Marks& marks = global_marks();
    std::lock_guard<std::mutex> lock(marks.mutex);
    marks.events.push_back({event, stream});
  }

 private:
  int64_t flush_;
};

REGISTER_KERNEL_BUILDER(Name("BlocksparseMark").Device(tensorflow::DEVICE_GPU), Mark);

}  // namespace
}  // namespace blocksparse::gpu

// Milliseconds between the first and second mark, the third and fourth, ...: waits for them, forgets them, and returns
// how many pairs there were (at most `capacity` are written); -1 when the driver fails.
extern "C" int blocksparse_gpu_read_marks(float* milliseconds, int capacity) {
  using namespace blocksparse::gpu;
  absl::StatusOr<const Driver*> driver = get_driver();
  if (!driver.ok()) return -1;
  Marks& marks = global_marks();
  std::lock_guard<std::mutex> lock(marks.mutex);
  const int pairs = static_cast<int>(marks.events.size()) / 2;
  bool good = true;
  for (int i = 0; i < 2 * pairs; i += 2) {
    const auto [start, stop] = std::pair(marks.events[i], marks.events[i + 1]);
    ContextScope scope(**driver, stop.stream);
    float elapsed = 0;
    good &= scope.status().ok() && (*driver)->synchronize_event(stop.event) == 0 &&
            (*driver)->elapsed_time(&elapsed, start.event, stop.event) == 0;
    if (i / 2 < capacity) milliseconds[i / 2] = elapsed;
    (*driver)->destroy_event(start.event);
    (*driver)->destroy_event(stop.event);
  }
  marks.events.clear();
  return good ? pairs : -1;
}
