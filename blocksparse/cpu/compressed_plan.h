// The plan that the attributes of BlocksparsePlan hold compressed.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/lib/io/inputstream_interface.h"
#include "tensorflow/core/lib/io/zlib_compression_options.h"
#include "tensorflow/core/lib/io/zlib_inputstream.h"

namespace blocksparse {

class MemoryStream : public tensorflow::io::InputStreamInterface {
 public:
  explicit MemoryStream(const std::string& data) : data_(data) {}

  absl::Status ReadNBytes(int64_t bytes, tensorflow::tstring* result) override {
    const int64_t left = data_.size() - position_, read = std::min(bytes, left);
    result->assign(data_.data() + position_, read);
    position_ += read;
    return read == bytes ? absl::OkStatus() : absl::OutOfRangeError("end of the compressed plan");
  }
  int64_t Tell() const override { return position_; }
  absl::Status Reset() override {
    position_ = 0;
    return absl::OkStatus();
  }

 private:
  const std::string& data_;
  int64_t position_ = 0;
};

inline absl::Status unpack_plan(tensorflow::OpKernelConstruction& context, tensorflow::Tensor* plan) {
  std::string data;
  int64_t length;
  TF_RETURN_IF_ERROR(context.GetAttr("data", &data));
  TF_RETURN_IF_ERROR(context.GetAttr("length", &length));
  // Deflate makes at most 1032 bytes of one: what says more would only ask for memory.
  if (length < 0 || length > std::min<int64_t>(INT32_MAX, int64_t(data.size()) * 1032 / sizeof(int32_t) + 1)) {
    return absl::InvalidArgumentError(absl::StrCat("the compressed plan is damaged: ", data.size(),
                                                   " bytes cannot hold a plan of ", length, " int32"));
  }
  constexpr size_t kBuffer = 1 << 20;
  MemoryStream compressed(data);
  const auto options = tensorflow::io::ZlibCompressionOptions::DEFAULT();
  tensorflow::io::ZlibInputStream stream(&compressed, kBuffer, kBuffer, options);
  tensorflow::tstring bytes;
  TF_RETURN_IF_ERROR(stream.ReadNBytes(length * sizeof(int32_t), &bytes));
  *plan = tensorflow::Tensor(tensorflow::DT_INT32, {length});
  std::memcpy(plan->flat<int32_t>().data(), bytes.data(), bytes.size());
  tensorflow::tstring more;
  if (stream.ReadNBytes(1, &more).ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the compressed plan is damaged: it goes on after ", length, " int32"));
  }
  return absl::OkStatus();
}

}  // namespace blocksparse
