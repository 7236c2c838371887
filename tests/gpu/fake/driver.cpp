// A CUDA driver without a device. Memory of its device is memory of the host that counts against a limit and is filled with
// rubbish; streams do nothing until somebody waits for them, so that work which was not waited for is seen to be missing;
// kernels are `kernels.cu`, compiled for the processor.
//
// Environment: FAKE_CUDA_MEMORY (bytes), FAKE_CUDA_VERSION (13000), FAKE_CUDA_CAPABILITY (89), FAKE_CUDA_DEVICES (1),
// FAKE_CUDA_LOST_AFTER (launches after which the device is gone), FAKE_CUDA_REPORT (file for what was counted),
// FAKE_CUDA_FOREIGN (set where others have memory of the device that the driver does not know).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#define __global__
#define __device__
struct Dim {
    unsigned x = 1, y = 1, z = 1;
};
static thread_local Dim blockIdx, blockDim, gridDim, threadIdx;
#include KERNELS

typedef int Result;
typedef unsigned long long Address;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, BAD_DEVICE = 101, BAD_IMAGE = 200, NOT_FOUND = 500, NOT_READY = 600, FAILED = 719, NOT_SUPPORTED = 801, BAD_CAPTURE = 900 };

static long number(char const *name, long otherwise) {
    char const *text = getenv(name);
    return text ? atol(text) : otherwise;
}

using Work = std::function<void()>;
static bool lost();

struct Event {
    // The stream's count of work that it was recorded after.
    struct Stream *stream = nullptr;
    uint64_t position = 0;
};
struct Stream {
    std::deque<Work> queue;
    uint64_t n_asked = 0, n_done = 0;
    bool captures = false;
    std::vector<Work> captured;
    void ask(Work work) {
        if (captures) {
            captured.push_back(std::move(work));
            return;
        }
        queue.push_back(std::move(work));
        n_asked++;
    }
    void finish(uint64_t position) {
        while (n_done < position) {
            Work work = std::move(queue.front());
            queue.pop_front();
            if (!lost()) work();
            n_done++;
        }
    }
};
struct Graph {
    std::vector<Work> work;
};
struct Function {
    std::function<Work(void **, unsigned, unsigned)> bind;
};

static std::recursive_mutex gLock;
static std::map<Address, size_t> gDevice, gPinned;
static std::vector<Stream *> gStreams;
static size_t gUsed, gPeak, gPinnedBytes, gPinnedPeak;
// Freed bytes that the pool keeps, and how many it may keep when somebody waits.
static size_t gKept;
static uint64_t gThreshold;
static long gLaunches, gGraphs, gToDevice, gFromDevice, gCompiled;
static int gContext;
static thread_local void *gCurrent;
static std::map<std::string, Function> gFunctions;

struct AtExit {
    ~AtExit() {
        if (char const *path = getenv("FAKE_CUDA_REPORT")) {
            if (FILE *file = fopen(path, "w")) {
                fprintf(file, "{\"peak\": %zu, \"used\": %zu, \"pinned_peak\": %zu, \"pinned\": %zu, \"launches\": %ld, \"graphs\": %ld, \"to_device\": %ld, \"from_device\": %ld, \"compiled\": %ld}\n",
                    gPeak, gUsed, gPinnedPeak, gPinnedBytes, gLaunches, gGraphs, gToDevice, gFromDevice, gCompiled);
                fclose(file);
            }
        }
    }
} static gAtExit;

static size_t limit() { return number("FAKE_CUDA_MEMORY", 8L << 30); }
static bool lost() {
    static long const after = number("FAKE_CUDA_LOST_AFTER", -1);
    return after >= 0 && gLaunches > after;
}
#define LOCKED std::lock_guard<std::recursive_mutex> const lock(gLock)
#define ALIVE LOCKED; if (lost()) return FAILED

