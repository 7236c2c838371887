// The runtime's side: engines, contexts, refitters.
#pragma once

namespace stub
{
struct ContextImpl final : DefaultVExecutionContext
{
    std::unique_ptr<IPluginV3> plugin;
    int32_t profile = 0;
    explicit ContextImpl(IPluginV3* own)
        : plugin(own)
    {
    }
    int32_t getOptimizationProfile() const noexcept override
    {
        CALLED(getOptimizationProfile);
        return profile;
    }
    bool setOptimizationProfileAsync(int32_t profileIndex, cudaStream_t stream) noexcept override
    {
        CALLED(setOptimizationProfileAsync, profileIndex, static_cast<void const*>(stream));
        profile = profileIndex;
        return true;
    }
    bool setInputShape(char const* tensorName, Dims const& sizes) noexcept override
    {
        CALLED(setInputShape, tensorName, sizes);
        return true;
    }
    Dims getTensorShape(char const* tensorName) const noexcept override
    {
        called(this, "getTensorShape", tensorName);
        if (std::strcmp(tensorName, "y") != 0)
        {
            return Dims{-1, {}};
        }
        return dims({2, 14});
    }
    int32_t inferShapes(int32_t nbMaxNames, char const** tensorNames) noexcept override
    {
        if (called(this, "inferShapes", nbMaxNames))
        {
            return -1;
        }
        if (profile == 1)
        {
            tensorNames[0] = "x";
            return 1;
        }
        return 0;
    }
    size_t updateDeviceMemorySizeForShapes() noexcept override
    {
        CALLED(updateDeviceMemorySizeForShapes);
        return 3333;
    }
    void setDeviceMemoryV2(void* memory, int64_t size) noexcept override
    {
        called(this, "setDeviceMemoryV2", memory, size);
    }
    bool setTensorAddress(char const* tensorName, void* data) noexcept override
    {
        CALLED(setTensorAddress, tensorName, data);
        return true;
    }
#ifdef TRT_MAJOR_RTX
    bool isStreamCapturable(cudaStream_t stream) const noexcept override
    {
        CALLED(isStreamCapturable, static_cast<void const*>(stream));
        return true;
    }
#endif
    bool enqueueV3(cudaStream_t stream) noexcept override
    {
        CALLED(enqueueV3, static_cast<void const*>(stream));
        return !plugin || enqueuePlugin(*plugin, stream);
    }
};
using Context = Object<IExecutionContext, ContextImpl>;

struct SerializationConfigImpl final : DefaultVSerializationConfig
{
    bool setFlags(SerializationFlags flags) noexcept override
    {
        auto const has = [&](SerializationFlag flag) { return flags >> static_cast<uint32_t>(flag) & 1U; };
        std::string const text = std::string(has(SerializationFlag::kEXCLUDE_WEIGHTS) ? "kEXCLUDE_WEIGHTS " : "")
            + (has(SerializationFlag::kEXCLUDE_LEAN_RUNTIME) ? "kEXCLUDE_LEAN_RUNTIME " : "")
            + (has(SerializationFlag::kINCLUDE_REFIT) ? "kINCLUDE_REFIT" : "");
        CALLED(setFlags, text);
        return true;
    }
};
using SerializationConfig = Object<ISerializationConfig, SerializationConfigImpl>;

struct InspectorImpl final : DefaultVEngineInspector
{
    char const* getEngineInformation(LayerInformationFormat format) const noexcept override
    {
        CALLED(getEngineInformation, format);
        return "{\"Layers\": []}";
    }
};
using Inspector = Object<IEngineInspector, InspectorImpl>;

#ifdef TRT_MAJOR_RTX
struct RuntimeCacheImpl final : DefaultVRuntimeCache
{
    IHostMemory* serialize() const noexcept override
    {
        CALLED(serialize);
        return new HostMemory("kernels");
    }
    bool deserialize(void const* blob, size_t size) noexcept override
    {
        std::string const bytes(static_cast<char const*>(blob), size);
        CALLED(deserialize, bytes);
        return bytes == "kernels";
    }
};
using RuntimeCache = Object<IRuntimeCache, RuntimeCacheImpl>;

struct RuntimeConfigImpl final : DefaultVRuntimeConfig
{
    void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy strategy) noexcept override
    {
        called(this, "setExecutionContextAllocationStrategy", strategy);
    }
    void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy strategy) noexcept override
    {
        called(this, "setDynamicShapesKernelSpecializationStrategy", strategy);
    }
    IRuntimeCache* createRuntimeCache() const noexcept override
    {
        CALLED(createRuntimeCache);
        return new RuntimeCache("IRuntimeCache");
    }
    bool setRuntimeCache(IRuntimeCache const& cache) noexcept override
    {
        CALLED(setRuntimeCache, static_cast<void const*>(&cache));
        return true;
    }
};
using RuntimeConfig = Object<IRuntimeConfig, RuntimeConfigImpl>;
#endif

