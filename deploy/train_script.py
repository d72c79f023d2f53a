"""A training script of one's own, for SWARM_LORA_TRAIN_SCRIPT: the least that one must do. Copy it, change learn()."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from worker.training.lora.base import Base, device_of, load_base  # PYTHONPATH says where the worker lies
from worker.training.lora.gguf_adapter import write_gguf


def learn(model: PeftModel, base: Base, rows: list[dict[str, Any]], config: dict[str, Any]) -> None:
    """One example a step: the likelihood of the wanted answer, after the chat template's prompt."""
    optimiser = torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), config["learning_rate"])
    for row in rows * config["epochs"]:
        messages = [{"role": "user", "content": row["prompt"]}]
        if row["system"]:
            messages.insert(0, {"role": "system", "content": row["system"]})
        prompt = base.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        asked, answer = (
            base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, row["chosen"])
        )
        ids = torch.tensor([[*asked, *answer]], device=model.device)
        labels = ids.clone()
        labels[:, : len(asked)] = -100  # the question is not learnt
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def main() -> None:
    """Read what is given, train, and leave adapter/, model.json and, last of all, result.json."""
    run_dir = Path(sys.argv[1])
    given = json.loads((run_dir / "input.json").read_text())
    config, around = given["config"], given["surroundings"]
    output = Path(around["output_dir"])
    rows = [json.loads(line) for line in (run_dir / "train.jsonl").read_text().splitlines()]
    result: dict[str, Any] = {"run_id": given["run_id"], "outcome": "nothing", "reason": f"{len(rows)} examples"}
    if len(rows) >= config["min_examples"]:
        torch.manual_seed(config["seed"])
        base = load_base(config["base_model"], device_of(config["device"]))
        names = sorted(config["target_modules"])
        shape = LoraConfig(
            r=config["rank"], lora_alpha=config["alpha"], target_modules=names, task_type="CAUSAL_LM"
        )  # fmt: skip
        model = get_peft_model(base.model, shape)
        learn(model, base, rows, config)
        adapter = output / "adapter"
        model.save_pretrained(adapter / "peft", save_embedding_layers=False)
        serving = around["serving_base"]  # for llama.cpp; vLLM loads adapter/peft
        write_gguf(
            adapter, base=base.path, serving=Path(serving) if serving else None, converter=around["converter"]
        )  # fmt: skip
        document = {
            "format": 1, "kind": "lora", "scenario": given["scenario"], "objective": config["objective"],
            "base": {name: getattr(base.document, name) for name in ("name", "architecture", "sha256")},
            "rank": config["rank"], "alpha": config["alpha"], "target_modules": names, "examples": len(rows),
            "data_sha256": given["manifest_sha256"], "files": files_below(adapter),
        }  # fmt: skip
        content = json.dumps(document, sort_keys=True).encode()
        (output / "model.json").write_bytes(content)
        gate = {"verdict": "not_evaluable", "reasons": ["this script holds nothing against the held-out examples"]}
        result |= {"outcome": "model", "reason": "", "model_sha256": hashlib.sha256(content).hexdigest(), "gate": gate}
    (output / "result.json").write_text(json.dumps(result))


def files_below(directory: Path) -> list[dict[str, Any]]:
    """All files there by path, with hash and size in bytes."""
    found = []
    for path in sorted(each for each in directory.rglob("*") if each.is_file()):
        data = path.read_bytes()
        name = path.relative_to(directory).as_posix()
        found.append({"path": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)})
    return found


if __name__ == "__main__":
    main()
