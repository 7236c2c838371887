// What the library was asked for, in words, and what it is told to fail at.
#pragma once

#include "NvInfer.h"
#include "NvOnnxParser.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

namespace stub
{
using namespace nvinfer1;
using namespace nvonnxparser;
using nvonnxparser::ErrorCode;

static std::recursive_mutex gLock;
static std::string gLog;
static std::string gText;
static std::string gFailing;
static std::map<void const*, std::string> gNames;
static std::map<std::string, int> gCounts;
static ILogger* gLogger = nullptr;

inline std::string show(char const* text)
{
    return text ? "'" + std::string(text) + "'" : "null";
}
inline std::string show(bool value)
{
    return value ? "true" : "false";
}
inline std::string show(int32_t value)
{
    return std::to_string(value);
}
inline std::string show(uint32_t value)
{
    return std::to_string(value);
}
inline std::string show(int64_t value)
{
    return std::to_string(value);
}
inline std::string show(size_t value)
{
    return std::to_string(value);
}
inline std::string show(Dims const& dims)
{
    std::string text = "[";
    for (int32_t i = 0; i < dims.nbDims; ++i)
    {
        text += (i ? ", " : "") + std::to_string(dims.d[i]);
    }
    return text + "]";
}
inline std::string show(void const* pointer)
{
    auto const name = gNames.find(pointer);
    return name == gNames.end() ? "@" + std::to_string(reinterpret_cast<uintptr_t>(pointer)) : name->second;
}
inline std::string show(std::string const& text)
{
    return text;
}

// An enumerator by its name, which the compiler knows from NVIDIA's header.
#define ONE_OF(value, Enumeration, name) \
    if ((value) == Enumeration::name) \
    return #name
inline std::string show(BuilderFlag value)
{
    ONE_OF(value, BuilderFlag, kTF32);
    ONE_OF(value, BuilderFlag, kREFIT);
    ONE_OF(value, BuilderFlag, kSTRIP_PLAN);
    ONE_OF(value, BuilderFlag, kWEIGHT_STREAMING);
    return "unknown";
}
inline std::string show(OptProfileSelector value)
{
    ONE_OF(value, OptProfileSelector, kMIN);
    ONE_OF(value, OptProfileSelector, kOPT);
    ONE_OF(value, OptProfileSelector, kMAX);
    return "unknown";
}
inline std::string show(MemoryPoolType value)
{
    ONE_OF(value, MemoryPoolType, kWORKSPACE);
    return "unknown";
}
inline std::string show(ProfilingVerbosity value)
{
    ONE_OF(value, ProfilingVerbosity, kDETAILED);
    return "unknown";
}
inline std::string show(ExecutionContextAllocationStrategy value)
{
    ONE_OF(value, ExecutionContextAllocationStrategy, kSTATIC);
    ONE_OF(value, ExecutionContextAllocationStrategy, kON_PROFILE_CHANGE);
    ONE_OF(value, ExecutionContextAllocationStrategy, kUSER_MANAGED);
    return "unknown";
}
inline std::string show(DataType value)
{
    ONE_OF(value, DataType, kFLOAT);
    ONE_OF(value, DataType, kHALF);
    ONE_OF(value, DataType, kINT64);
    return "unknown";
}
#ifdef TRT_MAJOR_RTX
inline std::string show(DynamicShapesKernelSpecializationStrategy value)
{
    ONE_OF(value, DynamicShapesKernelSpecializationStrategy, kLAZY);
    ONE_OF(value, DynamicShapesKernelSpecializationStrategy, kEAGER);
    ONE_OF(value, DynamicShapesKernelSpecializationStrategy, kNONE);
    return "unknown";
}
#endif
inline std::string show(LayerInformationFormat value)
{
    ONE_OF(value, LayerInformationFormat, kJSON);
    return "unknown";
}
#undef ONE_OF

inline std::string join()
{
    return "";
}
template <class First, class... Rest>
std::string join(First const& first, Rest const&... rest)
{
    std::string const others = join(rest...);
    return show(first) + (sizeof...(rest) ? ", " + others : "");
}

inline void record(std::string const& line)
{
    std::lock_guard<std::recursive_mutex> const lock(gLock);
    gLog += line + "\n";
}

// Records a call; true where it is to fail, with the reason in the library's log.
template <class... Arguments>
bool called(void const* object, char const* method, Arguments const&... arguments)
{
    std::lock_guard<std::recursive_mutex> const lock(gLock);
    record(show(object) + "." + method + "(" + join(arguments...) + ")");
    if (gFailing != method)
    {
        return false;
    }
    gFailing.clear();
    gLogger->log(ILogger::Severity::kERROR, ("IStub::" + std::string(method) + ": Error Code 4: Internal Error (/stub/Node: told to fail)").c_str());
    return true;
}
#define CALLED(method, ...) \
    if (called(this, #method, ##__VA_ARGS__)) \
    return {}

// What a method does that no test expects to be called.
inline void unexpected(char const* method)
{
    record(std::string("UNEXPECTED ") + method);
}

// Gives an object a name, as IBuilder#1, that its implementation shares.
inline void born(char const* kind, void const* object, void const* implementation)
{
    std::lock_guard<std::recursive_mutex> const lock(gLock);
    std::string const name = std::string(kind) + "#" + std::to_string(++gCounts[kind]);
    gNames[object] = name;
    gNames[implementation] = name;
    record("new " + name);
}
inline void dead(void const* object, void const* implementation)
{
    std::lock_guard<std::recursive_mutex> const lock(gLock);
    record("delete " + show(object));
    gNames.erase(object);
    gNames.erase(implementation);
}

// An object as the application sees it, around its implementation.
template <class Interface, class Implementation>
struct Object : Interface
{
    Implementation impl;
    template <class... Arguments>
    explicit Object(char const* kind, Arguments&&... arguments)
        : impl(std::forward<Arguments>(arguments)...)
    {
        this->mImpl = &impl;
        born(kind, this, &impl);
    }
    ~Object() override
    {
        dead(this, &impl);
    }
};

inline Dims dims(std::vector<int64_t> const& sizes)
{
    Dims result{};
    result.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i)
    {
        result.d[i] = sizes[i];
    }
    return result;
}
} // namespace stub