static bool is_device(Address address, size_t n) {
    auto after = gDevice.upper_bound(address);
    if (after == gDevice.begin()) return false;
    auto block = std::prev(after);
    return address + n <= block->first + block->second;
}
[[noreturn]] static void die(char const *reason) {
    fprintf(stderr, "fake CUDA: %s\n", reason);
    abort();
}
static Result allocate(Address *address, size_t n) {
    if (gUsed + n > limit()) return OUT_OF_MEMORY;
    gKept = std::min(gKept, limit() - gUsed - n);
    size_t const rounded = std::max<size_t>((n + 255) / 256 * 256, 256);
    void *memory = aligned_alloc(256, rounded);
    memset(memory, 0xff, rounded);
    *address = reinterpret_cast<Address>(memory);
    gDevice[*address] = n;
    gUsed += n;
    gPeak = std::max(gPeak, gUsed);
    return OK;
}
static size_t size_of(Address address) {
    auto found = gDevice.find(address);
    if (found == gDevice.end()) die("memory is freed that is not there");
    return found->second;
}
static void release(Address address) {
    memset(reinterpret_cast<void *>(address), 0xff, size_of(address));
    gDevice.erase(address);
    free(reinterpret_cast<void *>(address));
}
static void finish_all() {
    for (Stream *stream : gStreams) stream->finish(stream->n_asked);
}

template <class... A, size_t... I>
static Work bound(void (*kernel)(A...), void **arguments, unsigned blocks, unsigned threads, std::index_sequence<I...>) {
    std::tuple<A...> copied{*static_cast<A *>(arguments[I])...};
    return [=] {
        gridDim = {blocks, 1, 1};
        blockDim = {threads, 1, 1};
        for (unsigned b = 0; b < blocks; b++)
            for (unsigned t = 0; t < threads; t++) {
                blockIdx = {b, 0, 0};
                threadIdx = {t, 0, 0};
                std::apply(kernel, copied);
            }
    };
}
template <class... A>
static Function function(void (*kernel)(A...)) {
    return {[=](void **arguments, unsigned blocks, unsigned threads) {
        return bound(kernel, arguments, blocks, threads, std::index_sequence_for<A...>{});
    }};
}

extern "C" {
Result cuInit(unsigned) { return number("FAKE_CUDA_DEVICES", 1) ? OK : NO_DEVICE; }
Result cuDriverGetVersion(int *version) { *version = number("FAKE_CUDA_VERSION", 13000); return OK; }
Result cuDeviceGetCount(int *n) { *n = number("FAKE_CUDA_DEVICES", 1); return OK; }
Result cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= number("FAKE_CUDA_DEVICES", 1)) return BAD_DEVICE;
    *device = ordinal;
    return OK;
}
Result cuDeviceGetName(char *name, int n, int) { snprintf(name, n, "Fake GPU"); return OK; }
Result cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = limit(); return OK; }
Result cuDeviceGetAttribute(int *value, int attribute, int) {
    long const capability = number("FAKE_CUDA_CAPABILITY", 89);
    switch (attribute) {
    case 75: *value = capability / 10; return OK;
    case 76: *value = capability % 10; return OK;
    case 115: *value = number("FAKE_CUDA_POOLS", 1); return OK;
    default: *value = 0; return OK;
    }
}
Result cuDevicePrimaryCtxRetain(void **context, int) { ALIVE; *context = &gContext; return OK; }
Result cuDevicePrimaryCtxRelease_v2(int) { return OK; }
Result cuCtxGetCurrent(void **context) { *context = gCurrent; return OK; }
Result cuCtxSetCurrent(void *context) { gCurrent = context; return OK; }
Result cuCtxSynchronize() { ALIVE; finish_all(); return OK; }
Result cuMemGetInfo_v2(size_t *free, size_t *total) { ALIVE; *total = limit(); *free = limit() - gUsed - gKept; return OK; }