struct EngineImpl final : DefaultVCudaEngine
{
    std::unique_ptr<IPluginV3> plugin{createForEngine()};
    bool loaded = true;
    int64_t budget = 400;
    int32_t getNbLayers() const noexcept override
    {
        return 5;
    }
    int32_t getNbOptimizationProfiles() const noexcept override
    {
        return 2;
    }
    int32_t getNbIOTensors() const noexcept override
    {
        return 2;
    }
    char const* getIOTensorName(int32_t index) const noexcept override
    {
        return index == 0 ? "x" : "y";
    }
    DataType getTensorDataType(char const* tensorName) const noexcept override
    {
        return tensorName[0] == 'x' ? DataType::kHALF : DataType::kINT64;
    }
    Dims getTensorShape(char const* tensorName) const noexcept override
    {
        return dims({-1, tensorName[0] == 'x' ? 7 : 14});
    }
    TensorIOMode getTensorIOMode(char const* tensorName) const noexcept override
    {
        CALLED(getTensorIOMode, tensorName);
        switch (tensorName[0])
        {
        case 'x': return TensorIOMode::kINPUT;
        case 'y': return TensorIOMode::kOUTPUT;
        default: return TensorIOMode::kNONE;
        }
    }
    bool isShapeInferenceIO(char const* tensorName) const noexcept override
    {
        CALLED(isShapeInferenceIO, tensorName);
        return tensorName[0] == 'y';
    }
    Dims getProfileShape(char const* tensorName, int32_t profileIndex, OptProfileSelector select) const noexcept override
    {
        called(this, "getProfileShape", tensorName, profileIndex, select);
        if (tensorName[0] != 'x')
        {
            return Dims{-1, {}};
        }
        return dims({static_cast<int64_t>(select) + 1, 7});
    }
    int64_t getDeviceMemorySizeForProfileV2(int32_t profileIndex) const noexcept override
    {
        CALLED(getDeviceMemorySizeForProfileV2, profileIndex);
        return 1000 + profileIndex;
    }
    bool isRefittable() const noexcept override
    {
        CALLED(isRefittable);
        return true;
    }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override
    {
        CALLED(createExecutionContext, strategy);
        IPluginV3* own = nullptr;
        if (plugin)
        {
            auto* runtime = capability<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
            own = runtime->attachToContext(nullptr);
        }
        return new Context("IExecutionContext", own);
    }
#ifdef TRT_MAJOR_RTX
    IRuntimeConfig* createRuntimeConfig() noexcept override
    {
        CALLED(createRuntimeConfig);
        return new RuntimeConfig("IRuntimeConfig");
    }
    IExecutionContext* createExecutionContextWithRuntimeConfig(IRuntimeConfig* runtimeConfig) noexcept override
    {
        CALLED(createExecutionContextWithRuntimeConfig, static_cast<void const*>(runtimeConfig));
        return new Context("IExecutionContext", nullptr);
    }
#endif
    ISerializationConfig* createSerializationConfig() noexcept override
    {
        CALLED(createSerializationConfig);
        return new SerializationConfig("ISerializationConfig");
    }
    IHostMemory* serializeWithConfig(ISerializationConfig& config) const noexcept override
    {
        CALLED(serializeWithConfig, static_cast<void const*>(&config));
        return new HostMemory("a plan again");
    }
    IEngineInspector* createEngineInspector() const noexcept override
    {
        CALLED(createEngineInspector);
        return new Inspector("IEngineInspector");
    }
    int64_t getStreamableWeightsSize() const noexcept override
    {
        CALLED(getStreamableWeightsSize);
        return 500;
    }
    bool setWeightStreamingBudgetV2(int64_t gpuMemoryBudget) noexcept override
    {
        CALLED(setWeightStreamingBudgetV2, gpuMemoryBudget);
        budget = gpuMemoryBudget;
        return true;
    }
    int64_t getWeightStreamingBudgetV2() const noexcept override
    {
        CALLED(getWeightStreamingBudgetV2);
        return budget;
    }
    int64_t getWeightStreamingAutomaticBudget() const noexcept override
    {
        CALLED(getWeightStreamingAutomaticBudget);
        return 300;
    }
    int64_t getWeightStreamingScratchMemorySize() const noexcept override
    {
        CALLED(getWeightStreamingScratchMemorySize);
        return 64;
    }
#ifdef TRT_MAJOR_RTX
    bool areWeightsLoaded() const noexcept override
    {
        CALLED(areWeightsLoaded);
        return loaded;
    }
    bool loadWeights(void const* blob, int64_t size) noexcept override
    {
        std::string const bytes(static_cast<char const*>(blob), static_cast<size_t>(size));
        CALLED(loadWeights, bytes);
        loaded = true;
        return true;
    }
    bool loadWeightsAsync(IStreamReaderV2& streamReader, cudaStream_t stream) noexcept override
    {
        CALLED(loadWeightsAsync, show(static_cast<IVersionedInterface&>(streamReader)), static_cast<void const*>(stream));
        char buffer[16] = {};
        bool const sought = streamReader.seek(2, SeekPosition::kSET) && streamReader.seek(-1, SeekPosition::kCUR)
            && !streamReader.seek(5, SeekPosition::kEND);
        int64_t const first = streamReader.read(buffer, 4, stream);
        int64_t const second = streamReader.read(buffer + 4, 9, stream);
        record("stream " + show(sought) + " " + std::to_string(first) + " " + std::to_string(second) + " " + show(buffer));
        loaded = second >= 0;
        return loaded;
    }
    bool unloadWeights() noexcept override
    {
        CALLED(unloadWeights);
        loaded = false;
        return true;
    }
#endif
};
using Engine = Object<ICudaEngine, EngineImpl>;

