// What the parts of the plugin share: errors, handles, and what each part adds to Paddle's table.
#pragma once
#ifndef PADDLE_WITH_CUSTOM_DEVICE
#define PADDLE_WITH_CUSTOM_DEVICE
#endif
#include <cuda_runtime_api.h>

#include "paddle/phi/backends/device_ext.h"
#include "pool.h"

namespace qinfer {

constexpr int kMostDevices = 64;

// Throws with CUDA's words; Paddle makes a RuntimeError of it.
void check(cudaError_t code, const char* what);

// For what Paddle calls from destructors, where nothing may be thrown.
C_Status status(cudaError_t code);

Pool& pool(int device);

inline void use(const C_Device device) { check(cudaSetDevice(device->id), "choosing the device"); }
inline cudaStream_t of(C_Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }
inline cudaEvent_t of(C_Event event) { return reinterpret_cast<cudaEvent_t>(event); }

void add_devices(C_DeviceInterface* table);
void add_streams(C_DeviceInterface* table);
void add_memory(C_DeviceInterface* table);
void add_copies(C_DeviceInterface* table);

// Copies to the computer so far.
size_t copies_to_host();

}  // namespace qinfer
