"""The live adapter beside the new one, so that both answer the same questions; or why it cannot stand there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError

from worker.durable import read_file
from worker.learning.offline_model import MODEL_FILE
from worker.models.adapter import ADAPTER_DIR, PEFT_DIR, AdapterUnreadable, BaseModel, decode
from worker.models.adapter_files import check_adapter
from worker.models.files import MODEL_LIMIT
from worker.training.lora.inputs import LoraChampion

#: The names of the two in PEFT's model.
CANDIDATE, CHAMPION = "default", "champion"


def load_champion(model: PeftModel, champion: LoraChampion, base: BaseModel) -> str | None:
    """Put the champion's weights beside the candidate's, not in force; why not, where it cannot be compared."""
    directory = Path(champion.directory)
    try:
        content = read_file(directory / MODEL_FILE, limit=MODEL_LIMIT)
        if hashlib.sha256(content).hexdigest() != champion.sha256:
            return f"its {MODEL_FILE} is not the one that was registered"
        document = decode(content)
        if document.base.sha256 != base.sha256:
            return f"it was trained on another base ({document.base.name})"
        check_adapter(document, directory / ADAPTER_DIR)
        model.load_adapter(str(directory / ADAPTER_DIR / PEFT_DIR), CHAMPION, is_trainable=False)
    except (OSError, ValueError, AdapterUnreadable, SafetensorError) as error:
        return f"its files cannot be read: {error}"
    return None
