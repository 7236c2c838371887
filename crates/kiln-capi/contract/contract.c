/* What kiln.h promises, tried from C: contract BUNDLE PICTURES. Prints a line for each promise that is kept. */
#define _GNU_SOURCE
#include <kiln.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static const char *PROMPTS[] = {"a red circle"};

static kiln_pipeline *open_bundle(const char *bundle) {
    kiln_pipeline *pipeline = NULL;
    kiln_error *error = NULL;
    if (kiln_open(bundle, NULL, &pipeline, &error)) {
        fprintf(stderr, "%s\n", kiln_error_message(error));
        exit(1);
    }
    CHECK(error == NULL);
    return pipeline;
}

static kiln_request request(uint32_t steps) {
    kiln_request request = {.size = sizeof request, .prompts = PROMPTS, .n_prompts = 1, .steps = steps};
    return request;
}

static kiln_output *draw(kiln_pipeline *pipeline, const kiln_request *request) {
    kiln_output *output = NULL;
    kiln_error *error = NULL;
    if (kiln_pipeline_generate(pipeline, request, NULL, &output, &error)) {
        fprintf(stderr, "%s\n", kiln_error_message(error));
        exit(1);
    }
    return output;
}

static int same(const kiln_output *a, const kiln_output *b) {
    kiln_picture one, other;
    CHECK(kiln_output_picture(a, 0, &one, NULL) == KILN_OK && kiln_output_picture(b, 0, &other, NULL) == KILN_OK);
    CHECK(one.width == other.width && one.height == other.height);
    return memcmp(one.rgb, other.rgb, (size_t)3 * one.width * one.height) == 0;
}

/* A call that must fail: its status, and that it says why in words with `text`. */
static void refused(kiln_status status, kiln_status expected, kiln_error **error, const char *text) {
    if (status != expected || strstr(kiln_error_message(*error), text) == NULL) {
        fprintf(stderr, "%d, not %d: '%s' lacks '%s'\n", status, expected, kiln_error_message(*error), text);
        exit(1);
    }
    CHECK(kiln_error_status(*error) == expected);
    kiln_error_free(*error);
}

static void what_is_wrong_is_said(const char *bundle, kiln_pipeline *pipeline) {
    kiln_error *error = NULL;
    kiln_pipeline *opened = (kiln_pipeline *)1;
    kiln_output *output = (kiln_output *)1;
    refused(kiln_open("/no/such/bundle", NULL, &opened, &error), KILN_INPUT, &error, "/no/such/bundle");
    CHECK(opened == NULL);
    refused(kiln_open(NULL, NULL, &opened, &error), KILN_REQUEST, &error, "path is NULL");
    refused(kiln_open("\xff", NULL, &opened, &error), KILN_REQUEST, &error, "not UTF-8");
    refused(kiln_open(bundle, NULL, NULL, &error), KILN_REQUEST, &error, "NULL");
    kiln_options options = {.size = sizeof options, .device = "gpu7"};
    refused(kiln_open(bundle, &options, &opened, &error), KILN_REQUEST, &error, "device: 'gpu7'");
    kiln_options unsized_options = {0};
    refused(kiln_open(bundle, &unsized_options, &opened, &error), KILN_REQUEST, &error, "sizeof(kiln_options)");
    CHECK(kiln_open("/no/such/bundle", NULL, &opened, NULL) == KILN_INPUT);

    kiln_request one = request(0);
    one.prompts = NULL;
    refused(kiln_pipeline_generate(pipeline, &one, NULL, &output, &error), KILN_REQUEST, &error, "prompts is NULL");
    CHECK(output == NULL);
    refused(kiln_pipeline_generate(pipeline, NULL, NULL, &output, &error), KILN_REQUEST, &error, "request is NULL");
    refused(kiln_pipeline_generate(NULL, &one, NULL, &output, &error), KILN_REQUEST, &error, "pipeline is NULL");
    one = request(0);
    one.width = 13;
    refused(kiln_pipeline_generate(pipeline, &one, NULL, &output, &error), KILN_REQUEST, &error, "width: 13");
    one = request(0);
    one.more = "{\"stepz\": 3}";
    refused(kiln_pipeline_generate(pipeline, &one, NULL, &output, &error), KILN_REQUEST, &error, "stepz");
    one = request(0);
    one.strength = 0.5;
    refused(kiln_pipeline_generate(pipeline, &one, NULL, &output, &error), KILN_REQUEST, &error, "no init picture");
    kiln_picture empty = {.width = 0, .height = 8};
    one.init = &empty;
    refused(kiln_pipeline_generate(pipeline, &one, NULL, &output, &error), KILN_REQUEST, &error, "0 x 8 pixels");
    kiln_picture huge = {.width = UINT32_MAX, .height = UINT32_MAX, .rgb = (const uint8_t *)""};
    one.init = &huge;
    refused(kiln_pipeline_generate(pipeline, &one, NULL, &output, &error), KILN_REQUEST, &error, "are no picture");
    const char *none[] = {"/no/such/lora.safetensors"};
    float weights[] = {1};
    refused(kiln_pipeline_set_loras(pipeline, none, weights, 1, &error), KILN_INPUT, &error, "/no/such/lora");
    kiln_memory memory = {.size = sizeof memory, .offload = 9};
    refused(kiln_pipeline_set_memory(pipeline, &memory, &error), KILN_REQUEST, &error, "offload: 9");
    kiln_picture picture;
    kiln_output *drawn = draw(pipeline, (one = request(1), &one));
    refused(kiln_output_picture(drawn, 1, &picture, &error), KILN_REQUEST, &error, "index: 1 of 1");
    refused(kiln_output_save_png(drawn, 0, "/no/such/folder/x.png", &error), KILN_FILES, &error, "/no/such/folder");
    kiln_output_free(drawn);
    puts("ok: what is wrong is said, and nothing breaks");
}

