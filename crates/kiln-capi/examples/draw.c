/* Draws a picture: draw BUNDLE PROMPT OUT.png */
#include <kiln.h>
#include <stdio.h>

static int fail(kiln_error *error) {
    const char *hint = kiln_error_hint(error);
    fprintf(stderr, "%s\n", kiln_error_message(error));
    if (hint) fprintf(stderr, "hint: %s\n", hint);
    int status = kiln_error_status(error);
    kiln_error_free(error);
    return status;
}

static int on_event(const kiln_event *event, void *user) {
    (void)user;
    if (event->kind == KILN_EVENT_STEP) fprintf(stderr, "\rstep %u of %u", event->step, event->steps);
    return 0; /* anything else stops */
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s BUNDLE PROMPT OUT.png\n", argv[0]);
        return KILN_REQUEST;
    }
    kiln_error *error = NULL;
    kiln_pipeline *pipeline = NULL;
    if (kiln_open(argv[1], NULL, &pipeline, &error)) return fail(error);
    for (size_t i = 0; kiln_pipeline_notice(pipeline, i); i++) fprintf(stderr, "%s\n", kiln_pipeline_notice(pipeline, i));

    const char *prompts[] = {argv[2]};
    uint64_t seed = 7;
    kiln_request request = {
        .size = sizeof request, .prompts = prompts, .n_prompts = 1, .seeds = &seed, .n_seeds = 1, .steps = 20};
    kiln_watch watch = {.size = sizeof watch, .on_event = on_event};
    kiln_output *output = NULL;
    kiln_status status = kiln_pipeline_generate(pipeline, &request, &watch, &output, &error);
    fprintf(stderr, "\n");
    if (!status) status = kiln_output_save_png(output, 0, argv[3], &error);
    if (status) fail(error);
    kiln_output_free(output);
    kiln_pipeline_free(pipeline);
    return status;
}
