"""Seconds of an SFT step with and without `trimtab.allocator`, turn by turn in one run.

python benchmarks/allocator.py
"""

import subprocess
import sys

STEP = """
import sys, time, torch
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    from trimtab.allocator import keep_freed_memory
    keep_freed_memory()
from trimtab.data import load_records
from trimtab.methods import find
from trimtab.policies.load import ModelConfig, load_language_policy, resolve_model
from trimtab.train import RunConfig, make_table, train
policy = load_language_policy(ModelConfig(model=resolve_model("reviews")))
method = find("sft")()
run = RunConfig(steps=8, batch_size=64, max_length=96)
table = make_table(method, load_records("reviews:demonstrations"), policy.tokenizer, run)
for metrics in train(method, policy, table, run):
    if metrics["step"] == 2:
        start = metrics["seconds"]
print((metrics["seconds"] - start) / 6)
"""


def seconds(setting: str) -> float:
    out = subprocess.run([sys.executable, "-c", STEP, setting], capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def main() -> None:
    print("seconds a step: given back, kept, ratio")
    for _ in range(5):
        given, kept = seconds("given back"), seconds("kept")
        print(f"{given:.3f}  {kept:.3f}  {given / kept:.2f}")


if __name__ == "__main__":
    main()