Result cuMemAlloc_v2(Address *address, size_t n) { ALIVE; return allocate(address, n); }
Result cuMemAllocAsync(Address *address, size_t n, Stream *stream) {
    ALIVE;
    if (stream->captures) return BAD_CAPTURE;
    gKept -= std::min(gKept, n);
    return allocate(address, n);
}
Result cuMemFree_v2(Address address) {
    LOCKED;
    finish_all();
    gUsed -= size_of(address);
    release(address);
    return OK;
}
Result cuMemFreeAsync(Address address, Stream *stream) {
    LOCKED;
    // What is allocated later in the order of the stream may take its place.
    gUsed -= size_of(address);
    gKept += size_of(address);
    stream->ask([=] { release(address); });
    return OK;
}
// The pool that allocations come from. What was freed counts as used while the pool keeps it.
Result cuDeviceGetDefaultMemPool(void **pool, int) { *pool = &gKept; return OK; }
Result cuMemPoolSetAttribute(void *, int attribute, void *value) {
    LOCKED;
    if (attribute != 4) return NOT_SUPPORTED;
    gThreshold = *static_cast<uint64_t *>(value);
    return OK;
}
Result cuMemPoolTrimTo(void *, size_t keep) {
    LOCKED;
    finish_all();
    gKept = std::min(gKept, keep);
    return OK;
}
Result cuMemHostAlloc(void **memory, size_t n, unsigned) {
    ALIVE;
    *memory = malloc(n);
    gPinned[reinterpret_cast<Address>(*memory)] = n;
    gPinnedBytes += n;
    gPinnedPeak = std::max(gPinnedPeak, gPinnedBytes);
    return OK;
}
Result cuMemFreeHost(void *memory) {
    LOCKED;
    auto found = gPinned.find(reinterpret_cast<Address>(memory));
    if (found == gPinned.end()) die("memory is unpinned that is not pinned");
    memset(memory, 0xff, found->second);
    gPinnedBytes -= found->second;
    gPinned.erase(found);
    free(memory);
    return OK;
}
Result cuPointerGetAttribute(void *value, int attribute, Address address) {
    LOCKED;
    if (attribute != 2) return NOT_SUPPORTED;
    auto in = [&](std::map<Address, size_t> const &blocks) {
        auto after = blocks.upper_bound(address);
        return after != blocks.begin() && address < std::prev(after)->first + std::prev(after)->second;
    };
    if (in(gDevice)) { *static_cast<unsigned *>(value) = 2; return OK; }
    if (in(gPinned)) { *static_cast<unsigned *>(value) = 1; return OK; }
    return INVALID;
}

Result cuMemcpyHtoDAsync_v2(Address to, void const *from, size_t n, Stream *stream) {
    ALIVE;
    if (!is_device(to, n)) die("a copy to the device goes elsewhere");
    gToDevice += n;
    auto after = gPinned.upper_bound(reinterpret_cast<Address>(from));
    bool const pinned = after != gPinned.begin()
        && reinterpret_cast<Address>(from) + n <= std::prev(after)->first + std::prev(after)->second;
    if (pinned) {
        stream->ask([=] { memcpy(reinterpret_cast<void *>(to), from, n); });
    } else {
        auto copied = std::make_shared<std::vector<char>>(static_cast<char const *>(from), static_cast<char const *>(from) + n);
        stream->ask([=] { memcpy(reinterpret_cast<void *>(to), copied->data(), n); });
    }
    return OK;
}
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t n, Stream *stream) {
    ALIVE;
    if (!is_device(from, n)) die("a copy from the device comes from elsewhere");
    gFromDevice += n;
    stream->ask([=] { memcpy(to, reinterpret_cast<void *>(from), n); });
    return OK;
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, Stream *stream) {
    ALIVE;
    bool is_foreign = getenv("FAKE_CUDA_FOREIGN") != nullptr;
    if ((!is_device(from, n) && !is_foreign) || !is_device(to, n)) die("a copy within the device leaves it");
    stream->ask([=] { memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), n); });
    return OK;
}