static void structs_of_other_versions(kiln_pipeline *pipeline) {
    /* An older header, whose struct ended before the steps, and a newer one, with fields that are zero, and one that is
       not. */
    kiln_request whole = request(2), fifty = request(50);
    whole.size = offsetof(kiln_request, steps);
    kiln_output *defaults = draw(pipeline, &whole), *by_fifty = draw(pipeline, &fifty);
    CHECK(same(defaults, by_fifty));
    kiln_output_free(defaults);
    kiln_output_free(by_fifty);
    kiln_error *error = NULL;
    struct {
        kiln_request known;
        uint64_t unknown;
    } newer = {.known = request(2)};
    newer.known.size = sizeof newer;
    kiln_output *drawn = draw(pipeline, &newer.known);
    kiln_request same_request = request(2);
    kiln_output *expected = draw(pipeline, &same_request);
    CHECK(same(drawn, expected));
    newer.unknown = 1;
    refused(kiln_pipeline_generate(pipeline, &newer.known, NULL, &defaults, &error), KILN_REQUEST, &error,
            "this version of kiln does not know");
    struct {
        size_t size;
        double start;
        double untouched;
    } older = {.size = offsetof(kiln_seconds, steps), .untouched = -1};
    CHECK(kiln_output_seconds(drawn, (kiln_seconds *)&older, NULL) == KILN_OK && older.start > 0 && older.untouched == -1);
    kiln_output_free(drawn);
    kiln_output_free(expected);
    puts("ok: structs of older and newer headers");
}

struct count {
    unsigned steps, previews, stop_at;
    const kiln_cancel *cancel;
};

static int on_event(const kiln_event *event, void *user) {
    struct count *count = user;
    if (event->kind == KILN_EVENT_PREVIEW) {
        CHECK(event->n_pictures == 1 && event->pictures[0].width == 64 && event->pictures[0].rgb != NULL);
        count->previews++;
    }
    if (event->kind == KILN_EVENT_STEP) {
        CHECK(event->step == ++count->steps);
        if (count->cancel && count->steps == count->stop_at) kiln_cancel_now(count->cancel);
        return !count->cancel && count->steps == count->stop_at;
    }
    return 0;
}

static void stopping(kiln_pipeline *pipeline) {
    kiln_request four = request(4);
    kiln_output *expected = draw(pipeline, &four), *output;
    kiln_cancel *cancel = kiln_cancel_new();
    for (int by_token = 0; by_token < 2; by_token++) {
        struct count count = {.stop_at = 2, .cancel = by_token ? cancel : NULL};
        kiln_watch watch = {.size = sizeof watch, .on_event = on_event, .user = &count, .cancel = cancel};
        kiln_error *error = NULL;
        refused(kiln_pipeline_generate(pipeline, &four, &watch, &output, &error), KILN_CANCELLED, &error, "2");
        CHECK(output == NULL && count.steps == 2);
        kiln_output *again = draw(pipeline, &four);
        CHECK(same(again, expected));
        kiln_output_free(again);
    }
    kiln_cancel_free(cancel);
    struct count count = {0};
    kiln_watch watch = {.size = sizeof watch, .on_event = on_event, .user = &count, .preview_every = 2};
    CHECK(kiln_pipeline_generate(pipeline, &four, &watch, &output, NULL) == KILN_OK);
    CHECK(count.steps == 4 && count.previews == 1 && same(output, expected));
    kiln_output_free(output);
    kiln_output_free(expected);
    puts("ok: stopped by an event and by a token, then drawn again; previews");
}

