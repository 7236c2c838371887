"""Runs the programs in Python of docs/tutorial-programs.md, in the folder that is the checkout."""

import os
import re
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


class Tutorial(unittest.TestCase):
    def test_its_programs_draw(self):
        text = (ROOT / "docs/tutorial-programs.md").read_text()
        blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
        self.assertEqual(len(blocks), 4)
        self.assertLessEqual(len([line for line in blocks[0].splitlines() if line]), 5)
        with tempfile.TemporaryDirectory() as folder:
            os.symlink(ROOT / "models", Path(folder, "models"))
            os.environ["KILN_ENGINE_CACHE"] = os.path.join(folder, "engines")
            before = os.getcwd()
            os.chdir(folder)
            try:
                names = {}
                exec("\n".join(blocks), names)
                self.assertEqual(names["image"].size, (64, 64))
                self.assertNotEqual(names["again"].tobytes(), names["image"].tobytes())
                self.assertTrue(Path("by-python.png").exists())
            finally:
                os.chdir(before)


if __name__ == "__main__":
    unittest.main()