struct RefitterImpl final : DefaultVRefitter
{
    std::vector<char const*> missing{"down.weight", "down.bias"};
    static int32_t list(std::vector<char const*> const& names, int32_t size, char const** to)
    {
        for (int32_t i = 0; i < size && i < static_cast<int32_t>(names.size()); ++i)
        {
            to[i] = names[i];
        }
        return static_cast<int32_t>(names.size());
    }
    int32_t getAllWeights(int32_t size, char const** weightsNames) noexcept override
    {
        return list({"down.weight", "down.bias"}, size, weightsNames);
    }
    int32_t getMissingWeights(int32_t size, char const** weightsNames) noexcept override
    {
        return list(missing, size, weightsNames);
    }
    Weights getWeightsPrototype(char const* weightsName) const noexcept override
    {
        called(this, "getWeightsPrototype", weightsName);
        bool const known = std::strncmp(weightsName, "down.", 5) == 0;
        return Weights{DataType::kHALF, nullptr, known ? 3 : -1};
    }
    bool setNamedWeights(char const* name, Weights weights) noexcept override
    {
        auto const* values = static_cast<uint16_t const*>(weights.values);
        CALLED(setNamedWeights, name, weights.type, weights.count, static_cast<int32_t>(values[weights.count - 1]));
        for (auto it = missing.begin(); it != missing.end(); ++it)
        {
            if (!std::strcmp(*it, name))
            {
                missing.erase(it);
                return true;
            }
        }
        return false;
    }
    bool unsetNamedWeights(char const* weightsName) noexcept override
    {
        CALLED(unsetNamedWeights, weightsName);
        return true;
    }
    bool refitCudaEngine() noexcept override
    {
        CALLED(refitCudaEngine);
        return missing.empty();
    }
    bool refitCudaEngineAsync(cudaStream_t stream) noexcept override
    {
        CALLED(refitCudaEngineAsync, static_cast<void const*>(stream));
        return true;
    }
};
using Refitter = Object<IRefitter, RefitterImpl>;

struct RuntimeImpl final : DefaultVRuntime
{
    bool deferred = false;
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override
    {
        std::string const bytes(static_cast<char const*>(blob), size);
        CALLED(deserializeCudaEngine, bytes);
        auto* engine = new Engine("ICudaEngine");
        engine->impl.loaded = !deferred;
        return engine;
    }
#ifdef TRT_MAJOR_RTX
    void setDeferredWeightsLoading(bool defer) noexcept override
    {
        called(this, "setDeferredWeightsLoading", defer);
        deferred = defer;
    }
    bool getDeferredWeightsLoading() const noexcept override
    {
        CALLED(getDeferredWeightsLoading);
        return deferred;
    }
#endif
};
using Runtime = Object<IRuntime, RuntimeImpl>;
} // namespace stub