static void pictures_in(kiln_pipeline *pipeline) {
    kiln_request three = request(3);
    kiln_output *plain = draw(pipeline, &three), *output;
    kiln_picture init;
    CHECK(kiln_output_picture(plain, 0, &init, NULL) == KILN_OK);
    /* A picture of one colour, of which the mask lets the upper half be painted. */
    size_t n = (size_t)3 * init.width * init.height;
    uint8_t *gray = malloc(n), *upper = calloc(n, 1);
    memset(gray, 128, n);
    memset(upper, 255, n / 2);
    kiln_picture flat = {.width = init.width, .height = init.height, .rgb = gray};
    kiln_picture mask = {.width = init.width, .height = init.height, .rgb = upper};
    three.init = &flat;
    three.strength = 0.6;
    output = draw(pipeline, &three);
    CHECK(!same(output, plain));
    kiln_output *painted[2];
    three.mask = &mask;
    for (uint32_t i = 0; i < 2; i++) {
        three.fill = i ? KILN_FILL_NOISE : KILN_FILL_PICTURE;
        painted[i] = draw(pipeline, &three);
        CHECK(!same(painted[i], output));
    }
    CHECK(!same(painted[0], painted[1]));
    kiln_picture kept;
    CHECK(kiln_output_picture(painted[0], 0, &kept, NULL) == KILN_OK);
    long off = 0;
    for (size_t i = n - n / 8; i < n; i++) off += labs((long)kept.rgb[i] - 128);
    CHECK(off / (long)(n / 8) < 24);
    free(gray);
    free(upper);
    kiln_output_free(painted[0]);
    kiln_output_free(painted[1]);
    kiln_output_free(output);
    kiln_output_free(plain);
    puts("ok: a picture and a mask go in");
}

static void memory(kiln_pipeline *pipeline) {
    kiln_request two = request(2);
    kiln_output *expected = draw(pipeline, &two);
    kiln_plan plan = {.size = sizeof plan};
    CHECK(kiln_pipeline_plan(pipeline, &two, 0, &plan, NULL) == KILN_OK && plan.peak_bytes > 1000000 && plan.seconds > 0);
    kiln_error *error = NULL;
    refused(kiln_pipeline_plan(pipeline, &two, 1, &plan, &error), KILN_MEMORY, &error, "1");
    kiln_memory frugal = {.size = sizeof frugal, .offload = KILN_OFFLOAD_SEQUENTIAL};
    CHECK(kiln_pipeline_set_memory(pipeline, &frugal, NULL) == KILN_OK);
    kiln_output_free(draw(pipeline, &two));
    CHECK(kiln_pipeline_set_memory(pipeline, NULL, NULL) == KILN_OK && kiln_pipeline_release(pipeline, NULL) == KILN_OK);
    kiln_output *again = draw(pipeline, &two);
    CHECK(same(again, expected));
    kiln_output_free(again);
    kiln_output_free(expected);
    puts("ok: plans, offload, release");
}

struct work {
    kiln_pipeline *pipeline;
    kiln_output *output;
};

static void budgets(const char *bundle, kiln_pipeline *pipeline) {
    kiln_request two = request(2);
    kiln_output *expected = draw(pipeline, &two), *output;
    kiln_error *error = NULL;
    kiln_pipeline *small;
    kiln_memory memory = {.size = sizeof memory, .offload = KILN_OFFLOAD_SEQUENTIAL};
    kiln_options options = {.size = sizeof options, .memory = &memory, .weights_budget = 1};
    CHECK(kiln_open(bundle, &options, &small, NULL) == KILN_OK);
    refused(kiln_pipeline_generate(small, &two, NULL, &output, &error), KILN_MEMORY, &error, "budget");
    kiln_pipeline_free(small);
    options.weights_budget = 16 << 20;
    CHECK(kiln_open(bundle, &options, &small, NULL) == KILN_OK);
    output = draw(small, &two);
    CHECK(same(expected, output));
    kiln_output_free(output);
    kiln_output_free(expected);
    kiln_pipeline_free(small);
    printf("ok: budgets hold\n");
}

