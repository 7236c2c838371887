// The builder's side: networks, configurations, profiles, the parser.
#pragma once

namespace stub
{
struct HostMemoryImpl final : DefaultVHostMemory
{
    std::string bytes;
    explicit HostMemoryImpl(std::string content)
        : bytes(std::move(content))
    {
    }
    void* data() const noexcept override
    {
        return const_cast<char*>(bytes.data());
    }
    std::size_t size() const noexcept override
    {
        return bytes.size();
    }
};
struct HostMemory final : Object<IHostMemory, HostMemoryImpl>
{
    explicit HostMemory(std::string bytes)
        : Object("IHostMemory", std::move(bytes))
    {
    }
};

struct TensorImpl final : DefaultVTensor
{
    std::string name;
    DataType type;
    std::vector<int64_t> sizes;
    TensorImpl(std::string n, DataType t, std::vector<int64_t> s)
        : name(std::move(n))
        , type(t)
        , sizes(std::move(s))
    {
    }
    char const* getName() const noexcept override
    {
        return name.c_str();
    }
    DataType getType() const noexcept override
    {
        return type;
    }
    Dims getDimensions() const noexcept override
    {
        return dims(sizes);
    }
};
struct Tensor final : ITensor
{
    TensorImpl impl;
    Tensor(std::string name, DataType type, std::vector<int64_t> sizes)
        : impl(std::move(name), type, std::move(sizes))
    {
        mImpl = &impl;
    }
};

struct AttentionImpl final : DefaultVAttention
{
    bool decomposable = true;
    char const* getName() const noexcept override
    {
        return "/mid/Attention";
    }
    bool setDecomposable(bool value) noexcept override
    {
        CALLED(setDecomposable, value);
        decomposable = value;
        return true;
    }
    bool getDecomposable() const noexcept override
    {
        return decomposable;
    }
};
struct Attention final : IAttention
{
    AttentionImpl impl;
    Attention()
    {
        mImpl = &impl;
    }
};

struct LayerImpl final : DefaultVLayer
{
    LayerType type;
    std::string name;
    LayerType getType() const noexcept override
    {
        return type;
    }
    char const* getName() const noexcept override
    {
        return name.c_str();
    }
};
struct BoundaryImpl final : DefaultVAttentionBoundaryLayer
{
    IAttention* attention = nullptr;
    IAttention* getAttention() const noexcept override
    {
        return attention;
    }
};
struct Activation final : IActivationLayer
{
    LayerImpl impl;
    Activation()
    {
        impl.type = LayerType::kACTIVATION;
        impl.name = "/mid/Relu";
        mLayer = &impl;
    }
};
struct AttentionOutput final : IAttentionOutputLayer
{
    LayerImpl layer;
    BoundaryImpl boundary;
    explicit AttentionOutput(IAttention& attention)
    {
        layer.type = LayerType::kATTENTION_OUTPUT;
        layer.name = "/mid/Attention/output";
        boundary.attention = &attention;
        mLayer = &layer;
        mBoundary = &boundary;
    }
};

struct NetworkImpl final : DefaultVNetworkDefinition
{
    Tensor input{"x", DataType::kHALF, {-1, 7}};
    Tensor output{"y", DataType::kHALF, {-1, 14}};
    Activation activation;
    Attention attention;
    AttentionOutput attentionOutput{attention};
    std::unique_ptr<IPluginV3> plugin;
    NetworkImpl()
    {
        gNames[&attention.impl] = "IAttention";
    }
    int32_t getNbInputs() const noexcept override
    {
        return 1;
    }
    ITensor* getInput(int32_t index) const noexcept override
    {
        return index == 0 ? const_cast<Tensor*>(&input) : nullptr;
    }
    int32_t getNbOutputs() const noexcept override
    {
        return 1;
    }
    ITensor* getOutput(int32_t index) const noexcept override
    {
        return index == 0 ? const_cast<Tensor*>(&output) : nullptr;
    }
    int32_t getNbLayers() const noexcept override
    {
        return 2;
    }
    ILayer* getLayer(int32_t index) const noexcept override
    {
        if (index == 0)
        {
            return const_cast<Activation*>(&activation);
        }
        return const_cast<AttentionOutput*>(&attentionOutput);
    }
};
using Network = Object<INetworkDefinition, NetworkImpl>;

struct TimingCacheImpl final : DefaultVTimingCache
{
    std::string bytes;
    explicit TimingCacheImpl(std::string content)
        : bytes(std::move(content))
    {
    }
    IHostMemory* serialize() const noexcept override
    {
        CALLED(serialize);
        return new HostMemory(bytes + " and more");
    }
};
using TimingCache = Object<ITimingCache, TimingCacheImpl>;

struct ProfileImpl final : DefaultVOptimizationProfile
{
    bool setDimensions(char const* inputName, OptProfileSelector select, Dims const& sizes) noexcept override
    {
        CALLED(setDimensions, inputName, select, sizes);
        return true;
    }
    bool isValid() const noexcept override
    {
        CALLED(isValid);
        return true;
    }
};
using Profile = Object<IOptimizationProfile, ProfileImpl>;

struct BuilderConfigImpl final : DefaultVBuilderConfig
{
    int32_t level = 3;
    BuilderFlags flags = 0;
    IProgressMonitor* monitor = nullptr;
    void setFlag(BuilderFlag flag) noexcept override
    {
        called(this, "setFlag", flag);
        flags |= 1U << static_cast<uint32_t>(flag);
    }
    void clearFlag(BuilderFlag flag) noexcept override
    {
        called(this, "clearFlag", flag);
        flags &= ~(1U << static_cast<uint32_t>(flag));
    }
    bool getFlag(BuilderFlag flag) const noexcept override
    {
        CALLED(getFlag, flag);
        return flags >> static_cast<uint32_t>(flag) & 1U;
    }
    void setMemoryPoolLimit(MemoryPoolType pool, std::size_t size) noexcept override
    {
        called(this, "setMemoryPoolLimit", pool, size);
    }
    void setBuilderOptimizationLevel(int32_t value) noexcept override
    {
        called(this, "setBuilderOptimizationLevel", value);
        level = value <= 5 ? value : level;
    }
    int32_t getBuilderOptimizationLevel() const noexcept override
    {
        return level;
    }
    void setProfilingVerbosity(ProfilingVerbosity verbosity) noexcept override
    {
        called(this, "setProfilingVerbosity", verbosity);
    }
    int32_t addOptimizationProfile(IOptimizationProfile const* profile) noexcept override
    {
        return called(this, "addOptimizationProfile", static_cast<void const*>(profile)) ? -1 : 0;
    }
    ITimingCache* createTimingCache(void const* blob, std::size_t size) const noexcept override
    {
        std::string const bytes(static_cast<char const*>(blob), size);
        CALLED(createTimingCache, bytes);
        return new TimingCache("ITimingCache", bytes);
    }
    bool setTimingCache(ITimingCache const& cache, bool ignoreMismatch) noexcept override
    {
        CALLED(setTimingCache, static_cast<void const*>(&cache), ignoreMismatch);
        return true;
    }
    void setProgressMonitor(IProgressMonitor* value) noexcept override
    {
        called(this, "setProgressMonitor", show(*value));
        monitor = value;
    }
#ifdef TRT_MAJOR_RTX
    bool setNbComputeCapabilities(int32_t count) noexcept override
    {
        CALLED(setNbComputeCapabilities, count);
        return true;
    }
    bool setComputeCapability(ComputeCapability capability, int32_t index) noexcept override
    {
        CALLED(setComputeCapability, std::string(capability == ComputeCapability::kSM89 ? "kSM89" : "unknown"), index);
        return true;
    }
#endif
};
using BuilderConfig = Object<IBuilderConfig, BuilderConfigImpl>;

struct BuilderImpl final : DefaultVBuilder
{
    std::vector<std::unique_ptr<Profile>> profiles;
    bool setMaxThreads(int32_t maxThreads) noexcept override
    {
        CALLED(setMaxThreads, maxThreads);
        return true;
    }
    INetworkDefinition* createNetworkV2(NetworkDefinitionCreationFlags flags) noexcept override
    {
        uint32_t const typed = 1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
        CALLED(createNetworkV2, std::string(flags == typed ? "kSTRONGLY_TYPED" : "other flags"));
        return new Network("INetworkDefinition");
    }
    IBuilderConfig* createBuilderConfig() noexcept override
    {
        CALLED(createBuilderConfig);
        return new BuilderConfig("IBuilderConfig");
    }
    IOptimizationProfile* createOptimizationProfile() noexcept override
    {
        CALLED(createOptimizationProfile);
        profiles.emplace_back(new Profile("IOptimizationProfile"));
        return profiles.back().get();
    }
    IHostMemory* buildSerializedNetwork(INetworkDefinition& network, IBuilderConfig& config) noexcept override
    {
        CALLED(buildSerializedNetwork, static_cast<void const*>(&network), static_cast<void const*>(&config));
        auto& plugin = static_cast<Network&>(network).impl.plugin;
        if (plugin && !buildPlugin(*plugin))
        {
            return nullptr;
        }
        if (auto* monitor = static_cast<BuilderConfig&>(config).impl.monitor)
        {
            monitor->phaseStart("Building engine", nullptr, 2);
            monitor->phaseStart("Timing", "Building engine", 1);
            bool const goesOn = monitor->stepComplete("Timing", 0);
            monitor->phaseFinish("Timing");
            bool const isFine = goesOn && monitor->stepComplete("Building engine", 0);
            monitor->phaseFinish("Building engine");
            record("progress " + show(goesOn) + " " + show(isFine));
            if (!isFine)
            {
                gLogger->log(ILogger::Severity::kERROR, "Build canceled by user");
                return nullptr;
            }
        }
        return new HostMemory("a plan");
    }
};
using Builder = Object<IBuilder, BuilderImpl>;

struct ParserError final : DefaultIParserError
{
    char const* desc() const override
    {
        return "Frobnicate is unheard of";
    }
    char const* nodeName() const override
    {
        return "/mid/Frobnicate";
    }
    char const* nodeOperator() const override
    {
        return "Frobnicate";
    }
};
struct Parser final : DefaultIParser
{
    Network& network;
    ParserError error;
    int32_t nbErrors = 0;
    explicit Parser(Network& of)
        : network(of)
    {
        born("IParser", this, this);
    }
    ~Parser() noexcept override
    {
        dead(this, this);
    }
    bool parseFromFile(char const* onnxModelFile, int verbosity) noexcept override
    {
        char const* const file = std::strrchr(onnxModelFile, '/');
        CALLED(parseFromFile, file ? file + 1 : onnxModelFile, verbosity);
        if (std::strstr(onnxModelFile, "broken"))
        {
            nbErrors = 1;
            return false;
        }
        if (std::strstr(onnxModelFile, "plugin"))
        {
            std::unique_ptr<IPluginV3> const plugin(createForNode("/mid/Own"));
            network.impl.plugin.reset(plugin ? plugin->clone() : nullptr);
            return network.impl.plugin != nullptr;
        }
        return true;
    }
    int getNbErrors() const noexcept override
    {
        return nbErrors;
    }
    IParserError const* getError(int index) const noexcept override
    {
        return &error;
    }
};
} // namespace stub