Result cuStreamCreate(Stream **stream, unsigned) { ALIVE; *stream = new Stream; gStreams.push_back(*stream); return OK; }
Result cuStreamDestroy_v2(Stream *stream) {
    LOCKED;
    stream->finish(stream->n_asked);
    gStreams.erase(std::find(gStreams.begin(), gStreams.end(), stream));
    return OK;
}
Result cuStreamSynchronize(Stream *stream) {
    ALIVE;
    if (stream->captures) return BAD_CAPTURE;
    stream->finish(stream->n_asked);
    gKept = std::min<size_t>(gKept, gThreshold);
    return lost() ? FAILED : OK;
}
Result cuStreamWaitEvent(Stream *stream, Event *event, unsigned) {
    ALIVE;
    Event const recorded = *event;
    stream->ask([=] { if (recorded.stream) recorded.stream->finish(recorded.position); });
    return OK;
}
Result cuStreamBeginCapture_v2(Stream *stream, int) { ALIVE; stream->captures = true; stream->captured.clear(); return OK; }
Result cuStreamEndCapture(Stream *stream, Graph **graph) {
    ALIVE;
    stream->captures = false;
    *graph = new Graph{std::move(stream->captured)};
    stream->captured.clear();
    return OK;
}
Result cuGraphInstantiateWithFlags(Graph **exec, Graph *graph, unsigned long long) { *exec = new Graph(*graph); return OK; }
Result cuGraphLaunch(Graph *exec, Stream *stream) {
    ALIVE;
    gGraphs++;
    for (Work const &work : exec->work) stream->ask(work);
    return OK;
}
Result cuGraphExecDestroy(Graph *exec) { delete exec; return OK; }
Result cuGraphDestroy(Graph *graph) { delete graph; return OK; }
Result cuLaunchHostFunc(Stream *stream, void (*callback)(void *), void *data) {
    ALIVE;
    stream->ask([=] { gLaunches++; callback(data); });
    return OK;
}

Result cuEventCreate(Event **event, unsigned) { ALIVE; *event = new Event; return OK; }
Result cuEventRecord(Event *event, Stream *stream) { ALIVE; *event = {stream, stream->n_asked}; return OK; }
Result cuEventSynchronize(Event *event) {
    ALIVE;
    if (event->stream) event->stream->finish(event->position);
    return lost() ? FAILED : OK;
}
Result cuEventQuery(Event *event) { ALIVE; return !event->stream || event->stream->n_done >= event->position ? OK : NOT_READY; }
Result cuEventDestroy_v2(Event *event) { delete event; return OK; }

Result cuModuleLoadData(void **module, void const *image) {
    ALIVE;
    std::string const header = "// kernels.cu " KERNELS_DIGEST "\n";
    if (strncmp(static_cast<char const *>(image), header.c_str(), header.size())) return BAD_IMAGE;
    gFunctions = {
        {"combine", function(combine)},
        {"guide", function(guide)},
        {"find_not_finite", function(find_not_finite)},
        {"sum_squares", function(sum_squares)},
        {"rescale_spread", function(rescale_spread)},
    };
    *module = &gFunctions;
    return OK;
}
Result cuModuleGetFunction(Function **found, void *, char const *name) {
    auto entry = gFunctions.find(name);
    if (entry == gFunctions.end()) return NOT_FOUND;
    *found = &entry->second;
    return OK;
}
Result cuModuleUnload(void *) { return OK; }
Result cuLaunchKernel(Function *kernel, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned,
    Stream *stream, void **arguments, void **) {
    ALIVE;
    Work work = kernel->bind(arguments, blocks, threads);
    stream->ask([=] { gLaunches++; work(); });
    return OK;
}

Result fakeCountCompiled() { gCompiled++; return OK; }
Result cuGetErrorName(Result error, char const **name) {
    switch (error) {
    case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
    case BAD_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
    case BAD_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
    case FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
    default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return OK;
}
Result cuGetErrorString(Result error, char const **text) {
    switch (error) {
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
    case BAD_DEVICE: *text = "invalid device ordinal"; break;
    case BAD_IMAGE: *text = "device kernel image is invalid"; break;
    case FAILED: *text = "unspecified launch failure"; break;
    default: *text = "unknown error";
    }
    return OK;
}
} // extern "C"
