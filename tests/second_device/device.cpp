// A device of the processor's own memory that torch takes for another one ("second"), to try code without a GPU.
//
// It is as strict as a GPU: tensors of both devices in one operator are an error (numbers without dimensions and
// indices are not), and so is a generator of the other device. What it computes is what the processor computes.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/op_registration/op_registration.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <set>

namespace {

using at::Tensor;
using c10::DispatchKey;
using c10::DispatchKeySet;
using torch::jit::Stack;

constexpr auto kSecond = c10::DeviceType::PrivateUse1;
const c10::Device here(kSecond, 0);

// -- memory --------------------------------------------------------------------------------------------------------

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    TORCH_CHECK(bytes == 0 || posix_memalign(&data, 64, bytes) == 0, "no memory for ", bytes, " bytes");
    return {data, data, &std::free, here};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(kSecond, &memory)

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kSecond> {
  c10::Device exchangeDevice(c10::Device) const override { return here; }
  c10::Device getDevice() const override { return here; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, here); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, here); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, here); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// -- chance --------------------------------------------------------------------------------------------------------

struct Generator final : c10::GeneratorImpl {
  explicit Generator(uint64_t seed = c10::default_rng_seed_val)
      : c10::GeneratorImpl(here, DispatchKeySet(DispatchKey::PrivateUse1)),
        inner(at::make_generator<at::CPUGeneratorImpl>(seed)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  Generator* clone_impl() const override {
    auto* other = new Generator();
    other->inner = inner.clone();
    return other;
  }
  at::Generator inner;
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool isPinnedPtr(const void*) const override { return false; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static auto one = at::make_generator<Generator>();
    return one;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto data = memory.allocate(bytes);
    if (bytes != 0 && storage.nbytes() != 0) {
      std::memcpy(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
    }
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};
const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

// -- tensors of one device seen from the other ---------------------------------------------------------------------

Tensor tensor_on(c10::Storage storage, DispatchKey key, const Tensor& like) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) {
    impl->set_wrapped_number(true);
  }
  return made;
}

// The same memory, as a tensor of the processor. It can be made larger, which moves it to memory of its own.
Tensor on_processor(const Tensor& tensor) {
  auto* data = const_cast<void*>(tensor.storage().data());
  c10::Storage storage(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), c10::DataPtr(data, c10::Device(at::kCPU)),
                       c10::GetAllocator(at::kCPU), true);
  return tensor_on(std::move(storage), DispatchKey::CPU, tensor);
}

Tensor on_second(const Tensor& tensor) {
  auto* held = new c10::Storage(tensor.storage());
  c10::DataPtr data(const_cast<void*>(held->data()), held, [](void* p) { delete static_cast<c10::Storage*>(p); }, here);
  c10::Storage storage(c10::Storage::use_byte_size_t(), held->nbytes(), std::move(data), &memory, true);
  return tensor_on(std::move(storage), DispatchKey::PrivateUse1, tensor);
}

bool is_here(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == kSecond; }

void give_back(const Tensor& lent, const Tensor& own) {
  auto* impl = own.unsafeGetTensorImpl();
  if (lent.storage().data() != own.storage().data()) {
    auto data = memory.allocate(lent.storage().nbytes());
    if (lent.storage().nbytes() != 0) {
      std::memcpy(data.get(), lent.storage().data(), lent.storage().nbytes());
    }
    own.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
    own.storage().unsafeGetStorageImpl()->set_nbytes(lent.storage().nbytes());
  }
  if (lent.sizes() != own.sizes() || lent.strides() != own.strides()) {
    impl->set_sizes_and_strides(lent.sizes(), lent.strides(), lent.storage_offset());
  }
}

// -- every operator ------------------------------------------------------------------------------------------------

// Operators whose indices may be in the processor's memory.
const std::set<std::string> mixed = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put",
                                     "aten::_unsafe_index", "aten::_copy_from", "aten::_copy_from_and_resize"};

template <typename Change>
c10::List<Tensor> each_of(const c10::List<Tensor>& tensors, const Change& change) {
  c10::List<Tensor> made;
  for (const Tensor& tensor : tensors) {
    made.push_back(change(tensor));
  }
  return made;
}

class Lent {
 public:
  explicit Lent(const c10::OperatorHandle& op) : name_(op.schema().name()) {}

  Tensor lend(const Tensor& tensor) {
    if (!tensor.defined()) {
      return tensor;
    }
    if (!is_here(tensor)) {
      alone_ = alone_ || (tensor.device().is_cpu() && tensor.dim() > 0);
      return tensor;
    }
    for (auto& [own, lent] : pairs_) {
      if (own.is_same(tensor)) {
        return lent;
      }
    }
    pairs_.emplace_back(tensor, on_processor(tensor));
    return pairs_.back().second;
  }

