"""Reads the order of TensorRT's virtual methods, and the numbers of its enumerators, off its public headers.

    python vtables.py FOLDER... > vtables.json

Each FOLDER holds the headers of one release (NvInferVersion.h, NvInferImpl.h, NvOnnxParser.h, ...), as NVIDIA publishes
them in github.com/NVIDIA/TensorRT/include. Within a major version, tables only grow at their end: the file holds the
newest order and how much of it each release has.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

# Implementation interfaces start with the two entries of a virtual destructor; interfaces whose methods are called on the
# object itself have it where they declare it.
IMPLEMENTATIONS = """VHostMemory VRuntime VRuntimeConfig VRuntimeCache VWeightsManager VRefitter VOptimizationProfile
    VCudaEngine VExecutionContext VEngineInspector VTensor VLayer VAttentionBoundaryLayer VAttention VNetworkDefinition
    VTimingCache VBuilderConfig VSerializationConfig VBuilder VDimensionExpr VExprBuilder""".split()
DIRECT = ["IParser", "IParserError", "IPluginRegistry"]
# Interfaces that the application implements; their tables start with those of their bases.
CALLBACKS = """ILogger IProgressMonitor IStreamReaderV2 IPluginV3 IPluginV3OneCore IPluginV3OneBuild IPluginV3OneRuntime
    IPluginCreatorV3One""".split()
ENUMERATIONS = """BuilderFlag ComputeCapability DataType DimensionOperation ExecutionContextAllocationStrategy
    HardwareCompatibilityLevel LayerInformationFormat LayerType MemoryPoolType NetworkDefinitionCreationFlag
    OptProfileSelector ProfilingVerbosity SerializationFlag TensorFormat TensorIOMode""".split()


def methods(body):
    """Names in a table's order. Of overloads, one that is deprecated is marked, so that a plain name is the newest."""
    found = re.findall(r"(\bTRT_DEPRECATED\s+)?\bvirtual\b[^;{]*?(~?\w+)\s*\(", body)
    counts = Counter(name for _, name in found)
    names = []
    for deprecated, name in found:
        if name.startswith("~"):
            names += ["~complete", "~deleting"]
        else:
            names.append(f"{name} (deprecated)" if deprecated and counts[name] > 1 else name)
    return names


def find_class(text, name):
    return re.search(r"\bclass (?:TRT_DEPRECATED )?%s\b(?:[^;{]*?\bpublic (?:\w+::)*(\w+))?[^;{]*\{(.*?)\n\};?" % name, text, re.S)


def callback_methods(text, name):
    """Methods of the bases first; one that is declared again keeps its place."""
    found = find_class(text, name)
    inherited = callback_methods(text, found[1]) if found[1] else []
    return inherited + [method for method in methods(found[2]) if method not in inherited]


def read(folder):
    text = "".join(header.read_text() for header in sorted(folder.glob("Nv*.h")))
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    tables = {}
    for name in IMPLEMENTATIONS + DIRECT:
        if found := find_class(text, name):
            tables[name] = ([] if name in DIRECT else ["~complete", "~deleting"]) + methods(found[2])
    for name in CALLBACKS:
        if find_class(text, name):
            tables[name] = callback_methods(text, name)
    enumerators = {}
    for name in ENUMERATIONS:
        if found := re.search(r"\benum class %s\b[^;{]*\{(.*?)\}" % name, text, flags=re.S):
            enumerators[name] = {k: int(v) for k, v in re.findall(r"\b(k\w+)[^,=]*=\s*(\d+)", found[1])}
    version = (folder / "NvInferVersion.h").read_text()
    number = lambda part: int(re.search(r"define (?:NV_TENSORRT|TRT)_%s\w* (\d+)" % part, version)[1])
    kind = "rtx" if re.search(r"TRT_MAJOR_RTX", version) else "enterprise"
    return kind, number("MAJOR"), number("MINOR"), tables, enumerators


def main():
    releases = sorted((read(Path(folder)) for folder in sys.argv[1:]), key=lambda release: release[:3])
    families = {}
    for kind, major, minor, tables, enumerators in releases:
        family = families.setdefault(f"{kind} {major}", {"order": {}, "lengths": {}, "enumerators": {}})
        for name, table in tables.items():
            known = family["order"].get(name, [])
            if table[: len(known)] != known:
                sys.exit(f"{kind} {major}.{minor}: {name} does not continue the release before")
            family["order"][name] = table
        for name, numbers in enumerators.items():
            known = family["enumerators"].setdefault(name, {})
            if any(numbers.get(key) != number for key, number in known.items()):
                sys.exit(f"{kind} {major}.{minor}: {name} does not continue the release before")
            known.update(numbers)
        family["lengths"][str(minor)] = {name: len(table) for name, table in tables.items()}
    rows = []
    for name, family in families.items():
        parts = [
            f'  "{part}": {{\n' + ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()) + "\n  }"
            for part, table in family.items()
        ]
        rows.append(f' "{name}": {{\n' + ",\n".join(parts) + "\n }")
    print("{\n" + ",\n".join(rows) + "\n}")


main()