static void *in_thread(void *argument) {
    struct work *work = argument;
    kiln_request three = request(3);
    work->output = draw(work->pipeline, &three);
    return NULL;
}

static void threads(const char *bundle, kiln_pipeline *pipeline) {
    /* Two threads with one pipeline, and a third with another. */
    kiln_pipeline *other = open_bundle(bundle);
    struct work work[] = {{pipeline, NULL}, {pipeline, NULL}, {other, NULL}};
    pthread_t thread[3];
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&thread[i], NULL, in_thread, &work[i]) == 0);
    for (int i = 0; i < 3; i++) CHECK(pthread_join(thread[i], NULL) == 0);
    CHECK(same(work[0].output, work[1].output) && same(work[0].output, work[2].output));
    /* Outputs outlive what drew them. */
    kiln_pipeline_free(other);
    CHECK(same(work[2].output, work[0].output));
    for (int i = 2; i >= 0; i--) kiln_output_free(work[i].output);
    puts("ok: several threads, freed in any order");
}

static int recursive(const kiln_event *event, void *user) {
    (void)event;
    kiln_error *error = NULL;
    refused(kiln_pipeline_release(user, &error), KILN_REQUEST, &error, "cannot use the pipeline that calls it");
    return 0;
}

static void recursion(kiln_pipeline *pipeline) {
    kiln_request one = request(1);
    kiln_watch watch = {.size = sizeof watch, .on_event = recursive, .user = pipeline};
    kiln_output *output = NULL;
    CHECK(kiln_pipeline_generate(pipeline, &one, &watch, &output, NULL) == KILN_OK);
    kiln_output_free(output);
    puts("ok: an event function that calls back is told so");
}

static void growth(const char *bundle, kiln_pipeline *pipeline, int n_pictures) {
    /* Pictures, refused requests, failed opens and stopped runs; what the allocator counts, not what it keeps. */
    size_t before = 0;
    for (int i = 0; i < n_pictures; i++) {
        if (i == n_pictures / 4) before = mallinfo2().uordblks;
        kiln_request one = request(1);
        kiln_output_free(draw(pipeline, &one));
        kiln_output *output;
        kiln_pipeline *opened;
        kiln_error *error = NULL;
        one.width = 13;
        refused(kiln_pipeline_generate(pipeline, &one, NULL, &output, &error), KILN_REQUEST, &error, "width");
        refused(kiln_open("/no/such/bundle", NULL, &opened, &error), KILN_INPUT, &error, "no");
        one = request(2);
        struct count count = {.stop_at = 1};
        kiln_watch watch = {.size = sizeof watch, .on_event = on_event, .user = &count};
        refused(kiln_pipeline_generate(pipeline, &one, &watch, &output, &error), KILN_CANCELLED, &error, "1");
        if (i % 16 == 0) {
            CHECK(kiln_open(bundle, NULL, &opened, NULL) == KILN_OK);
            kiln_pipeline_free(opened);
        }
    }
    size_t after = mallinfo2().uordblks;
    /* A picture is 12 KiB: a hundredth of those that were drawn, and what the engine keeps. */
    if (n_pictures >= 100 && after > before + 128 * 1024) {
        fprintf(stderr, "%zu bytes, then %zu bytes\n", before, after);
        exit(1);
    }
    printf("ok: %d pictures without growth\n", n_pictures);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    CHECK(kiln_abi_version() == KILN_ABI_VERSION && strlen(kiln_version()) > 0);
    kiln_error_free(NULL);
    kiln_output_free(NULL);
    kiln_pipeline_free(NULL);
    kiln_cancel_free(NULL);
    kiln_cancel_now(NULL);
    CHECK(kiln_error_status(NULL) == KILN_OK && strlen(kiln_error_message(NULL)) == 0 && !kiln_error_hint(NULL));
    CHECK(kiln_output_n_pictures(NULL) == 0 && kiln_pipeline_notice(NULL, 0) == NULL);
    kiln_pipeline *pipeline = open_bundle(argv[1]);
    what_is_wrong_is_said(argv[1], pipeline);
    structs_of_other_versions(pipeline);
    stopping(pipeline);
    pictures_in(pipeline);
    memory(pipeline);
    budgets(argv[1], pipeline);
    threads(argv[1], pipeline);
    recursion(pipeline);
    growth(argv[1], pipeline, atoi(argv[2]));
    kiln_pipeline_free(pipeline);
    return 0;
}