  c10::IValue lend(const c10::IValue& value) {
    if (value.isTensor()) {
      return lend(value.toTensor());
    }
    if (value.isTensorList()) {
      return each_of(value.toTensorList(), [&](const Tensor& tensor) { return lend(tensor); });
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> made;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorList()) {
        made.push_back(tensor.has_value() ? std::optional<Tensor>(lend(*tensor)) : std::nullopt);
      }
      return made;
    }
    if (value.isGenerator()) {
      auto generator = value.toGenerator();
      TORCH_CHECK(generator.device().type() == kSecond, "Expected a 'second' device type for generator but found '",
                  generator.device().type(), "' (", name_, ")");
      return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->inner;
    }
    if (value.isDevice() && value.toDevice().type() == kSecond) {
      return c10::Device(at::kCPU);
    }
    return value;
  }

  void require_one_device() const {
    TORCH_CHECK(!alone_ || pairs_.empty() || mixed.count(name_) != 0,
                "Expected all tensors to be on the same device, but found at least two devices, cpu and second:0 (", name_,
                ")");
  }

  Tensor take_back(const Tensor& found) const {
    if (!found.defined()) {
      return found;
    }
    for (auto& [own, lent] : pairs_) {
      if (lent.is_same(found)) {
        return own;
      }
    }
    for (auto& [own, lent] : pairs_) {
      if (lent.storage().unsafeGetStorageImpl() == found.storage().unsafeGetStorageImpl()) {
        return tensor_on(own.storage(), DispatchKey::PrivateUse1, found);
      }
    }
    return on_second(found);
  }

  c10::IValue take_back(const c10::IValue& value) const {
    if (value.isTensor()) {
      return take_back(value.toTensor());
    }
    if (value.isTensorList()) {
      return each_of(value.toTensorList(), [&](const Tensor& tensor) { return take_back(tensor); });
    }
    return value;
  }

  void settle() const {
    for (auto& [own, lent] : pairs_) {
      give_back(lent, own);
    }
  }

 private:
  std::string name_;
  bool alone_ = false;
  std::vector<std::pair<Tensor, Tensor>> pairs_;
};

void on_the_processor(const c10::OperatorHandle& op, Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below;
  Lent lent(op);
  const auto taken = op.schema().arguments().size();
  const auto begin = stack->size() - taken;
  for (size_t at = begin; at < stack->size(); ++at) {
    (*stack)[at] = lent.lend((*stack)[at]);
  }
  lent.require_one_device();
  op.callBoxed(stack);
  lent.settle();
  for (size_t at = begin; at < stack->size(); ++at) {
    (*stack)[at] = lent.take_back((*stack)[at]);
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_processor>()); }

// In mixed precision only products are computed in fewer digits.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
}

// -- operators that make or fill memory ----------------------------------------------------------------------------

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, DispatchKeySet(DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
                                           DispatchKeySet(DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

Tensor processors(const Tensor& tensor) { return is_here(tensor) ? on_processor(tensor) : tensor; }

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  at::AutoDispatchBelowADInplaceOrView below;
  processors(to).copy_(processors(from));
  return to;
}

const Tensor& resize(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  at::AutoDispatchBelowADInplaceOrView below;
  auto lent = on_processor(self);
  lent.resize_(C10_AS_INTARRAYREF_SLOW(size), format);
  give_back(lent, self);
  return self;
}

Tensor copy_and_resize(const Tensor& from, const Tensor& to) {
  resize(to, c10::fromIntArrayRefSlow(from.sizes()), std::nullopt);
  return copy_from(from, to, false);
}

Tensor& set_storage(Tensor& self, c10::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  TORCH_CHECK(source.device().type() == kSecond, "Expected a storage of 'second' but found ", source.device());
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  c10::DimVector strides;
  for (const auto& one : stride) {
    strides.push_back(one.expect_int());
  }
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  if (strides.empty()) {
    strides = c10::contiguous_strides(sizes);
  }
  impl->set_sizes_and_strides(sizes, strides, offset.expect_int());
  return self;
}

Tensor& set_whole_storage(Tensor& self, c10::Storage source) {
  const auto count = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {c10::SymInt(count)}, {});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sym_sizes(), source.sym_strides());
}

