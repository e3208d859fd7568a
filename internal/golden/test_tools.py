"""The checking tools must notice what is wrong:   python -m unittest test_tools.py"""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import compare
from common import write_tensors
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
DATA = HERE / "testdata"


class CompareTest(unittest.TestCase):
    def setUp(self):
        self.tmp = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.copy = self.tmp / "copy"
        shutil.copytree(DATA, self.copy)

    def differences(self):
        return compare.compare_trees(DATA, self.copy, report=lambda line: None)[0]

    def edit_tensor(self, path, name, change):
        tensors = load_file(self.copy / path)
        tensors[name] = change(tensors[name])
        save_file(tensors, self.copy / path, metadata={"format": "pt"})

    def edit_json(self, path, change):
        value = json.loads((self.copy / path).read_text())
        change(value)
        (self.copy / path).write_text(json.dumps(value))

    def test_same(self):
        self.assertEqual(self.differences(), 0)

    def test_float_noise_and_versions_pass(self):
        self.edit_tensor("families/llama/golden.safetensors", "logits", lambda t: t + 1e-5)
        self.edit_json("families/llama/config.json", lambda c: c.update(transformers_version="9"))
        self.assertEqual(self.differences(), 0)

    def test_changes_are_noticed(self):
        for what, change in {
            "logit": lambda: self.edit_tensor("families/llama/golden.safetensors", "logits", lambda t: t + 1e-3),
            "nan": lambda: self.edit_tensor("lora/llama-qv/golden.safetensors", "logits", lambda t: t * float("nan")),
            "id": lambda: self.edit_tensor("families/llama/golden.safetensors", "input_ids", lambda t: t + 1),
            "dtype": lambda: self.edit_tensor("families/llama/model.safetensors", "lm_head.weight", lambda t: t.double()),
            "bf16 bit": lambda: self.edit_tensor("families/smollm2/model.safetensors", "model.norm.weight", lambda t: t * 1.01),
            "json number": lambda: self.edit_json("curves/llama/curve.json", lambda c: c["loss"].__setitem__(5, 1.0)),
            "json key": lambda: self.edit_json("families/llama/config.json", lambda c: c.pop("hidden_size")),
            "json length": lambda: self.edit_json("targets/targets.json", lambda c: c["cases"].pop()),
            "file gone": lambda: (self.copy / "lora/llama-qv/info.json").unlink(),
            "file more": lambda: (self.copy / "lora/more.json").write_text("{}"),
        }.items():
            with self.subTest(what):
                shutil.rmtree(self.copy)
                shutil.copytree(DATA, self.copy)
                change()
                self.assertGreater(self.differences(), 0)


class CheckAdapterTest(unittest.TestCase):
    """On an adapter that peft made, with the logits that peft gave."""

    def setUp(self):
        self.tmp = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.adapter, self.ids = self.tmp / "adapter", self.tmp / "ids.safetensors"
        shutil.copytree(DATA / "lora" / "llama-patterns", self.adapter)
        golden = load_file(self.adapter / "golden.safetensors")
        self.golden = {k: golden[k] for k in ("input_ids", "logits")}

    def run_check(self):
        write_tensors(self.ids, self.golden)
        run = subprocess.run([sys.executable, HERE / "check_adapter.py", DATA / "families" / "llama", self.adapter, self.ids],
                             capture_output=True, text=True)
        return run.returncode, run.stdout + run.stderr

    def edit(self, change, metadata={"format": "pt"}):
        path = self.adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata=metadata)

    def expect(self, text):
        code, said = self.run_check()
        self.assertEqual(code, 1, said)
        self.assertIn(text, said)

    def test_good(self):
        code, said = self.run_check()
        self.assertEqual(code, 0, said)

    def test_wrong_logits(self):
        self.golden["logits"][0, 0, 0] += 0.01
        self.expect("logits differ")

    def test_missing_and_unexpected(self):
        def rename(tensors):
            name = next(iter(tensors))
            tensors[name.replace("lora_", "lorra_")] = tensors.pop(name)
        self.edit(rename)
        code, said = self.run_check()
        self.assertEqual(code, 1, said)
        self.assertIn("missing tensor", said)
        self.assertIn("unexpected tensor", said)

    def test_metadata(self):
        self.edit(lambda tensors: None, metadata=None)
        self.expect("metadata")


if __name__ == "__main__":
    unittest.main()
