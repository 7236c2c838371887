// A plugin registry, and what TensorRT does with a plugin.
#pragma once

namespace stub
{
struct Registry final : DefaultIPluginRegistry
{
    std::vector<IPluginCreatorInterface*> creators;

    bool registerCreator(IPluginCreatorInterface& creator, AsciiChar const* const pluginNamespace) noexcept override
    {
        InterfaceInfo const info = creator.getInterfaceInfo();
        std::string const kind = std::string(info.kind) + " " + std::to_string(info.major) + "." + std::to_string(info.minor);
        CALLED(registerCreator, kind.c_str(), pluginNamespace, static_cast<int32_t>(creator.getAPILanguage()));
        creators.push_back(&creator);
        return true;
    }
    bool deregisterCreator(IPluginCreatorInterface const& creator) noexcept override
    {
        CALLED(deregisterCreator);
        for (auto it = creators.begin(); it != creators.end(); ++it)
        {
            if (*it == &creator)
            {
                creators.erase(it);
                return true;
            }
        }
        return false;
    }
};
static Registry gRegistry;

inline std::string show(IVersionedInterface& interface)
{
    InterfaceInfo const info = interface.getInterfaceInfo();
    return std::string(info.kind) + " " + std::to_string(info.major) + "." + std::to_string(info.minor);
}

// A field of a plugin as an engine holds it.
struct StoredField
{
    std::string name;
    PluginFieldType type;
    int32_t length;
    std::vector<char> bytes;
};
static std::vector<StoredField> gPlan;

inline size_t sizeOf(PluginFieldType type)
{
    switch (type)
    {
    case PluginFieldType::kFLOAT64:
    case PluginFieldType::kINT64: return 8;
    case PluginFieldType::kFLOAT32:
    case PluginFieldType::kINT32: return 4;
    case PluginFieldType::kINT16: return 2;
    default: return 1;
    }
}

struct DimensionExpr final : IDimensionExpr
{
    struct Impl final : DefaultVDimensionExpr
    {
        int64_t value;
        bool constant;
        bool isConstant() const override
        {
            return constant;
        }
        int64_t getConstantValue() const override
        {
            return value;
        }
    } impl;
    DimensionExpr(int64_t value, bool constant)
    {
        impl.value = value;
        impl.constant = constant;
        mImpl = &impl;
    }
};

// Sizes are computed at once; one that is not constant stands for what a run may have.
struct ExprBuilder final : IExprBuilder
{
    struct Impl final : DefaultVExprBuilder
    {
        std::vector<std::unique_ptr<DimensionExpr>> made;
        IDimensionExpr const* make(int64_t value, bool constant)
        {
            made.emplace_back(new DimensionExpr(value, constant));
            return made.back().get();
        }
        IDimensionExpr const* constant(int64_t value) override
        {
            return make(value, true);
        }
        IDimensionExpr const* operation(
            DimensionOperation op, IDimensionExpr const& first, IDimensionExpr const& second) override
        {
            int64_t const a = static_cast<DimensionExpr const&>(first).impl.value;
            int64_t const b = static_cast<DimensionExpr const&>(second).impl.value;
            switch (op)
            {
            case DimensionOperation::kPROD: return make(a * b, false);
            case DimensionOperation::kCEIL_DIV: return make((a + b - 1) / b, false);
            default: return nullptr;
            }
        }
    } impl;
    ExprBuilder()
    {
        mImpl = &impl;
    }
};

inline PluginTensorDesc desc(std::vector<int64_t> const& sizes, TensorFormat format)
{
    return PluginTensorDesc{dims(sizes), DataType::kHALF, format, 1.F};
}
inline DynamicPluginTensorDesc dynamic(int64_t tokens, TensorFormat format = TensorFormat::kLINEAR)
{
    return DynamicPluginTensorDesc{
        desc({-1, tokens}, format), dims({1, tokens}), dims({4, tokens}), dims({2, tokens})};
}

template <class Capability>
Capability* capability(IPluginV3& plugin, PluginCapabilityType type)
{
    return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

// What the parser does with a node that names a plugin.
inline IPluginV3* createForNode(char const* node)
{
    auto* creator = gRegistry.creators.empty() ? nullptr : static_cast<IPluginCreatorV3One*>(gRegistry.creators[0]);
    if (!creator)
    {
        return nullptr;
    }
    PluginFieldCollection const* names = creator->getFieldNames();
    std::string asked;
    for (int32_t i = 0; i < names->nbFields; ++i)
    {
        asked += std::string(i ? ", " : "") + names->fields[i].name + ":" + std::to_string(int(names->fields[i].type));
    }
    record("creator " + show(creator->getPluginName()) + " " + show(creator->getPluginVersion()) + " "
        + show(creator->getPluginNamespace()) + " asks for " + asked);
    int32_t const heads = 8;
    float const scale = 0.125F;
    PluginField const fields[] = {{"heads", &heads, PluginFieldType::kINT32, 1},
        {"scale", &scale, PluginFieldType::kFLOAT32, 1}, {"mode", "full", PluginFieldType::kCHAR, 4}};
    PluginFieldCollection const collection{3, fields};
    return creator->createPlugin(node, &collection, TensorRTPhase::kBUILD);
}

// What the builder asks a plugin; false where it refuses.
inline bool buildPlugin(IPluginV3& plugin)
{
    auto* core = capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
    auto* build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
    auto* runtime = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
    record("plugin " + show(plugin) + ", " + show(*core) + ", " + show(*build) + ", " + show(*runtime) + ", "
        + show(core->getPluginName()) + " " + show(core->getPluginVersion()) + " " + show(core->getPluginNamespace()));
    DataType const input = DataType::kHALF;
    DataType output{};
    int32_t status = build->getOutputDataTypes(&output, build->getNbOutputs(), &input, 1);
    record("plugin output type " + std::to_string(status) + " " + show(output));
    ExprBuilder exprs;
    DimensionExpr const batch(3, false), tokens(7, true);
    DimsExprs const in{2, {&batch, &tokens}};
    DimsExprs out{};
    status = build->getOutputShapes(&in, 1, nullptr, 0, &out, 1, exprs);
    if (status != 0)
    {
        record("plugin output shape fails " + std::to_string(status));
        return false;
    }
    record("plugin output shape " + std::to_string(out.nbDims) + " "
        + std::to_string(static_cast<DimensionExpr const*>(out.d[0])->impl.value) + " "
        + std::to_string(static_cast<DimensionExpr const*>(out.d[1])->impl.value));
    DynamicPluginTensorDesc const tensors[] = {dynamic(7), dynamic(14, TensorFormat::kHWC8)};
    DynamicPluginTensorDesc const fitting[] = {dynamic(7), dynamic(14)};
    record("plugin formats " + show(build->supportsFormatCombination(0, tensors, 1, 1)) + " "
        + show(build->supportsFormatCombination(1, tensors, 1, 1)) + " "
        + show(build->supportsFormatCombination(1, fitting, 1, 1)));
    status = build->configurePlugin(fitting, 1, fitting + 1, 1);
    int32_t tactics[2] = {};
    int32_t const nbTactics = build->getNbTactics();
    int32_t const tacticsStatus = build->getValidTactics(tactics, nbTactics);
    record("plugin configured " + std::to_string(status) + ", workspace "
        + std::to_string(build->getWorkspaceSize(fitting, 1, fitting + 1, 1)) + ", tactics " + std::to_string(nbTactics) + " "
        + std::to_string(tacticsStatus) + " " + std::to_string(tactics[0]) + " "
        + std::to_string(tactics[1]) + ", " + show(build->getTimingCacheID()) + ", limit "
        + std::to_string(build->getFormatCombinationLimit()) + ", " + show(build->getMetadataString()));
    PluginFieldCollection const* fields = runtime->getFieldsToSerialize();
    gPlan.clear();
    for (int32_t i = 0; i < fields->nbFields; ++i)
    {
        PluginField const& field = fields->fields[i];
        auto const* data = static_cast<char const*>(field.data);
        gPlan.push_back({field.name, field.type, field.length, {data, data + field.length * sizeOf(field.type)}});
    }
    return true;
}

// What an engine does that is loaded.
inline IPluginV3* createForEngine()
{
    if (gPlan.empty() || gRegistry.creators.empty())
    {
        return nullptr;
    }
    std::vector<PluginField> fields;
    for (auto const& field : gPlan)
    {
        fields.push_back({field.name.c_str(), field.bytes.data(), field.type, field.length});
    }
    PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    auto* creator = static_cast<IPluginCreatorV3One*>(gRegistry.creators[0]);
    return creator->createPlugin("loaded", &collection, TensorRTPhase::kRUNTIME);
}

inline bool enqueuePlugin(IPluginV3& plugin, cudaStream_t stream)
{
    auto* runtime = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
    PluginTensorDesc const in = desc({2, 7}, TensorFormat::kLINEAR);
    PluginTensorDesc const out = desc({2, 14}, TensorFormat::kLINEAR);
    void const* const inputs[] = {reinterpret_cast<void*>(4096)};
    void* const outputs[] = {reinterpret_cast<void*>(8192)};
    record("plugin tactic " + std::to_string(runtime->setTactic(5)));
    record("plugin shapes " + std::to_string(runtime->onShapeChange(&in, 1, &out, 1)));
    int32_t const status = runtime->enqueue(&in, &out, inputs, outputs, reinterpret_cast<void*>(12288), stream);
    record("plugin run " + std::to_string(status));
    return status == 0;
}
} // namespace stub
