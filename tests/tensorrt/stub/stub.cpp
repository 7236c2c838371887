// A TensorRT that does nothing but tell what it was asked for, made from NVIDIA's own headers so that the compiler orders
// its virtual tables. `defaults.h` is generated: a class DefaultX for each interface X, whose methods are `unexpected`.
#include "record.h"

#include "defaults.h"

#include "plugin.h"

#include "build.h"

#include "run.h"

extern "C"
{
int32_t getInferLibMajorVersion() noexcept
{
    return NV_TENSORRT_MAJOR;
}
int32_t getInferLibMinorVersion() noexcept
{
    return NV_TENSORRT_MINOR;
}
int32_t getInferLibPatchVersion() noexcept
{
    return NV_TENSORRT_PATCH;
}
int getNvOnnxParserVersion() noexcept
{
    return NV_TENSORRT_VERSION;
}

// The version that a factory is called with, as the headers' inline functions pass it.
static std::string version(int32_t number)
{
    return number == NV_TENSORRT_VERSION ? "this version" : "version " + std::to_string(number);
}

void* createInferBuilder_INTERNAL(void* logger, int32_t number) noexcept
{
    stub::gLogger = static_cast<nvinfer1::ILogger*>(logger);
    stub::record("createInferBuilder_INTERNAL " + version(number));
    return new stub::Builder("IBuilder");
}
void* createInferRuntime_INTERNAL(void* logger, int32_t number) noexcept
{
    stub::gLogger = static_cast<nvinfer1::ILogger*>(logger);
    stub::record("createInferRuntime_INTERNAL " + version(number));
    return new stub::Runtime("IRuntime");
}
void* createInferRefitter_INTERNAL(void* engine, void* logger, int32_t number) noexcept
{
    stub::record("createInferRefitter_INTERNAL " + stub::show(engine) + " " + version(number));
    return logger == stub::gLogger ? new stub::Refitter("IRefitter") : nullptr;
}
void* createNvOnnxParser_INTERNAL(void* network, void* logger, int number) noexcept
{
    stub::record("createNvOnnxParser_INTERNAL " + stub::show(network) + " " + version(number));
    auto& of = *static_cast<stub::Network*>(static_cast<nvinfer1::INetworkDefinition*>(network));
    return logger == stub::gLogger ? static_cast<nvonnxparser::IParser*>(new stub::Parser(of)) : nullptr;
}
nvinfer1::IPluginRegistry* getPluginRegistry() noexcept
{
    stub::gNames[&stub::gRegistry] = "IPluginRegistry";
    return &stub::gRegistry;
}

// What was recorded since this was last asked.
char const* stubLog()
{
    std::lock_guard<std::recursive_mutex> const lock(stub::gLock);
    stub::gText.swap(stub::gLog);
    stub::gLog.clear();
    return stub::gText.c_str();
}
// Logs a message.
void stubSay(int32_t severity, char const* message)
{
    stub::gLogger->log(static_cast<nvinfer1::ILogger::Severity>(severity), message);
}
// Lets the next call of a method fail.
void stubFail(char const* method)
{
    std::lock_guard<std::recursive_mutex> const lock(stub::gLock);
    stub::gFailing = method;
}
} // extern "C"
