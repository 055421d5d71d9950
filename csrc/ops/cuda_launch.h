// Runs a CUDA launcher on the current stream of a tensor's device.
#pragma once
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

namespace genmod {
namespace cuda {

// Looked up in the process, so that one build loads with and without CUDA in torch.
inline cudaStream_t current_stream(int32_t device) {
  using Get = int32_t (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? (Get)dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  }();
  STD_TORCH_CHECK(get, "genmod: the CUDA kernels need a torch with CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "genmod: torch has no current stream for CUDA device ", device);
  return (cudaStream_t)stream;
}

template <class Params> inline void run(cudaError_t (*kernels)(const Params&, cudaStream_t), const Params& p, const torch::stable::Tensor& like) {
  const int32_t device = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaError_t status = kernels(p, current_stream(device));
  if (status == cudaSuccess) return;
  cudaGetLastError();  // reported here, so not again by whoever asks next
  STD_TORCH_CHECK(false, "genmod: a CUDA kernel did not launch: ", cudaGetErrorString(status));
}

}  // namespace cuda
}  // namespace genmod
