"""The wheel as a user has it: python -m unittest, with KILN (the command) and MODEL (a checkpoint) in the environment."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import kiln

KILN, MODEL = os.environ["KILN"], os.environ["MODEL"]
PROMPT = "a red circle"


class Drawing(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.cache = os.path.join(cls.folder.name, "engines")
        cls.pipe = kiln.Pipeline.from_pretrained(MODEL, engine_cache=cls.cache)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def draw(self, *arguments, **settings):
        settings = {"seed": 7, "num_inference_steps": 4, "output_type": "bytes", **settings}
        return self.pipe(PROMPT, *arguments, **settings).images

    def test_a_checkpoint_is_compiled_once_and_a_bundle_opened_as_it_is(self):
        bundle = kiln.compile(MODEL, engine_cache=self.cache)
        self.assertEqual(bundle, kiln.compile(MODEL, engine_cache=self.cache))
        again = kiln.Pipeline(bundle)
        self.assertEqual(again(PROMPT, seed=7, num_inference_steps=4, output_type="bytes").images, self.draw())
        self.assertNotEqual(bundle, kiln.compile(MODEL, precision="bf16", engine_cache=self.cache))

    def test_pictures_are_those_of_the_command(self):
        from PIL import Image

        out = os.path.join(self.folder.name, "by-command.png")
        bundle = kiln.compile(MODEL, engine_cache=self.cache)
        subprocess.run([KILN, "generate", PROMPT, "--model", bundle, "--seed", "7", "--steps", "4", "--out", out],
                       check=True, capture_output=True)
        (width, height, data), = self.draw()
        by_command = Image.open(out).convert("RGB")
        self.assertEqual((by_command.size, by_command.tobytes()), ((width, height), data))

    def test_results_are_pillows_numpys_or_plain(self):
        import numpy

        (width, height, data), = self.draw()
        self.assertEqual(self.draw(output_type="pil")[0].tobytes(), data)
        array = self.draw(output_type="np")
        self.assertEqual((array.shape, array.dtype), ((1, height, width, 3), numpy.float32))
        self.assertEqual((array * 255).round().astype(numpy.uint8).tobytes(), data)
        images, flagged = self.pipe(PROMPT, seed=7, num_inference_steps=4, output_type="bytes", return_dict=False)
        self.assertEqual((images[0][2], flagged), (data, None))

    def test_seeds_come_from_numbers_and_generators_and_differ_without(self):
        class Generator:
            device = "cpu"

            def initial_seed(self):
                return 7

        self.assertEqual(self.draw(seed=None, generator=Generator()), self.draw())
        self.assertEqual(self.draw(seed=None, generator=7), self.draw())
        unseeded = [self.pipe(PROMPT, num_inference_steps=1, output_type="bytes") for _ in range(2)]
        self.assertNotEqual(unseeded[0].images, unseeded[1].images)
        self.assertEqual(self.draw(seed=unseeded[0].seeds[0], num_inference_steps=1), unseeded[0].images)

    def test_several_pictures_of_a_prompt_have_a_seed_each(self):
        two = self.pipe(PROMPT, num_images_per_prompt=2, generator=[7, 8], num_inference_steps=4, output_type="bytes")
        self.assertEqual([two.images[0]], self.draw())

    def test_pictures_and_masks_of_every_kind_go_in(self):
        import numpy
        from PIL import Image

        (width, height, data), = self.draw()
        pil = Image.frombytes("RGB", (width, height), data)
        path = os.path.join(self.folder.name, "in.png")
        pil.save(path)
        array = numpy.asarray(pil)
        drawn = [self.draw(image=one, strength=0.5) for one in ((width, height, data), pil, path, array, array / 255)]
        self.assertTrue(all(one == drawn[0] for one in drawn))
        mask = Image.new("L", (width, height))
        mask.paste(255, (0, 0, width // 2, height))
        painted = numpy.frombuffer(self.draw(image=pil, mask_image=mask, strength=1.0)[0][2], numpy.uint8)
        self.assertFalse(numpy.array_equal(painted, numpy.frombuffer(data, numpy.uint8)))

    def test_steps_are_told_and_stopped(self):
        seen = []

        def on_step(pipe, step, timestep, values):
            seen.append((step, timestep, values["latents"].shape))
            pipe._interrupt = step == 1
            return values

        self.draw(callback_on_step_end=on_step)
        self.assertEqual([(step, timestep) for step, timestep, _ in seen], [(0, 999.0), (1, 749.0)])
        self.assertEqual(self.draw(callback_on_step_end=lambda *_: {}), self.draw())

    def test_what_a_callback_raises_comes_out_and_the_pipeline_draws_on(self):
        def on_step(pipe, step, timestep, values):
            raise KeyError("mine")

        with self.assertRaises(KeyError):
            self.draw(callback_on_step_end=on_step)

        def recursive(pipe, step, timestep, values):
            pipe(PROMPT, seed=1)

        with self.assertRaisesRegex(kiln.RequestError, "callback cannot use the pipeline"):
            self.draw(callback_on_step_end=recursive)
        self.assertEqual(self.draw(), self.draw())

    def test_offload_and_tiles_are_diffusers_names(self):
        expected = self.draw()
        self.pipe.enable_sequential_cpu_offload()
        self.pipe.enable_vae_tiling()
        self.pipe.enable_vae_slicing()
        self.pipe.enable_attention_slicing()
        self.assertEqual(len(self.draw()), 1)
        self.pipe._memory = {}
        self.pipe._set_memory()
        self.assertEqual(self.draw(), expected)

    def test_plans_need_figures_and_say_so(self):
        with self.assertRaisesRegex(kiln.InputError, "no figures .hint: kiln measure"):
            self.pipe.plan(PROMPT)
        bundle = kiln.compile(MODEL, engine_cache=os.path.join(self.folder.name, "measured"))
        subprocess.run([KILN, "measure", bundle], check=True, capture_output=True)
        pipe = kiln.Pipeline(bundle)
        plan = pipe.plan(PROMPT, steps=4)
        self.assertTrue(plan["peak_bytes"] > 1_000_000 and plan["memory"]["offload"] == "none")
        with self.assertRaises(kiln.BudgetError):
            pipe.plan(PROMPT, budget=1)

    def test_what_is_cut_off_is_warned_of(self):
        for callback in (None, lambda *_: {}):
            with self.assertWarnsRegex(UserWarning, "the prompt is too long"):
                self.pipe("red " * 100, seed=1, num_inference_steps=1, output_type="bytes", callback_on_step_end=callback)

    def test_another_device_keeps_what_was_set(self):
        # A process has one number of threads.
        script = (f"import kiln; pipe = kiln.Pipeline({self.pipe._engine.path!r}, threads=1);"
                  "pipe.enable_sequential_cpu_offload();"
                  f"draw = lambda: pipe({PROMPT!r}, seed=7, num_inference_steps=2, output_type='bytes').images;"
                  "expected = draw(); assert pipe.to('cpu') is pipe and draw() == expected and pipe._threads == 1\n"
                  "try: pipe.to('tpu')\n"
                  "except kiln.RequestError: pass\n"
                  "else: raise SystemExit('no error')")
        subprocess.run([sys.executable, "-c", script], check=True)

    def test_errors_are_exceptions_by_kind(self):
        for error, call in [
            (kiln.RequestError, lambda: self.draw(width=13)),
            (kiln.RequestError, lambda: self.draw(stepz=3)),
            (kiln.RequestError, lambda: self.draw(strength=0.5)),
            (kiln.RequestError, lambda: self.draw(image=3)),
            (kiln.RequestError, lambda: self.draw(generator=3)),
            (kiln.RequestError, lambda: self.draw(output_type="latent")),
            (kiln.RequestError, lambda: self.draw(num_images_per_prompt=10**9)),
            (kiln.RequestError, lambda: self.draw(seed=-1)),
            (kiln.RequestError, lambda: self.draw(seed=1 << 70)),
            (kiln.RequestError, lambda: self.pipe(None)),
            (kiln.InputError, lambda: self.draw(image="/no/such.png")),
            (kiln.RequestError, lambda: kiln.Pipeline.from_pretrained(MODEL, revision="x")),
            (kiln.InputError, lambda: kiln.Pipeline("/no/such/bundle")),
            (kiln.InputError, lambda: kiln.compile("/no/such/checkpoint")),
            (kiln.InputError, lambda: self.pipe.load_lora_weights("/no/such/lora.safetensors")),
            (kiln.RequestError, lambda: self.pipe.set_adapters("none")),
        ]:
            with self.assertRaises(error):
                call()
        with self.assertRaises(ValueError):
            self.draw(width=13)
        with self.assertRaisesRegex(kiln.RequestError, "^guidance_scale: invalid type: string .high., expected f32$"):
            self.draw(guidance_scale="high")
        self.assertEqual(self.draw(), self.draw())

    def test_threads_draw_without_the_interpreters_lock(self):
        expected, found = self.draw(), []
        threads = [threading.Thread(target=lambda: found.append(self.draw())) for _ in range(3)]
        ticks = 0
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            ticks += 1
            time.sleep(0.002)
        self.assertEqual(found, [expected] * 3)
        self.assertGreater(ticks, 3)

    def test_an_interrupt_stops_a_long_run(self):
        script = (f"import kiln; pipe = kiln.Pipeline.from_pretrained({MODEL!r}, engine_cache={self.cache!r});"
                  f"print('ready', flush=True); pipe({PROMPT!r}, seed=1, num_inference_steps=1000, output_type='bytes')")
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertEqual(child.stdout.readline(), "ready\n")
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        _, complaint = child.communicate(timeout=10)
        self.assertIn("KeyboardInterrupt", complaint)


class WithoutPackages(unittest.TestCase):
    def test_neither_numpy_nor_pillow_is_needed(self):
        hide = "import sys; sys.modules['numpy'] = None; sys.modules['PIL'] = None; import kiln;"
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        draw = (f"pipe = kiln.Pipeline.from_pretrained({MODEL!r}, engine_cache={folder.name!r});"
                f"out = pipe({PROMPT!r}, seed=1, num_inference_steps=2, output_type='bytes');"
                "assert len(out.images[0][2]) == 64 * 64 * 3\n"
                "try: pipe('x', num_inference_steps=1)\n"
                "except kiln.RequestError as error: assert 'Pillow is not installed' in str(error)\n"
                "else: raise SystemExit('no error')")
        subprocess.run([sys.executable, "-c", hide + draw], check=True)


if __name__ == "__main__":
    unittest.main()
