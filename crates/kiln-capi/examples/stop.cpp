// Stops a run from another thread, then draws with the same pipeline: stop BUNDLE
#include <kiln.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

template <auto Free> struct Freed {
    template <class T> void operator()(T *handle) const { Free(handle); }
};
using Pipeline = std::unique_ptr<kiln_pipeline, Freed<kiln_pipeline_free>>;
using Output = std::unique_ptr<kiln_output, Freed<kiln_output_free>>;
using Cancel = std::unique_ptr<kiln_cancel, Freed<kiln_cancel_free>>;

static void check(kiln_status status, kiln_error *error) {
    if (status == KILN_OK) return;
    std::string message = kiln_error_message(error);
    kiln_error_free(error);
    throw std::runtime_error(message);
}

static kiln_status draw(const Pipeline &pipeline, const kiln_cancel *cancel, uint32_t steps, Output &output) {
    const char *prompt = "a red circle";
    kiln_request request{};
    request.size = sizeof request;
    request.prompts = &prompt;
    request.n_prompts = 1;
    request.steps = steps;
    kiln_watch watch{};
    watch.size = sizeof watch;
    watch.cancel = cancel;
    kiln_output *drawn = nullptr;
    kiln_error *error = nullptr;
    kiln_status status = kiln_pipeline_generate(pipeline.get(), &request, &watch, &drawn, &error);
    output.reset(drawn);
    if (status == KILN_CANCELLED) kiln_error_free(error);
    else check(status, error);
    return status;
}

int main(int argc, char **argv) try {
    if (argc != 2) throw std::runtime_error("usage: stop BUNDLE");
    kiln_pipeline *opened = nullptr;
    kiln_error *error = nullptr;
    check(kiln_open(argv[1], nullptr, &opened, &error), error);
    Pipeline pipeline(opened);
    Output output;

    Cancel cancel(kiln_cancel_new());
    std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        kiln_cancel_now(cancel.get());
    });
    struct Join {
        std::thread &thread;
        ~Join() { thread.join(); }
    };
    kiln_status status;
    {
        Join join{other};
        status = draw(pipeline, cancel.get(), 1000, output);
    }
    std::printf("stopped: %s\n", status == KILN_CANCELLED ? "yes" : "no");
    draw(pipeline, nullptr, 4, output);
    kiln_picture picture{};
    check(kiln_output_picture(output.get(), 0, &picture, &error), error);
    std::printf("drawn: %ux%u\n", picture.width, picture.height);
    return status == KILN_CANCELLED ? 0 : 1;
} catch (const std::exception &failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
}