Tensor& set_nothing(Tensor& self) {
  auto none = at::empty({0}, self.options());
  return set_tensor(self, none);
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, c10::SymIntArrayRef stride,
                   c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
                   c10::SymInt groups) {
  at::AutoDispatchBelowADInplaceOrView below;
  TORCH_CHECK(is_here(input) && is_here(weight), "Expected all tensors to be on the same device (convolution)");
  auto shift = bias.has_value() && bias->defined() ? std::optional<Tensor>(processors(*bias)) : std::nullopt;
  return on_second(at::convolution_symint(processors(input), processors(weight), shift, stride, padding, dilation, transposed,
                                          output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                                        c10::SymIntArrayRef dilation, bool transposed,
                                                        c10::SymIntArrayRef output_padding, c10::SymInt groups,
                                                        std::array<bool, 3> wanted) {
  at::AutoDispatchBelowADInplaceOrView below;
  auto [a, b, c] = at::convolution_backward_symint(
      processors(grad), processors(input), processors(weight), c10::SymIntArrayRef({weight.sym_size(transposed ? 1 : 0)}), stride,
      padding, dilation, transposed, output_padding, groups, wanted);
  auto second = [](const Tensor& t) { return t.defined() ? on_second(t) : t; };
  return {second(a), second(b), second(c)};
}

// -- recurrent cells, which have kernels of their own wherever the processor is not ---------------------------------

using Maybe = const std::optional<Tensor>&;

Tensor with(const Tensor& gates, Maybe bias) { return bias.has_value() && bias->defined() ? gates + *bias : gates; }

Tensor sum_over(const Tensor& slopes, bool is_wanted) { return is_wanted ? slopes.sum(0) : Tensor(); }

std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& in, const Tensor& hidden, const Tensor& cx, Maybe first, Maybe second) {
  auto gates = with(with(in + hidden, first), second).chunk(4, 1);
  auto i = gates[0].sigmoid(), f = gates[1].sigmoid(), g = gates[2].tanh(), o = gates[3].sigmoid();
  auto cy = f * cx + i * g;
  return {o * cy.tanh(), cy, at::cat({i, f, g, o}, 1)};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(Maybe to_hy, Maybe to_cy, const Tensor& cx, const Tensor& cy,
                                                      const Tensor& kept, bool has_bias) {
  auto gates = kept.chunk(4, 1);
  auto &i = gates[0], &f = gates[1], &g = gates[2], &o = gates[3];
  auto slope = [&](Maybe given) { return given.has_value() && given->defined() ? *given : at::zeros_like(cx); };
  auto hy = slope(to_hy), tanh = cy.tanh();
  auto c = slope(to_cy) + hy * o * (1 - tanh * tanh);
  auto made = at::cat({c * g * i * (1 - i), c * cx * f * (1 - f), c * i * (1 - g * g), hy * tanh * o * (1 - o)}, 1);
  return {made, c * f, sum_over(made, has_bias)};
}

std::tuple<Tensor, Tensor> gru_cell(const Tensor& in, const Tensor& hidden, const Tensor& hx, Maybe first, Maybe second) {
  auto a = with(in, first).chunk(3, 1), b = with(hidden, second).chunk(3, 1);
  auto r = (a[0] + b[0]).sigmoid(), z = (a[1] + b[1]).sigmoid(), n = (a[2] + r * b[2]).tanh();
  return {n + z * (hx - n), at::cat({r, z, n, hx, b[2]}, 1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gru_cell_backward(const Tensor& slope, const Tensor& kept, bool has_bias) {
  auto parts = kept.chunk(5, 1);
  auto &r = parts[0], &z = parts[1], &n = parts[2], &hx = parts[3], &h = parts[4];
  auto to_n = slope * (1 - z) * (1 - n * n), to_z = slope * (hx - n) * z * (1 - z), to_r = to_n * h * r * (1 - r);
  auto in = at::cat({to_r, to_z, to_n}, 1), hidden = at::cat({to_r, to_z, to_n * r}, 1);
  return {in, hidden, slope * z, sum_over(in, has_bias), sum_over(hidden, has_bias)};
}

Tensor histc(const Tensor& values, int64_t bins, const at::Scalar& least, const at::Scalar& most) {
  at::AutoDispatchBelowADInplaceOrView below;
  // A GPU counts whole numbers, too.
  return on_second(at::histc(processors(values).to(at::kDouble), bins, least, most).to(values.scalar_type()));
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("histc", histc);
  // What torch would take apart, though a GPU has it as one.
  m.impl("native_group_norm", torch::CppFunction::makeFromBoxedFunction<&on_the_processor>());
  m.impl("_thnn_fused_lstm_cell", lstm_cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
  m.impl("_thnn_fused_gru_cell", gru_cell);
  m.impl("_thnn_fused_gru_cell_backward", gru_cell_backward);
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_and_resize);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_", set_nothing);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

}  // namespace
