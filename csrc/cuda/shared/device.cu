// Whether the kernels can run on a device, asked without crashing where there is no driver.
#include "launch.cuh"

namespace s4_fast::cuda {
namespace {

__global__ void probe_kernel() {}

std::string release(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_usable(int64_t device) {
    using namespace s4_fast;
    using namespace s4_fast::cuda;
    return guard([&] {
        const std::string runtime = release(CUDART_VERSION);
        int driver = 0, devices = 0;
        if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return fail("there is no NVIDIA driver");
        // Within a major version any driver serves any runtime.
        if (driver / 1000 < CUDART_VERSION / 1000)
            return fail("the driver serves CUDA %s and the library was built with CUDA %s", release(driver).c_str(),
                        runtime.c_str());
        cudaError_t error = cudaGetDeviceCount(&devices);
        if (error != cudaSuccess) return fail("no CUDA device can be used: %s", cudaGetErrorString(error));
        if (device < 0 || device >= devices)
            return fail("there is no CUDA device %lld; this machine has %d", (long long)device, devices);
        int previous = 0, major = 0, minor = 0;
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, int(device));
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, int(device));
        cudaGetDevice(&previous);
        error = cudaSetDevice(int(device));
        cudaFuncAttributes attributes;
        if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, probe_kernel);
        cudaSetDevice(previous);
        cudaGetLastError();
        if (error == cudaSuccess) return 0;
        return fail("the library (CUDA %s) cannot run on device %lld, of compute capability %d.%d: %s", runtime.c_str(),
                    (long long)device, major, minor, cudaGetErrorString(error));
    });
}
