// Attention and its gradient under XLA, of one pass or several: each becomes a custom call on the op's own inputs.
// on_demand.cc has them registered.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "../cpu/arguments.h"
#include "../cpu/compressed_plan.h"
#include "absl/strings/str_join.h"
#include "constants.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#include "xla/hlo/builder/xla_builder.h"

namespace blocksparse {
namespace {

class AttentionXla : public tensorflow::XlaOpKernel {
 public:
  explicit AttentionXla(tensorflow::OpKernelConstruction* context) : XlaOpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("heads", &heads_));
    OP_REQUIRES_OK(context, context->GetAttr("kv_heads", &kv_heads_));
    OP_REQUIRES_OK(context, context->GetAttr("scale", &scale_));
    if (context->HasAttr("hides")) OP_REQUIRES_OK(context, context->GetAttr("hides", &hides_));
    OP_REQUIRES_OK(context, context->GetAttr("segment_sides", &segment_sides_));
    OP_REQUIRES_OK(context, expect_sides(segment_sides_));
  }

  void Compile(tensorflow::XlaOpKernelContext* context) override {
    const bool on_gpu = context->compiler()->options().device_type.type_string().find("GPU") != std::string::npos;
    OP_REQUIRES(context, !hides_ || !on_gpu || segment_sides_ != 0, absl::UnimplementedError(kCannotHide));
    const bool backward = context->num_outputs() == 3;
    const int first_plan = backward ? 7 : 3, first_segments = context->num_inputs() - segment_sides_;
    const auto shape = [&](int input) { return context->InputShape(input); };
    Arguments arguments;  // all passes have the same, save for the plan
    std::string passes;
    for (int input = first_plan; input < first_segments; ++input) {
      const absl::StatusOr<tensorflow::Tensor> plan = context->ConstantInputTensor(input);
      OP_REQUIRES_OK(context, plan.status());
      OP_REQUIRES_OK(context, arguments.read(*plan, shape(0), shape(1), shape(2), heads_, kv_heads_, scale_));
      absl::StrAppend(&passes, ", ", pass_words(arguments.plan, *plan));
    }
    if (segment_sides_ != 0) {
      OP_REQUIRES_OK(context, arguments.check_segments(shape(first_segments), shape(first_segments + 1)));
    }
    if (backward) OP_REQUIRES_OK(context, arguments.check_gradient(shape(3), shape(4), shape(5), shape(6)));

    const xla::PrimitiveType type = context->input_xla_type(0);
    std::vector<xla::Shape> results;
    if (backward) {
      for (int input : {0, 1, 2}) results.push_back(xla::ShapeUtil::MakeShape(type, shape(input).dim_sizes()));
    } else {
      results.push_back(xla::ShapeUtil::MakeShape(type, arguments.out_shape().dim_sizes()));
      results.push_back(xla::ShapeUtil::MakeShape(xla::F32, arguments.lse_shape().dim_sizes()));
    }
    std::vector<xla::XlaOp> operands;
    for (int input = 0; input < context->num_inputs(); ++input) operands.push_back(context->Input(input));
    const xla::XlaOp call = xla::CustomCall(
        context->builder(), kTarget, operands, xla::ShapeUtil::MakeTupleShape(results),
        attribute(backward, type, arguments.shape, passes), /*has_side_effect=*/false, /*output_operand_aliasing=*/{},
        /*literal=*/nullptr, xla::CustomCallSchedule::SCHEDULE_NONE, xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
    for (size_t i = 0; i < results.size(); ++i) context->SetOutput(i, xla::GetTupleElement(call, i));
  }

 private:
  static std::string pass_words(const Plan& view, const tensorflow::Tensor& plan) {
    PassConstants constants;
    constants.orders = view.orders();
    std::copy_n(plan.vec<int32_t>().data(), kHeaderWords, constants.header);
    return words(constants);
  }

  std::string attribute(bool backward, xla::PrimitiveType type, const Shape& shape, const std::string& passes) const {
    const int single = tensorflow::tensor_float_32_execution_enabled() ? 3 : 2;
    const int dtype = type == xla::F16 ? 0 : type == xla::BF16 ? 1 : single;
    const Constants constants = {backward,        dtype,       shape.heads,   shape.head_dim,
                                 shape.value_dim, shape.scale, segment_sides_};
    return absl::StrCat("{constants = array<i32: ", words(constants), passes, ">}");
  }

  template <typename Record>
  static std::string words(const Record& record) {
    int32_t words[sizeof(Record) / sizeof(int32_t)];
    std::memcpy(words, &record, sizeof(words));
    return absl::StrJoin(words, ", ");
  }

  int heads_, kv_heads_, segment_sides_;
  float scale_;
  bool hides_ = false;
};

class PlanXla : public tensorflow::XlaOpKernel {
 public:
  explicit PlanXla(tensorflow::OpKernelConstruction* context) : XlaOpKernel(context) {
    OP_REQUIRES_OK(context, unpack_plan(*context, &plan_));
  }

  void Compile(tensorflow::XlaOpKernelContext* context) override { context->SetConstantOutput(0, plan_); }

 private:
  tensorflow::Tensor plan_;
};

}  // namespace
}  // namespace blocksparse

// A blocksparse::MakeXlaKernel.
extern "C" tensorflow::OpKernel* blocksparse_xla_kernel(tensorflow::OpKernelConstruction* context) {
  if (context->def().op() == "BlocksparsePlan") return new blocksparse::PlanXla(context);
  return new blocksparse::AttentionXla(context);
}
