/* A ControlNet and a textual inversion that are added to a pipeline: companions BUNDLE CONTROLNET EMBEDDING PROMPT OUT.png */
#include <kiln.h>
#include <stdio.h>
#include <stdlib.h>

#define WIDTH 40
#define HEIGHT 32

static void must(kiln_status status, kiln_error *error) {
    if (status == KILN_OK) return;
    fprintf(stderr, "%s\n", kiln_error_message(error));
    exit(status);
}

int main(int argc, char **argv) {
    if (argc != 6) return KILN_REQUEST;
    kiln_error *error = NULL;
    kiln_pipeline *pipeline = NULL;
    must(kiln_open(argv[1], NULL, &pipeline, &error), error);
    must(kiln_pipeline_add_controlnet(pipeline, argv[2], &error), error);
    must(kiln_pipeline_add_embedding(pipeline, argv[3], NULL, &error), error);

    static uint8_t rgb[3 * WIDTH * HEIGHT];
    for (int i = 0; i < WIDTH * HEIGHT; i++) {
        int is_left = i % WIDTH < WIDTH / 2;
        rgb[3 * i] = is_left ? 200 : 30;
        rgb[3 * i + 1] = 30;
        rgb[3 * i + 2] = is_left ? 30 : 200;
    }
    kiln_picture picture = {.width = WIDTH, .height = HEIGHT, .rgb = rgb};
    kiln_control control = {.picture = &picture};
    const char *prompts[] = {argv[4]};
    uint64_t seed = 1;
    kiln_request request = {.size = sizeof request,
                            .prompts = prompts,
                            .n_prompts = 1,
                            .seeds = &seed,
                            .n_seeds = 1,
                            .steps = 2,
                            .controls = &control,
                            .n_controls = 1};
    kiln_output *output = NULL;
    must(kiln_pipeline_generate(pipeline, &request, NULL, &output, &error), error);
    must(kiln_output_save_png(output, 0, argv[5], &error), error);
    kiln_output_free(output);

    kiln_control two[] = {control, control};
    request.controls = two;
    request.n_controls = 2;
    if (kiln_pipeline_generate(pipeline, &request, NULL, &output, &error) != KILN_REQUEST) return 1;
    printf("%s\n", kiln_error_message(error));
    kiln_error_free(error);
    kiln_pipeline_free(pipeline);
    return 0;
}
